"""Fills a new tree with images by all cores, and says how it went."""

import contextlib
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from pipeline.data.exclude import printable
from pipeline.data.tree import scan
from pipeline.prepare.ahead import in_order
from pipeline.prepare.shrink import Unreadable
from pipeline.prepare.target import Find, Size, Target
from pipeline.run.alone import alone_in
from pipeline.run.console import ProgressBar, logger
from pipeline.run.errors import Interrupted, UserError
from pipeline.run.files import open_file

LIST, WORDS = "unreadable.txt", "classes.json"


class Item(NamedTuple):
    """An image that is to be in the new tree."""

    name: str  # its place there, such as train/<class>/1.jpg
    origin: str  # what it is called where it comes from, with its split and class
    size: int | None  # in bytes, or None where that is not known before
    content: Callable[[], bytes]  # of its file; it may raise Unreadable


class Bad(NamedTuple):
    """An image that could not be read."""

    name: str
    reason: str


@contextlib.contextmanager
def told(folder: Path) -> Iterator[None]:
    """Keep other processes from making a tree in ``folder``, and turn what ends this too early into
    an error of one line."""
    try:
        with alone_in(folder, "wait until it has ended, or name another folder"):
            yield
    except OSError as error:
        raise UserError(
            f"cannot use {error.filename or folder}: {error.strerror}; mend that, or make room: "
            "started again, it goes on"
        ) from None
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT, "interrupted; started again, it goes on") from None


def fill(target: Target, items: Iterable[Item], total: int, workers: int) -> list[Bad]:
    """Put ``items``, of which there are ``total``, into the tree, but for those that are there;
    returns those that cannot be read."""

    def put(item: Item) -> Bad | None:
        if not target.has(item.name, item.size):
            try:
                target.write(item.name, item.content())
            except Unreadable as error:
                return Bad(item.origin, str(error))
        return None

    with quiet():
        return [bad for bad in with_progress(in_order(put, items, workers), total) if bad]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep back Pillow's warnings, which are of oddities that harm nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def keep_words(source: Path, target: Target) -> None:
    """Take over the words of the classes, where the tree ``source`` has them."""
    with contextlib.suppress(FileNotFoundError), open_file(source / WORDS) as file:
        target.write(WORDS, file.read())


def with_progress(results: Generator[Bad | None, None, None], total: int) -> Iterator[Bad | None]:
    """``results``, one for each of ``total`` images, while a bar shows how many there were."""
    count = 0
    with closing(results), ProgressBar("images", total) as progress:
        for bad in results:
            count += bad is not None
            progress.advance(bad=count)
            yield bad


def finish(target: Target, sizes: Mapping[str, Size], bad: list[Bad]) -> None:
    """Finish a tree that was to have these ``sizes``, but for its bad images."""
    check_classes(bad, lambda folder: (target.growing / folder).exists())
    conclude(target, sizes, bad, scan)


def check_classes(bad: list[Bad], is_there: Callable[[str], bool]) -> None:
    """Raise UserError where a class, as ``is_there`` says of train/<class>, has lost all of its
    images."""
    for each in bad:
        folder = "/".join(each.name.split("/")[:2])
        if not is_there(folder):
            raise UserError(
                f"no image of {folder} can be read, such as {printable(each.name)} "
                f"({each.reason}); replace some, or remove that class"
            )


def conclude(target: Target, sizes: Mapping[str, Size], bad: list[Bad], find: Find) -> None:
    """List the bad images and finish what was to have these ``sizes``; ``find`` tells what is in a
    split."""
    lost = Counter(each.name.partition("/")[0] for each in bad)
    target.remove(LIST)
    if bad:
        lines = [f"# {printable(each.reason)}\n{printable(each.name)}\n" for each in bad]
        target.write(LIST, "".join(lines).encode())
    left = {split: Size(size.classes, size.images - lost[split]) for split, size in sizes.items()}
    target.finish(left, {"unreadable": len(bad)}, find)


def tell(target: Target) -> int:
    """Say what the finished tree holds; returns how many images could not be read."""
    manifest = target.finished()
    assert manifest, "the tree is finished"
    sizes = [f"{split}/ {found['images']:,} images" for split, found in manifest["splits"].items()]
    logger.info("%s is ready: %s", target.folder, ", ".join(sizes))
    bad: int = manifest["unreadable"]
    if bad:
        logger.warning("%d images could not be read; %s lists them", bad, target.folder / LIST)
    return bad
