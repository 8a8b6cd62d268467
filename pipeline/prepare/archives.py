"""The official archives of data sets: which they are, and whether they are whole."""

import hashlib
from collections.abc import Iterator, Mapping
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


def state_of(path: Path) -> list[int]:
    """What changes where a file does: its size in bytes, and its time of change."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def check(archives: Archives) -> None:
    """Compare the archives with their checksums, the smallest first; raises UserError for one that
    differs."""
    compare({path: CHECKSUMS[path.name] for path in reversed(archives)}, "image-net.org")


def compare(wanted: Mapping[Path, str], origin: str) -> None:
    """Compare files with the MD5 that is ``wanted`` of each; raises UserError for one that differs,
    with the ``origin`` from which people fetch it."""
    steps = sum(path.stat().st_size // STEP + 1 for path in wanted)
    logger.info("comparing checksums, once; --no-checksums skips that")
    with ProgressBar("checksums", steps, images=STEP >> 20, unit="MiB") as progress:
        for path, md5 in wanted.items():
            _check(path, md5, origin, progress)


def _check(path: Path, md5: str, origin: str, progress: ProgressBar) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    for content in _steps(path):
        digest.update(content)
        progress.advance()
    if digest.hexdigest() != md5:
        raise UserError(
            f"{path} has the MD5 {digest.hexdigest()}, not {md5}: it is cut short, altered or "
            f"another file; fetch it again from {origin}, or take it as it is with --no-checksums"
        )


def _steps(path: Path) -> Iterator[bytes]:
    with open_file(path) as file:
        while content := file.read(STEP):
            yield content
