"""Whether the state in a checkpoint agrees with itself and with the config that lies beside it.

A file may be whole and yet hold what no training wrote: it would be believed over the config.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.run.config import Config
from pipeline.run.errors import UserError


def check_state(state: Mapping[str, Any], config: Config, path: Path, remedy: str) -> None:
    """Raise UserError with the first thing in ``state``, read from ``path``, that does not fit
    ``config``, which the state itself brought."""
    try:
        problem = next(_problems(state, config), None)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        problem = f"it lacks what going on needs ({type(error).__name__}: {error})".splitlines()[0]
    if problem:
        raise UserError(f"checkpoint {path} cannot be resumed from: {problem}; {remedy}")


def check_optimizer(
    optimizer: Mapping[str, Any], shapes: Sequence[Any], path: Path, remedy: str
) -> None:
    """Raise UserError unless ``optimizer``, an optimizer's state that was read from ``path``, has
    one group of as many parameters as there are ``shapes``, and buffers of these."""
    sizes = [len(group["params"]) for group in optimizer["param_groups"]]
    wrong = sizes != [len(shapes)] or any(
        not 0 <= index < len(shapes)
        or not _has_shape(value, () if name == "step" else shapes[index])
        for index, values in optimizer["state"].items()
        for name, value in values.items()
    )
    if wrong:
        what = f"checkpoint {path} cannot be resumed from"
        raise UserError(f"{what}: its optimizer is of other parameters; {remedy}")


def _has_shape(value: Any, shape: Sequence[int]) -> bool:
    return value is None or (isinstance(value, Tensor) and value.shape == tuple(shape))


def _problems(state: Mapping[str, Any], config: Config) -> Iterator[str]:
    """What does not fit, in words that follow the file's name; nothing where all does."""
    yield from _counters(state, config)
    yield from _figures(state)
    yield from _optimizer(state["optimizer"], config)
    if config.train.precision == "fp16" and not state["scaler"]:
        yield "train.precision is fp16, but it holds no loss scale"
    scale = state["scaler"].get("scale", 1.0)
    if not (_is_finite(scale) and scale > 0):
        yield f"its loss scale is {scale}"
    if bool(config.train.ema_decay) != bool(state["ema"]):
        yield f"train.ema_decay is {config.train.ema_decay}, which its averaged weights do not fit"
    yield from _statistics(state.get("reestimated") or {}, state["state_dict"])


def _counters(state: Mapping[str, Any], config: Config) -> Iterator[str]:
    """Problems of the place in the training: epochs, batches and steps done."""
    for name in ("epoch", "batch", "step", "metrics_size"):
        if type(state[name]) is not int or state[name] < 0:
            yield f"its {name} is {state[name]!r}, no count"
    epoch, epochs = state["epoch"], config.train.epochs
    if epoch > epochs or (epoch == epochs and state["batch"]):
        yield f"it is in epoch {epoch + 1}, but train.epochs is {epochs}"
    steps = state.get("steps")
    if steps is not None:
        if type(steps) is not int or steps < 1:
            yield f"its steps of an epoch are {steps!r}, no count"
        if state["batch"] > steps or state["step"] != epoch * steps + state["batch"]:
            yield f"it is at batch {state['batch']}, step {state['step']} of {steps} an epoch"


def _figures(state: Mapping[str, Any]) -> Iterator[str]:
    """Problems of the records of the best and the last epoch, of the times in seconds, and of what
    the epoch under way has counted: ``sums`` (processes, metrics) and ``watch`` (4,), integers."""
    for name in ("best", "last"):
        record = state[name]
        if not isinstance(record, dict) or not all(map(_is_number, record.values())):
            yield f"its {name} is no record of an epoch"
            return
    best, last, epoch = state["best"], state["last"], state["epoch"]
    top1, done = best["val_top1"], best["epoch"]
    if type(done) is not int or not -1 <= done < max(epoch, 0) or (done < 0) != (top1 < 0):
        yield f"its best is of epoch {done}, but it has done {epoch}"
    if not _is_finite(top1) or top1 > 100:
        yield f"its best has a top-1 of {top1}"
    if last and last["epoch"] != epoch - 1:
        yield f"its last epoch is {last['epoch']}, but it has done {epoch}"
    if last and done >= 0 and not last["val_top1"] <= top1:
        yield f"its best has a top-1 of {top1}, but its last epoch {last['val_top1']}"
    if bool(last) != bool(epoch):
        yield "it holds no record of its last epoch"
    if not all(_is_finite(each) and each >= 0 for each in state["times"]):
        yield f"its times are {state['times']}"
    sums, names = state["sums"], state["metrics"]
    if sums.dim() != 2 or sums.shape[1] != len(names) or not len(sums):
        yield f"its sums are {tuple(sums.shape)} for {len(names)} metrics"
    elif not bool(sums.isfinite().all()):
        yield "its sums are not finite"
    if state["watch"].shape != (4,) or state["watch"].is_floating_point():
        yield "its watch over losses is of another size"


def _optimizer(optimizer: Mapping[str, Any], config: Config) -> Iterator[str]:
    """Problems of an optimizer's state: settings that are not the config's, and its moments."""
    optim, moments = config.optim, {"momentum_buffer"}
    wanted = {"weight_decay": optim.weight_decay, "momentum": optim.momentum}
    if optim.name != "sgd":
        moments = {"step", "exp_avg", "exp_avg_sq"}
        wanted = {"weight_decay": optim.weight_decay, "beta1": optim.beta1, "beta2": optim.beta2}
    if any(values.keys() - moments for values in optimizer["state"].values()):
        yield f"its optimizer is not optim.name={optim.name}"
    for group in optimizer["param_groups"]:
        found = {**group, **dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))}
        for name, value in wanted.items():
            if not _is_finite(found[name]) or float(found[name]) != value:
                yield f"its optimizer's {name} is {found[name]}, but optim.{name} is {value}"
    for values in optimizer["state"].values():
        if not all(bool(v.isfinite().all()) for v in values.values() if isinstance(v, Tensor)):
            yield "its momentum is not finite"


def _statistics(statistics: Mapping[str, Any], weights: Mapping[str, Any]) -> Iterator[str]:
    """Problems of the statistics that the network with the ``weights`` was evaluated with."""
    for key, value in statistics.items():
        if value is None or key not in weights or not _has_shape(value, weights[key].shape):
            yield f"its re-estimated {key} is none of the network's"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return _is_number(value) and math.isfinite(value)  # type: ignore[arg-type]
