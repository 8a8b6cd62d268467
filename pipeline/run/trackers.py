"""Where the numbers of a run go beside metrics.jsonl, when asked: wandb and TensorBoard.

All are given the same numbers. Whatever fails in one of them is a warning: the training matters
more.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pipeline.run.config import Config, to_dict
from pipeline.run.console import logger
from pipeline.run.errors import first_line
from pipeline.run.files import open_file, write_atomically
from pipeline.run.versions import versions

# What wandb plots over what, and which value stands for the whole run.
AXES: dict[str, dict[str, str]] = {
    "step": {},
    "epoch": {},
    "images_seen": {},
    "step/*": {"step_metric": "step"},
    "epoch/*": {"step_metric": "epoch"},
    "epoch/val_top1": {"step_metric": "epoch", "summary": "max"},
    "epoch/val_loss": {"step_metric": "epoch", "summary": "min"},
}
PATIENCE = 30  # seconds for wandb's server to answer


class Tracker(Protocol):
    """Takes the numbers of a run. Its methods may raise whatever they like: see ``Guarded``."""

    def write(self, numbers: Mapping[str, float], axes: Mapping[str, int]) -> None:
        """Add ``numbers``, by names such as "epoch/val_top1". ``axes``: the steps and the images
        that the training has taken by then, and the epoch, from 0, where there is one."""

    def alert(self, text: str) -> None:
        """Send ``text`` to the person whose run this is."""

    def finish(self, exit_code: int) -> None:
        """End the run, whose command exits with ``exit_code``."""


def open_trackers(config: Config) -> list[Tracker]:
    """The trackers that ``config`` asks for."""
    found: list[Tracker] = []
    if config.log.wandb != "disabled":
        found.append(Guarded("wandb", lambda: Wandb(config)))
    if config.log.tensorboard:
        found.append(Guarded("TensorBoard", lambda: TensorBoard(config.run_folder)))
    return found


def flatten(record: Mapping[str, Any], name: str) -> dict[str, float]:
    """The numbers of a record, nested ones included, by names such as "epoch/val_top1" for those
    of one that is called ``name``."""
    numbers: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            numbers |= flatten(value, f"{name}/{key}")
        elif isinstance(value, int | float):
            numbers[f"{name}/{key}"] = value
    return numbers


class Guarded:
    """The tracker that ``begin`` gives; the first failure is one warning and ends it."""

    def __init__(self, name: str, begin: Callable[[], Tracker]) -> None:
        self.name = name
        self.tracker: Tracker | None = None
        with self._guard():
            self.tracker = begin()

    def write(self, numbers: Mapping[str, float], axes: Mapping[str, int]) -> None:
        with self._guard():
            if self.tracker:
                self.tracker.write(numbers, axes)

    def alert(self, text: str) -> None:
        with self._guard():
            if self.tracker:
                self.tracker.alert(text)

    def finish(self, exit_code: int) -> None:
        with self._guard():
            if self.tracker:
                self.tracker.finish(exit_code)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.tracker = None
            logger.warning("%s is off for this run: %s", self.name, first_line(error))


class Wandb:
    """Weights & Biases. A run keeps its identity, in the file ``wandb_id``, when it goes on.

    Without a server or a key that it takes, an online run is recorded offline.
    """

    def __init__(self, config: Config) -> None:
        import wandb

        self.package, self.config = wandb, config
        try:
            self.run = self._begin(config.log.wandb)
        except Exception as error:
            if config.log.wandb != "online":
                raise
            logger.warning(
                "wandb records offline (%s); send it afterwards: wandb sync %s",
                first_line(error),
                config.run_folder / "wandb" / "offline-run-*",
            )
            wandb.teardown()  # or its service would say that the run is begun
            self.run = self._begin("offline")
        for metric, options in AXES.items():
            self.run.define_metric(metric, **options)

    def _begin(self, mode: str) -> Any:
        log, folder = self.config.log, self.config.run_folder
        return self.package.init(
            project=log.project,
            name=folder.name,
            dir=folder,
            config={**to_dict(self.config), "versions": versions()},
            id=_identity(folder),
            group=log.group,
            job_type="train",
            notes=log.notes,
            tags=[tag.strip() for tag in (log.tags or "").split(",") if tag.strip()],
            resume="allow",
            mode=mode,  # type: ignore[arg-type]
            settings={"init_timeout": PATIENCE},
        )

    def write(self, numbers: Mapping[str, float], axes: Mapping[str, int]) -> None:
        # wandb's own step would drop what a resumed run repeats: it must never fall.
        self.run.log({**numbers, **axes})

    def alert(self, text: str) -> None:
        self.run.alert(title=f"{self.config.run_folder.name} ended", text=text)

    def finish(self, exit_code: int) -> None:
        best = self.config.run_folder / "checkpoints" / "best.pt"
        if self.config.log.artifacts == "best" and exit_code == 0 and best.exists():
            artifact = self.package.Artifact(f"{self.run.id}-best", type="model")
            artifact.add_file(str(best))
            self.run.log_artifact(artifact)
        self.run.finish(exit_code=exit_code)


def _identity(folder: Path) -> str:
    file = folder / "wandb_id"
    if not file.exists():
        write_atomically(file, os.urandom(6).hex().encode())
    with open_file(file) as found:
        return found.read(64).decode()


class TensorBoard:
    """Event files in the run's folder ``tensorboard``, over steps; what a resumed run repeats takes
    the place of what was there."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.begin = partial(SummaryWriter, str(folder / "tensorboard"))
        self.writer: SummaryWriter | None = None

    def write(self, numbers: Mapping[str, float], axes: Mapping[str, int]) -> None:
        if self.writer is None:
            self.writer = self.begin(purge_step=axes["step"])
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, axes["step"])
        self.writer.flush()

    def alert(self, text: str) -> None:
        if self.writer:
            self.writer.add_text("alert", text)

    def finish(self, exit_code: int) -> None:
        if self.writer:
            self.writer.close()
