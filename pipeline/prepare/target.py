"""The tree that a command makes: out of sight until it is whole, and gone on with after a kill.

It grows in a hidden folder within its own, beside a file that says what is being done. Its parts
are moved into their places once all of them are there, with ``manifest.json`` as the last.
"""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pipeline.data.tree import ImageFolder
from pipeline.run.errors import UserError
from pipeline.run.files import open_file, replacing

UNFINISHED, JOB, MANIFEST = ".unfinished", "job.json", "manifest.json"
_JPEG_END = b"\xff\xd9"


# Tells what a split of a tree holds.
Find = Callable[[Path, str], ImageFolder]


class Size(NamedTuple):
    """How many classes and images a split has."""

    classes: int
    images: int


class Target:
    """The new tree in ``folder``.

    ``job``: plain values that say what is done from what. A tree is gone on with only where they
    are the same; they stand in its manifest.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        self.folder, self.job = folder, dict(job)
        self.growing = folder / UNFINISHED

    def has_begun(self) -> bool:
        """Whether the same job was begun here before. Raises UserError where the folder holds
        anything else."""
        places = (self.growing / JOB, self.growing / MANIFEST, self.folder / MANIFEST)
        found = next(filter(None, map(_read_json, places)), None)
        if found is None:
            self._check_empty()
            return False
        if any(found.get(key) != value for key, value in self.job.items()):
            raise UserError(
                f"{self.folder} was made, or begun, from other files or with other settings; "
                "remove it, or name another folder"
            )
        return True

    def _check_empty(self) -> None:
        entries = {path.name for path in self.folder.iterdir()} if self.folder.exists() else set()
        if entries - {UNFINISHED}:
            raise UserError(f"{self.folder} is not empty; name a new folder")

    def begin(self) -> None:
        """Make the folder, and note what is done in it."""
        self.growing.mkdir(parents=True, exist_ok=True)
        for left in self.growing.glob(".*"):  # by a kill
            left.unlink()
        self.write_json(JOB, self.job)

    def has(self, name: str, size: int | None) -> bool:
        """Whether the file ``name`` is there already, of ``size`` bytes, or where that is None with
        the end of a JPEG: after a loss of power, one may be short."""
        try:
            with open(self.growing / name, "rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - len(_JPEG_END)))
                return end == size if size is not None else file.read() == _JPEG_END
        except FileNotFoundError:
            return False

    def write(self, name: str, content: bytes) -> None:
        """Put a file with this ``content`` there, whole or not at all."""

        def make(path: Path) -> None:
            with open(path, "xb") as file:
                file.write(content)

        self._place(name, make)

    def link(self, name: str, file: Path) -> None:
        """Put a symbolic link to ``file`` there."""
        self._place(name, lambda path: path.symlink_to(file))

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Within this context a file is written, which is there at its end, and on the disk."""
        with self._placing(name) as path, open(path, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    def remove(self, name: str) -> None:
        """Take a file away, if it is there."""
        (self.growing / name).unlink(missing_ok=True)

    def _place(self, name: str, make: Callable[[Path], object]) -> None:
        """Let ``make`` make a file under another name, then give it its own. Nothing waits for the
        disk here: ``finish`` does once, for all files."""
        with self._placing(name) as temporary:
            make(temporary)

    @contextlib.contextmanager
    def _placing(self, name: str) -> Iterator[Path]:
        """Within this context a file is made under the name that it gives; at its end it gets its
        own."""
        path = self.growing / name
        temporary = self.growing / f".{os.getpid()}-{threading.get_ident()}.tmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.unlink(missing_ok=True)
            yield temporary
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def write_json(self, name: str, values: object) -> None:
        """Put a file of plain values there."""
        (self.growing / name).parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.growing / name) as file:
            file.write(f"{json.dumps(values, indent=1)}\n".encode())

    def finish(self, sizes: Mapping[str, Size], facts: Mapping[str, Any], find: Find) -> None:
        """Move the tree into its place, with ``facts`` in its manifest beside the job and what each
        split holds, as ``find`` tells. Raises UserError where it is not of these ``sizes``."""
        if hasattr(os, "sync"):
            os.sync()
        splits = {
            split: self._described(split, find(self.growing, split), size)
            for split, size in sizes.items()
        }
        self.write_json(MANIFEST, {**self.job, **facts, "splits": splits})
        self._move()

    def _described(self, split: str, found: ImageFolder, size: Size) -> dict[str, Any]:
        if Size(len(found.classes), len(found.files)) != size:
            raise UserError(
                f"{self.growing / split} holds {len(found.files)} images in {len(found.classes)} "
                f"classes in place of {size.images} in {size.classes}; where a disk does not tell "
                "upper from lower case, name a folder on another one"
            )
        return {**size._asdict(), "fingerprint": found.fingerprint}

    def _move(self) -> None:
        """A kill may end it anywhere: ``finished`` goes on with it."""
        for path in self.growing.iterdir():
            if path.name not in (JOB, MANIFEST):
                path.replace(self.folder / path.name)
        (self.growing / JOB).unlink(missing_ok=True)
        (self.growing / MANIFEST).replace(self.folder / MANIFEST)
        self.growing.rmdir()

    def finished(self) -> dict[str, Any] | None:
        """The manifest of the whole tree, or None while there is something to do."""
        if (self.growing / MANIFEST).exists():
            self._move()
        return _read_json(self.folder / MANIFEST)


def _read_json(path: Path) -> dict[str, Any] | None:
    """The values in a file; None where there is none, or where it is none of ours."""
    try:
        with open_file(path) as file:
            found = json.load(file)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None
