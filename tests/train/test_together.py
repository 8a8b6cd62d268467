"""Two processes train as one: over gloo where they share a GPU, over NCCL if each has its own."""

import json
import os

import pytest
import torch

from pipeline.run import rendezvous
from pipeline.train.randomness import seed_everything
from tests.kernels.device import DEVICE
from tests.run.test_processes import fork, free_port
from tests.train.tiny import fit, make_trainer

pytestmark = pytest.mark.gpu
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL wants a GPU for each")
BACKENDS = ["gloo", pytest.param("nccl", marks=two_gpus)]
NETWORKS = {
    "resident": {},
    "streamed": {"streamed": True},
    "resnet18": {"streamed": True, "arch": "resnet18"},  # as ImageNet has it
}
every_network = pytest.mark.parametrize("network", NETWORKS)
LOG = ("log.every=1", "train.epochs=3")  # 18 steps: those of several processes warm up for 12


def _train(rank, size, port, folder, backend, network, overrides):
    """One process of a training; leaves the trained weights and their momentum."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    seed_everything(0, deterministic=True)
    rendezvous.start("cuda" if backend == "nccl" else "cpu", 300, folder)
    place = folder / str(rank)
    options = {"device": torch.device(DEVICE), **NETWORKS[network]}
    run = fit(make_trainer(place, *LOG, *overrides, **options), place)
    momentum = [each["momentum_buffer"] for each in run.state.optimizer.state.values()]
    momentum = {f"momentum {i}": each for i, each in enumerate(momentum)}
    torch.save({**run.state.model.state_dict(), **momentum}, folder / f"{rank}.pt")
    rendezvous.stop()


def train(size, folder, backend, network, *overrides):
    """What ``size`` processes learn, and the losses of their steps; all must learn the same."""
    folder.mkdir()
    fork(_train, size, free_port(), folder, backend, network, overrides, size=size)
    first, *others = (torch.load(folder / f"{rank}.pt", map_location="cpu") for rank in range(size))
    for other in others:
        assert all(torch.equal(other[name], value) for name, value in first.items())
    records = map(json.loads, (folder / "0/metrics.jsonl").read_text().splitlines())
    return first, [record["loss"] for record in records if record["kind"] == "step"]


@every_network
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_learn_what_one_does(backend, network, tmp_path):
    """In float64, where no rounding turns a sign."""
    options = (backend, network, "train.precision=fp64")
    one, two = (train(size, tmp_path / str(size), *options) for size in (1, 2))
    assert len(one[1]) == 18 and one[1] == pytest.approx(two[1], rel=1e-9)
    floor = 1e-6 * max(value.abs().max().item() for value in one[0].values())
    for name, value in one[0].items():  # some gradients are mathematically 0
        error = (two[0][name] - value).abs().max().item()
        assert error <= 1e-9 * max(floor, value.abs().max().item()), (name, error)


@every_network
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_begin_as_one_in_triton(backend, network, tmp_path):
    """Until rounding has turned a sign: the first loss sees the forward pass alone, the second one
    the backward pass too."""
    options = (backend, network, "train.precision=fp32")
    one, two = (train(size, tmp_path / str(size), *options)[1] for size in (1, 2))
    assert two[0] == pytest.approx(one[0], rel=1e-4) and two[1] == pytest.approx(one[1], rel=0.05)


@two_gpus
@every_network
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_captured_step_of_two_processes_equals_the_eager_one(precision, network, tmp_path):
    """Bit for bit, collectives included."""
    options = ("nccl", network, f"train.precision={precision}")
    eager, captured = (
        train(2, tmp_path / choice, *options, f"train.cuda_graph={choice}")
        for choice in ("false", "true")
    )
    assert captured[1] == eager[1]
    assert all(torch.equal(captured[0][name], value) for name, value in eager[0].items())
