"""The training loop."""

import contextlib
import datetime
import inspect
import itertools
import math
import platform
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kernels import compile_reference
from models import IMAGENET_ARCHS, BinaryNetwork
from models.layers import NormBinarize
from pipeline import checkpoint, distributed, graph
from pipeline.average import MovingAverage
from pipeline.config import Config, flatten, make_config, to_dict
from pipeline.data import Batch, Loader, ResidentLoader
from pipeline.errors import Diverged, Interrupted, UserError
from pipeline.indicators import Indicators
from pipeline.log import JsonLines, Progress, Wandb, clock, logger
from pipeline.metrics import Sums, cross_entropy
from pipeline.schedule import learning_rate, progress

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
MAX_SKIPPED = 20  # fp16 steps in a row whose loss is not finite
COMPILED_FROM = 100_000  # images x epochs that earn on a CPU the seconds it takes
MIN_LOSS_SCALE = 2.0**-8  # below it, gradients have been overflowing for long


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """SGD over all parameters, as ``optim`` says."""
    optim = config.optim
    options: dict[str, Any] = {
        "lr": _first_rate(config, next(model.parameters()).device),
        "momentum": optim.momentum,
        "weight_decay": optim.weight_decay,
    }
    if optim.impl == "apex":
        return _apex_sgd()(model.parameters(), **options)
    fused = True if optim.impl == "torch_fused" else None  # None: torch's own choice
    sgd = torch.optim.SGD(model.parameters(), fused=fused, **options)
    if optim.momentum:
        # The fused one leaves its buffers uninitialised if loss scaling skips the first step.
        for parameter in model.parameters():
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def _first_rate(config: Config, device: torch.device) -> float | Tensor:
    # The fused SGD reads a tensor on its device, so a captured step follows it; it must be fp32.
    # The others would read it on the host.
    if config.optim.impl != "torch_fused" or config.train.precision == "fp64":
        return config.optim.lr
    return torch.tensor(config.optim.lr, dtype=torch.float32, device=device)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set it for all parameters, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def _apex_sgd() -> Any:
    try:
        from apex.optimizers import FusedSGD
    except ImportError:
        raise UserError(
            "optim.impl=apex, but apex.optimizers cannot be imported; take torch_fused, or build "
            "NVIDIA's apex from source"
        ) from None
    return FusedSGD


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
        if distributed.size() > 1:
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
        if distributed.size() > 1:
            bad = distributed.sum_((~loss.isfinite()).to(torch.int32))
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
        if not distributed.is_main():
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
        if distributed.size() > 1 and (done % distributed.AGREE_EVERY == 0 or done == total):
            agreed = distributed.largest(self.stop.signal)
            if agreed:  # else one that came meanwhile would be forgotten
                self.stop.signal = agreed
            return bool(agreed)
        return bool(self.stop.signal) and distributed.size() == 1

    def _stop(self) -> None:
        path = self._save()
        raise Interrupted(self.stop.signal, f"interrupted; saved {path}; start it again to go on")

    def _evaluate(self) -> dict[str, float]:
        def show(done: int) -> None:
            if self._asked_to_stop(done, len(self.val_loader)):
                self._stop()

        began = time.perf_counter()
        if self.config.train.sync_bn == "false":  # the main process's statistics count
            distributed.broadcast_(self.model.buffers())
            distributed.broadcast_(self.evaluation.model.buffers())
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
        if distributed.is_main():
            self.store.save(state, best=best)
        distributed.barrier()  # nobody goes on, or ends, before it is there
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
            "rng": checkpoint.rng_state(),
            "sums": distributed.gather(self.sums.values),  # of every process
            "times": [self.seconds, self.waited],
            "indicators": self.indicators.state() if self.indicators else None,
            "best": self.best,
            "last": self.last,
            "watch": self.watch,
            "config": to_dict(self.config),
            "data": fingerprints(self.loader, self.val_loader),
            "metrics_size": self.metrics.size() if distributed.is_main() else 0,
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
        checkpoint.set_rng_state(state["rng"])
        every = state["sums"]
        if len(every) != distributed.size():  # one takes all
            self._note_processes(len(every))
            every = torch.zeros(distributed.size(), 4, dtype=every.dtype)
            every[0] = state["sums"].sum(0)
        self.sums.values.copy_(every[distributed.rank()])
        self.seconds, self.waited = state["times"]
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.best, self.last = state["best"], state["last"]
        self.watch.copy_(state["watch"])
        if self.statistics:
            self.statistics.keep(torch.ones((), dtype=torch.bool, device=self.device))
        if self.captured:
            self.captured.reset()  # the optimizer has other tensors now

    def _note_processes(self, before: int) -> None:
        now = distributed.size()
        logger.info("%d processes now, %d before: the images come as before", now, before)
        if self.config.train.sync_bn == "false":
            logger.warning(
                "train.sync_bn=false: batch norm sees %d images now, %d before; the training is "
                "not the same",
                self.config.data.batch_size // now,
                self.config.data.batch_size // before,
            )


def _parallel(model: BinaryNetwork, device: torch.device, timeout: float) -> nn.Module:
    # Statistics are the same everywhere or, without sync_bn, the main process's count.
    options: dict[str, Any] = {"gradient_as_bucket_view": True, "static_graph": True}
    # A group of their own: batch norm's small sums need not queue behind the gradients.
    limit = datetime.timedelta(seconds=timeout)
    options["process_group"] = torch.distributed.new_group(timeout=limit)
    name = "broadcast_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:
        name = "forward_sync_buffers"  # its name from torch 2.13 on
    options[name] = False
    if device.type == "cuda":
        options["device_ids"] = [device]
    parallel = DistributedDataParallel(model, **options)
    _settle_buckets(parallel, device)
    return parallel


def _settle_buckets(parallel: DistributedDataParallel, device: torch.device) -> None:
    """Make steps of zeros, without a trace: DDP lays out its buckets anew after two, and with them
    changes the order in which the gradients of more than two processes add up. A run that goes on
    would differ from one never interrupted in its last bits."""
    was_training = parallel.training
    dtype = next(parallel.parameters()).dtype
    side = 64 if parallel.module.arch in IMAGENET_ARCHS else 32
    images = torch.zeros(2, 3, side, side, dtype=dtype, device=device)
    parallel.eval()  # leaves batch norm's statistics alone
    for _ in range(2):
        (0 * parallel(images)).sum().backward()
    parallel.train(was_training)
    parallel.zero_grad(set_to_none=True)


def is_compiled(config: Config, device: torch.device, loader: Loader) -> bool:
    """Whether torch.compile fuses the blocks, as ``train.compile`` says."""
    choice, images = config.train.compile, loader.images * config.train.epochs
    is_worth_it = images >= COMPILED_FROM and config.train.precision != "fp64"
    return device.type == "cpu" and (choice == "true" or (choice == "auto" and is_worth_it))


def prepare(model: BinaryNetwork, config: Config, device: torch.device) -> BinaryNetwork:
    """``model`` on ``device``, channels_last, in the precision's master dtype."""
    dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
    model = model.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.set_progress(model.progress)  # in the new dtype
    for module in model.modules():
        if isinstance(module, NormBinarize):
            module.sync = distributed.size() > 1 and config.train.sync_bn != "false"
    return model


def autocast(config: Config, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The autocast context of ``train.precision``."""
    dtype = AUTOCAST.get(config.train.precision)
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


class Evaluation:
    """loss, top1, top5 (per cent) and images of ``model`` over every image of ``loader`` once.

    With ``graphs``, a batch is one replay where the images lie on the device.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Loader,
        config: Config,
        device: torch.device,
        graphs: graph.Graphs | None = None,
    ) -> None:
        self.model, self.loader, self.config, self.device = model, loader, config, device
        self.sums = Sums(device)
        self.captured: graph.Captured | None = None
        if graphs and isinstance(loader, ResidentLoader):
            self.cursor = loader.cursor()
            self.captured = graph.Captured(graphs, self._draw_and_add, self._tensors)

    @torch.no_grad()
    def __call__(self, after_batch: Callable[[int], None] = lambda done: None) -> dict[str, float]:
        """Evaluate; ``after_batch`` is told how many batches came before. Waits for the device."""
        was_training = self.model.training
        self.model.eval()
        self.sums.reset()
        try:
            add_batch = self._begin()
            for done in range(len(self.loader)):
                add_batch()
                after_batch(done)
        finally:
            self.model.train(was_training)
        means = self.sums.means()
        if means["images"] < self.loader.images:  # a batch was left out: its loss is not finite
            means["loss"] = math.nan
        return means

    def _begin(self) -> Callable[[], None]:
        if self.captured:
            self.captured.check()
            self.cursor.seek(0)
            return self.captured
        batches = self.loader.epoch(0)

        def add_batch() -> None:
            if (batch := next(batches, None)) is not None:  # this process may have one less
                self._add(batch)

        return add_batch

    def _draw_and_add(self) -> None:
        self._add(self.cursor.draw())

    def _add(self, batch: Batch) -> None:
        with autocast(self.config, self.device):
            logits = self.model(batch.images)
        self.sums.update(logits, batch.labels, cross_entropy(logits, batch.labels))

    def _tensors(self) -> Iterator[Tensor]:
        yield from (self.sums.values, *self.cursor.tensors())
        yield from itertools.chain(self.model.parameters(), self.model.buffers())


def fingerprints(train: Loader, val: Loader) -> dict[str, str]:
    """What tells this data set from another."""
    return {"train": train.fingerprint, "val": val.fingerprint}


FREE_TO_CHANGE = (
    "run.", "log.", "checkpoint.", "data.path", "data.exclude", "data.workers",
    "data.download", "data.eval_batch_size", "data.loader", "train.device",
    "train.cuda_graph", "train.compile", "model.weights",
)  # fmt: skip


def differences(config: Config, state: dict[str, Any]) -> list[str]:
    """What a resumed run would do differently, as ``key: then -> now``."""
    then = flatten(make_config(state["config"]))
    return [
        f"{key}: {then[key]} -> {now}"
        for key, now in flatten(config).items()
        if then[key] != now and not key.startswith(FREE_TO_CHANGE)
    ]


class StatisticsGuard:
    """Keeps batch norm's running statistics out of the reach of a step that fp16 skips.

    It makes those of all layers views of one tensor, so that looking after them takes three
    launches.
    """

    def __init__(self, model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        names = [(norm, name) for norm in norms for name in ("running_mean", "running_var")]
        buffers = [getattr(norm, name) for norm, name in names]
        self.statistics = torch.cat(buffers)
        sizes = [len(buffer) for buffer in buffers]
        for (norm, name), view in zip(names, self.statistics.split(sizes), strict=True):
            setattr(norm, name, view)
        self.backup = self.statistics.clone()

    @torch.no_grad()
    def keep(self, good: Tensor) -> None:
        """Keep the new statistics where ``good`` (0-dim bool), else put the old ones back."""
        torch.where(good, self.statistics, self.backup, out=self.backup)
        self.statistics.copy_(self.backup)


class StopSignal:
    """Within its context, SIGINT, SIGTERM and SIGUSR1 raise ``Interrupted``; once ``can_save`` is
    set they only set ``signal``, and the trainer stops when it has saved. A second SIGINT ends the
    process at once."""

    def __init__(self) -> None:
        self.signal = 0
        self.can_save = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
            if number := getattr(signal, name, None):
                self.previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # works even while this process waits in C
        if not self.can_save:
            raise Interrupted(number, "interrupted before the training began", together=False)
        self.signal = number
        logger.info(
            "%s: saving after this step (again: at once, unsaved)", signal.strsignal(number)
        )
