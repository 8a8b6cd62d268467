"""ImageNet's official archives: which they are, and whether they are whole."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.run.console import ProgressBar, logger
from pipeline.run.errors import UserError
from pipeline.run.files import open_file

# With their MD5, as torchvision gives them.
TRAIN = "ILSVRC2012_img_train.tar"
VAL = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
CHECKSUMS = {
    TRAIN: "1d675b47d978889d74fa0da5fadfb00e",
    VAL: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT: "fa75699e90414af021442c21a62c3abf",
}
STEP = 2**24  # bytes that are read at a time


class Archives(NamedTuple):
    """The paths of the three archives."""

    train: Path
    val: Path
    devkit: Path


def find(folder: Path) -> Archives:
    """The archives in ``folder``. Raises UserError where one is missing."""
    missing = [name for name in CHECKSUMS if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {', '.join(missing)}; fetch them from image-net.org, and keep their "
            "names"
        )
    return Archives(folder / TRAIN, folder / VAL, folder / DEVKIT)


def check(archives: Archives) -> None:
    """Compare the archives with their checksums, the smallest first; raises UserError for one that
    differs."""
    steps = sum(path.stat().st_size // STEP + 1 for path in archives)
    logger.info("comparing checksums, once; --no-checksums skips that")
    with ProgressBar("checksums", steps, images=STEP >> 20, unit="MiB") as progress:
        for path in reversed(archives):
            _check(path, progress)


def _check(path: Path, progress: ProgressBar) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    for content in _steps(path):
        digest.update(content)
        progress.advance()
    if digest.hexdigest() != CHECKSUMS[path.name]:
        raise UserError(
            f"{path} has the MD5 {digest.hexdigest()}, not {CHECKSUMS[path.name]}: it is cut "
            "short, altered or another file; fetch it again from image-net.org, or take it as it "
            "is with --no-checksums"
        )


def _steps(path: Path) -> Iterator[bytes]:
    with open_file(path) as file:
        while content := file.read(STEP):
            yield content
