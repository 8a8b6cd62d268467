"""Which images a data set in ImageNet's layout holds.

The layout is ``<data.path>/train/<class>/*.JPEG`` and ``<data.path>/val/<class>/*.JPEG``.
"""

import contextlib
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import exclude
from pipeline.data.draws import Ints
from pipeline.data.image import bad_image
from pipeline.data.store import Files, Store
from pipeline.run.classes import only_in_each, shown
from pipeline.run.commands import command_line
from pipeline.run.config import Config
from pipeline.run.console import logger
from pipeline.run.errors import UserError
from pipeline.run.problems import Problems

_CODEC = ("utf-8", "surrogateescape")  # file names are bytes, whatever they look like

# Of images; they say nothing about the format, which is told by the content.
ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".jp2", ".j2k",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
# Folders of thumbnails and metadata that some systems put beside the images.
LITTER = {"@eadir", "__macosx"}


@dataclass(frozen=True)
class ImageFolder:
    """The images of one split, sorted by class and name; nothing of them is read yet."""

    root: Path
    classes: tuple[str, ...]  # names of the class folders, sorted
    files: list[str]  # relative to root, "/" between the parts
    labels: Ints  # (len(files),), indices into classes
    fingerprint: str  # sha256 over the names and sizes of the files

    def paths(self, indices: Iterable[int]) -> list[str]:
        return [f"{self.root}/{self.files[i]}" for i in indices]

    @property
    def store(self) -> Store:
        """Where the bytes of the images lie."""
        return Files(self.root)


def scan(
    root: Path, split: str, excluded: str | None = None, problems: Problems | None = None
) -> ImageFolder:
    """List the images below ``root/split/<class>/``, at any depth; links are followed.

    Hidden files, files of other endings and files outside of class folders are left out, and a
    line counts them. ``excluded``: a list (see exclude.py) of images to leave out; those of this
    split must be there. Raises UserError with all mistakes that are found; where ``problems`` are
    given they are noted there instead, and the result is worth nothing if there are any.
    """
    own = problems or Problems(local=True)
    folder = ImageFolder(root, (), [], np.zeros(0, np.int64), "")
    with own.noted(), _told():
        folder = _scan(root, split, excluded, own)
    if problems is None:
        own.raise_all()
    return folder


Scan = Callable[[Path, str, str | None, Problems | None], ImageFolder]


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn an OSError that names a file into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"data.path: cannot read {error.filename}: {error.strerror}; repair or remove it"
        ) from error


def scan_train_val(
    root: Path,
    excluded: str | None = None,
    check: Callable[[Sequence[str]], object] = lambda classes: None,
    scan: Scan = scan,
) -> tuple[ImageFolder, ImageFolder]:
    """Both splits of a data set, as ``scan`` finds them; they must have the same classes, of which
    ``check`` may raise a UserError. All mistakes are one UserError."""
    problems = Problems(local=True)
    train, val = (scan(root, split, excluded, problems) for split in ("train", "val"))
    if train.classes and val.classes:
        with problems.noted():
            check_same_classes(root, {"train": train.classes, "val": val.classes})
    if train.classes:
        with problems.noted():
            check(train.classes)
    problems.raise_all()
    return train, val


def check_same_classes(root: Path, classes: Mapping[str, Collection[str]]) -> None:
    """Raise UserError unless the two splits of ``classes`` have the same class folders."""
    (a, ours), (b, theirs) = classes.items()
    only = zip((a, b), only_in_each(ours, theirs), strict=True)
    differences = [f"only in {split}/: {names}" for split, names in only if names]
    if differences:
        raise UserError(
            f"data.path: the class folders of {a}/ and {b}/ under {root} differ "
            f"({'; '.join(differences)}); give both the same class folders"
        )


def check_classes(config: Config, classes: Sequence[str]) -> None:
    """Raise UserError unless the training data have two classes or more, and as many as
    model.num_classes says where it is set."""
    wanted, count = config.model.num_classes, len(classes)
    if wanted not in (None, count):
        raise UserError(
            f"model.num_classes is {wanted}, but data.path={config.data.path} has {count} classes; "
            "set model.num_classes=null to take those of the data"
        )
    if count < 2:
        raise UserError(
            f"data.path={config.data.path} has one class only, {classes[0]}; add the class "
            "folders of others"
        )


def walk(root: Path, split: str, left_out: Counter[str]) -> Iterator[str]:
    """The names that ``scan`` lists, in its order, one class folder at a time; ``left_out`` counts
    what is none of them.

    Here it is no error if there are no class folders, or an empty one, or if what has the name of
    an image is no file.
    """
    for name in class_folders(root / split, left_out):
        yield from sorted(file for file, _ in _images(root, f"{split}/{name}", left_out))


def tell_left_out(folder: Path, left_out: Counter[str]) -> None:
    """Say in one line what in a split's folder is left out, if anything is."""
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common())
        logger.info("%s: left out as no images in class folders: %s", folder, kinds)


def _scan(root: Path, split: str, excluded: str | None, problems: Problems) -> ImageFolder:
    left_out = Counter[str]()
    classes = _class_names(root, split, left_out)
    listed: set[str] = set()
    with problems.noted():
        listed = exclude.read(excluded, split, root)
    missing = set(listed)
    files: list[str] = []
    counts = []
    empty: list[str] = []  # class folders, and those that the list has emptied
    emptied: list[str] = []
    digest = hashlib.sha256()
    for name in classes:
        entries: dict[str, os.DirEntry[str]] = {}
        with problems.noted(), _told():
            entries = dict(_images(root, f"{split}/{name}", left_out))
            if not entries:
                empty.append(name)
        missing.difference_update(entries)
        found: list[tuple[str, int]] = []
        with problems.noted(), _told():
            found += [
                (file, _size(root, file, entries[file])) for file in sorted(entries.keys() - listed)
            ]
        if entries and entries.keys() <= listed:
            emptied.append(name)
        files += [file for file, _ in found]
        counts.append(len(found))
        digest.update(described(found))
    with problems.noted():
        _check_not_empty(root / split, empty)
    with problems.noted():
        check_not_emptied(root / split, emptied, excluded)
    with problems.noted():
        check_listed(root, missing, excluded)
    tell_left_out(root / split, left_out)
    labels = np.repeat(np.arange(len(classes)), counts)
    return ImageFolder(root, tuple(classes), files, labels, digest.hexdigest())


def _size(root: Path, name: str, entry: "os.DirEntry[str]") -> int:
    """The size of an image file; raises UserError for a pipe or device, which cannot be read."""
    status = entry.stat()
    if not stat.S_ISREG(status.st_mode):
        raise bad_image(root, name, "not a regular file")
    return status.st_size


def _check_not_empty(folder: Path, names: list[str]) -> None:
    """Raise UserError if ``names``, the class folders without images in ``folder``, are any."""
    if len(names) == 1:
        raise UserError(
            f"data.path: no images in the class folder {folder / names[0]}; add some "
            f"({' '.join(ENDINGS)}) or remove the folder"
        )
    if names:
        raise UserError(
            f"data.path: no images in {len(names)} class folders of {folder} ({shown(names)}); add "
            f"some ({' '.join(ENDINGS)}) or remove the folders"
        )


def described(found: Iterable[tuple[str, int]]) -> bytes:
    """Names and sizes of images as the bytes of which the fingerprint is the digest."""
    return "".join(f"{file}\0{size}\n" for file, size in found).encode(*_CODEC)


def check_listed(root: Path, missing: Collection[str], excluded: str | None) -> None:
    """Raise UserError if any of the images in the list ``excluded`` are ``missing``."""
    if missing:
        raise UserError(
            f"data.exclude={excluded}: {exclude.printable(min(missing))} is no image under "
            f"{root}; correct or remove that line, or {exclude.remedy(root)}"
        )


def check_not_emptied(folder: Path, names: list[str], excluded: str | None) -> None:
    """Raise UserError if ``names``, the class folders of which the list ``excluded`` leaves no
    image, are any."""
    if names:
        folders = "the class folder" if len(names) == 1 else f"{len(names)} class folders of"
        where = folder / names[0] if len(names) == 1 else f"{folder} ({shown(names)})"
        raise UserError(
            f"data.exclude={excluded} leaves no images in {folders} {where}; add good ones"
        )


def _class_names(root: Path, split: str, left_out: Counter[str]) -> list[str]:
    layout = "train/<class>/*.jpg and val/<class>/*.jpg"
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"data.path: {root} {state}; give the folder that holds {layout}")
    check_case(root)
    if not (root / split).is_dir():
        way = f"; make such a tree: {_split_command(root)}" if split == "val" else ""
        raise UserError(f"data.path: {root} has no folder {split}/; it must hold {layout}{way}")
    names = class_folders(root / split, left_out)
    if not names:
        raise UserError(
            f"data.path: {root / split} holds no class folders, so no images; sort the images "
            f"into {split}/<class>/"
        )
    return names


def _split_command(root: Path) -> str:
    """The command that makes a tree with val/ of one without, beside it."""
    return command_line("prepare", "split", str(root), f"{root.resolve()}-split")


def check_case(root: Path) -> None:
    """Raise UserError where the folder of a split is not written in lower case, if it is there."""
    for path in sorted(root.iterdir()):
        name = path.name.lower()
        if name in exclude.SPLITS and path.name != name and not (root / name).is_dir():
            raise UserError(f"data.path: {path} is not called {name}; rename it to {root / name}")


def class_folders(path: Path, left_out: Counter[str]) -> list[str]:
    """The names of the class folders in that of a split, sorted; hidden ones are none.

    ``left_out`` counts what else there is.
    """
    names = []
    with os.scandir(path) as entries:
        for entry in _visible(entries, left_out):
            if entry.is_dir():
                names.append(entry.name)
            else:
                left_out[_ending(entry.name)] += 1
    return sorted(names)


def _images(
    root: Path, folder: str, left_out: Counter[str]
) -> "Iterator[tuple[str, os.DirEntry[str]]]":
    """The images below one class folder by their names relative to root, unsorted."""
    with os.scandir(root / folder) as entries:
        for entry in _visible(entries, left_out):
            name = f"{folder}/{entry.name}"
            if entry.is_dir():
                yield from _images(root, name, left_out)
            elif entry.name.lower().endswith(ENDINGS):
                yield name, entry
            else:
                left_out[_ending(entry.name)] += 1


def _visible(
    entries: "Iterable[os.DirEntry[str]]", left_out: Counter[str]
) -> "Iterator[os.DirEntry[str]]":
    """The entries of a folder that are neither hidden nor litter; the others are counted."""
    for entry in entries:
        if entry.name.startswith("."):
            left_out["hidden"] += 1
        elif entry.name.lower() in LITTER:
            left_out[f"{entry.name}/"] += 1
        else:
            yield entry


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without ending"
