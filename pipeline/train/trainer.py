"""The training loop."""

import itertools
import math
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kernels import compile_reference
from models import BinaryNetwork
from pipeline.data.loader import Batch, Loader, ResidentLoader
from pipeline.run import checkpoint, processes
from pipeline.run.config import Config, to_dict
from pipeline.run.console import Progress, clock, logger
from pipeline.run.errors import Diverged, Interrupted
from pipeline.run.recorder import JsonLines, Wandb
from pipeline.run.signals import StopSignal
from pipeline.train import graph
from pipeline.train.average import MovingAverage
from pipeline.train.evaluation import Evaluation
from pipeline.train.indicators import Indicators
from pipeline.train.metrics import Sums, cross_entropy
from pipeline.train.optimizer import make_optimizer, set_learning_rate
from pipeline.train.parallel import _parallel
from pipeline.train.precision import autocast, is_compiled, prepare
from pipeline.train.schedule import learning_rate, progress
from pipeline.train.state import rng_state, set_rng_state
from pipeline.train.watch import MAX_SKIPPED, MIN_LOSS_SCALE, StatisticsGuard


class Trainer:
    """Trains ``model`` as ``config`` says; ``fit`` goes on from where ``restore`` left off."""

    def __init__(
        self,
        config: Config,
        model: BinaryNetwork,
        loaders: tuple[Loader, Loader],
        device: torch.device,
        store: checkpoint.CheckpointStore,
        stop: "StopSignal",
    ) -> None:
        self.config, self.device, self.store, self.stop = config, device, store, stop
        self.loader, self.val_loader = loaders
        compile_reference(is_compiled(config, device, self.loader))
        self.model = prepare(model, config, device)
        self.network: nn.Module = self.model  # what a step goes through
        if processes.size() > 1:
            self.model.binarize_by_stage = True
            self.network = _parallel(self.model, device, config.train.timeout)
        self.optimizer = make_optimizer(config, self.model)
        mixed = config.train.precision == "fp16"
        self.scaler = torch.amp.GradScaler(device.type, enabled=mixed)
        self.ema: MovingAverage | None = None
        if decay := config.train.ema_decay:
            self.ema = MovingAverage(self.model, decay)
        self.sums = Sums(device)
        # On the device: ``step``; steps in a row, and most in a row, whose loss is not finite; and
        # the first of all such steps.
        self.watch = torch.tensor([0, 0, 0, -1], device=device)
        self.statistics = StatisticsGuard(self.model) if mixed else None
        self.indicators: Indicators | None = None
        if config.indicators.enabled:
            self.indicators = Indicators(
                self.model, samples=config.indicators.samples, official=config.indicators.official
            )
        self.epoch = self.batch = 0
        self.seconds = self.waited = 0.0  # of this epoch's training
        self.best: dict[str, Any] = {"epoch": -1, "val_top1": -1.0}
        self.last: dict[str, Any] = {}
        self.captured: graph.Captured | None = None
        graphs = graph.make_graphs(config, device, self.loader)
        if graphs and isinstance(self.loader, ResidentLoader):
            self.cursor = self.loader.cursor()
            self.captured = graph.Captured(graphs, self._draw_and_train, self._tensors)
        network = self.ema.module if self.ema else self.model
        self.evaluation = Evaluation(network, self.val_loader, config, device, graphs)

    @property
    def step(self) -> int:
        """Steps done since the training began."""
        return self.epoch * len(self.loader) + self.batch

    def fit(self, metrics: JsonLines, wandb: Wandb) -> None:
        """Train to the end; raises ``Diverged``, or ``Interrupted`` after saving."""
        self.metrics, self.wandb = metrics, wandb
        self.stop.can_save = True
        while self.epoch < self.config.train.epochs:
            self._epoch()

    def _epoch(self) -> None:
        config, epochs = self.config, self.config.train.epochs
        lr = learning_rate(self.epoch, epochs, config.optim.lr, config.optim.warmup_epochs)
        set_learning_rate(self.optimizer, lr)
        self.model.set_progress(progress(self.epoch, epochs))
        began = time.perf_counter()
        self._train_epoch(lr)
        train = self.sums.means()
        val = self._evaluate()
        record = {
            "kind": "epoch",
            "epoch": self.epoch,
            "lr": lr,
            **self.model.estimator_parameters(),
            "train_loss": train["loss"],
            "train_top1": train["top1"],
            **{f"val_{name}": val[name] for name in ("loss", "top1", "top5")},
            "images_per_second": self.step_images() / max(self.seconds, 1e-9),
            "data_wait": self.waited / max(self.seconds, 1e-9),
            "seconds": self.seconds + val["seconds"],
        }
        if self.indicators:
            record["indicators"] = self.indicators.record()
        self._finish_epoch(record, time.perf_counter() - began)

    def step_images(self) -> int:
        """Images trained on in this epoch so far."""
        return self.batch * self.config.data.batch_size

    def _train_epoch(self, lr: float) -> None:
        label = f"epoch {self.epoch + 1}/{self.config.train.epochs}"
        bar = Progress(label, len(self.loader), self.batch)
        self.model.train()
        first, mark = self.batch, time.perf_counter()
        take_step = self._begin_steps()
        try:
            for _ in range(self.batch, len(self.loader)):
                take_step()
                self.batch += 1
                is_logged = self.batch % self.config.log.every == 0
                if self.captured and self.batch == len(self.loader):
                    self.cursor.prepare(self.epoch + 1)
                if is_logged := is_logged or self.batch == len(self.loader):
                    self._check_finite()  # waits for the device, whose work is timed
                self.seconds += time.perf_counter() - mark
                bar.step()
                if is_logged:
                    self._log_step(bar, lr)
                self._maybe_save(first)
                mark = time.perf_counter()
        finally:
            bar.close()

    def _begin_steps(self) -> Callable[[], None]:
        """What takes the next step of the epoch, and then each one after it."""
        self.watch[0].fill_(self.step)
        if self.captured:
            self.captured.check()
            self.cursor.seek(self.epoch, self.batch)
            return self.captured
        batches = self.loader.epoch(self.epoch, self.batch)

        def take_step() -> None:
            began = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - began
            self.train_step(batch)

        return take_step

    def _draw_and_train(self) -> None:
        self.train_step(self.cursor.draw())

    def train_step(self, batch: Batch) -> None:
        """Forward, backward, optimizer and metrics of one batch; waits for nothing.

        All that changes from step to step it reads from tensors that stay where they are, so that
        it can be captured.
        """
        with autocast(self.config, self.device):
            logits = self.network(batch.images)
        loss = cross_entropy(logits, batch.labels, self.config.train.label_smoothing)
        self.scaler.scale(loss).backward()
        self._count(logits.detach(), batch.labels, loss.detach())
        if self.indicators:
            self.scaler.unscale_(self.optimizer)
            self.indicators.update()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.model)

    def _count(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        bad = None
        if processes.size() > 1:
            bad = processes.sum_((~loss.isfinite()).to(torch.int32))
        self.sums.update(logits, labels, loss, self.watch, bad)
        if self.statistics:
            self.statistics.keep(self.watch[1] == 0)

    def _tensors(self) -> Iterator[Tensor]:
        """Those that outlive a step and that it reads or writes."""
        yield from (self.watch, self.sums.values)
        yield from self.cursor.tensors()
        for module in (self.model, *([self.ema.module] if self.ema else [])):
            yield from itertools.chain(module.parameters(), module.buffers())
        for group in self.optimizer.param_groups:
            yield group["lr"]
        for state in self.optimizer.state.values():
            yield from state.values()
        if self.indicators:
            yield from self.indicators.tensors()

    def _check_finite(self) -> None:
        """Raise ``Diverged`` if a loss was not finite, or a gradient, which makes the weights so.
        Waits for the device."""
        _, _, in_a_row, first = self.watch.tolist()
        remedy = "lower optim.lr, or go back to a checkpoint"
        where = f"since step {first} (epoch {first // len(self.loader)})"
        if self.statistics is None and first >= 0:
            raise Diverged(f"the training loss is not finite {where}; {remedy}")
        if in_a_row >= MAX_SKIPPED:
            raise Diverged(f"{in_a_row} losses in a row were not finite {where}; {remedy}")
        if self.statistics and self.scaler.get_scale() < MIN_LOSS_SCALE:
            raise Diverged(
                f"the gradients keep overflowing at step {self.step} (epoch {self.epoch}): the "
                f"loss scale fell below {MIN_LOSS_SCALE}; {remedy}"
            )
        if not nn.utils.get_total_norm(self.model.parameters()).isfinite():
            raise Diverged(
                f"the weights are not finite at step {self.step} (epoch {self.epoch}): a gradient "
                f"was not; {remedy}"
            )

    def _log_step(self, bar: Progress, lr: float) -> None:
        means = self.sums.means()
        self._write(
            {
                "kind": "step",
                "step": self.step,
                "epoch": self.epoch,
                "lr": lr,
                "loss": means["loss"],
            }
        )
        per_batch = self.seconds / self.batch
        rate = self.step_images() / max(self.seconds, 1e-9)
        left = per_batch * (self.config.train.epochs * len(self.loader) - self.step)
        values = {"loss": means["loss"], "top1": means["top1"], "images/s": rate}
        bar.show(self.batch, left, **values)

    def _write(self, record: dict[str, Any]) -> None:
        if not processes.is_main():
            return
        self.metrics.write(record)
        self.wandb.write(record, self.step)

    def _maybe_save(self, first: int) -> None:
        every = self.config.checkpoint.every_steps
        if self._asked_to_stop(self.batch, len(self.loader)):
            self._stop()
        if every and self.step % every == 0 and self.batch > first:
            self._save()

    def _asked_to_stop(self, done: int, total: int) -> bool:
        """Whether any process was; all learn it after the same step."""
        if processes.size() > 1 and (done % processes.AGREE_EVERY == 0 or done == total):
            agreed = processes.largest(self.stop.signal)
            if agreed:  # else one that came meanwhile would be forgotten
                self.stop.signal = agreed
            return bool(agreed)
        return bool(self.stop.signal) and processes.size() == 1

    def _stop(self) -> None:
        path = self._save()
        raise Interrupted(self.stop.signal, f"interrupted; saved {path}; start it again to go on")

    def _evaluate(self) -> dict[str, float]:
        def show(done: int) -> None:
            if self._asked_to_stop(done, len(self.val_loader)):
                self._stop()

        began = time.perf_counter()
        if self.config.train.sync_bn == "false":  # the main process's statistics count
            processes.broadcast_(self.model.buffers())
            processes.broadcast_(self.evaluation.model.buffers())
        result = self.evaluation(show)
        if not math.isfinite(result["loss"]):
            raise Diverged(
                f"the validation loss is not finite after epoch {self.epoch}; lower optim.lr"
            )
        return {**result, "seconds": time.perf_counter() - began}

    def _finish_epoch(self, record: dict[str, Any], seconds: float) -> None:
        is_best = record["val_top1"] > self.best["val_top1"]
        if is_best:
            self.best = {k: record[k] for k in ("epoch", "val_top1", "val_top5", "val_loss")}
        self.last = {k: record[k] for k in ("epoch", "val_top1", "val_top5", "val_loss")}
        self._write(record)
        self.epoch, self.batch = self.epoch + 1, 0
        self.seconds = self.waited = 0.0
        self.sums.reset()
        epochs, config = self.config.train.epochs, self.config
        logger.info(
            "epoch %d/%d  train loss %.4f top1 %.2f  val loss %.4f top1 %.2f top5 %.2f  "
            "%.0f images/s  %s",
            self.epoch,
            epochs,
            *(record[k] for k in ("train_loss", "train_top1", "val_loss", "val_top1", "val_top5")),
            record["images_per_second"],
            clock(record["seconds"]),
        )
        if config.log.eta and self.epoch % config.log.eta == 0 and self.epoch < epochs:
            left = seconds * (epochs - self.epoch)
            finish = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + left))
            logger.info("about %s left, finished at %s", clock(left), finish)
        if is_best or self.epoch % config.checkpoint.every_epochs == 0 or self.epoch == epochs:
            self._save(best=is_best)

    def _save(self, *, best: bool = False) -> Path:
        self._check_finite()
        state = self.state()
        if processes.is_main():
            self.store.save(state, best=best)
        processes.barrier()  # nobody goes on, or ends, before it is there
        return self.store.path(state)

    def state(self) -> dict[str, Any]:
        """Everything that resuming needs, of plain values and tensors."""
        return {
            "format": checkpoint.FORMAT,
            "state_dict": self.model.state_dict(),
            "model": f"{self.model.arch}_{self.model.bits}".removesuffix("_32w32a"),
            "epoch": self.epoch,
            "best_prec1": self.best["val_top1"],
            "batch": self.batch,
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "rng": rng_state(),
            "sums": processes.gather(self.sums.values),  # of every process
            "times": [self.seconds, self.waited],
            "indicators": self.indicators.state() if self.indicators else None,
            "best": self.best,
            "last": self.last,
            "watch": self.watch,
            "config": to_dict(self.config),
            "data": fingerprints(self.loader, self.val_loader),
            "metrics_size": self.metrics.size() if processes.is_main() else 0,
            "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` gave."""
        self.model.load_state_dict(state["state_dict"])
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # the epoch sets its value
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        if self.indicators:
            self.indicators.load_state(state["indicators"])
        set_rng_state(state["rng"])
        every = state["sums"]
        if len(every) != processes.size():  # one takes all
            self._note_processes(len(every))
            every = torch.zeros(processes.size(), 4, dtype=every.dtype)
            every[0] = state["sums"].sum(0)
        self.sums.values.copy_(every[processes.rank()])
        self.seconds, self.waited = state["times"]
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.best, self.last = state["best"], state["last"]
        self.watch.copy_(state["watch"])
        if self.statistics:
            self.statistics.keep(torch.ones((), dtype=torch.bool, device=self.device))
        if self.captured:
            self.captured.reset()  # the optimizer has other tensors now

    def _note_processes(self, before: int) -> None:
        now = processes.size()
        logger.info("%d processes now, %d before: the images come as before", now, before)
        if self.config.train.sync_bn == "false":
            logger.warning(
                "train.sync_bn=false: batch norm sees %d images now, %d before; the training is "
                "not the same",
                self.config.data.batch_size // now,
                self.config.data.batch_size // before,
            )


def fingerprints(train: Loader, val: Loader) -> dict[str, str]:
    """What tells this data set from another."""
    return {"train": train.fingerprint, "val": val.fingerprint}
