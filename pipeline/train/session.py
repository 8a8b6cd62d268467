"""A whole training, from its config to its last checkpoint."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from pipeline.data.batch import divide_batch
from pipeline.data.loader import Loader
from pipeline.data.open import build_loaders, settle_data
from pipeline.run import best, cards, processes, restart, sweep
from pipeline.run.checkpoint import CheckpointStore
from pipeline.run.classes import names_of, order_of
from pipeline.run.commands import command_line
from pipeline.run.config import Config, flatten
from pipeline.run.consistency import check_optimizer
from pipeline.run.console import bold, logger, start_console
from pipeline.run.device import get_device
from pipeline.run.errors import Diverged, Interrupted, UserError
from pipeline.run.files import free_name
from pipeline.run.folder import open_folder, records_of
from pipeline.run.problems import Problems
from pipeline.run.recorder import Recorder
from pipeline.run.resume import (
    Request,
    Start,
    check_classes,
    check_config,
    check_data,
    check_place,
    find_start,
    say_what_is_new,
    weights_alone,
)
from pipeline.run.signals import StopSignal
from pipeline.run.threads import settle_threads
from pipeline.run.versions import versions
from pipeline.train.memory import shortage_explained
from pipeline.train.metrics import METRICS, metric_names
from pipeline.train.network import check_weights, make_network
from pipeline.train.precision import settle_precision
from pipeline.train.randomness import seed_everything
from pipeline.train.trainer import Trainer

# What may differ between the processes of a run.
MAY_DIFFER = ("data.path", "data.format", "data.exclude", "data.workers", "train.threads",
              "run.dir")  # fmt: skip


class Outcome(NamedTuple):
    """How a run ended: its config, and the validation metrics of its best and its last epoch."""

    config: Config
    best: dict[str, Any]
    last: dict[str, Any]


def train(config: Config, only_check: int = 0, words: Sequence[str] = ()) -> Outcome | None:
    """Train as ``config`` says, or go on doing so; a finished run is left as it is.

    ``only_check``: look for mistakes as that many processes would meet them, and return None.
    ``words``: what a person typed for the config, CONFIG and key=value, for the commands in
    errors. The processes stay joined; a caller leaves them by ``rendezvous.stop``. Raises
    UserError, Diverged, or Interrupted after saving.
    """
    with StopSignal() as stop:
        sweep.end_with_agent()
        try:
            with shortage_explained():
                return _train(Request(config, words), stop, only_check)
        except (Interrupted, Diverged) as end:
            restart.note(config, end)
            raise
        except UserError:  # asked to stop, it could not save
            if stop.signal:
                restart.note(config, Interrupted(stop.signal, "", together=False))
            raise


def _train(request: Request, stop: StopSignal, only_check: int) -> Outcome | None:
    config, problems = request.config, Problems()
    device = torch.device("cpu")  # where there is no other, the rest is checked
    with problems.noted():
        device = get_device(config, only_check=only_check > 0)
    start_console()
    cards.note(device, config.train.device)
    logger.info("%s: reading %s", config.run_folder, config.data.path or config.data.dataset)
    config = divide_batch(config, only_check or processes.size())
    processes.agree({k: v for k, v in flatten(config).items() if k not in MAY_DIFFER})
    processes.alike(lambda: sweep.check_folder(config))
    again = not only_check and not problems.found and restart.is_restart(config)
    store = CheckpointStore(config.run_folder / "checkpoints", config.checkpoint.keep)
    request = request._replace(config=config)
    seen = records_of(config)  # another process may train this run until it is ours
    start: Start | None = None
    with problems.noted():
        start = find_start(request, store, again=again)
    if start and start.last and not only_check:
        return _finished(config, start)
    begun = start.state["config"]["train"] if start else {}
    with problems.noted():
        config = settle_precision(config, device, begun.get("precision", "auto"))
    if not only_check:
        is_cpu = device.type == "cpu"
        config = settle_threads(config, begun.get("threads"), looks=is_cpu)
    seed_everything(config.seed, deterministic=config.deterministic)
    loaders: tuple[Loader, Loader] | None = None
    with problems.noted():
        loaders = build_loaders(config, device)
    if problems.found:
        with problems.noted():
            processes.alike(lambda: check_weights(config))
    problems.raise_all()
    assert loaders
    config = settle_data(config, loaders[0])
    asked = {"train.precision": request.config.train.precision}  # auto goes on in any
    request = request._replace(config=config.changed(asked))
    order = _fit(start, loaders, request) if start else None
    classes = loaders[0].classes
    model = make_network(config, classes, is_fresh=start is None)
    teacher = processes.main_first(lambda: _teacher(config, classes))
    if only_check:
        return None
    recorder = Recorder()
    trainer = Trainer(config, model, loaders, device, store, stop, recorder, teacher)
    open_folder(config, recorder, start, seen)
    with _recorded(recorder), shortage_explained():
        if start:
            _go_on(trainer, start, order)
        describe(trainer, device)
        trainer.fit()
    return Outcome(config, trainer.state.best, trainer.state.last)


def _teacher(config: Config, classes: Sequence[str]) -> nn.Module | None:
    """The network of ``distill.teacher``; None where no teacher is asked for."""
    if config.distill.teacher is None:
        return None
    from pipeline.train.teacher import make_teacher  # its torchvision takes seconds to import

    return make_teacher(config, classes)


@contextlib.contextmanager
def _recorded(recorder: Recorder) -> Iterator[None]:
    """Within this context a training is under way; its records end with the exit code that its
    command has then, and a divergence is told at once."""
    exit_code = 1
    try:
        yield
        exit_code = 0
    except (UserError, Diverged, Interrupted) as error:
        exit_code = error.exit_code
        if isinstance(error, Diverged):
            recorder.alert(str(error))
        raise
    finally:
        recorder.close(exit_code)


def _finished(config: Config, start: Start) -> Outcome:
    """The outcome of a run that has nothing left to do."""
    name = free_name(config.run_folder)
    logger.info("this run is finished; for another one set run.name=%s", name)
    with contextlib.suppress(UserError):  # of a disk that is full or cannot be written
        if processes.is_main():
            best.restore(config.run_folder / "checkpoints", start)
    return Outcome(config, start.state["best"], start.last)


def _fit(start: Start, loaders: tuple[Loader, Loader], request: Request) -> list[int] | None:
    """Hold ``start`` against the data: raise UserError where the run cannot go on with them.

    Returns, for a new run, the output of the network that stands for each class of the data.
    """
    fingerprints = {"train": loaders[0].fingerprint, "val": loaders[1].fingerprint}
    steps, classes = len(loaders[0]), loaders[0].classes
    processes.alike(lambda: check_classes(start, classes, request))
    processes.alike(lambda: check_config(start, request, is_settled=True))
    processes.alike(lambda: check_data(start, fingerprints, request))
    processes.alike(lambda: check_place(start, fingerprints, steps, metric_names(), request))
    names = names_of(start.state)
    return order_of(names, classes) if names else None


def _go_on(trainer: Trainer, start: Start, order: list[int] | None) -> None:
    """Let ``trainer`` go on from ``start``, or begin a new run with it."""
    state, folder = trainer.state, trainer.store.folder
    shapes = [parameter.shape for parameter in state.model.parameters()]
    remedy = weights_alone(start, trainer.config)
    check_optimizer(start.state["optimizer"], shapes, start.path, remedy)
    anew = trainer.restore(start.state, order)
    has_other_val = start.state["data"]["val"] != trainer.val_loader.fingerprint
    if start.is_new and has_other_val:
        state.best = trainer.kept = dict(best.NONE)
        anew.append("the best epoch, as the validation images are others")
    else:
        record = processes.from_main(lambda: json.dumps(best.restore(folder, start)).encode())
        trainer.kept = json.loads(record)
    if start.is_new:
        say_what_is_new(start, trainer.config, anew)
        trainer.save()
    logger.info("going on after epoch %d, batch %d", state.epoch, state.batch)


def describe(trainer: Trainer, device: torch.device) -> None:
    """Say what is going to happen."""
    config = trainer.config
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    logger.info(
        "%s: %s %s, %s, %d training and %d validation images of %d classes, %d epochs of %d steps "
        "on %s in %s; %d images a step, %d left for the next epoch's shuffle",
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
        config.data.batch_size,
        trainer.loader.left,
    )
    logger.info(versions())


def summarise(outcome: Outcome) -> None:
    """Say how a finished run went, and what to do next."""
    config, folder = outcome.config, outcome.config.run_folder
    for label, record in (("best", outcome.best), ("last", outcome.last)):
        figures = [f"{m.label} {m.digits(record[f'val_{m.name}'])} {m.unit}".rstrip()
                   for m in METRICS.values() if f"val_{m.name}" in record and m.unit]  # fmt: skip
        logger.info(bold(f"{label}: val {', '.join(figures)} (epoch {record['epoch'] + 1})"))
    logger.info("the run lies in %s; next:", folder)
    data = [f"data.path={config.data.path}"] if config.data.path else []
    file = _file_to_evaluate(folder / "checkpoints", outcome.best)
    if file:
        logger.info("  %s", command_line("evaluate", str(file), *data))


def _file_to_evaluate(folder: Path, wanted: dict[str, Any]) -> Path | None:
    """best.pt, or the newest checkpoint where that is lost, and a line if it is of another epoch
    than the best one."""
    files = (folder / "best.pt", *CheckpointStore(folder, 1).files())
    for file in files:
        if (epoch := best.record_of(file)["epoch"]) == best.NONE["epoch"]:
            continue
        if epoch != wanted["epoch"]:
            logger.warning(
                "of epoch %d no checkpoint is left; %s is of epoch %d",
                wanted["epoch"] + 1,
                file,
                epoch + 1,
            )
        return file
    logger.warning("no checkpoint is left in %s", folder)
    return None
