"""Everything that changes during a training, and its form in a checkpoint."""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from models import BinaryNetwork
from pipeline.run import processes
from pipeline.run.best import NONE
from pipeline.run.classes import is_classifier
from pipeline.run.config import Config
from pipeline.run.console import logger
from pipeline.train.augmentation import Augmentation, make_augmentation
from pipeline.train.average import MovingAverage
from pipeline.train.indicators import Indicators
from pipeline.train.metrics import METRICS, Sums
from pipeline.train.optimizer import load_state, make_optimizer, state_of
from pipeline.train.ovsw import OvSW
from pipeline.train.randomness import rng_state, set_rng_state
from pipeline.train.watch import Watch


@dataclass
class TrainState:
    """A training as it stands: ``state_dict`` and ``load_state_dict`` take it to a checkpoint and
    back, to the bit."""

    model: BinaryNetwork
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: MovingAverage | None
    twin: nn.Module | None  # a copy that is evaluated, with statistics of its own: reestimation.py
    sums: Sums
    watch: Watch
    indicators: Indicators | None
    augmentation: Augmentation | None
    ovsw: OvSW | None
    epoch: int = 0  # epochs done
    batch: int = 0  # batches done in the epoch after them
    reestimated: int = 0  # epochs done when the statistics of the twin were taken
    seconds: float = 0.0  # this epoch's training so far
    waited: float = 0.0  # seconds of it that were spent waiting for data
    best: dict[str, Any] = field(default_factory=lambda: dict(NONE))
    last: dict[str, Any] = field(default_factory=dict)

    @property
    def averaged(self) -> nn.Module:
        """The network of the averaged weights, if weights are averaged, else the network itself."""
        return self.ema.module if self.ema else self.model

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated."""
        return self.averaged if self.twin is None else self.twin

    def tensors(self) -> Iterator[Tensor]:
        """All tensors that outlive a training step and that it reads or writes."""
        yield from (self.watch.counts, self.sums.values)
        for module in (self.model, *([self.ema.module] if self.ema else [])):
            yield from itertools.chain(module.parameters(), module.buffers())
        for group in self.optimizer.param_groups:
            yield group["lr"]
        for values in self.optimizer.state.values():
            yield from values.values()
        for each in (self.indicators, self.ovsw, self.augmentation):
            yield from each.tensors() if each else ()

    def correct_gradients(self) -> None:
        """Let the indicators look at the gradients of a step, and OvSW correct them."""
        if self.indicators or self.ovsw:
            self.scaler.unscale_(self.optimizer)
        if self.indicators:
            self.indicators.update()
        if self.ovsw:
            self.ovsw.correct()

    def finish_epoch(self, record: Mapping[str, Any]) -> None:
        """Count the epoch, whose ``record`` this is, and start the figures of the next one anew."""
        self.last = {name: record[name] for name in ("epoch", *(f"val_{m}" for m in METRICS))}
        if record["val_top1"] > self.best["val_top1"]:
            self.best = self.last
        self.epoch, self.batch = self.epoch + 1, 0
        self.seconds = self.waited = 0.0
        self.sums.reset()

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors that a checkpoint holds. All processes must call it."""
        return {
            "state_dict": self.model.state_dict(),
            "model": f"{self.model.arch}_{self.model.bits}".removesuffix("_32w32a"),
            "epoch": self.epoch,
            "best_prec1": self.best["val_top1"],
            "batch": self.batch,
            "optimizer": state_of(self.optimizer, self.model.parameters()),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "reestimated": self._statistics(),
            "rng": rng_state(),
            "sums": processes.gather(self.sums.values),  # (processes, sums)
            "metrics": self.sums.names,
            "times": [self.seconds, self.waited],
            "indicators": self.indicators.state() if self.indicators else None,
            "ovsw": self.ovsw.state() if self.ovsw else None,
            "best": self.best,
            "last": self.last,
            "watch": self.watch.counts,
        }

    def _statistics(self) -> dict[str, Tensor] | None:
        """Those of the twin by name, if they are of the weights as they stand, after an epoch."""
        is_current = self.batch == 0 < self.epoch == self.reestimated
        return statistics_of(self.twin) if self.twin is not None and is_current else None

    def load_state_dict(
        self, state: dict[str, Any], order: Sequence[int] | None = None
    ) -> list[str]:
        """Take over what ``state_dict`` gave, also from another number of processes, and return the
        names of what it does not hold and what therefore begins anew.

        ``order``: for each class of the data, the output among those of ``state`` that stands for
        it.
        """
        anew = []
        self.model.load_state_dict(state["state_dict"])
        if load_state(self.optimizer, self.model.parameters(), state["optimizer"]):
            anew.append("momentum")
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        elif self.scaler.is_enabled():
            anew.append("the loss scale")
        if self.ema and state["ema"]:
            self.ema.load_state_dict(state["ema"])
        elif self.ema:
            self.ema.load_state_dict(self.model.state_dict())
            anew.append("averaged weights")
        if self.indicators and not self.indicators.load_state(state["indicators"] or {}):
            anew.append("indicators")
        if self.ovsw and not self.ovsw.load_state(state.get("ovsw") or {}):
            anew.append("the flips that OvSW counts")
        if order is not None:
            self._arrange(order)
        set_rng_state(state["rng"])
        self.watch.load(state["watch"])
        self.seconds, self.waited = state["times"]
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.best, self.last = state["best"], state["last"]
        if self.twin is not None and state.get("reestimated"):
            self.twin.load_state_dict(state["reestimated"], strict=False)
            self.reestimated = self.epoch
        if self.batch:  # else they are zero
            self.sums.values.copy_(processes.share(state["sums"]))
        return anew

    def _arrange(self, order: Sequence[int]) -> None:
        """Let the outputs of the network stand in ``order``."""
        rows = list(order)
        modules = [self.model, *([self.ema.module] if self.ema else [])]
        for key, parameter in itertools.chain.from_iterable(m.named_parameters() for m in modules):
            if is_classifier(key):
                kept = self.optimizer.state.get(parameter, {}).values()
                moments = [each for each in kept if each is not None and each.ndim]
                for tensor in (parameter.data, *moments):
                    tensor.copy_(tensor[rows])


def statistics_of(network: nn.Module) -> dict[str, Tensor]:
    """The running means and variances of all batch norms of ``network`` by name."""
    names = "running_mean", "running_var"
    return {key: each for key, each in network.named_buffers() if key.split(".")[-1] in names}


def make_state(config: Config, model: BinaryNetwork, device: torch.device) -> TrainState:
    """The beginning of a training of ``model``, which lies on ``device`` in its final dtype."""
    is_mixed = config.train.precision == "fp16"
    decay = config.train.ema_decay
    return TrainState(
        model=model,
        optimizer=make_optimizer(config, model),
        scaler=torch.amp.GradScaler(device.type, enabled=is_mixed),
        ema=MovingAverage(model, decay) if decay else None,
        twin=copy.deepcopy(model) if config.train.reestimate_bn else None,
        sums=Sums(device),
        watch=Watch(model, device, skips=is_mixed),
        indicators=_make_indicators(config, model, skips=is_mixed),
        augmentation=make_augmentation(config, device),
        ovsw=_make_ovsw(config, model),
    )


def _make_ovsw(config: Config, model: BinaryNetwork) -> OvSW | None:
    """OvSW's corrections, if one of them is asked for and there are binary weights."""
    delta, decay = config.optim.ovsw_delta, config.optim.ovsw_decay
    return OvSW(model, delta, decay) if (delta or decay) and model.binary_convs() else None


def _make_indicators(config: Config, model: BinaryNetwork, *, skips: bool) -> Indicators | None:
    """The indicators that are asked for; None too for a network without binary weights."""
    wanted = config.indicators
    if not (wanted.enabled and model.binary_convs()):
        return None
    return Indicators(model, samples=wanted.samples, official=wanted.official, skips=skips)


def note_processes(config: Config, before: int) -> None:
    """Say what changes for a run that ``before`` processes began, if their number is another."""
    now = processes.size()
    if now == before:
        return
    logger.info("%d processes now, %d before: the images come as before", now, before)
    if config.train.sync_bn == "false":
        logger.warning(
            "train.sync_bn=false: batch norm sees %d images now, %d before; the training is "
            "not the same",
            config.data.batch_size // now,
            config.data.batch_size // before,
        )
