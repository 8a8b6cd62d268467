"""Train a network: ``python -m launch.train CONFIG [key=value ...]``."""

import shlex
from collections.abc import Sequence
from typing import Any

import torch

from launch.command import command, get_device
from pipeline.data.open import build_loaders, divide_batch
from pipeline.report.plots import draw_run
from pipeline.run import processes, rendezvous, restart
from pipeline.run.checkpoint import CheckpointStore
from pipeline.run.config import Config, flatten, load_config
from pipeline.run.console import bold, logger, start_console
from pipeline.run.errors import Diverged, Interrupted, UserError
from pipeline.run.folder import open_folder
from pipeline.run.recorder import Recorder
from pipeline.run.resume import check_data, state_to_resume
from pipeline.run.signals import StopSignal
from pipeline.train.metrics import METRICS
from pipeline.train.network import make_network
from pipeline.train.randomness import seed_everything
from pipeline.train.trainer import Trainer

USAGE = "usage: python -m launch.train CONFIG [key=value ...], such as configs/quickstart.yaml"
# Between the processes of a run:
MAY_DIFFER = ("data.path", "data.exclude", "data.workers", "run.dir")
CHECK = "--check"  # or --check=8: look for mistakes in the config and the data, and end


def main(arguments: Sequence[str]) -> None:
    """Train as the config and the overrides in ``arguments`` say, or go on doing so."""
    if not arguments or arguments[0].startswith("-"):
        raise UserError(USAGE)
    checks = [each for each in arguments if each.startswith(CHECK)]
    config = load_config(arguments[0], [each for each in arguments[1:] if each not in checks])
    with StopSignal() as stop:
        try:
            train(config, stop, _number(checks[0]) if checks else 0)
        except (Interrupted, Diverged) as end:
            restart.note(config, end)
            raise
        except UserError:  # asked to stop, it could not save
            if stop.signal:
                restart.note(config, Interrupted(stop.signal, "", together=False))
            raise
    rendezvous.stop()


def _number(check: str) -> int:
    count = check.removeprefix(CHECK).removeprefix("=") or "1"
    if not count.isdecimal() or not int(count):
        raise UserError(f"{check}: give the number of processes, as in {CHECK}=8")
    return int(count)


def train(config: Config, stop: StopSignal, only_check: int = 0) -> None:
    """Train, unless the run is finished.

    ``only_check``: look for mistakes as that many processes would meet them, and end.
    """
    device = get_device(config)
    start_console()
    config = divide_batch(config, only_check or processes.size())
    processes.agree({k: v for k, v in flatten(config).items() if k not in MAY_DIFFER})
    again = not only_check and restart.is_restart(config)
    store = CheckpointStore(config.run_folder / "checkpoints", config.checkpoint.keep)
    state = state_to_resume(config, store, again=again)
    if state and state["epoch"] == config.train.epochs and not only_check:
        logger.info("this run is finished; for another one set run.name")
        return summarise(config, state["best"], state["last"])
    seed_everything(config.seed, deterministic=config.deterministic)
    loaders = build_loaders(config, device)
    if state:
        fingerprints = {"train": loaders[0].fingerprint, "val": loaders[1].fingerprint}
        check_data(state, fingerprints, config)
    model = make_network(config)
    if only_check:
        return
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
    if processes.is_main():
        draw_run(config.run_folder)
    summarise(config, trainer.state.best, trainer.state.last)


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
    if trainer.compiles:
        logger.info("torch.compile fuses the blocks; the first step may take a minute")


def summarise(config: Config, best: dict[str, Any], last: dict[str, Any]) -> None:
    """Say how a finished run went, and what to do next."""
    folder = config.run_folder
    for label, record in (("best", best), ("last", last)):
        figures = [f"{m.label} {m.digits(record[f'val_{m.name}'])} {m.unit}".rstrip()
                   for m in METRICS.values() if f"val_{m.name}" in record and m.unit]  # fmt: skip
        logger.info(bold(f"{label}: val {', '.join(figures)} (epoch {record['epoch'] + 1})"))
    logger.info("the run lies in %s; next:", folder)
    data = f" {shlex.quote(f'data.path={config.data.path}')}" if config.data.path else ""
    logger.info("  python -m launch.evaluate %s%s", folder / "checkpoints" / "best.pt", data)


if __name__ == "__main__":
    command(main)
