"""The training loop, from top to bottom: ``fit``, ``run_epoch``, ``train_step``."""

import contextlib
import math
import platform
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import BinaryNetwork
from pipeline.data.loader import Batch, Loader
from pipeline.run import processes
from pipeline.run.checkpoint import FORMAT, CheckpointStore
from pipeline.run.config import Config, to_dict
from pipeline.run.console import ProgressBar, logger
from pipeline.run.errors import Diverged, Interrupted, UserError
from pipeline.run.recorder import Recorder
from pipeline.run.signals import StopSignal
from pipeline.train.evaluation import Evaluation
from pipeline.train.gradients import add_gradients
from pipeline.train.graph import make_graphs
from pipeline.train.histograms import histogram_records
from pipeline.train.loss import make_loss
from pipeline.train.memory import explained, training
from pipeline.train.metrics import of_training
from pipeline.train.optimizer import set_learning_rate
from pipeline.train.parallel import parallelize
from pipeline.train.precision import to_device
from pipeline.train.records import Figures, epoch_record, summary_of, time_left
from pipeline.train.reestimation import make_reestimation
from pipeline.train.rescue import saved_on_failure
from pipeline.train.schedule import progress, rate_of
from pipeline.train.state import make_state, note_processes
from pipeline.train.stepper import Stepper


class Trainer:
    """Trains ``model`` as ``config`` says; ``fit`` goes on from where ``restore`` left off.

    ``loaders`` are those of the training and of the validation images. ``store`` and ``recorder``
    are used in the main process only. The training learns the outputs of ``teacher``, if any.
    """

    def __init__(
        self,
        config: Config,
        model: BinaryNetwork,
        loaders: tuple[Loader, Loader],
        device: torch.device,
        store: CheckpointStore,
        stop: StopSignal,
        recorder: Recorder,
        teacher: nn.Module | None = None,
    ) -> None:
        self.config, self.device = config, device
        self.store, self.stop, self.recorder = store, stop, recorder
        self.loader, self.val_loader = loaders
        model = to_device(model, config, device)
        graphs = make_graphs(config, device)
        self.network: nn.Module = model  # what a step calls: it may sum gradients over processes
        if processes.size() > 1:
            with graphs.building() if graphs else contextlib.nullcontext():
                self.network = parallelize(model, device, config.train.timeout)
        self.state = make_state(config, model, device)
        self.loss = make_loss(config, teacher, device)
        self.stepper = Stepper(self.loader, self.train_step, self.state.tensors, graphs)
        self.reestimation = make_reestimation(self.state, self.loader, config, device, graphs)
        self.evaluation = Evaluation(self.state.evaluated, self.val_loader, config, device, graphs)
        self.kept = self.state.best  # the epoch that best.pt is of

    @property
    def step(self) -> int:
        """Steps done since the training began."""
        return self.state.epoch * len(self.loader) + self.state.batch

    def fit(self) -> None:
        """Train to the end; raises ``Diverged``, or ``Interrupted`` after saving."""
        self.stop.can_save = True
        while self.state.epoch < self.config.train.epochs:
            self.run_epoch()

    def run_epoch(self) -> None:
        """Train on what is left of an epoch, evaluate, record and save."""
        began, state = time.perf_counter(), self.state
        rate = self._set_schedules()
        with explained(training(self.config, self.device, state, self.loss, self.stepper.reset)):
            self._train(rate)
        trained = state.sums.means()
        with saved_on_failure(self.state_dict(), self.store):
            validated, seconds = self._evaluate()
            speed = self._images_per_second()
            record = epoch_record(state, rate, trained, validated, speed, seconds)
            records = chain(histogram_records(state, self.config.log.histograms), [record])
            processes.alike(lambda: self.recorder.write_all(records, self.step))
        self._finish_epoch(record, time.perf_counter() - began)

    def _set_schedules(self) -> float:
        epoch, rate = self.state.epoch, rate_of(self.config, self.state.epoch)
        set_learning_rate(self.state.optimizer, rate)
        self.state.model.set_progress(progress(epoch, self.config.train.epochs))
        return rate

    def _train(self, rate: float) -> None:
        state, steps, first = self.state, len(self.loader), self.state.batch
        state.model.train()
        state.watch.seek(self.step)
        if state.augmentation:
            state.augmentation.seek(self.step)
        label = f"epoch {state.epoch + 1}/{self.config.train.epochs}"
        later = (self.config.train.epochs - state.epoch - 1) * steps
        with ProgressBar(label, steps, first, self.config.data.batch_size, later) as bar:
            mark = time.perf_counter()
            for waited in self.stepper.epoch(state.epoch, first):
                state.batch += 1
                state.waited += waited
                is_last = state.batch == steps
                if is_last:
                    self.stepper.look_ahead(state.epoch + 1)
                if is_logged := is_last or state.batch % self.config.log.every == 0:
                    self._check_finite()  # waits for the device, whose work is timed
                state.seconds += time.perf_counter() - mark
                bar.advance()
                if is_logged:
                    self._log_step(bar, rate)
                self._save_if_due(first)
                mark = time.perf_counter()

    def train_step(self, batch: Batch) -> None:
        """Forward, backward, optimizer and metrics of one batch; waits for nothing.

        All that changes from step to step is read from tensors that stay where they are, so that
        the step can be captured.
        """
        state = self.state
        lesson = state.augmentation(batch) if state.augmentation else batch
        logits, loss = add_gradients(self.network, lesson, state.scaler, self.config, self.loss)
        everywhere = state.watch.everywhere(loss)
        state.sums.update(logits, batch.labels, loss, state.watch.counts, everywhere)
        state.watch.keep_statistics()
        state.correct_gradients()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        if state.ema:
            state.ema.update(state.model)

    def _check_finite(self) -> None:
        scale = self.state.scaler.get_scale()
        self.state.watch.check(scale, self.step, self.state.epoch, len(self.loader))

    def _images_per_second(self) -> float:
        return self.state.batch * self.config.data.batch_size / max(self.state.seconds, 1e-9)

    def _log_step(self, bar: ProgressBar, rate: float) -> None:
        state, means = self.state, self.state.sums.means()
        record = {"kind": "step", "step": self.step, "epoch": state.epoch, "lr": rate}
        self._record(record | {"loss": means["loss"]})
        steps_left = self.config.train.epochs * len(self.loader) - self.step
        values = {**of_training(means), "images/s": self._images_per_second()}
        bar.show(state.batch, state.seconds / state.batch * steps_left, **values)

    def _record(self, record: dict[str, Any]) -> None:
        """Add ``record``; where the main process cannot, all save and end."""
        try:
            processes.alike(lambda: self.recorder.write(record, self.step))
        except UserError as error:
            raise UserError.shared(f"{error} from {self.save()}, which was saved") from None

    def _save_if_due(self, first: int) -> None:
        batch, every = self.state.batch, self.config.checkpoint.every_steps
        self._stop_if_asked(batch, len(self.loader))
        if every and self.step % every == 0 and batch > first:
            self.save()

    def _stop_if_asked(self, done: int, total: int) -> None:
        if self.stop.is_asked(done, total):
            text = f"interrupted; saved {self.save()}; start it again to go on"
            raise Interrupted(self.stop.signal, text)

    def _evaluate(self) -> tuple[Figures, float]:
        """The validation metrics, and the seconds that they took."""
        began = time.perf_counter()
        if self.reestimation:
            self.reestimation(self._stop_if_asked)
        if self.config.train.sync_bn == "false":  # the main process's statistics count
            processes.broadcast_(self.state.model.buffers())
            processes.broadcast_(self.evaluation.model.buffers())
        result = self.evaluation(self._stop_if_asked)
        if not math.isfinite(result["loss"]):
            raise Diverged(
                f"the validation loss is not finite after epoch {self.state.epoch}; lower optim.lr"
            )
        return result, time.perf_counter() - began

    def _finish_epoch(self, record: dict[str, Any], seconds: float) -> None:
        config, state, epochs = self.config, self.state, self.config.train.epochs
        state.finish_epoch(record)
        if is_best := record["val_top1"] > self.kept["val_top1"]:
            self.kept = state.last
        logger.info("epoch %d/%d  %s", state.epoch, epochs, summary_of(record))
        if config.log.eta and state.epoch % config.log.eta == 0 and state.epoch < epochs:
            logger.info(time_left(seconds * (epochs - state.epoch)))
        if is_best or state.epoch % config.checkpoint.every_epochs == 0 or state.epoch == epochs:
            self.save(best=is_best)

    def save(self, *, best: bool = False) -> Path:
        """Save the state, in all processes; they go on when it is there."""
        self._check_finite()
        content = self.state_dict()
        if processes.is_main():
            self.store.save(content, best=best)
        processes.barrier()  # nobody goes on, or ends, before it is there
        return self.store.path(content)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: everything that resuming needs, as plain values and tensors."""
        return {
            "format": FORMAT,
            **self.state.state_dict(),
            "step": self.step,
            "steps": len(self.loader),
            "classes": tuple(self.loader.classes),
            "config": to_dict(self.config),
            "data": {"train": self.loader.fingerprint, "val": self.val_loader.fingerprint},
            "metrics_size": self.recorder.size(),
            "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        }

    def restore(self, content: dict[str, Any], order: Sequence[int] | None = None) -> list[str]:
        """Take over the ``state_dict`` of a checkpoint; returns what it does not hold.

        ``order``: for each class of the data, the output that stands for it there.
        """
        note_processes(self.config, len(content["sums"]))
        anew = self.state.load_state_dict(content, order)
        if self.state.batch == content.get("steps"):  # only the evaluation was left
            self.state.batch = len(self.loader)
        self.kept = self.state.best
        self.stepper.reset()  # the optimizer has other tensors now
        return anew
