"""ImageNet's archives in small: of the form of the official ones, with drawn images."""

import functools
import hashlib
import io
import tarfile

import numpy as np
import scipy.io

from pipeline.prepare.archives import DEVKIT, TRAIN, VAL
from pipeline.prepare.devkit import META, TRUTH
from tests.data.fixtures import smooth

# As in the official one, numbers and names are not in the same order, and a class has children.
SYNSETS = [
    (1, "n00000003", "tench, Tinca tinca", 0),
    (2, "n00000001", "hen", 0),
    (3, "n00000002", "crane", 0),
    (4, "n00000009", "bird", 2),
]
WORDS = {wnid: words for _, wnid, words, children in SYNSETS if not children}
LABELS = [2, 1, 3, 3, 1, 2, 2]  # of the validation images
TRUTHS = ["n00000001", "n00000003", "n00000002", "n00000002", "n00000003", "n00000001",
          "n00000001"]  # fmt: skip


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    smooth(60 + seed % 7, 70 + seed % 5, seed).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


TRAIN_FILES = {
    wnid: {f"{wnid}_{10 * i}.JPEG": jpeg(100 * n + i) for i in range(3 + n)}
    for n, wnid in enumerate(sorted(WORDS))
}
VAL_FILES = {f"ILSVRC2012_val_{n:08}.JPEG": jpeg(1000 + n) for n in range(1, len(LABELS) + 1)}


def entry(name: str, **values) -> tarfile.TarInfo:
    """The header of a member, with other ``values`` than those of a plain file."""
    info = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


def tar(files: dict, *, mode="w", more=()) -> bytes:
    """An archive of files by their names, and ``more`` members without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            archive.addfile(entry(name, size=len(content)), io.BytesIO(content))
        for info in more:
            archive.addfile(info)
    return buffer.getvalue()


def train_tar(files=TRAIN_FILES, **options) -> bytes:
    return tar({f"{wnid}.tar": tar(images) for wnid, images in files.items()}, **options)


def devkit(labels=LABELS, synsets=SYNSETS, **names) -> bytes:
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("gloss", object),
             ("num_children", object)]  # fmt: skip
    rows = [(number, wnid, words, "a gloss", n) for number, wnid, words, n in synsets]
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": np.array(rows, kinds)[:, None]}, do_compression=True)
    truth = "".join(f"{label}\n" for label in labels).encode()
    files = {names.get("meta", META): meta.getvalue(), names.get("truth", TRUTH): truth}
    return tar({"ILSVRC2012_devkit_t12/readme.txt": b"hello", **files}, mode="w:gz")


@functools.cache
def _good_devkit() -> bytes:
    """The same bytes whenever they are asked for: gzip and SciPy write the time into theirs."""
    return devkit()


def write(folder, **contents):
    """The three archives in ``folder``, with other ``contents``; returns their MD5 by name."""
    folder.mkdir(exist_ok=True)
    files = {TRAIN: "train", VAL: "val", DEVKIT: "devkit"}
    good = {"train": train_tar(), "val": tar(VAL_FILES), "devkit": _good_devkit()}
    for name, key in files.items():
        (folder / name).write_bytes({**good, **contents}[key])
    return {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in files}
