"""Trainings whose images grow: evaluated at one size, captured at each, gone on with to the bit."""

import pytest
import torch

from launch import train as train_command
from pipeline.data.open import build_loaders, train_sides
from pipeline.run.checkpoint import load
from pipeline.run.config import load_config
from pipeline.run.errors import UserError
from pipeline.train import trainer
from pipeline.train.evaluation import Evaluation
from tests import ROOT
from tests.train.test_graph import Traced, assert_equal, results
from tests.train.test_trainer import stop_at
from tests.train.tiny import CPU, assemble, fit, small

CONFIG = (
    "{data: {dataset: imagenet, batch_size: 8, eval_batch_size: 5, size: 32, resize: 36,"
    "workers: 0, train_sizes: '16,24', loader: torchvision}, model: {num_classes: 2},"
    "train: {epochs: 4}, seed: 3, log: {every: 2, eta: 0}}"
)


@pytest.fixture
def words(cifar, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "train").symlink_to(cifar / "train")
    (tree / "val").symlink_to(cifar / "test")
    (tmp_path / "growing.yaml").write_text(CONFIG)
    return [str(tmp_path / "growing.yaml"), f"data.path={tree}", f"run.dir={tmp_path}/runs"]


def shapes_seen(monkeypatch):
    seen = []
    train_step, add = trainer.Trainer.train_step, Evaluation._add

    def note(method, kind):
        def noted(self, batch):
            seen.append((kind, self.state.epoch if kind == "train" else -1, batch.images.shape[-1]))
            method(self, batch)

        return noted

    monkeypatch.setattr(trainer.Trainer, "train_step", note(train_step, "train"))
    monkeypatch.setattr(Evaluation, "_add", note(add, "val"))
    return seen


@pytest.mark.parametrize(
    ("sizes", "epochs", "expected"),
    [
        (None, 3, [32, 32, 32, 32]),
        ("16", 2, [16, 16, 16]),
        ("16,24", 4, [16, 16, 24, 24, 24]),
        ("16,24,32", 4, [16, 16, 24, 32, 32]),
        ("16, 24, 32", 2, [16, 24, 24]),
    ],
)
def test_each_size_has_an_equal_part_of_the_epochs(sizes, epochs, expected):
    """The last number is that of the epoch that re-estimated statistics look at."""
    words = [f"data.train_sizes={sizes or 'null'}", f"train.epochs={epochs}", "data.size=32"]
    config = load_config(ROOT / "configs/imagenet_resnet18.yaml", words)
    assert [config.train_side(epoch) for epoch in range(epochs + 1)] == expected
    assert train_sides(config) == config.train_sides


def test_training_grows_and_evaluation_does_not(words, monkeypatch, tmp_path, capsys):
    seen = shapes_seen(monkeypatch)
    train_command.main(words)
    trained = {(epoch, side) for kind, epoch, side in seen if kind == "train"}
    assert trained == {(0, 16), (1, 16), (2, 24), (3, 24)}
    assert {side for kind, _, side in seen if kind == "val"} == {32}
    assert "from epoch 3 on, training images have 24 pixels a side" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_goes_on_grows_as_it_would_have(words, monkeypatch, tmp_path):
    train_command.main([*words, "run.name=whole"])
    with monkeypatch.context() as patch:
        stop_at(patch, 12)  # in the third epoch, the first one of the larger size
        with pytest.raises(KeyboardInterrupt):
            train_command.main([*words, "run.name=parts", "checkpoint.every_steps=1"])
    train_command.main([*words, "run.name=parts", "checkpoint.every_steps=1"])
    files = (tmp_path / f"runs/{name}/checkpoints/epoch_0004.pt" for name in ("whole", "parts"))
    saved = [load(file) for file in files]
    for key in ("state_dict", "optimizer", "best", "last"):
        assert_equal(*(each[key] for each in saved))


@pytest.mark.slow
def test_each_size_is_captured_once_and_equals_the_eager_steps(words, monkeypatch, tmp_path):
    config = load_config(words[0], [*words[1:], "train.epochs=6", "train.reestimate_bn=2"])
    runs = []
    monkeypatch.setattr("kernels._native.is_watched", lambda: True)
    for graphs in (None, Traced()):
        monkeypatch.setattr(Traced, "recorded", 0)
        monkeypatch.setattr(trainer, "make_graphs", lambda *_, graphs=graphs: graphs)
        torch.manual_seed(0)
        network = small(classes=2)
        runs.append(assemble(config, network, build_loaders(config, CPU), CPU, tmp_path / "x"))
        fit(runs[-1], tmp_path / "x")
    assert Traced.recorded == 2 + 2 + 1  # training and statistics at both sizes, and evaluation
    assert_equal(results(runs[1]), results(runs[0]))


def test_images_on_the_device_stay_as_they_are(cifar, tmp_path):
    words = [str(ROOT / "configs/cifar10_resnet20.yaml"), f"data.path={cifar}", "train.epochs=1",
             f"run.dir={tmp_path}", "optim.warmup_epochs=0", "--check"]  # fmt: skip
    with pytest.raises(UserError, match="train_sizes is 16,24, but .*; set data.train_sizes=null"):
        train_command.main([*words, "data.train_sizes=16,24"])
    train_command.main([*words, "data.train_sizes=null"])
