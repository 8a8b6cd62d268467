"""The networks of configs and of checkpoints, counted by the command."""

import json

import pytest
import torch

from launch import summary as summary_command
from launch.bench.official import build_official
from models import ARCHS, Arch, BinaryNetwork
from models.resnet_cifar import CifarResNet
from pipeline.data.cifar_files import SIDE
from pipeline.data.open import DATASETS
from pipeline.run.commands import shipped_configs
from pipeline.run.config import load_config
from pipeline.run.errors import UserError
from pipeline.train.counting import count_checkpoint, count_config
from tests import ROOT

CONFIGS = shipped_configs()


@pytest.mark.parametrize("name", ["quickstart", *(n for n in CONFIGS if n.startswith("cifar"))])
def test_every_config_is_counted(name):
    found = count_config(load_config(CONFIGS[name], ["train.precision=fp32"]))
    assert found["image_size"] == 32
    assert found["classes"] == (100 if name.startswith("cifar100") else 10)
    keys = found["total"].keys()
    assert {key: sum(each[key] for each in found["layers"]) for key in keys} == found["total"]


def test_the_command_prints_the_same_counts_twice(capsys):
    words = ["imagenet_resnet18", "train.precision=fp32"]
    summary_command.main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["total"]["bops"] == 1_676_279_808 and found["total"]["ops"] == 163_985_408
    assert (found["classes"], found["image_size"]) == (1000, 224)
    summary_command.main(words)
    printed = capsys.readouterr().out
    assert "1,676,279,808 BOPs / 64 + 137,793,536 FLOPs = 163,985,408 OPs" in printed
    assert all(f"\n{layer['name']} " in printed for layer in found["layers"])


def test_a_known_data_set_says_its_sides():
    assert DATASETS["cifar10"].side == SIDE
    config = load_config(CONFIGS["imagenet_resnet18"], ["data.size=64", "train.precision=fp64"])
    found, usual = count_config(config), count_config(config.changed({"data.size": 128}))
    assert found["image_size"] == 64 and found["layers"][0]["real_macs"] == 32 * 32 * 9408
    assert usual["layers"][0]["real_macs"] == 4 * found["layers"][0]["real_macs"]
    assert usual["total"]["bits"] == found["total"]["bits"]


def test_an_official_checkpoint(tmp_path):
    path = tmp_path / "model_best.pth.tar"
    model = build_official("resnet20", "1w1a", 10)
    torch.save({"state_dict": model.state_dict(), "model": "resnet20_1w1a", "epoch": 3}, path)
    found = count_checkpoint(path, [])
    assert (found["network"], found["bits"], found["classes"]) == ("resnet20", "1w1a", 10)
    assert found == count_config(load_config(CONFIGS["cifar10_resnet20"], ["train.precision=fp32"]))
    real = count_checkpoint(path, ["model.bits=1w32a"])
    assert real["total"]["bops"] == 0 and real["total"]["bits"] == found["total"]["bits"]


def test_a_network_from_outside(monkeypatch):
    monkeypatch.setitem(ARCHS, "mine", Arch("mine", CifarResNet, 32, "cifar10"))
    mine = count_config(load_config(CONFIGS["cifar10_resnet20"], ["model.arch=mine"]))
    assert mine["network"] == "mine" and mine["total"]["bops"] == 40_108_032


class Odd(BinaryNetwork):
    """A network that fails without a word."""

    def __init__(self, arch, bits, num_classes, estimator, **options):
        super().__init__(arch, bits, estimator, **options)
        self.linear = torch.nn.Linear(1, num_classes)

    def forward(self, images):
        raise RuntimeError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cifar10_vgg_small", "data.dataset=imagenet"],
         r"^vgg_small does not take images of 224 x 224 pixels \(.*\); set data.dataset=cifar10"),
        (["cifar10_resnet20", "model.arch=odd"], r"^odd does not .* \(no memory\); set "),
        (["cifar10_resnet20", "model.num_classes=1000000000000000"],
         "^model.num_classes is 1000000000000000, .*; set model.num_classes=1000$"),
        (["cifar10_resnet20", "model.arch=resnet81"], "did you mean resnet18"),
        (["cifar10_resnet20", "data.dataset=cifar"], "choose one of cifar10, cifar100, imagenet"),
        (["quikstart"], r"did you mean quickstart\?$"),
        (["gone.pt"], "^checkpoint gone.pt does not exist; give the path of a .pt file$"),
        ([str(ROOT / "README.md")], "README.md is no checkpoint, or a damaged one; take another$"),
        ([str(ROOT / "docs/")], "no such file, nor is it a name in configs/; names are "),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(words, message, monkeypatch):
    monkeypatch.setitem(ARCHS, "odd", Arch("odd", Odd, 32, "cifar10"))
    with pytest.raises(UserError, match=message) as caught:
        summary_command.main(words)
    assert "\n" not in str(caught.value)
