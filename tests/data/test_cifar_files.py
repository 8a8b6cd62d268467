"""CIFAR-100 from torchvision's files: its fine classes, and files that are none of its."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR100

from pipeline.data.cifar_files import load_cifar
from pipeline.data.open import build_loaders, expected_images
from pipeline.run.config import load_config
from pipeline.run.errors import UserError
from tests import ROOT
from tests.data.fixtures import CPU

FINE = tuple(f"fine{label}" for label in range(100))


def write(file, content):
    file.write_bytes(pickle.dumps(content))
    return [file.name, hashlib.md5(file.read_bytes()).hexdigest()]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with files of the form of CIFAR-100's, whose checksums torchvision knows."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rng, lists = np.random.default_rng(0), {}
    for name, count in (("train", 200), ("test", 100)):
        content = {
            "data": rng.integers(0, 256, (count, 3072), np.uint8),
            "fine_labels": [number % 100 for number in range(count)],
            "coarse_labels": [number % 20 for number in range(count)],
        }
        lists[name] = [write(folder / name, content)]
    names = {"fine_label_names": list(FINE), "coarse_label_names": list("abcdefghijklmnopqrst")}
    meta = write(folder / "meta", names)
    monkeypatch.setattr(CIFAR100, "train_list", lists["train"])
    monkeypatch.setattr(CIFAR100, "test_list", lists["test"])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": meta[1]})
    return tmp_path


def config_of(root):
    return load_config(ROOT / "configs/cifar100_resnet20.yaml", [f"data.path={root}"])


@pytest.mark.parametrize("inner", ["", "cifar-100-python"])
def test_its_classes_are_the_fine_ones(root, inner):
    train, val = build_loaders(config_of(root / inner), CPU)
    assert train.classes == val.classes == FINE
    assert (len(train), train.images, val.images) == (1, 200, 100)
    assert expected_images(config_of(root)) == (32, 100)
    labels = torch.cat([batch.labels for batch in val.epoch(0)])
    assert labels[labels >= 0].tolist() == list(range(100))


def test_what_is_damaged_or_another_data_set_is_one_line(root):
    with pytest.raises(UserError, match="holds neither cifar-10-batches-py/ nor train/"):
        load_cifar("cifar10", root, split="train", download=False)
    content = bytearray((root / "cifar-100-python/train").read_bytes())
    content[1000] ^= 1
    (root / "cifar-100-python/train").write_bytes(content)
    assert len(load_cifar("cifar100", root, split="test", download=False).labels) == 100
    with pytest.raises(UserError, match="cifar-100-python is incomplete or damaged; data.download"):
        build_loaders(config_of(root), CPU)
