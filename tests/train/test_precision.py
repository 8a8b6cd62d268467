"""Which number format a training takes on which machine, and that it is said and stored."""

import json
import logging

import pytest
import torch
import yaml

from launch import evaluate as evaluate_command
from launch import train as train_command
from pipeline.data.loader import image_dtype
from pipeline.run import processes
from pipeline.run.checkpoint import load
from pipeline.run.commands import shipped_configs
from pipeline.run.config import load_config, make_config
from pipeline.run.errors import UserError
from pipeline.train.precision import settle_evaluation, settle_precision
from tests.data.fixtures import cifar_tree

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
OLD, NEW = {"avx2": True}, {"avx512_bf16": True, "amx_bf16": False}
ARM = {"architecture": "arm64", "bf16": True}


@pytest.fixture
def processor(monkeypatch):
    """Lets torch see a processor of these capabilities."""
    return lambda has: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)


@pytest.fixture
def said(monkeypatch, caplog):
    """What was said since the last call."""
    caplog.set_level(logging.INFO, logger="reste")
    monkeypatch.setattr("pipeline.train.session.start_console", lambda: None)
    monkeypatch.setattr("pipeline.train.scoring.start_console", lambda: None)

    def take():
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return lines

    return take


def config_of(*overrides):
    return make_config({}, overrides, name="x")


@pytest.mark.parametrize(
    ("device", "has", "begun", "expected", "reason"),
    [
        (CPU, NEW, "auto", "bf16", "this processor has bf16 in hardware"),
        (CPU, {"amx_bf16": True}, "auto", "bf16", "this processor has bf16 in hardware"),
        (CPU, OLD, "auto", "fp32", "this processor has neither AVX-512 BF16 nor AMX"),
        (CPU, ARM, "auto", "fp32", "this processor has neither AVX-512 BF16 nor AMX"),
        (CUDA, (8, 0), "auto", "bf16", "this GPU has bf16 in hardware"),
        (CUDA, (12, 0), "auto", "bf16", "this GPU has bf16 in hardware"),
        (CUDA, (7, 5), "auto", "fp32", "this GPU has no bf16 in hardware"),
        (CPU, NEW, "bf16", "bf16", ""),
        (CPU, NEW, "fp32", "fp32", ""),
        (CPU, OLD, "fp64", "fp64", ""),
        (CPU, OLD, "bf16", "fp32", "trained in bf16 so far, but this processor has neither"),
        (CPU, NEW, "fp16", "fp32", "trained in fp16 so far, but on a CPU fp16 takes 17 times"),
        (CUDA, (7, 5), "fp16", "fp16", ""),
        (CUDA, (7, 5), "bf16", "fp32", "trained in bf16 so far, but this GPU has no bf16"),
    ],
)
def test_auto(device, has, begun, expected, reason, processor, monkeypatch, said):
    processor(has)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: has)
    config = config_of("train.precision=auto", "seed=5")
    assert settle_precision(config, device, begun) == config_of(
        f"train.precision={expected}", "seed=5"
    )
    lines = said()
    assert len(lines) == bool(reason)
    if reason:
        assert lines[0].startswith(f"train.precision=auto takes {expected}: ")
        assert reason in lines[0]


def test_auto_is_the_same_in_all_processes(processor, monkeypatch, said):
    processor(NEW)
    monkeypatch.setattr(processes, "largest", lambda value: 1)  # another one is slow in it
    assert settle_precision(config_of("train.precision=auto"), CPU).train.precision == "fp32"
    assert said() == ["train.precision=auto takes fp32: another process is slow in bf16"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp64"])
def test_what_is_named_is_taken_and_what_is_slow_is_said(precision, processor, monkeypatch, said):
    processor(OLD)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    config = config_of(f"train.precision={precision}")
    forced = config.changed({"train.device": "cpu"})
    assert settle_precision(config, CUDA) is config and not said()
    assert settle_precision(forced, CPU) is forced
    assert len(said()) == (precision in ("bf16", "fp16"))


def test_fp16_on_a_cpu_is_refused_with_two_ways_out(processor):
    processor(NEW)
    with pytest.raises(UserError, match="17 times.*set train.precision=auto, or train.device=cpu"):
        settle_precision(config_of("train.precision=fp16"), CPU)
    for way in ("train.precision=auto", "train.device=cpu"):
        settle_precision(config_of("train.precision=fp16", way), CPU)


@pytest.mark.parametrize("has", [OLD, NEW], ids=["old", "new"])
@pytest.mark.parametrize("path", shipped_configs().values(), ids=lambda p: p.stem)
def test_every_shipped_config_trains_without_a_gpu(path, has, processor):
    """Those of CIFAR stay in fp32, and say why, until bf16 is known to be as accurate."""
    processor(has)
    config = load_config(path)
    is_cifar = config.data.dataset.startswith("cifar")
    assert config.train.precision == ("fp32" if is_cifar else "auto")
    assert ("bf16 is as accurate" in path.read_text()) == is_cifar
    expected = "bf16" if has is NEW and not is_cifar else "fp32"
    assert settle_precision(config, CPU).train.precision == expected


def test_nobody_takes_auto_for_a_number_format():
    with pytest.raises(AssertionError, match="settles it first"):
        image_dtype("auto", CUDA)


def test_evaluation_keeps_the_format_of_the_training_where_it_is_fast(processor, said):
    def taken(trained, *overrides):
        stored = config_of(f"train.precision={trained}", *overrides)
        return settle_evaluation(stored, CPU, overrides).train.precision

    processor(NEW)
    assert [taken(p) for p in ("fp32", "bf16", "fp64")] == ["fp32", "bf16", "fp64"] and not said()
    assert taken("fp16") == taken("fp16", "train.device=cpu") == "fp32" and len(said()) == 2
    assert taken("fp16", "train.precision=bf16") == "bf16" and not said()
    assert taken("fp32", "train.precision=auto") == "bf16" and len(said()) == 1
    assert taken("bf16", "train.precision=fp16", "train.device=cpu") == "fp16"


def test_a_run_stores_the_format_it_takes_and_goes_on_in_it(
    tmp_path, tiny_arch, processor, said, capsys
):
    """Begun where bf16 is fast, continued there and where it is not, and evaluated."""
    (tmp_path / "tiny.yaml").write_text(
        "{model: {arch: tiny, num_classes: 2}, data: {batch_size: 20, eval_batch_size: 12}, "
        "train: {epochs: 3, precision: auto}, log: {eta: 0}, checkpoint: {keep: 9}}"
    )
    data = f"data.path={cifar_tree(tmp_path / 'data')}"
    arguments = [str(tmp_path / "tiny.yaml"), data, f"run.dir={tmp_path}/runs"]
    folder = tmp_path / "runs" / "tiny"

    def stored(epoch):
        in_folder = yaml.safe_load((folder / "config.yaml").read_text())
        in_state = load(folder / f"checkpoints/epoch_{epoch:04}.pt")["config"]
        assert in_folder["train"]["precision"] == in_state["train"]["precision"]
        return in_state["train"]["precision"]

    def train():
        train_command.main(arguments)
        return "\n".join(said())

    def back_to(epoch):
        for path in (folder / "checkpoints").glob("*.pt"):
            if path.name == "best.pt" or path.name > f"epoch_{epoch:04}.pt":
                path.unlink()

    processor(NEW)
    assert "train.precision=auto takes bf16: this processor" in train() and stored(3) == "bf16"
    back_to(1)
    assert "train.precision=auto" not in train() and stored(3) == "bf16"
    back_to(2)
    processor(OLD)
    assert "takes fp32: it was trained in bf16 so far, but this processor" in train()
    assert stored(3) == "fp32"
    evaluate_command.main([str(folder / "checkpoints/epoch_0002.pt"), data])
    assert "takes fp32: it was trained in bf16 so far" in "\n".join(said())
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 12
