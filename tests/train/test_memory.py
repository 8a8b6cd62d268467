"""A GPU with too little memory: what is said is measured, and what it says to set works."""

import json
import re
import subprocess
import sys

import pytest
import torch

from models import build_model
from pipeline.run import processes
from pipeline.run.config import load_config
from pipeline.run.errors import UserError
from pipeline.train import memory
from tests import PATIENCE, ROOT
from tests.kernels.device import DEVICE
from tests.standin import build
from tests.train.blank import BlankLoader
from tests.train.tiny import CONFIG, CPU, assemble, fit

GIB = 2**30
ROOM = 24  # GiB, as many cards have
STEPS = 6  # so many that a captured step is captured, and replayed

# Trains, or evaluates, on a card of 2 GiB, as the words say, and prints the error. No number means
# anything there, so that none is looked at.
PROGRAM = """
import json, os, sys, tempfile
from pathlib import Path
import torch
from launch.bench.training import make_trainer
from pipeline.run.config import load_config
from pipeline.run.errors import UserError
from pipeline.train.memory import explained, training
from pipeline.train.trainer import Trainer
from tests.standin import device
from tests.standin.worker import open_blank

Trainer._check_finite = lambda self: None
Trainer._log_step = lambda self, *_: None
cuda = torch.device("cuda", 0)
config = load_config("configs/imagenet_resnet18.yaml", sys.argv[2:])
shown = config
if sys.argv[1] == "evaluate":
    shown = config.changed({"data.batch_size": config.data.eval_batch_size})
with tempfile.TemporaryDirectory() as folder:
    trainer = make_trainer(config, cuda, open_blank(shown, cuda), Path(folder))
    try:
        if sys.argv[1] == "train":
            reset = trainer.stepper.reset
            with explained(training(config, cuda, trainer.state, trainer.loss, reset)):
                trainer._train(0.1)
        else:
            trainer.evaluation()
        said = "done"
    except UserError as error:
        said = str(error)
print(json.dumps(said), flush=True)
os._exit(0)
"""


def under_the_stand_in(*words):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=ROOT, env=build.environment() | {"STANDIN_GIB": "2"},
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(bool(build.obstacle()), reason=str(build.obstacle()))
@pytest.mark.parametrize(
    ("what", "key", "graph"),
    [("train", "data.batch_size", "false"), ("train", "data.batch_size", "true"),
     ("evaluate", "data.eval_batch_size", "true")],
)  # fmt: skip
def test_what_is_said_to_fit_does(what, key, graph):
    words = [what, "train.precision=fp16", f"train.cuda_graph={graph}", "data.batch_size=64"]
    words += [f"{key}=1200"]
    said = under_the_stand_in(*words)
    print(said)
    assert said.startswith(f"{key}=1200 is too large: GPU 0 has ")
    advice = re.findall(r"[a-z]+\.[a-z_]+=\d+", said.rpartition("; ")[2])
    assert advice[-1].startswith(f"{key}=")
    for remedy in advice:
        assert under_the_stand_in(*words, remedy) == "done"


def test_a_line_through_two_batches_gives_what_fits():
    line = memory.Line(fixed=100.0, each=10.0)
    assert line.at(5) == 150
    assert line.fitting(1000.0, failed=1000) == 75  # of 850, with the margin
    assert line.fitting(1000.0, failed=81) == 60  # it failed, whatever was measured
    assert line.fitting(100.0, failed=8) == 0


def work(trains, *overrides):
    config = load_config(CONFIG, overrides)
    return memory.Work(config, CPU, torch.nn.Identity(), trains, print, print)


@pytest.mark.parametrize(
    ("trains", "size", "parts", "fits", "words"),
    [
        (True, 1, 1, 100, "set train.grad_accumulation=4, or data.batch_size=100"),
        (True, 1, 2, 100, "set train.grad_accumulation=4, or data.batch_size=200"),
        (True, 2, 1, 64, "set train.grad_accumulation=2, or data.batch_size=128"),
        (True, 1, 1, 0, "not even two images fit; set train.device=cpu, or take a GPU"),
        (False, 2, 1, 100, "set data.eval_batch_size=200"),
    ],
)
def test_what_to_set(monkeypatch, trains, size, parts, fits, words):
    monkeypatch.setattr(processes, "size", lambda: size)
    now = work(trains, "data.batch_size=256", f"train.grad_accumulation={parts}")
    assert words in now.remedy(fits)


def test_a_shortage_is_recognised_behind_what_it_caused():
    def capture():
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    with pytest.raises(RuntimeError) as caught:
        capture()
    assert memory.is_shortage(caught.value)
    assert not memory.is_shortage(RuntimeError("another"))
    assert not memory.is_shortage(UserError("out of memory"))


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="another"), memory.explained(work(True)):
        raise RuntimeError("another")
    with pytest.raises(RuntimeError, match="another"), memory.shortage_explained():
        raise RuntimeError("another")


def test_a_gpu_without_room_for_the_beginning(monkeypatch):
    for name, value in {
        "is_initialized": lambda: True,
        "current_device": lambda: 0,
        "memory_reserved": lambda _: 0,
        "memory_allocated": lambda _: 0,
        "mem_get_info": lambda _: (1 << 29, 80 << 30),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    with pytest.raises(UserError) as caught, memory.shortage_explained():
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert str(caught.value) == (
        "GPU 0 has 0.5 of 80.0 GiB free (other processes, which nvidia-smi lists, hold 79.5); "
        "set train.device=cpu, or end what fills it"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", ["true", "false"])
def test_the_papers_batch_of_750_fits_into_24_gib(graphs, tmp_path):
    """ResNet-18 on ImageNet, with the room in which cuDNN works, and with an evaluation."""
    device = torch.device(DEVICE)
    if torch.cuda.get_device_properties(device).total_memory < ROOM * GIB:
        pytest.skip(f"this GPU has less than {ROOM} GiB")
    overrides = ["train.epochs=1", "train.precision=fp16", f"train.cuda_graph={graphs}"]
    config = load_config(ROOT / "configs/imagenet_resnet18.yaml", overrides)
    assert config.data.batch_size == 750
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    loader = BlankLoader(config, device, STEPS)
    model = build_model(*config.network)
    fit(assemble(config, model, (loader, loader), device, tmp_path), tmp_path)
    assert 5 * GIB < torch.cuda.max_memory_allocated() < ROOM * GIB
