"""Makes a tree of ImageNet's archives, straight from the archives within the archive."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pipeline.prepare import archives as official
from pipeline.prepare import tars
from pipeline.prepare.archives import Archives
from pipeline.prepare.devkit import Devkit, read_devkit
from pipeline.prepare.fill import WORDS, Item, fill, finish, tell, told
from pipeline.prepare.shrink import shrunk
from pipeline.prepare.target import Size, Target
from pipeline.run.console import logger
from pipeline.run.errors import UserError

CLASS = r"n\d{8}"
Small = Callable[[bytes], bytes]


def make_imagenet(
    folder: Path, into: Path, *, side: int | None, quality: int, checksums: bool, workers: int
) -> int:
    """Make a tree in ``into`` of the archives in ``folder``, by so many threads; returns how many
    images could not be read.

    With ``side`` the images become JPEGs of this ``quality`` whose shorter sides have so many
    pixels; else they stay as they are. Raises UserError, or Interrupted.
    """
    with told(into):
        archives = official.find(folder)
        job = {
            "command": "prepare imagenet", "source": str(folder.resolve()), "short_side": side,
            "quality": quality if side else None, "checksums": checksums,
            "archives": {path.name: official.state_of(path) for path in archives},
        }  # fmt: skip
        target = Target(into, job)
        if not (target.has_begun() and target.finished()):
            small = partial(shrunk, side=side, quality=quality) if side else None
            _make(target, archives, small, checksums, workers)
        return tell(target)


def _make(
    target: Target, archives: Archives, small: Small | None, checksums: bool, workers: int
) -> None:
    """Nothing is written before all archives are known to be in order."""
    if checksums and not target.has_begun():
        official.check(archives)
    devkit = read_devkit(archives.devkit)
    sizes = _survey(archives, devkit)
    target.begin()
    items = _items(archives, devkit, small)
    bad = fill(target, items, sum(size.images for size in sizes.values()), workers)
    target.write_json(WORDS, devkit.words)
    finish(target, sizes, bad)


def _survey(archives: Archives, devkit: Devkit) -> dict[str, Size]:
    """Read the headers of all images; raises UserError where anything is wrong or missing."""
    logger.info("looking through the archives")
    counts = Counter(wnid for wnid, _ in _train(archives.train))
    odd = sorted(counts.keys() ^ devkit.words.keys())
    if odd:
        where = archives.train if odd[0] in devkit.words else archives.devkit
        raise UserError(f"{where} lacks the class {odd[0]}; {tars.REMEDY}")
    if unseen := sorted(devkit.words.keys() - {*devkit.truth}):
        raise UserError(
            f"{archives.devkit} has no validation image of the class {unseen[0]}; {tars.REMEDY}"
        )
    images = sum(1 for _ in _val(archives.val, devkit))
    if images != len(devkit.truth):
        raise UserError(
            f"{archives.val} holds {images} images, but {archives.devkit} has the classes of "
            f"{len(devkit.truth)}; fetch both again from image-net.org"
        )
    return {
        "train": Size(len(counts), counts.total()),
        "val": Size(len({*devkit.truth}), images),
    }


def _train(path: Path) -> Iterator[tuple[str, tars.Member]]:
    """The training images with their classes, each of which is an archive in the archive."""
    for inner in tars.members(path, rf"{CLASS}\.tar"):
        wnid = inner.name.removesuffix(".tar")
        for image in tars.members(path, rf"{wnid}_\d+\.JPEG", within=inner):
            yield wnid, image


def _val(path: Path, devkit: Devkit) -> Iterator[tuple[str, tars.Member]]:
    """The validation images with their classes. Raises UserError for one that has none."""
    for image in tars.members(path, r"ILSVRC2012_val_\d{8}\.JPEG"):
        number = int(image.name[-13:-5])
        if not 1 <= number <= len(devkit.truth):
            raise UserError(f"{path} holds {image.name}, which has no class; {tars.REMEDY}")
        yield devkit.truth[number - 1], image


def _items(archives: Archives, devkit: Devkit, small: Small | None) -> Iterator[Item]:
    for split, path, images in (
        ("train", archives.train, _train(archives.train)),
        ("val", archives.val, _val(archives.val, devkit)),
    ):
        for wnid, image in images:
            name, size = f"{split}/{wnid}/{image.name}", None if small else image.size
            yield Item(name, name, size, partial(_content, path, image, small))


def _content(path: Path, image: tars.Member, small: Small | None) -> bytes:
    content = tars.read(path, image)
    return small(content) if small else content
