"""Checkpoints: written whole or not at all, checked when they are read, complete.

A checkpoint is one ``torch.save`` file, loaded with ``weights_only=True``, so that no code in it
ever runs. It is a zip archive, whose checksums tell a truncated or altered file from a whole one.
"""

import io
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pipeline.run.errors import UserError
from pipeline.run.files import open_file, write_atomically

FORMAT = 4  # of the dict that the trainer saves

_NAME = re.compile(r"(epoch|step)_(\d+)\.pt")


def load(path: Path | BinaryIO) -> dict[str, Any]:
    """The dict in a checkpoint file, with its tensors on the CPU.

    A file of ours is checked; one of the official code is accepted.

    Raises:
        UserError: no file, a damaged file, no checkpoint, or pickled code in it (not executed).
    """
    try:
        with open_file(path) if isinstance(path, Path) else path as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    if (damaged := archive.testzip()) is not None:
                        raise UserError(
                            f"checkpoint {path} is damaged (in {damaged}); take another"
                        )
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
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
        """Save a trainer's state, if it is the ``best`` as best.pt too, and remove all checkpoints
        but the ``keep`` newest."""
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
        """The file that ``save`` writes a trainer's state to."""
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
        for part in self.folder.glob(".*.tmp"):  # left by a process that was killed as it wrote
            part.unlink()
