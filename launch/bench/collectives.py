"""What it costs several processes to train as one.

Times, in turns, so that a change of the machine's load meets them alike: a training step on a fixed
batch in which each process trains for itself but for one value, the same with the gradients
summed, and with batch norm synchronised too; and the collectives of that step alone, at the sizes
that the network sends. ``data.batch_size`` is that of all processes. What
follows from it, and how launch/bench/scaling.py compares, is in docs/scaling.md.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from launch.bench import scaling
from launch.bench.results import Row, row
from launch.bench.timing import take_turns
from launch.bench.training import FixedBatch
from models.layers import NormBinarize
from pipeline.data.batch import divide_batch
from pipeline.run import processes
from pipeline.run.checkpoint import CheckpointStore
from pipeline.run.config import Config
from pipeline.run.errors import UserError
from pipeline.run.recorder import Recorder
from pipeline.run.signals import StopSignal
from pipeline.train.network import make_network
from pipeline.train.precision import to_device
from pipeline.train.state import make_state
from pipeline.train.trainer import Trainer


def measure(config: Config, device: torch.device, rounds: int) -> list[Row]:
    """Microseconds of steps, and of what they say to the others.

    Raises UserError for a single process.
    """
    if processes.size() == 1:
        raise UserError(
            "one process has nobody to talk to; start it with torchrun, as docs/scaling.md shows"
        )
    config = divide_batch(config, processes.size())
    size, total = processes.size(), config.data.batch_size
    loader = FixedBatch(config.changed({"data.batch_size": total // size}), device)
    local = make_trainer(config, device, loader, parallel=False, sync=False)
    summed = make_trainer(config, device, loader, parallel=True, sync=False)
    whole = make_trainer(config, device, loader, parallel=True, sync=True)
    norms = [m.num_features for m in whole.state.model.modules() if isinstance(m, NormBinarize)]
    values = [2 * channels + 1 for channels in norms]
    parameters = sum(p.numel() for p in whole.state.model.parameters())
    calls: dict[str, Callable[[], object]] = {
        "step_local": lambda: local.train_step(loader.batch),
        "step_gradients": lambda: summed.train_step(loader.batch),
        "step": lambda: whole.train_step(loader.batch),
        "norms_forward": lambda: [reduce(count, device, torch.float64) for count in values],
        "norms_backward": lambda: [reduce(count, device) for count in values],
        "gradients": lambda: reduce(parameters, device),
        "one_value": lambda: reduce(1, device),
    }
    case = f"{config.run.name}/{size}x{total // size}/{config.train.precision}/{dist.get_backend()}"
    times = take_turns(calls, rounds, device)
    return [row(case, "ours", mode, "time", "us", each * 1e6) for mode, each in times.items()]


def make_trainer(
    config: Config, device: torch.device, loader: FixedBatch, *, parallel: bool, sync: bool
) -> Trainer:
    """A trainer whose processes sum their gradients, or not, and share statistics, or not."""
    torch.manual_seed(config.seed)
    store = CheckpointStore(config.run_folder, 1)  # stays empty
    loaders = loader, loader
    trainer = Trainer(
        config, make_network(config), loaders, device, store, StopSignal(), Recorder()
    )
    if not parallel:
        trainer.network = to_device(make_network(config), config, device)
        trainer.state = make_state(config, trainer.network, device)
    for module in trainer.state.model.modules():
        if isinstance(module, NormBinarize):
            module.sync = sync
    trainer.state.model.train()
    return trainer


def reduce(values: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """What batch norm says forward (float64) and backward, or with many values the gradients."""
    return processes.sum_(torch.zeros(values, device=device, dtype=dtype))


@dataclasses.dataclass(frozen=True)
class Measured(scaling.Nccl):
    """What was measured, for one number of processes."""

    one_value: float = 0.0  # seconds
    norm: float = 0.0  # seconds, whatever its size: latency alone
    bandwidth: float = 1.0  # bytes/s of the gradients, by their size

    def small(self, bytes_: float, gpus: int) -> float:
        """Latency alone."""
        return self.one_value if bytes_ <= 4 else self.norm

    def large(self, bytes_: float, gpus: int) -> float:
        """Bandwidth alone."""
        return bytes_ / self.bandwidth


def against_the_model(arch: str, rows: Sequence[Row]) -> str:
    """The steps of one case as measured, and as launch/bench/scaling.py has them from the rest of
    its ``rows``."""
    header = "case,quantile,each for itself ms,gradients: model,measured,off,"
    header += "whole: model,measured,off"
    lines = []
    for quantile in ("p20", "p50"):
        seconds = {str(row["mode"]): float(str(row[quantile])) * 1e-6 for row in rows}
        line = [str(rows[0]["case"]), quantile, scaling.ms(seconds["step_local"])]
        for group, mode in ((1, "step_gradients"), (0, "step")):
            model, measured = predict(arch, line[0], seconds, group), seconds[mode]
            line += [scaling.ms(model), scaling.ms(measured), f"{model / measured - 1:+.0%}"]
        lines.append(line)
    return scaling.table(header, lines)


def predict(arch: str, case: str, measured: dict[str, float], group: int) -> float:
    """Seconds of ``case``'s step, from its compute and its collectives alone as ``measured``.

    ``group``: 0 with batch norm synchronised, 1 without.
    """
    chosen = scaling.network(arch)
    gpus, images = map(int, case.split("/")[1].split("x"))
    compute = measured["step_local"] - measured["one_value"]
    norms = measured["norms_forward"] + measured["norms_backward"]
    fabric = Measured(
        one_value=measured["one_value"],
        norm=norms / 2 / sum(len(stage.norms) for stage in chosen),
        bandwidth=4 * sum(scaling.gradients(chosen)) / measured["gradients"],
    )
    slower = compute / images / sum(stage.image for stage in chosen)
    plan = scaling.Plan(group=group, slower=slower, fabric=fabric)
    return scaling.step(chosen, gpus, gpus * images, plan).seconds
