"""Agreement with the official code itself: RESTE_OFFICIAL=/path/to/its/checkout pytest -k official.

Skipped without it. ``models/official.py`` stands in for it in every other test.
"""

import importlib
import os
import sys

import pytest
import torch

from models import build_model
from tests.parity import compare, make_exact

CHECKOUT = os.environ.get("RESTE_OFFICIAL")
pytestmark = pytest.mark.skipif(not CHECKOUT, reason="needs RESTE_OFFICIAL, the official checkout")
NETWORKS = [
    ("resnet20", "1w1a", "models_cifar", "resnet20_1w1a"),
    ("resnet20", "1w32a", "models_cifar", "resnet20_1w1a"),
    ("resnet20", "32w32a", "models_cifar", "resnet20"),
    ("resnet20_bireal", "1w1a", "models_cifar", "resnet20_bireal_1w1a"),
    ("resnet20_bireal", "1w32a", "models_cifar", "resnet20_bireal_1w1a"),
    ("resnet18_cifar", "1w1a", "models_cifar", "resnet18_1w1a"),
    ("resnet18_cifar", "1w32a", "models_cifar", "resnet18_1w1a"),
    ("resnet18_cifar", "32w32a", "models_cifar", "resnet18"),
    ("vgg_small", "1w1a", "models_cifar", "vgg_small_1w1a"),
    ("vgg_small", "1w32a", "models_cifar", "vgg_small_1w1a"),
    ("resnet18", "1w1a", "models_imagenet", "resnet18_1w1a"),
    ("resnet18", "1w32a", "models_imagenet", "resnet18_1w1a"),
    ("resnet18", "32w32a", "models_imagenet", "resnet18"),
    ("resnet34", "1w1a", "models_imagenet", "resnet34_1w1a"),
    ("resnet34", "1w32a", "models_imagenet", "resnet34_1w1a"),
]


@pytest.mark.parametrize(("arch", "bits", "package", "name"), NETWORKS)
def test_equals_the_official_code(arch, bits, package, name, monkeypatch):
    monkeypatch.syspath_prepend(CHECKOUT)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    arguments = importlib.import_module("utils.arguments").args
    monkeypatch.setattr(arguments, "a32", bits == "1w32a")
    classes = 1000 if package == "models_imagenet" else 10
    zoo = importlib.import_module(f"model.{package}")
    official = getattr(zoo, name)(num_classes=classes).double()
    torch.manual_seed(0)
    ours = build_model(arch, bits, classes).double()
    make_exact(ours)
    ours.set_progress(0.7)
    o = ours.estimator_parameters()["o"]
    for module in official.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.o = module.o_a = torch.tensor(o, dtype=torch.float64)
    size = 224 if package == "models_imagenet" else 32  # its pooling window is fixed
    images = torch.randn(4, 3, size, size, dtype=torch.float64)
    errors = compare(ours, official, images, torch.arange(4))
    print(arch, bits, errors)
    assert max(errors.values()) < 1e-9, errors
