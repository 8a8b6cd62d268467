"""The training benchmark, in small: what it measures, and that nothing wrong is timed."""

import time
from types import SimpleNamespace

import pytest
import torch
from torch.autograd.profiler_util import DeviceType

from launch.bench import breakdown, results, rivals, starts, training
from models import ARCHS
from pipeline.run.config import load_config
from pipeline.run.errors import UserError
from pipeline.train import teacher
from tests import quick_where

CPU = torch.device("cpu")
CIFAR = "configs/cifar10_resnet20.yaml"
SMALL = [
    *("data.batch_size=4", "data.eval_batch_size=4", "data.workers=0"),
]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Nothing is compiled, few steps are taken, and the results lie elsewhere."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(training, "EPOCHS", 1)


def test_rows_of_all_providers(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LOSS_TOLERANCE", 1)  # 4 images: one sign more or less counts
    rows = training.measure(load_config(CIFAR, SMALL), CPU, rounds=2, images=10)
    rates = [row for row in rows if row["metric"] == "throughput"]
    names = ["official", "compile", "ours"]
    assert [(row["mode"], row["provider"]) for row in rates] == [
        *(("step", name) for name in names),
        *(("epoch", name) for name in names),
    ]
    assert {row["case"] for row in rates} == {
        "cifar10_resnet20/1w1a/4/fp32",
        "cifar10_resnet20/1w1a/4/fp32/10images",
    }
    for row in rates:
        assert 0 < float(row["p20"]) <= float(row["p50"]) <= float(row["p80"])
    times = {
        row["case"].rpartition("/")[2]: float(row["p50"]) for row in rows if row["unit"] == "us"
    }
    assert set(times) == {*breakdown.GROUPS, "other", "gaps"}
    assert all(times[group] > 0 for group in (*breakdown.GROUPS, "other"))
    assert not [row for row in rows if "extrapolated" in row["metric"]]  # 10 images are no epoch
    assert (tmp_path / "train_cifar10_resnet20_cpu.png").exists()


class Slow(torch.nn.Module):
    """A teacher that takes 0.1 s for any images."""

    def forward(self, images):
        time.sleep(0.1)
        return torch.zeros(len(images), 10)


def test_a_teacher_has_rows_of_its_own(monkeypatch):
    """Ours without it stands beside its rivals, and with it in a case of its own."""
    monkeypatch.setattr(teacher, "stand_in", lambda config: Slow())
    monkeypatch.setattr(training, "LOSS_TOLERANCE", 1)
    config = load_config(CIFAR, [*SMALL, "distill.teacher=resnet34", "distill.labels=true"])
    rows, seconds = training.steps(config, CPU, rounds=1)
    assert [(row["provider"], row["case"], row["metric"]) for row in rows] == [
        ("official", "cifar10_resnet20/1w1a/4/fp32", "throughput"),
        ("compile", "cifar10_resnet20/1w1a/4/fp32", "throughput"),
        ("ours", "cifar10_resnet20/1w1a/4/fp32", "throughput"),
        ("ours", "cifar10_resnet20/1w1a/4/fp32/distilled", "throughput"),
        ("ours", "cifar10_resnet20/1w1a/4/fp32/distilled", "teacher_share"),
    ]
    plain, taught, share = (float(row["p50"]) for row in rows[2:])
    assert 4 / taught - 4 / plain > 0.09 and plain == pytest.approx(4 / seconds, rel=0.1)
    assert share == pytest.approx(1 - taught / plain, abs=0.02)
    rows = training.epochs(config, CPU, 10)
    assert [row["case"].rpartition("/fp32/")[2] for row in rows] == [
        *["10images"] * 3, "10images/distilled",
    ]  # fmt: skip


def test_a_network_that_only_we_have_is_timed_alone():
    words = [*SMALL, "model.arch=resnet18_react", "data.size=32", "data.batch_size=2"]
    rows, _ = training.steps(load_config(CIFAR, words), CPU, rounds=1)
    assert [(row["provider"], row["metric"]) for row in rows] == [("ours", "throughput")]


SLOW = "resnet34", "resnet18_cifar"  # in float64, and with more of the same blocks than resnet18


@pytest.mark.parametrize("arch", quick_where(lambda arch: arch not in SLOW, *ARCHS))
def test_all_networks_agree(arch):
    config = load_config(CIFAR, [f"model.arch={arch}"])
    if arch.endswith("_react"):
        with pytest.raises(ValueError, match=f"the official code has no {arch}"):
            training.check_agreement(config)
    else:
        training.check_agreement(config)


def test_a_wrong_network_is_not_timed(monkeypatch):
    monkeypatch.setattr(rivals.WhereSign, "apply", lambda x, params: (x >= 0).to(x))
    with pytest.raises(AssertionError, match="nothing is timed"):
        training.measure(load_config(CIFAR, SMALL), CPU, rounds=1)


def test_far_losses_are_not_timed():
    training.check_losses({"official": 2.5, "ours": 2.4})
    for wrong in (4.0, float("nan")):
        with pytest.raises(AssertionError, match="nothing is timed"):
            training.check_losses({"official": 2.5, "ours": wrong})


def test_without_a_compiler_there_is_no_row(monkeypatch):
    def broken(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(rivals.Compiled, "_forward", broken)
    rows, _ = training.steps(load_config(CIFAR, SMALL), CPU, rounds=1)
    assert [row["provider"] for row in rows] == ["official", "ours"]


def test_a_full_epoch_is_extrapolated(monkeypatch):
    monkeypatch.setattr(training, "CIFAR_IMAGES", 10)
    monkeypatch.setattr(training, "EPOCH_MAKERS", {"ours": lambda *_: lambda: None})
    monkeypatch.setattr(training, "_time_epochs", lambda *_: torch.tensor([2.0]).double())
    rows = training.epochs(load_config(CIFAR, SMALL), CPU, 10)
    assert [(row["metric"], row["p50"]) for row in rows] == [
        ("throughput", "4.0"),
        ("time_to_train_extrapolated", "2000.0"),
    ]


def test_the_roofline_belongs_to_its_card(monkeypatch):
    config, rate = load_config(CIFAR), torch.tensor([103_250.0]).double()
    place = "case", "ours", "step"
    assert training.share_of_roofline(config, CPU, place, rate) == []
    monkeypatch.setattr(training, "device_name", lambda device: "NVIDIA H100 80GB HBM3")
    (row,) = training.share_of_roofline(config, CPU, place, rate)
    assert (row["metric"], row["p50"]) == ("roofline_share", "0.2500")


def test_kernels_belong_to_the_operator_around_them():
    def event(name, parent=None, kernels=(), device_type=DeviceType.CPU):
        times = [SimpleNamespace(duration=each) for each in kernels]
        return SimpleNamespace(name=name, cpu_parent=parent, kernels=times, device_type=device_type)

    block = event("reste::norm_binarize_backward")
    conv = event("autograd::engine::evaluate_function: ConvolutionBackward0")
    conv = event("ConvolutionBackward0", conv)
    events = [
        block,
        event("aten::mul", block, [3.0, 1.0]),
        event("aten::cudnn_convolution_backward", conv, [5.0]),
        event("reste::binarize", None, [7.0]),
        event("reste::binarize_weights", None, [6.0]),
        event("aten::add", None, [2.0]),
        event("a kernel by itself", None, [9.0], DeviceType.CUDA),
    ]
    times = breakdown.group_times(events, torch.device("cuda"))
    found = {group: spent for group, spent in times.items() if spent}
    assert found == {"weights": 6.0, "fused blocks": 11.0, "convolutions": 5.0, "other": 2.0}


@pytest.mark.slow
def test_a_failed_start_is_no_measurement(tmp_path):
    with pytest.raises(UserError, match="ended with 2"):
        starts._start(CIFAR, [f"data.path={tmp_path}"])
