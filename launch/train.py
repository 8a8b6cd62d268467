"""Train a network: ``python -m launch.train CONFIG [key=value ...]``."""

import dataclasses
import io
import os
import random
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from launch.command import command, get_device
from models import BinaryNetwork, build_model
from pipeline.data.open import build_loaders
from pipeline.run import checkpoint, files, processes, rendezvous, restart, resume, signals, weights
from pipeline.run.config import Config, flatten, load_config, to_dict
from pipeline.run.console import bold, logger, start_console, start_file
from pipeline.run.errors import Diverged, Interrupted, UserError
from pipeline.run.recorder import JsonLines, Wandb
from pipeline.train import precision, trainer

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
    with signals.StopSignal() as stop:
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


def train(config: Config, stop: signals.StopSignal, only_check: int = 0) -> None:
    """Train, unless the run is finished. ``only_check``: look for mistakes, and end, as they would
    meet that many processes."""
    device = get_device(config)
    start_console()
    config = divide(config, only_check or processes.size())
    processes.agree({k: v for k, v in flatten(config).items() if k not in MAY_DIFFER})
    again = not only_check and restart.is_restart(config)
    store = checkpoint.CheckpointStore(config.run_folder / "checkpoints", config.checkpoint.keep)
    state = shared_state(config, store, again=again)
    if state and state["epoch"] == config.train.epochs and not only_check:
        logger.info("this run is finished; for another one set run.name")
        return summarise(config, state["best"], state["last"])
    seed_everything(config)
    loaders = build_loaders(config, device)
    if state:
        check_data(state, trainer.fingerprints(*loaders), config)
    model = make_model(config)
    if only_check:
        return
    run = trainer.Trainer(config, model, loaders, device, store, stop)
    with processes.main_first():
        metrics = prepare_folder(config, state["metrics_size"] if state else 0)
    if state:
        run.restore(state)
        logger.info("going on after epoch %d, batch %d", run.epoch, run.batch)
    describe(config, run, device)
    fit(config, run, metrics)
    summarise(config, run.best, run.last)


def fit(config: Config, run: trainer.Trainer, metrics: JsonLines) -> None:
    """Train to the end; the main process writes metrics and to wandb."""
    mode = config.log.wandb if processes.is_main() else "disabled"
    wandb = Wandb(mode, config.log.project, config.run_folder, to_dict(config))
    finished = False
    try:
        run.fit(metrics, wandb)
        finished = True
    finally:
        wandb.finish(0 if finished else 1)


def divide(config: Config, size: int) -> Config:
    """``config`` with a batch size that ``size`` processes can share."""
    batch = config.data.batch_size
    if batch % size == 0:
        return config
    nearest = max(1, round(batch / size)) * size
    logger.info("data.batch_size: %d -> %d, a multiple of %d processes", batch, nearest, size)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=nearest))


def shared_state(
    config: Config, store: checkpoint.CheckpointStore, *, again: bool
) -> dict[str, Any] | None:
    """The state to go on from, or None for a new run: what the main process finds, in all."""
    content = processes.from_main(lambda: find_state(config, store, again=again))
    return checkpoint.load(io.BytesIO(content)) if content else None


def find_state(config: Config, store: checkpoint.CheckpointStore, *, again: bool) -> bytes:
    """The checkpoint file to go on from, as ``run.resume`` says, or nothing for a new run.

    ``again``: the run in this folder is our own, which torchrun restarted.
    """
    folder, resume = config.run_folder, config.run.resume
    exists = (folder / "config.yaml").exists() or bool(store.files())
    remedy = "set run.name to start another run"
    if exists and not again and resume != "auto":
        what = "" if resume == "none" else " starts a new run"
        raise UserError(f"run.resume={resume}{what}, but {folder} holds a run already; {remedy}")
    if resume not in ("auto", "none") and not store.files():
        check_config(checkpoint.load(Path(resume)), config, Path(resume))
        return Path(resume).read_bytes()
    damaged = []
    for path, state in store.newest():
        if isinstance(state, dict):
            check_config(state, config, path)
            return path.read_bytes()
        damaged.append(path)
        logger.warning("%s; going on from the one before", str(state).rpartition(";")[0])
    if damaged:
        raise UserError(f"every checkpoint in {store.folder} is damaged; {remedy}")
    return b""


def check_config(state: dict[str, Any], config: Config, path: Path) -> None:
    """Raise unless ``state`` is ours and of the same training."""
    if state.get("format") != checkpoint.FORMAT:
        raise UserError(
            f"checkpoint {path} cannot be resumed from, it holds a network only, or is of another "
            f"version; "
            f"set model.weights={path} to start from its weights"
        )
    if changed := resume.differences(config, state):
        raise UserError(
            f"{path} is of another training ({', '.join(changed)}); take these back, or set "
            "run.name to start another run"
        )


def check_data(state: dict[str, Any], data: dict[str, str], config: Config) -> None:
    """Raise if the data are not those that the run began with.

    Leaving out more images, bad ones say, is allowed between two epochs.
    """
    changed = [split for split, fingerprint in data.items() if state["data"][split] != fingerprint]
    if not changed:
        return
    what = f"the {' and '.join(changed)} images are not those that this run began with"
    where = f"data.path={config.data.path} (data.exclude={config.data.exclude}): {what}"
    if config.data.exclude == state["config"]["data"].get("exclude"):
        raise UserError(f"{where}; bring them back, or set run.name to start another run")
    if state["batch"]:
        raise UserError(
            f"{where}, and it is in the middle of an epoch; go on from the end of one with "
            "run.name=... run.resume=.../epoch_....pt"
        )
    logger.warning("%s; going on with what data.exclude leaves", where)


def seed_everything(config: Config) -> None:
    """Seed Python, NumPy and torch; the loaders take the seed themselves."""
    random.seed(config.seed)
    np.random.seed(config.seed)  # noqa: NPY002
    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = not config.deterministic
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Kernels write all that they allocate: nothing needs to be filled before.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def make_model(config: Config) -> BinaryNetwork:
    """The network of ``config``, started from ``model.weights`` if set."""
    model = build_model(
        config.model.arch,
        config.model.bits,
        config.model.num_classes,
        config.estimator.name,
        **config.estimator_options,
    )
    if config.model.weights:
        path = Path(config.model.weights)
        state = checkpoint.load(path)
        fresh = weights.load_weights(model, state, path, new_classifier=True)
        logger.info("started from %s%s", path, " with a new classifier" if fresh else "")
    return model


def prepare_folder(config: Config, metrics_size: int) -> JsonLines:
    """Make the run's folder and, in the main process, its files; returns metrics.jsonl, cut to
    ``metrics_size`` bytes."""
    folder = config.run_folder
    if not processes.is_main():
        return JsonLines(Path(os.devnull))
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        metrics = JsonLines(folder / "metrics.jsonl", metrics_size)  # first: it locks the run
        start_file(folder / "log.txt")
    except OSError as error:
        raise UserError(
            f"run.dir: cannot write {folder}: {error.strerror}; set run.dir to a folder that can"
        ) from None
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    files.write_atomically(folder / "config.yaml", text.encode())
    restart.begin(config)
    return metrics


def describe(config: Config, run: trainer.Trainer, device: torch.device) -> None:
    """Say what is going to happen."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    logger.info(
        "%s: %s %s, %s, %d training and %d validation images of %d classes, %d epochs of %d steps "
        "on %s in %s",
        config.run_folder,
        config.model.arch,
        config.model.bits,
        config.estimator.name,
        run.loader.images,
        run.val_loader.images,
        len(run.loader.classes),
        config.train.epochs,
        len(run.loader),
        name,
        config.train.precision,
    )
    if precision.is_compiled(config, device, run.loader):
        logger.info("torch.compile fuses the blocks; the first step may take a minute")


def summarise(config: Config, best: dict[str, Any], last: dict[str, Any]) -> None:
    """Say how a finished run went, and what to do next."""
    folder = config.run_folder
    for label, record in (("best", best), ("last", last)):
        text = f"val top-1 {record['val_top1']:.2f} %, top-5 {record['val_top5']:.2f} %"
        logger.info(bold(f"{label}: {text} (epoch {record['epoch'] + 1})"))
    logger.info("the run lies in %s; next:", folder)
    data = f" {shlex.quote(f'data.path={config.data.path}')}" if config.data.path else ""
    logger.info("  python -m launch.evaluate %s%s", folder / "checkpoints" / "best.pt", data)


if __name__ == "__main__":
    command(main)
