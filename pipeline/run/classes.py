"""Classes by their names: which output of a network stands for which class of the data."""

import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.run.errors import UserError
from pipeline.run.weights import CLASSIFIERS

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SHOWN = 3  # names of a list in an error


def names_of(state: dict[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes in a checkpoint, in the order of the network's outputs; None where
    it holds none."""
    names = state.get("classes")
    if isinstance(names, tuple | list) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def order_of(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
    """For each of ``ours``, the classes of the data, the output among ``theirs`` that stands for
    it; None where these are not the same classes."""
    if len(set(theirs)) != len(theirs) or sorted(theirs) != sorted(ours):
        return None
    places = {name: place for place, name in enumerate(theirs)}
    return [places[name] for name in ours]


def match(
    theirs: Sequence[str] | None, outputs: int, ours: Sequence[str], path: Path, remedy: str
) -> list[int]:
    """For each of ``ours``, the classes of the data, the output of the network in ``path`` that
    stands for it.

    A network without names (``theirs`` is None) is matched by position. Raises UserError, with
    ``remedy``, where the classes are not the same.
    """
    order = list(range(outputs)) if theirs is None else order_of(theirs, ours)
    if order is None or len(order) != len(ours):
        raise UserError(f"checkpoint {path}: {difference(theirs, outputs, ours)}; {remedy}")
    return order


def difference(theirs: Sequence[str] | None, outputs: int, ours: Sequence[str]) -> str:
    """The words for classes that differ."""
    if theirs is None:
        return f"its network has {outputs} classes, the data have {len(ours)} ({shown(ours)})"
    missing, added = only_in_each(theirs, ours)
    parts = [f"only the checkpoint has {missing}"] if missing else []
    parts += [f"only the data have {added}"] if added else []
    return f"its {len(theirs)} classes are not the {len(ours)} of the data ({', '.join(parts)})"


def by_position(outputs: int, ours: Sequence[str], path: Path) -> str | None:
    """What to say of a network without names whose classes are taken by position; None for the
    data sets whose order everybody shares."""
    if list(ours) == CIFAR10 or (len(ours) == 1000 and all(map(_is_synset, ours))):
        return None
    return f"{path} names no classes: its {outputs} outputs are taken as {shown(ours)}, in order"


def _is_synset(name: str) -> bool:
    return re.fullmatch("n[0-9]{8}", name) is not None


def only_in_each(first: Collection[str], second: Collection[str]) -> tuple[str, str]:
    """Some of the names that only the first has, and of those that only the second has, as
    printable text. What looks alike, as é of one character and of two, is escaped."""
    names = sorted({*first} - {*second}), sorted({*second} - {*first})
    looks = [{unicodedata.normalize("NFC", name) for name in each} for each in names]
    spell = ascii if looks[0] & looks[1] else _spelled
    return shown(names[0], spell), shown(names[1], spell)


def _spelled(name: str) -> str:
    return name if name.isprintable() else repr(name)


def shown(names: Collection[str], spell: Callable[[str], str] = _spelled) -> str:
    """Some names, as printable text."""
    words = [spell(name)[:40] for name in [*names][:SHOWN]]
    return ", ".join(words) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def is_classifier(key: str) -> bool:
    """Whether the entry ``key`` of a network's ``state_dict`` has a row for each class."""
    return key.replace(".bias", ".weight") in CLASSIFIERS


def arrange(weights: dict[str, Tensor], order: Sequence[int]) -> dict[str, Tensor]:
    """A network's ``state_dict`` whose outputs stand in ``order``."""
    if list(order) == list(range(len(order))):
        return weights
    chosen = list(order)
    return {k: v[chosen] if is_classifier(k) else v for k, v in weights.items()}
