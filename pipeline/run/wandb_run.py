"""A run in Weights & Biases: what it is called there, what is told of it, and how it is plotted."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.run.commands import command_line
from pipeline.run.config import Config, to_dict
from pipeline.run.console import logger
from pipeline.run.errors import first_line
from pipeline.run.files import write_atomically
from pipeline.run.points import Histogram, Value
from pipeline.run.sweep import IDENTITY, identity_in, is_to_go_on, trial

# What wandb plots over what, and which value stands for the whole run.
AXES: dict[str, dict[str, Any]] = {
    "step": {},
    "epoch": {},
    "images_seen": {},
    "step/*": {"step_metric": "step"},
    "epoch/*": {"step_metric": "epoch"},
    "histograms/*": {"step_metric": "epoch"},
    "epoch/val_top1": {"step_metric": "epoch", "summary": "max"},
    "epoch/val_loss": {"step_metric": "epoch", "summary": "min"},
}
PATIENCE = 30  # seconds for wandb's server to answer


def record_live(config: Config, origin: Mapping[str, Any]) -> "Wandb":
    """The run of ``config`` in wandb, which a training is about to go on with.

    Without a server or a key that it takes, an online run is recorded offline. Raises whatever
    wandb raises.
    """
    mode = config.log.wandb
    try:
        return Wandb(config, origin, mode, resume="allow")
    except Exception as error:
        if mode != "online":
            raise
        logger.warning(
            "wandb records offline (%s); send it afterwards: %s",
            first_line(error),
            command_line("sync", str(config.run_folder)),
        )
        forget()
        return Wandb(config, origin, "offline", resume="allow")


def forget() -> None:
    """End wandb's service, which would say of a run that failed to begin that it has begun."""
    import wandb

    wandb.teardown()


class Wandb:
    """Takes the numbers of the run of ``config``, which has this ``origin``: see ``Tracker``.

    ``mode``: "online" or "offline". ``options`` are more of those that wandb.init takes. A run has
    the same identity whenever it is recorded. Without the option ``resume`` it begins anew: row by
    row it takes the place of what wandb has.
    """

    def __init__(
        self, config: Config, origin: Mapping[str, Any], mode: str, **options: Any
    ) -> None:
        import wandb

        log, folder = config.log, config.run_folder
        settings = {"init_timeout": PATIENCE, **options.pop("settings", {})}
        self.package, self.config = wandb, config
        self.run: Any = wandb.init(
            name=folder.name,
            dir=folder,
            config={**to_dict(config), **origin},
            group=log.group,
            job_type="train",
            notes=log.notes,
            tags=[tag.strip() for tag in (log.tags or "").split(",") if tag.strip()],
            mode=mode,  # type: ignore[arg-type]
            settings=settings,
            **_place(config),
            **options,
        )
        for metric, axis in AXES.items():
            self.run.define_metric(metric, **axis)

    def write(self, values: Mapping[str, Value], axes: Mapping[str, int]) -> None:
        # wandb's own step would drop what a resumed run repeats: it must never fall.
        self.run.log({**{name: self._shown(value) for name, value in values.items()}, **axes})

    def _shown(self, value: Value) -> Any:
        if isinstance(value, Histogram):
            shape = np.array(value.counts), np.array(value.edges())
            return self.package.Histogram(np_histogram=shape)
        return value

    def alert(self, text: str) -> None:
        self.run.alert(title=f"{self.config.run_folder.name} ended", text=text)

    def finish(self, exit_code: int) -> None:
        if self.config.log.artifacts == "best" and exit_code == 0:
            self.add_best()
        if is_to_go_on(exit_code):
            self.run.mark_preempting()  # the sweep gives it to another agent
        self.run.finish(exit_code=exit_code)

    def close(self, exit_code: int) -> None:
        """End the run, and wait until its last row is sent or on the disk."""
        self.run.finish(exit_code=exit_code)
        self.package.teardown()

    def add_best(self) -> None:
        """Send the best checkpoint, if there is one."""
        best = self.config.run_folder / "checkpoints" / "best.pt"
        if best.exists():
            artifact = self.package.Artifact(f"{self.run.id}-best", type="model")
            artifact.add_file(str(best))
            self.run.log_artifact(artifact)

    def rows(self) -> int:
        """How many rows of numbers wandb's server has of the run."""
        path = f"{self.run.entity}/{self.run.project}/{self.run.id}"
        return int(self.package.Api().run(path).lastHistoryStep) + 1


def _place(config: Config) -> dict[str, Any]:
    """Where wandb keeps the run: the agent of a sweep has said that already."""
    identity = identity_in(config.run_folder)
    if not identity:
        identity = trial() or os.urandom(6).hex()
        write_atomically(config.run_folder / IDENTITY, identity.encode())
    return {} if trial() else {"project": config.log.project, "id": identity}
