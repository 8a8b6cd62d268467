"""A whole training, from its config to its last checkpoint."""

from typing import Any, NamedTuple

import torch

from pipeline.data.open import build_loaders, divide_batch
from pipeline.run import processes, restart
from pipeline.run.checkpoint import CheckpointStore
from pipeline.run.commands import command_line
from pipeline.run.config import Config, flatten
from pipeline.run.console import bold, logger, start_console
from pipeline.run.device import get_device
from pipeline.run.errors import Diverged, Interrupted, UserError
from pipeline.run.folder import open_folder
from pipeline.run.recorder import Recorder
from pipeline.run.resume import check_data, state_to_resume
from pipeline.run.signals import StopSignal
from pipeline.run.versions import versions
from pipeline.train.metrics import METRICS
from pipeline.train.network import make_network
from pipeline.train.precision import settle
from pipeline.train.randomness import seed_everything
from pipeline.train.trainer import Trainer

# What may differ between the processes of a run.
MAY_DIFFER = ("data.path", "data.exclude", "data.workers", "run.dir")


class Outcome(NamedTuple):
    """How a run ended: its config, and the validation metrics of its best and its last epoch."""

    config: Config
    best: dict[str, Any]
    last: dict[str, Any]


def train(config: Config, only_check: int = 0) -> Outcome | None:
    """Train as ``config`` says, or go on doing so; a finished run is left as it is.

    ``only_check``: look for mistakes as that many processes would meet them, and return None. The
    processes stay joined; a caller leaves them by ``rendezvous.stop``. Raises UserError, Diverged,
    or Interrupted after saving.
    """
    with StopSignal() as stop:
        try:
            return _train(config, stop, only_check)
        except (Interrupted, Diverged) as end:
            restart.note(config, end)
            raise
        except UserError:  # asked to stop, it could not save
            if stop.signal:
                restart.note(config, Interrupted(stop.signal, "", together=False))
            raise


def _train(config: Config, stop: StopSignal, only_check: int) -> Outcome | None:
    device = get_device(config)
    start_console()
    config = divide_batch(config, only_check or processes.size())
    processes.agree({k: v for k, v in flatten(config).items() if k not in MAY_DIFFER})
    again = not only_check and restart.is_restart(config)
    store = CheckpointStore(config.run_folder / "checkpoints", config.checkpoint.keep)
    state = state_to_resume(config, store, again=again)
    if state and state["epoch"] == config.train.epochs and not only_check:
        logger.info("this run is finished; for another one set run.name")
        return Outcome(config, state["best"], state["last"])
    config = settle(config, device, state["config"]["train"]["precision"] if state else "auto")
    seed_everything(config.seed, deterministic=config.deterministic)
    loaders = build_loaders(config, device)
    if state:
        fingerprints = {"train": loaders[0].fingerprint, "val": loaders[1].fingerprint}
        check_data(state, fingerprints, config)
    model = make_network(config)
    if only_check:
        return None
    recorder = Recorder()
    trainer = Trainer(config, model, loaders, device, store, stop, recorder)
    open_folder(config, recorder, state["metrics_size"] if state else 0)
    if state:
        trainer.restore(state)
        logger.info("going on after epoch %d, batch %d", trainer.state.epoch, trainer.state.batch)
    describe(trainer, device)
    exit_code = 1
    try:
        trainer.fit()
        exit_code = 0
    finally:
        recorder.close(exit_code)
    return Outcome(config, trainer.state.best, trainer.state.last)


def describe(trainer: Trainer, device: torch.device) -> None:
    """Say what is going to happen."""
    config = trainer.config
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    logger.info(
        "%s: %s %s, %s, %d training and %d validation images of %d classes, %d epochs of %d steps "
        "on %s in %s",
        config.run_folder,
        config.model.arch,
        config.model.bits,
        config.estimator.name,
        trainer.loader.images,
        trainer.val_loader.images,
        len(trainer.loader.classes),
        config.train.epochs,
        len(trainer.loader),
        name,
        config.train.precision,
    )
    logger.info(versions())
    if trainer.compiles:
        logger.info("torch.compile fuses the blocks; the first step may take a minute")


def summarise(outcome: Outcome) -> None:
    """Say how a finished run went, and what to do next."""
    config, folder = outcome.config, outcome.config.run_folder
    for label, record in (("best", outcome.best), ("last", outcome.last)):
        figures = [f"{m.label} {m.digits(record[f'val_{m.name}'])} {m.unit}".rstrip()
                   for m in METRICS.values() if f"val_{m.name}" in record and m.unit]  # fmt: skip
        logger.info(bold(f"{label}: val {', '.join(figures)} (epoch {record['epoch'] + 1})"))
    logger.info("the run lies in %s; next:", folder)
    data = [f"data.path={config.data.path}"] if config.data.path else []
    best_file = str(folder / "checkpoints" / "best.pt")
    logger.info("  %s", command_line("evaluate", best_file, *data))
