"""The benchmark of the whole road, in small: its trees, and the rows of all who train from them."""

import os

import pytest
import torch

from launch.bench import preparing, road, training, trees
from pipeline.data.shards import scan_shards
from pipeline.data.tree import scan
from pipeline.run.config import load_config
from pipeline.run.errors import UserError
from tests.data.fixtures import plain_folder, smooth

CPU = torch.device("cpu")
SMALL = [
    *("model.arch=resnet20", "data.batch_size=2", "data.size=32", "data.resize=32"),
    *("data.workers=0", "data.loader=torchvision", "train.precision=fp32"),
]


@pytest.fixture
def images(tmp_path):
    """A folder of two classes, of one and of two images."""
    for name in ("a/1.jpg", "b/2.jpg", "b/deep/3.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        smooth(40, 50).save(tmp_path / "images" / name)
    return tmp_path / "images"


def config(path, *words):
    return load_config("configs/imagenet_resnet18.yaml", [*SMALL, f"data.path={path}", *words])


def test_trees_of_the_size_that_is_needed(images, tmp_path):
    raw = trees.raw_tree(tmp_path, trees.given_images(str(images)), 41)
    made = trees.smaller_trees(raw, 32, 1)
    assert [*made] == ["raw", "resized", "sharded"]
    for split, count in (("train", 41), ("val", 2)):
        found = scan(raw, split)
        assert (found.classes, len(found.files)) == (("a", "b"), count)
        assert len({os.path.realpath(path) for path in found.paths(range(count))}) == min(3, count)
        resized, sharded = scan(made["resized"], split), scan_shards(made["sharded"], split)
        assert sharded.fingerprint == resized.fingerprint and len(resized.files) == count


def test_images_of_a_tree_are_those_of_its_training(tmp_path):
    plain_folder(tmp_path, "train", 6)
    plain_folder(tmp_path, "val", 9)
    assert len(trees.given_images(str(tmp_path)).files) == 6
    with pytest.raises(UserError, match="data.path is not set: give a folder with images in class"):
        trees.given_images(None)


def test_rows_of_all_providers(images, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(road, "EPOCHS", 1)
    started = []
    rows = road.measure(config(images), CPU, 1, 4, lambda raw: started.append(raw.name) or [])
    assert started == ["raw"]
    names = [(row["mode"], row["provider"], row["case"].rpartition("/")[2]) for row in rows
             if row["metric"] == "throughput" and row["mode"] != "loader"]  # fmt: skip
    assert names == [
        ("end_to_end", name, tree)
        for tree in ("raw", "resized", "sharded")
        for name in ("official", "compile", "ours")
        if (name, tree) != ("official", "sharded")
    ]
    loaded = [row["case"] for row in rows if row["mode"] == "loader"]
    assert loaded == [f"{tree}/2x3x32x32/workers0" for tree in ("raw", "resized", "sharded")]
    of_one = {row["metric"]: float(row["p50"]) for row in rows if row["provider"] == "ours"
              and row["case"] == "imagenet_resnet18/1w1a/2/fp32/sharded"}  # fmt: skip
    assert 0 < of_one["data_wait"] < 1 and of_one["throughput"] > 0
    epoch = road.IMAGENET_IMAGES / of_one["throughput"]
    assert of_one["epoch_extrapolated"] == pytest.approx(epoch, rel=0.02)
    assert of_one["time_to_train_extrapolated"] == pytest.approx(250 * epoch, rel=0.02)


def test_a_network_of_our_own_with_a_teacher(images, monkeypatch, tmp_path):
    """As in the recipe of ReActNet: no rivals, and ours with the teacher and without."""
    monkeypatch.setattr(road, "EPOCHS", 1)
    raw = trees.raw_tree(tmp_path, trees.given_images(str(images)), 4)
    words = "model.arch=resnet18_react", "distill.teacher=squeezenet1_1"
    rows = road.end_to_end(config(raw, *words), CPU, raw)
    found = [(row["case"], row["provider"]) for row in rows if row["metric"] == "throughput"]
    case = "imagenet_resnet18/1w1a/2/fp32/raw"
    assert found == [(case, "ours"), (f"{case}/distilled", "ours")]


def test_without_a_compiler_compile_has_no_row(images, monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(road, "EPOCHS", 1)
    monkeypatch.setattr(road, "MAKERS", {"compile": fail})
    raw = trees.raw_tree(tmp_path, trees.given_images(str(images)), 4)
    assert road.end_to_end(config(raw), CPU, raw) == []
    monkeypatch.setattr(road, "MAKERS", {"ours": fail})
    with pytest.raises(RuntimeError, match="no compiler"):
        road.end_to_end(config(raw), CPU, raw)


def test_the_roofline_is_for_one_size_of_images(monkeypatch):
    monkeypatch.setattr(training, "device_name", lambda device: "NVIDIA H100 80GB HBM3")
    rate = torch.tensor([2650.0]).double()
    whole = load_config("configs/imagenet_resnet18.yaml")
    (row,) = training.share_of_roofline(whole, CPU, ("case", "ours", "end_to_end"), rate)
    assert row["p50"] == "0.1000"
    small = whole.changed({"data.size": 160})
    assert training.share_of_roofline(small, CPU, ("case", "ours", "end_to_end"), rate) == []


def test_the_rate_of_preparing(images):
    rows = preparing.measure(config(images), rounds=2, images=10)
    assert [(row["case"], row["metric"], row["unit"]) for row in rows] == [
        ("resize/32", "throughput_per_core", "images/s"),
        ("shard", "throughput_per_core", "images/s"),
    ]
    assert all(10 < float(row["p20"]) <= float(row["p80"]) for row in rows)
