"""The tree that a command reads: its splits, and what is wrong with them."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.data.exclude import SPLITS
from pipeline.data.shards import is_sharded
from pipeline.data.tree import ImageFolder, check_case, check_same_classes, class_folders, scan
from pipeline.run.console import logger
from pipeline.run.errors import UserError
from pipeline.run.problems import Problems

LAYOUT = "train/<class>/, val/<class>/ or test/<class>/"


def splits_of(root: Path) -> list[str]:
    """Those of train, val and test that are folders in ``root``."""
    return [split for split in SPLITS if (root / split).is_dir()]


def none_there(root: Path) -> UserError:
    """The error for a folder without images in class folders."""
    state = f"holds no images in {LAYOUT}" if root.exists() else "does not exist"
    return UserError(f"{root} {state}; give the folder that holds train/ and val/")


def read_splits(root: Path) -> dict[str, ImageFolder]:
    """All splits of the tree in ``root``. Raises UserError with all mistakes that are found."""
    with _in_own_words():
        _check_tree(root)
    splits = [split for split in splits_of(root) if _has_classes(root, split)]
    if not splits:
        raise none_there(root)
    with _in_own_words():
        problems = Problems(local=True)
        found = {split: scan(root, split, problems=problems) for split in splits}
        _check(root, found, problems)
        problems.raise_all()
    return found


def read_classes(folder: Path) -> ImageFolder:
    """The class folders in ``folder`` as one split, whose files are named relative to the folder
    above it. Raises UserError with all mistakes that are found."""
    with _in_own_words():
        problems = Problems(local=True)
        found = scan(folder.parent, folder.name, problems=problems)
        _check(folder.parent, {folder.name: found}, problems)
        problems.raise_all()
    return found


def check_apart(source: Path, target: Path) -> None:
    """Raise UserError where the new tree would lie within the one that is read."""
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target} lies in {source}, which is only read; name a folder outside")


def _check_tree(root: Path) -> None:
    if is_sharded(root):
        raise UserError(f"{root} holds shards; give the tree that they were made of")
    if root.is_dir():
        check_case(root)


def _has_classes(root: Path, split: str) -> bool:
    """Whether a split is to be read. The images of test/ often have no classes."""
    if split == "test" and not class_folders(root / split, Counter()):
        logger.warning("%s holds no images in class folders", root / split)
        return False
    return True


def _check(root: Path, found: dict[str, ImageFolder], problems: Problems) -> None:
    named = [(split, images.classes) for split, images in found.items() if images.classes]
    if not named:
        return
    (first, ours), *others = named
    for other, theirs in others:
        with problems.noted():
            check_same_classes(root, {first: ours, other: theirs})
    if len(ours) == 1:
        with problems.noted():
            raise UserError(f"{root / first} has one class only, {ours[0]}; add those of others")


@contextlib.contextmanager
def _in_own_words() -> Iterator[None]:
    """Take the keys that a training would name out of an error."""
    try:
        yield
    except UserError as error:
        text = re.sub(r", or leave out all such: .*? for data\.exclude=\S+", "", str(error))
        raise UserError(text.replace("data.path: ", "")) from None
