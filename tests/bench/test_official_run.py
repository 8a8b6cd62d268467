"""A training by official code, which a few lines in its manner stand in for."""

import json
import logging
import re

import pytest
import torch

from launch.bench import official_run
from launch.bench.official_run import flags
from pipeline.run.config import load_config
from pipeline.run.errors import UserError
from tests.data.fixtures import cifar_tree

# Logs as the official main.py does, after the same calls.
MAIN = r"""
import argparse, logging
import torch
from torchvision import datasets, transforms

parser = argparse.ArgumentParser()
for name in ("model", "dataset", "epochs", "lr", "momentum", "weight_decay", "batch_size",
             "batch_size_test", "workers", "seed", "o_end", "print_freq", "results_dir", "save"):
    parser.add_argument(f"--{name}", required=True)
parser.add_argument("--warm_up", action="store_true")
args = parser.parse_args()
logging.basicConfig(level=logging.DEBUG)
train = datasets.CIFAR10(root="", train=True, download=True, transform=transforms.ToTensor())
test = datasets.CIFAR10(root="", train=False, download=True, transform=transforms.ToTensor())
image, label = train[0]
assert image.cuda(non_blocking=True).shape == (3, 32, 32) and torch.nn.ReLU().cuda()
assert (len(train), len(test)) == (40, 12)
for epoch in range(int(args.epochs)):
    logging.info('lr: %s', float(args.lr) / (epoch + 1))
    logging.info('TRAINING - Epoch: [0][0/5]\tTime 9.000 (0.500)\tData 0.1 (0.1)\tloss 1 (1)')
    logging.info('EVALUATING - Epoch: [0][0/5]\tTime 9.000 (7.000)\tData 0.1 (0.1)\tloss 1 (1)')
    logging.info('\n Epoch: {0}\n'
                 'Training loss {1:.4f} \tTraining Prec@1 {2:.3f} \tTraining Prec@5 {3:.3f} \n'
                 'Validation loss {4:.4f} \tValidation Prec@1 {5:.3f} \t'
                 'Validation Prec@5 {6:.3f} \n'
                 .format(epoch + 1, 2.5, 10, 50, float('nan') if epoch else 2.25, 11, 51))
"""


@pytest.fixture
def given(tmp_path):
    """A config, and a checkout of official code."""
    (tmp_path / "main.py").write_text(MAIN)
    data = cifar_tree(tmp_path / "data")
    words = [f"data.path={data}", f"run.dir={tmp_path}/runs", "run.name=official", "train.epochs=6"]
    words += ["train.device=cpu", "data.batch_size=8"]
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    yield load_config("configs/cifar10_resnet20.yaml", words), tmp_path
    root.level, root.handlers[:] = level, handlers


def test_what_it_logs_becomes_a_run(given):
    cuda = torch.Tensor.cuda
    folder = official_run.train(*given)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines[:2])
    assert len(lines) == 6
    shown = {"train_loss": 2.5, "train_top1": 10, "train_top5": 50}
    shown |= {"val_loss": 2.25, "val_top1": 11, "val_top5": 51}
    assert {"kind": "epoch", "epoch": 0, "lr": 0.1, **shown}.items() <= first.items()
    assert first["images_per_second"] == 16 and first["seconds"] > 0
    assert (second["epoch"], second["lr"], second["val_top1"]) == (1, 0.05, 11)
    assert torch.Tensor.cuda is cuda
    with pytest.raises(
        UserError, match="holds a run already; set (run.name)=(official-2)"
    ) as caught:
        official_run.train(*given)
    key, value = re.search(r"set (\S+)=(\S+)", str(caught.value)).groups()
    again = official_run.train(given[0].changed({key: value}), given[1])
    for each in (folder, again):
        assert len((each / "metrics.jsonl").read_text().splitlines()) == 6


def test_its_flags_are_those_of_the_config(given):
    config, _ = given
    words = flags(config.changed({"optim.lr": 0.25, "model.bits": "1w32a", "estimator.o_end": 2.0}))
    said = dict(zip(words[:-2:2], words[1:-2:2], strict=True))
    assert (said["--model"], said["--lr"], said["--o_end"]) == ("resnet20_1w1a", "0.25", "2.0")
    assert (said["--epochs"], said["--batch_size"]) == ("6", "8")
    assert words[-2:] == ["--warm_up", "--a32"]


@pytest.mark.parametrize(
    "change", [{"optim.warmup_epochs": 3}, {"estimator.name": "ste"}, {"model.bits": "32w1a"}]
)
def test_what_it_does_not_know_is_refused(given, change):
    with pytest.raises(UserError, match="is not for the official code") as caught:
        flags(given[0].changed(change))
    (key,), value = change, str(caught.value).rpartition("set it to ")[2]
    assert flags(given[0].changed({key: type(change[key])(value)}))


def test_no_checkout_is_a_line(given, tmp_path):
    with pytest.raises(UserError, match=r"there is no main\.py; name the official checkout"):
        official_run.train(given[0], tmp_path / "data")
