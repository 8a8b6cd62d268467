"""A look at every image of a data tree, or of shards, which lists those that cannot be read.

Images that were good are remembered beside the report: started again, only those that are new,
changed or bad are decoded.
"""

import hashlib
import os
import shlex
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from pipeline.data.exclude import printable
from pipeline.data.image import unreadable
from pipeline.data.shards import is_sharded, scan_shards
from pipeline.data.tree import tell_left_out, walk
from pipeline.prepare.ahead import in_order
from pipeline.prepare.source import none_there, splits_of
from pipeline.run.alone import lock
from pipeline.run.console import ProgressBar, logger
from pipeline.run.errors import Interrupted, UserError
from pipeline.run.files import open_file, replacing
from pipeline.run.lines import open_alone

BLOCK = 32  # images that a thread takes, and that are remembered, at a time
MAGIC = b"verified"  # what a file that remembers begins with; as long as a digest


class Verdict(NamedTuple):
    """What a look at an image has found."""

    name: str
    digest: bytes | None  # None where the image was known or is bad
    reason: str | None  # why it is bad


class Memory:
    """Which images were good: a file of 8-byte digests, appended to as they are found.

    Whatever a kill or damage leaves of it, at worst an image is looked at again.
    """

    def __init__(self, path: Path) -> None:
        content = self._read(path)
        self.file = open(path, "ab", opener=open_alone)  # noqa: SIM115
        lock(self.file.fileno(), f"--report: another process writes {path}; name another report")
        if content and not content.startswith(MAGIC):
            raise UserError(f"--report: {path} is in the way; name another report")
        whole = len(content) // len(MAGIC) * len(MAGIC)
        self.file.truncate(whole)
        if not content:
            self.file.write(MAGIC)
        # Sorted numbers, not a set: 10 MB for ImageNet.
        self.known = np.sort(np.frombuffer(content[len(MAGIC) : whole], np.uint64))

    def _read(self, path: Path) -> bytes:
        try:
            with open_file(path) as file:
                return file.read()
        except FileNotFoundError:
            return b""

    def __contains__(self, digest: bytes) -> bool:
        number = np.frombuffer(digest, np.uint64)
        place = int(self.known.searchsorted(number)[0])
        return place < len(self.known) and bool(self.known[place] == number[0])

    def add(self, verdicts: Sequence[Verdict]) -> None:
        """Remember the images that are good."""
        self.file.write(b"".join(verdict.digest for verdict in verdicts if verdict.digest))
        self.file.flush()


def verify_tree(data: Path, report: Path, workers: int) -> int:
    """Verify the tree ``data`` by so many threads, write the report, say how it went; returns the
    number of bad images.

    Raises UserError where files are in the way or cannot be used, and Interrupted at Ctrl-C.
    """
    try:
        total, bad = verify(data.resolve(), report, workers)
    except OSError as error:
        place = error.filename or report
        raise UserError(
            f"cannot use {place}: {error.strerror}; repair that, or choose another --report"
        ) from None
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT, "interrupted; started again, it goes on") from None
    if bad:
        remedy = shlex.quote(f"data.exclude={report}")
        logger.warning(
            "%d of %d images are bad, listed in %s: replace them, or train without them: %s",
            bad, total, report, remedy,
        )  # fmt: skip
    else:
        logger.info("all %d images are good", total)
    return bad


def verify(root: Path, report: Path, workers: int) -> tuple[int, int]:
    """Look at all images under ``root`` and write the report; returns how many images there are and
    how many of them are bad.

    Raises OSError where the report cannot be written or a folder cannot be read.
    """
    head = f"# bad images of {printable(str(root))}, for data.exclude"
    _check_report(report, head)
    if root.is_dir():
        logger.info("%s: looking at its images", printable(str(root)))
    total = _count(root)
    memory = Memory(report.with_name(f"{report.name}.state"))
    if len(memory.known):
        logger.info("%s remembers good images; without it, all are looked at", memory.file.name)
    lines = [head]
    verdicts = _verdicts(root, memory, workers)
    with memory.file, closing(verdicts), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of oddities that harm nothing
        for verdict in _with_progress(verdicts, total):
            if verdict.reason:
                lines += [f"# {printable(verdict.reason)}", printable(verdict.name)]
    with replacing(report) as file:
        file.write(("\n".join(lines) + "\n").encode())
    return total, len(lines) // 2


def _check_report(report: Path, head: str) -> None:
    """Never write over a file that is not the report of the same data."""
    expected = f"{head}\n".encode()
    try:
        with open_file(report) as file:
            if file.read(len(expected)) != expected:
                raise UserError(f"--report: {report} is no report of these data; name another file")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(
            f"--report: cannot use {report}: {error.strerror}; name another file"
        ) from None


def _count(root: Path) -> int:
    """The number of images; raises UserError where there are none."""
    counts = {split: _count_split(root, split) for split in splits_of(root)}
    if not sum(counts.values()):
        raise none_there(root)
    for split, count in counts.items():
        if not count:
            logger.warning("%s holds no images in class folders", root / split)
    return sum(counts.values())


def _count_split(root: Path, split: str) -> int:
    left_out = Counter[str]()
    count = sum(1 for _ in _images(root, split, left_out))
    tell_left_out(root / split, left_out)
    return count


class _Image(NamedTuple):
    """An image of a tree or of shards: its name, the file that it lies in, what tells it from
    others in there, and what opens it."""

    name: str
    file: str
    part: bytes
    open_it: Callable[[], BinaryIO]


def _images(root: Path, split: str, left_out: Counter[str]) -> Iterator[_Image]:
    """The images of a split, in the order of their names. Raises UserError where shards are not
    whole."""
    if not is_sharded(root):
        for name in walk(root, split, left_out):
            path = f"{root}/{name}"
            yield _Image(name, path, b"", partial(open_file, path))
        return
    folder = scan_shards(root, split)
    store = folder.store
    for index, (name, place) in enumerate(zip(folder.files, folder.places.tolist(), strict=True)):
        archive = str(folder.archives[place[0]])
        yield _Image(name, archive, b" %d" % place[1], partial(store.open, index, name))


def _verdicts(root: Path, memory: Memory, workers: int) -> Generator[Verdict, None, None]:
    """The verdicts on all images, in the order of their names."""
    images = (image for split in splits_of(root) for image in _images(root, split, Counter()))
    blocks = iter(lambda: list(islice(images, BLOCK)), [])
    looks = in_order(lambda block: [_look(image, memory) for image in block], blocks, workers)
    with closing(looks):
        for verdicts in looks:
            memory.add(verdicts)
            yield from verdicts


def _look(image: _Image, memory: Memory) -> Verdict:
    digest = _digest(image)
    if digest and digest in memory:
        return Verdict(image.name, None, None)
    reason = unreadable(image.open_it)
    return Verdict(image.name, None if reason else digest, reason)


def _digest(image: _Image) -> bytes | None:
    """A digest of name, size and time of change, taken before the image is read; None if the file
    is missing. It begins with a number that changes when other images count as good."""
    try:
        found = os.stat(image.file)
    except OSError:
        return None
    text = b"2 %d %d " % (found.st_size, found.st_mtime_ns) + os.fsencode(image.file) + image.part
    return hashlib.blake2b(text, digest_size=len(MAGIC)).digest()


def _with_progress(verdicts: Iterable[Verdict], total: int) -> Iterator[Verdict]:
    bad = 0
    with ProgressBar("verify", total) as progress:
        for verdict in verdicts:
            bad += verdict.reason is not None
            progress.advance(bad=bad)
            yield verdict
