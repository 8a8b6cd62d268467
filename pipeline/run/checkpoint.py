"""Checkpoints: written whole or not at all, checked when they are read, complete.

A checkpoint is one ``torch.save`` file, which ``archive`` reads as data, so that no code in it ever
runs. Ours holds a digest over all of its values and tensors. It is compared with what was really
loaded, so that what comes back is what was saved.
"""

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pipeline.run import archive
from pipeline.run.console import logger
from pipeline.run.errors import UserError
from pipeline.run.files import open_file, write_atomically
from pipeline.run.plain_pickle import NotPlain
from pipeline.run.weights import find_weights

FORMAT = 5  # of the dict that the trainer saves

_NAME = re.compile(r"(epoch|step)_(\d+)\.pt")
_UNKNOWN = (-1,)  # how far a file has gone that does not say it
_KINDS: dict[str, Any] = {  # what every checkpoint of ours holds
    "state_dict": dict, "config": dict, "data": dict, "optimizer": dict, "scaler": dict,
    "rng": dict, "best": dict, "last": dict, "sums": Tensor, "watch": Tensor,
    "metrics": list | tuple, "times": list | tuple, "epoch": int, "batch": int, "step": int,
    "metrics_size": int,
}  # fmt: skip


def load(path: Path | BinaryIO) -> dict[str, Any]:
    """The dict in a checkpoint file, with its tensors on the CPU.

    A file of ours is held against its digest. One of other code is accepted if it holds a network's
    weights, which ``weights.network_weights`` finds in it.

    Raises:
        UserError: no file, a damaged file, no checkpoint, or one that holds more than plain values
            and dense tensors, such as pickled code (not executed) or too much of something.
    """
    state = _read(path)
    if not isinstance(state, dict) or find_weights(state) is None:
        raise UserError(
            f"{path} is no checkpoint: it holds no weights, as under 'state_dict'; take another"
        )
    expected = state.pop("digest", None)
    if state.get("format") != FORMAT:
        return state
    if expected != digest(state):
        raise UserError(f"checkpoint {path} is damaged (its digest is wrong); take another")
    if wrong := [key for key, kind in _KINDS.items() if not _is_a(kind, state.get(key))]:
        raise UserError(f"checkpoint {path} is damaged (in {wrong[0]}); take another")
    return state


def _read(path: Path | BinaryIO, *, tensors: bool = True) -> Any:
    try:
        with open_file(path) if isinstance(path, Path) else path as file:
            return archive.read(file, tensors=tensors)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist; give the path of a .pt file") from None
    except NotPlain as error:
        remedy = "" if "; " in str(error) else "; save its state_dict alone, or take another"
        raise UserError(f"checkpoint {path} {error}{remedy}") from None
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise UserError(f"checkpoint {path}: {reason}; give a readable .pt file") from None
    except Exception:  # a damaged file fails in many ways
        raise UserError(f"{path} is no checkpoint, or a damaged one; take another") from None


def _is_a(kind: Any, value: Any) -> bool:
    return isinstance(value, kind) and (kind is not int or (type(value) is int and value >= 0))


def digest(value: Any) -> str:
    """SHA-256 over plain values and tensors: the same for equal ones of equal types, whatever the
    order of a dict's keys and wherever and in whatever memory format a tensor lies."""
    hashing = hashlib.sha256()
    _feed(hashing.update, value)
    return hashing.hexdigest()


def _feed(update: Callable[[Any], None], value: Any) -> None:
    """Call ``update`` with bytes that begin with a type and a length, so that no two values have
    the same bytes."""
    if isinstance(value, Tensor):
        _feed_tensor(update, value)
    elif isinstance(value, dict):
        update(b"dict %d;" % len(value))
        for key in sorted(value, key=lambda key: (isinstance(key, str), key)):
            _feed(update, key)
            _feed(update, value[key])
    elif isinstance(value, list | tuple):
        update(b"%s %d;" % (b"list" if isinstance(value, list) else b"tuple", len(value)))
        for item in value:
            _feed(update, item)
    elif isinstance(value, str | bytes):
        content = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        update(b"%s %d;" % (b"str" if isinstance(value, str) else b"bytes", len(content)))
        update(content)
    else:
        update(_plain(value))


def _plain(value: Any) -> bytes:
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return f"{kind.__name__} {kind.__repr__(value)};".encode()
    if value is None:
        return b"None;"
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _feed_tensor(update: Callable[[Any], None], tensor: Tensor) -> None:
    if tensor.dtype not in archive.DTYPES or tensor.layout != torch.strided:
        raise TypeError(f"a checkpoint cannot hold a tensor of {tensor.dtype}, {tensor.layout}")
    update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    update(content.numpy())


def content_of(state: dict[str, Any]) -> bytes:
    """The checkpoint file that holds ``state``, with its digest.

    Raises UserError where it is larger than what ``load`` takes.
    """
    buffer = io.BytesIO()
    torch.save({**state, "digest": digest(state)}, buffer)
    if (size := buffer.tell()) > archive.MOST_BYTES:
        what = f"a checkpoint of this network has {size} bytes"
        raise UserError(f"{what}, more than {archive.MOST_BYTES}; set model.arch to a smaller one")
    return buffer.getvalue()


# How far the states in the files that this process has seen have gone, by the files' identities.
_places: dict[tuple[Any, ...], tuple[Any, ...]] = {}


class CheckpointStore:
    """The ``checkpoints`` folder of a run: epoch_0007.pt, step_<global step>.pt and best.pt."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._warned: set[Path] = set()

    def save(self, state: dict[str, Any], *, best: bool = False) -> Path:
        """Save a trainer's state, if it is the ``best`` as best.pt too, and remove all checkpoints
        but the ``keep`` newest."""
        path = self.path(state)
        content = content_of(state)
        write_atomically(path, content)
        with contextlib.suppress(OSError):  # somebody removed it
            _places[_identity(path)] = _place(state)
        if best:
            write_atomically(self.folder / "best.pt", content)
        self._prune(path)
        return path

    def path(self, state: dict[str, Any]) -> Path:
        """The file that ``save`` writes a trainer's state to."""
        if state["batch"]:
            return self.folder / f"step_{state['step']}.pt"
        return self.folder / f"epoch_{state['epoch']:04d}.pt"

    def files(self) -> list[Path]:
        """All checkpoints but best.pt, newest first: the one whose state has gone farthest.

        Neither the time of a file nor its name says how far it has gone: copies change the one, and
        people the other. Files that do not say it, as they are damaged, come last. What is no file
        (a folder, a pipe, a link to nothing) is passed over with a warning.
        """
        named = [path for path in self.folder.glob("*.pt") if _NAME.fullmatch(path.name)]
        found = [path for path in named if path.is_file()]
        for path in sorted(set(named) - set(found) - self._warned):
            logger.warning("%s is named like a checkpoint, but is no file; passed over", path)
            self._warned.add(path)
        return sorted(found, key=lambda path: (self.place_of(path), path.name), reverse=True)

    def newest(self) -> Iterator[tuple[Path, dict[str, Any] | UserError]]:
        """Each checkpoint, newest first, as its state or the error that its loading gave.

        Damaged ones that do not say how far they have gone might be the newest: they come first.
        """
        for path in sorted(self.files(), key=lambda path: self.place_of(path) != _UNKNOWN):
            try:
                yield path, load(path)
            except UserError as error:
                yield path, error

    def place_of(self, path: Path) -> tuple[Any, ...]:
        """How far the state in a file has gone, read once from its values without its tensors: to
        be compared with that of others. One that does not say it is behind all."""
        with contextlib.suppress(OSError):
            identity = _identity(path)
            if identity not in _places:
                _places[identity] = _place_in(path)
            return _places[identity]
        return _UNKNOWN  # it is gone

    def _prune(self, newest: Path) -> None:
        others = [path for path in self.files() if path != newest]
        # The second are left by a process that was killed as it wrote.
        for path in [*others[self.keep - 1 :], *self.folder.glob(".*.tmp")]:
            with contextlib.suppress(OSError):  # a file that stays does no harm
                path.unlink()


def _identity(path: Path) -> tuple[Any, ...]:
    """What changes when another file takes a name."""
    stat = os.stat(path)
    return path.name, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _place_in(path: Path) -> tuple[Any, ...]:
    try:
        return _place(_read(path, tensors=False))
    except UserError:
        return _UNKNOWN


def _place(state: Any) -> tuple[Any, ...]:
    """How far a trainer's state has gone, to be compared with others of its run.

    Epochs count before steps, because steps are counted anew where images are left out of a run.
    """
    if not isinstance(state, dict):
        return _UNKNOWN
    values = tuple(state.get(key) for key in ("epoch", "batch", "step"))
    return values if all(type(value) is int for value in values) else _UNKNOWN
