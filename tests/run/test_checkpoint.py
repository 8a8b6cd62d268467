"""Checkpoints: atomic, checked, safe; and the official code's."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_model
from pipeline.run.checkpoint import CheckpointStore, load
from pipeline.run.errors import Interrupted, UserError
from pipeline.run.files import write_atomically
from pipeline.run.weights import identify
from pipeline.train.network import load_weights
from pipeline.train.randomness import rng_state, set_rng_state


def state(epoch, step=0, batch=0):
    return {"state_dict": {"w": torch.arange(500.0) + epoch}, "epoch": epoch, "batch": batch,
            "step": step}  # fmt: skip


def same(a, b):
    return torch.equal(a["state_dict"]["w"], b["state_dict"]["w"]) and a["epoch"] == b["epoch"]


def test_keeps_the_newest_and_the_best(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for epoch in range(1, 5):
        store.save(state(epoch), best=epoch == 2)
    store.save(state(4, step=41, batch=1))
    assert [p.name for p in store.files()] == ["step_41.pt", "epoch_0004.pt"]
    assert load(tmp_path / "best.pt")["epoch"] == 2
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "epoch_0004.pt", "step_41.pt"]


def test_every_damage_is_noticed_or_harmless(tmp_path):
    path = CheckpointStore(tmp_path, 1).save(state(1))
    whole = path.read_bytes()
    rng = random.Random(0)
    noticed = 0
    for _ in range(150):
        at = rng.randrange(len(whole))
        path.write_bytes(
            whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :]
        )
        try:
            assert same(load(path), state(1)), at
        except UserError:
            noticed += 1
    assert noticed > 50
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="epoch_0001.pt"):
            load(path)


def test_the_one_before_a_damaged_one_is_offered(tmp_path):
    store = CheckpointStore(tmp_path, 2)
    store.save(state(1))
    second = store.save(state(2))
    second.write_bytes(second.read_bytes()[:-100])
    (path, error), (_, good) = store.newest()
    assert path == second and isinstance(error, UserError)
    assert same(good, state(1))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    write_atomically(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left.*run.dir"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_signal_while_it_loads_is_no_damage(tmp_path, monkeypatch):
    path = CheckpointStore(tmp_path, 1).save(state(1))

    def interrupted(*_, **options):
        raise Interrupted(15, "now")

    monkeypatch.setattr(torch, "load", interrupted)
    with pytest.raises(Interrupted):
        load(path)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_pickled_code_is_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "evil.pt")
    with pytest.raises(UserError, match="evil.pt holds pickled code"):
        load(Path("evil.pt"))
    assert not Path("executed").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 no zip", bytes(1000)])
def test_what_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="x.pt"):
        load(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="state_dict"):
        load(path)
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "none.pt")


def official(arch, name, prefix=""):
    model = build_model(arch)
    weights = {prefix + key: value for key, value in model.state_dict().items()}
    return model, {"epoch": 3, "model": name, "state_dict": weights, "best_prec1": 50.0,
                   "parameters": list(model.parameters())}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("arch", "name", "bits"),
    [
        ("resnet20", "resnet20_1w1a", "1w1a"),
        ("resnet20_bireal", "resnet20_bireal_1w1a", "1w1a"),
        ("resnet18_cifar", "resnet18_1w1a", "1w1a"),
        ("resnet18", "resnet18_1w1a", "1w1a"),
        ("vgg_small", "vgg_small", "32w32a"),
    ],
)
def test_official_checkpoints(tmp_path, arch, name, bits, prefix):
    model, content = official(arch, name, prefix)
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(content, path)
    loaded = load(path)
    assert identify(loaded) == (arch, bits)
    other = build_model(arch)
    assert load_weights(other, loaded, path) is False
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


def test_fine_tuning_and_wrong_networks(tmp_path):
    _, content = official("resnet20", "resnet20_1w1a")
    path = tmp_path / "c.pt"
    other = build_model("resnet20", num_classes=7)
    with pytest.raises(UserError, match="num_classes"):
        load_weights(other, content, path)
    assert load_weights(other, content, path, new_classifier=True) is True
    assert torch.equal(other.conv1.weight, content["state_dict"]["conv1.weight"])
    with pytest.raises(UserError, match="vgg_small"):
        load_weights(build_model("vgg_small"), content, path, new_classifier=True)


def test_random_generators_go_on(tmp_path):
    path = tmp_path / "r.pt"
    torch.save({"state_dict": {}, "rng": rng_state()}, path)
    drawn = [random.random(), np.random.rand(), torch.rand(1).item()]  # noqa: NPY002
    set_rng_state(load(path)["rng"])
    assert drawn == [random.random(), np.random.rand(), torch.rand(1).item()]  # noqa: NPY002
