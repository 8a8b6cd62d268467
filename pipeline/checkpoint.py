"""Checkpoints: atomic, checked, complete; and those of the official code.

A checkpoint is one ``torch.save`` file, loaded with ``weights_only=True``: no code in it ever
runs. It is a zip archive, whose checksums tell a truncated or altered file from a whole one.
"""

import io
import os
import pickle
import random
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from models import BinaryNetwork
from pipeline.errors import UserError

FORMAT = 3  # of the dict that the trainer saves
_NAME = re.compile(r"(epoch|step)_(\d+)\.pt")


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``path`` so that it is at any moment the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror}; make room or set run.dir to another place"
        ) from None


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # a folder cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path: Path | BinaryIO) -> dict[str, Any]:
    """The dict in a checkpoint file, on the CPU; ours is checked, an official one is accepted.

    Raises:
        UserError: no file, a damaged file, no checkpoint, or pickled code in it (not executed).
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise UserError(f"checkpoint {path} is damaged (in {damaged}); take another")
        if not isinstance(path, Path):
            path.seek(0)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist; give the path of a .pt file") from None
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error) or "Unsupported global" not in str(error):
            raise UserError(f"{path} is no checkpoint, or a damaged one; take another") from None
        raise UserError(
            f"checkpoint {path} holds pickled code, which is never executed; save its state_dict"
        ) from None
    except OSError as error:
        raise UserError(f"checkpoint {path}: {error.strerror}; give a readable .pt file") from None
    except UserError:
        raise
    except Exception:  # a damaged archive fails in many ways
        raise UserError(f"{path} is no checkpoint, or a damaged one; take another") from None
    if not isinstance(state, dict) or not isinstance(state.get("state_dict"), dict):
        raise UserError(f"{path} is no checkpoint: it holds no 'state_dict'; take another")
    return state


class CheckpointStore:
    """The ``checkpoints`` folder of a run: epoch_0007.pt, step_<global step>.pt and best.pt."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, state: dict[str, Any], *, best: bool = False) -> Path:
        """Save a trainer's state and drop all but the ``keep`` newest."""
        path = self.path(state)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        write_atomically(path, content)
        if best:
            write_atomically(self.folder / "best.pt", content)
        self._prune(path)
        return path

    def path(self, state: dict[str, Any]) -> Path:
        """Where ``save`` puts a trainer's state."""
        if state["batch"]:
            return self.folder / f"step_{state['step']}.pt"
        return self.folder / f"epoch_{state['epoch']:04d}.pt"

    def files(self) -> list[Path]:
        """All checkpoints but best.pt, newest first."""
        found = [p for p in self.folder.glob("*.pt") if _NAME.fullmatch(p.name)]
        return sorted(found, key=lambda p: (p.stat().st_mtime_ns, p.name), reverse=True)

    def newest(self) -> Iterator[tuple[Path, dict[str, Any] | UserError]]:
        """Each checkpoint, newest first, as its state or the error that its loading gave."""
        for path in self.files():
            try:
                yield path, load(path)
            except UserError as error:
                yield path, error

    def _prune(self, newest: Path) -> None:
        others = [path for path in self.files() if path != newest]
        for path in others[self.keep - 1 :]:
            path.unlink()


def rng_state() -> dict[str, Any]:
    """The states of all random generators: Python's, NumPy's, torch's, CUDA's."""
    numpy_state = np.random.get_state(legacy=True)  # noqa: NPY002
    assert isinstance(numpy_state, tuple)
    name, keys, *rest = numpy_state
    return {
        "python": random.getstate(),
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what ``rng_state`` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def network_weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The network's weights in a checkpoint: the averaged ones where it has them."""
    weights = state.get("ema") or state["state_dict"]
    return {key.removeprefix("module."): value for key, value in weights.items()}


def identify(state: dict[str, Any]) -> tuple[str, str]:
    """(arch, bits) of a checkpoint; the official ``resnet18_1w1a`` is told by its classifier.

    A network that the official code trained with --a32 also says 1w1a: give model.bits then.
    """
    name = str(state.get("model", ""))
    arch, _, bits = name.partition("_1w")
    bits = f"1w{bits}" if bits else "32w32a"
    if arch == "resnet18" and "linear.weight" in network_weights(state):
        arch = "resnet18_cifar"
    return arch, bits


def load_weights(
    model: BinaryNetwork, state: dict[str, Any], path: Path, *, new_classifier: bool = False
) -> bool:
    """Load a checkpoint's network into ``model``; whether its classifier was left out.

    ``new_classifier`` leaves out one for another number of classes, for fine-tuning.
    """
    weights = network_weights(state)
    own = model.state_dict()
    wrong = sorted(own.keys() ^ weights.keys()) or [
        key for key in own if own[key].shape != weights[key].shape
    ]
    classifier = [key for key in wrong if key.startswith(("fc.", "linear."))]
    skips = new_classifier and bool(wrong) and wrong == classifier and own.keys() == weights.keys()
    if wrong and not skips:
        raise UserError(
            f"checkpoint {path} is not of a {model.arch} {model.bits} with these classes "
            f"(first difference: {wrong[0]}); set model.arch, model.bits or model.num_classes"
        )
    model.load_state_dict({**weights, **{key: own[key] for key in wrong}})
    return skips
