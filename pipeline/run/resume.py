"""Whether and from where a run goes on: decided here, before anything is built."""

import contextlib
import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.run import checkpoint, processes
from pipeline.run.classes import difference, names_of, order_of
from pipeline.run.commands import command_line
from pipeline.run.config import Config, flatten, make_config
from pipeline.run.consistency import check_state
from pipeline.run.console import logger
from pipeline.run.errors import UserError
from pipeline.run.files import free_name, open_file

FREE_TO_CHANGE = (
    "run.", "log.", "checkpoint.", "data.path", "data.format", "data.exclude",
    "data.workers", "data.download", "data.eval_batch_size", "data.loader", "train.device",
    "train.cuda_graph", "train.threads", "train.timeout", "model.weights",
)  # fmt: skip
NETWORK = ("model.arch", "model.bits", "model.num_classes")
KEPT = (*NETWORK, "optim.name")  # a run that goes on keeps its weights and its momentum
ORDER = ("seed", "data.dataset", "data.batch_size")  # they decide which images a batch holds


class Start(NamedTuple):
    """What a run goes on from: the ``state`` in the checkpoint file ``path``.

    ``is_new``: it is the beginning of a new run, that of run.resume=PATH. ``last``: the record of
    the last epoch where the run is finished, and nothing else.
    """

    state: dict[str, Any]
    path: Path
    is_new: bool = False
    last: dict[str, Any] = {}

    @property
    def is_in_epoch(self) -> bool:
        """Whether batches of an epoch are done and others are not."""
        return 0 < self.state["batch"] != self.state.get("steps")


class Request(NamedTuple):
    """A ``config``, and the ``words`` that a person typed for it: CONFIG and key=value."""

    config: Config
    words: Sequence[str] = ()


def find_start(request: Request, store: checkpoint.CheckpointStore, *, again: bool) -> Start | None:
    """What the run of ``request`` goes on from, or None where it begins.

    What the main process finds in ``store``, or as ``run.resume`` says, holds for all processes;
    the others need not see its disk. ``again``: the run in the folder is our own, which torchrun
    restarted. Raises UserError where the run cannot go on, with the reason and the remedy.
    """
    own: list[Start] = []

    def find() -> bytes:
        start = _find(request, store, again=again)
        own.extend([start] if start else [])
        return _packed(start) if start and processes.size() > 1 else b""

    content = processes.from_main(find)
    return _unpacked(content) if content and not own else next(iter(own), None)


def _packed(start: Start) -> bytes:
    """``start`` for the other processes: a line about it, and the checkpoint file."""
    header = {"path": str(start.path), "is_new": start.is_new, "last": start.last}
    return json.dumps(header).encode() + b"\n" + checkpoint.content_of(start.state)


def _unpacked(content: bytes) -> Start:
    header, _, file = content.partition(b"\n")
    about = json.loads(header)
    state = checkpoint.load(io.BytesIO(file))
    return Start(state, Path(about["path"]), about["is_new"], about["last"])


def _find(request: Request, store: checkpoint.CheckpointStore, *, again: bool) -> Start | None:
    """What ``find_start`` returns, found in the main process."""
    config, resume = request.config, request.config.run.resume
    folder = config.run_folder
    if resume != "auto" and not again and is_run(folder):
        what = "" if resume == "none" else " starts a new run"
        raise UserError(
            f"run.resume={resume}{what}, but {folder} holds a run already; set run.resume=auto to "
            f"go on with it, or {_new_name(config)} to start another"
        )
    start = _newest(store, config)
    if not start and resume not in ("auto", "none"):
        start = Start(checkpoint.load(Path(resume)), Path(resume), is_new=True)
    if not start:
        if not again:
            _check_nothing_is_lost(config)
        return None
    check_config(start, request)
    return start if start.is_new else start._replace(last=_last_of_finished(start, config))


def is_run(folder: Path) -> bool:
    """Whether there is any sign of a run in ``folder``."""
    files = ("config.yaml", "metrics.jsonl", "log.txt", "plots")
    return any((folder / name).exists() for name in files) or any(folder.glob("checkpoints/*.pt"))


def _newest(store: checkpoint.CheckpointStore, config: Config) -> Start | None:
    """The checkpoint that is furthest: best.pt too is one, where no later one can be read."""
    damaged, found = [], None
    for path, state in store.newest():
        if isinstance(state, dict):
            found = Start(state, path)
            break
        damaged.append(str(state).rpartition(";")[0])
    best = store.folder / "best.pt"
    if found is None or store.place_of(best) > store.place_of(found.path):
        with contextlib.suppress(UserError):  # it is restored later
            found = Start(checkpoint.load(best), best)
            logger.warning(
                "of the checkpoints only best.pt is left, after epoch %d",
                found.state.get("epoch", 0),
            )
    for reason in damaged:
        logger.warning("%s; going on from the one before", reason)
    if found is None and (damaged or best.exists()):
        raise UserError(
            f"every checkpoint in {store.folder} is damaged; set {_new_name(config)} to "
            "start another run"
        )
    return found


def recorded_epochs(folder: Path) -> list[dict[str, Any]]:
    """The records of whole epochs in metrics.jsonl; none where it cannot be read."""
    records = []
    with contextlib.suppress(OSError), open_file(folder / "metrics.jsonl") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and record.get("kind") == "epoch":
                    records.append(record)
    return records


def _check_nothing_is_lost(config: Config) -> None:
    """Raise UserError where a run that has done epochs would be started over.

    One that was killed after its first epoch was recorded and before it was saved begins again.
    """
    folder, count = config.run_folder, len(recorded_epochs(config.run_folder))
    if count > 1 or (folder / "plots").exists():
        raise UserError(
            f"{folder} holds a run of {count} epochs, but none of its checkpoints; bring them "
            f"back, or set {_new_name(config)} to start another run"
        )


def _last_of_finished(start: Start, config: Config) -> dict[str, Any]:
    """The record of the last epoch of a finished run, and nothing for one that goes on."""
    epochs = config.train.epochs
    if start.state["epoch"] == epochs:
        return dict(start.state["last"])
    records = recorded_epochs(config.run_folder)
    if start.path.name == "best.pt" and records and records[-1].get("epoch") == epochs - 1:
        return {name: records[-1][name] for name in start.state["last"] if name in records[-1]}
    return {}


def check_config(start: Start, request: Request, *, is_settled: bool = False) -> None:
    """Raise UserError unless the run of ``request`` can go on from ``start``: a run with what it
    began with, and a new one with any settings but another network.

    ``is_settled``: the data have been seen, so that the batch size is known.
    """
    state, path, config = start.state, start.path, request.config
    if state.get("format") != checkpoint.FORMAT:
        raise UserError(
            f"checkpoint {path} cannot be resumed from, it holds a network only, or is of another "
            f"version; {weights_alone(start, config)}"
        )
    then = _config_of(start, config)
    check_state(state, then, path, weights_alone(start, config))
    changed = differences(config, then, is_settled=is_settled)
    if not start.is_new and changed:
        what = f"{path} is of another training ({_listed(changed)})"
        raise UserError(f"{what}; take these back, or {_way_on(start, request, changed)}")
    if start.is_new:
        _check_new(start, request, changed)


def _config_of(start: Start, config: Config) -> Config:
    """The config in a checkpoint."""
    try:
        return make_config(start.state["config"])
    except (KeyError, UserError) as error:
        reason = str(error).partition(";")[0]
        raise UserError(
            f"checkpoint {start.path} cannot be resumed from: of its config, {reason}; "
            f"{weights_alone(start, config)}"
        ) from None


def _check_new(start: Start, request: Request, changed: dict[str, tuple[Any, Any]]) -> None:
    """Raise UserError unless the new run of ``request`` can begin with ``start``."""
    done, epochs = start.state["epoch"], request.config.train.epochs
    what = f"run.resume={start.path}"
    if any(key in changed for key in KEPT):
        kind = "network" if any(key in changed for key in NETWORK) else "optimizer"
        raise UserError(
            f"{what} is of another {kind} ({_listed(changed)}); {_way_on(start, request, changed)}"
        )
    if done >= epochs:
        raise UserError(
            f"{what} has done {done} epochs, but train.epochs is {epochs}; set "
            f"train.epochs={2 * done} to train longer"
        )
    if start.is_in_epoch and any(key in changed for key in ORDER):
        raise UserError(
            f"{what} is in the middle of an epoch, in which {_listed(changed)} cannot change; "
            f"{_way_on(start, request, changed)}"
        )


def differences(
    config: Config, then: Config, *, is_settled: bool = True
) -> dict[str, tuple[Any, Any]]:
    """What a resumed run would do differently from ``then``: for each key its two values.

    Unless ``is_settled``, the data may still make the batch smaller.
    """
    old, new = flatten(then), flatten(config)
    return {
        key: (old[key], value)
        for key, value in new.items()
        if old[key] != value
        and not key.startswith(FREE_TO_CHANGE)
        and not (key == "model.num_classes" and value is None)
        and (key, value) != ("train.precision", "auto")
        and not (key == "data.batch_size" and not is_settled and value > old[key])
    }


def _listed(changed: dict[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key}: {then} -> {now}" for key, (then, now) in changed.items())


def _way_on(start: Start, request: Request, changed: dict[str, tuple[Any, Any]]) -> str:
    """The remedy: a command that goes on in a new run, from where that is possible."""
    config = request.config
    if "model.arch" in changed:
        return f"set run.resume=none {_new_name(config)} to train it from its beginning"
    if any(key in changed for key in KEPT):
        return f"start from its weights: {_command(request, changed, weights=start.path)}"
    path: Path | None = start.path
    if start.is_in_epoch and any(key in changed for key in (*ORDER, "data")):
        path = end_of_epoch(start.path.parent)
    if path is None:
        return f"start from its weights: {_command(request, changed, weights=start.path)}"
    return f"go on in a new run: {_command(request, changed, resume=path)}"


def _command(
    request: Request,
    changed: dict[str, tuple[Any, Any]],
    *,
    resume: Path | None = None,
    weights: Path | None = None,
) -> str:
    """The command that the person typed, but for a new run from a checkpoint."""
    config, words = request.config, list(request.words)
    if not words:
        given = {key: now for key, (_, now) in changed.items() if key in flatten(config)}
        words = [str(config.run_folder / "config.yaml"), *(f"{k}={v}" for k, v in given.items())]
    replaced = ("run.resume=", "run.name=", "model.weights=", "--")
    kept = [word for word in words if not word.startswith(replaced)]
    start = [f"run.resume={resume}"] if resume else []
    start += [f"model.weights={weights}"] if weights else []
    return command_line("train", *kept, *start, f"run.name={free_name(config.run_folder)}")


def weights_alone(start: Start, config: Config) -> str:
    """The remedy where only the network in a checkpoint can be believed."""
    weights = shlex.quote(f"model.weights={start.path}")
    return f"set run.resume=none {weights} {_new_name(config)} to start from its weights alone"


def _new_name(config: Config) -> str:
    return shlex.quote(f"run.name={free_name(config.run_folder)}")


def end_of_epoch(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder`` that was saved at the end of an epoch."""
    for path in [*sorted(folder.glob("epoch_*.pt"), reverse=True), folder / "best.pt"]:
        with contextlib.suppress(UserError):
            if path.exists() and checkpoint.load(path).get("batch") == 0:
                return path
    return None


def check_data(start: Start, data: dict[str, str], request: Request) -> None:
    """Raise UserError if the data are not those that the run began with.

    ``data`` holds the fingerprint of each split. Between two epochs a run may leave out more
    images, bad ones for instance, and a new run may take any.
    """
    state, config = start.state, request.config
    changed = [split for split, fingerprint in data.items() if state["data"][split] != fingerprint]
    if not changed:
        return
    what = f"the {' and '.join(changed)} images are not those that {start.path} was trained on"
    where = f"data.path={config.data.path} (data.exclude={config.data.exclude}): {what}"
    may_change = start.is_new or config.data.exclude != state["config"]["data"].get("exclude")
    is_in_epoch = start.is_in_epoch and "train" in changed
    if is_in_epoch or not may_change:
        reason = ", and it is in the middle of an epoch" if is_in_epoch else ""
        remedy = _way_on(start, request, {"data": ("", "")})
        raise UserError(f"{where}{reason}; bring them back, or {remedy}")
    going_on = "these" if start.is_new else "what data.exclude leaves"
    logger.warning("%s; going on with %s", where, going_on)


def check_classes(start: Start, classes: Sequence[str], request: Request) -> None:
    """Raise UserError unless the classes of the data are those that the run began with, by their
    names; their order may be another."""
    names = names_of(start.state)
    if names is not None and order_of(names, classes) is None:
        what = difference(names, len(names), classes)
        remedy = _way_on(start, request, {"model.num_classes": (len(names), len(classes))})
        raise UserError(f"{start.path} cannot be gone on from: {what}; {remedy}")


def check_place(
    start: Start, data: dict[str, str], steps: int, metrics: Sequence[str], request: Request
) -> None:
    """Raise UserError unless the place of ``start`` in an epoch is one of its ``steps``, and the
    same ``metrics`` were counted up to it. ``data`` is that of ``check_data``."""
    state, batch = start.state, request.config.data.batch_size
    is_same = state["data"]["train"] == data["train"]
    is_same = is_same and state["config"]["data"]["batch_size"] == batch
    problem = ""
    if is_same and state.get("steps", steps) != steps:
        problem = f"says that an epoch has {state['steps']} steps, but it has {steps}"
    elif start.is_in_epoch and state["batch"] > steps:
        problem = f"is at batch {state['batch']} of an epoch that has {steps}"
    elif state["batch"] and list(state["metrics"]) != list(metrics):
        counted = ", ".join(map(str, state["metrics"]))
        problem = (
            f"counts {counted} in the middle of an epoch, but this version {', '.join(metrics)}"
        )
    if problem:
        raise UserError(f"{start.path} {problem}; {_way_on(start, request, {'data': ('', '')})}")


def say_what_is_new(start: Start, config: Config, anew: Sequence[str]) -> None:
    """Say in one line what a new run takes over from ``start``, and what begins ``anew``."""
    changed = differences(config, make_config(start.state["config"]))
    logger.info(
        "a new run from %s: weights, momentum, random states and the place after epoch %d are "
        "taken over; changed: %s; anew: %s",
        start.path,
        start.state["epoch"],
        _listed(changed) or "nothing",
        ", ".join(anew) or "nothing",
    )
