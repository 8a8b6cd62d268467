"""Shards: the same batches as from the tree, to the bit, and every damage told at the door."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from launch import train as train_command
from pipeline.data.loader_torchvision import TorchvisionLoader
from pipeline.data.open import build_loaders, scan_of
from pipeline.data.plan import Plan
from pipeline.data.shards import scan_shards
from pipeline.data.tree import scan
from pipeline.prepare.shard import shard_tree
from pipeline.run.config import make_config
from pipeline.run.errors import UserError
from tests.data import kinds
from tests.data.fixtures import CPU, make, noise, plain

LOADERS = {"torchvision": TorchvisionLoader}
if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
    from pipeline.data.loader_dali import DaliLoader

    LOADERS["dali"] = DaliLoader


@pytest.fixture(params=LOADERS)
def loader(request):
    return LOADERS[request.param]


@pytest.fixture
def noisy(tmp_path):
    """A tree of 11 different images of each split, so that every crop and flip shows."""
    for split, seed in (("train", 0), ("val", 100)):
        for i in range(11):
            folder = tmp_path / "tree" / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            noise(20 + 3 * i, 50 - i, seed + i).save(folder / f"{i:02}.jpg", quality=95)
    return tmp_path / "tree"


def sharded(tree, images=4):
    """The shards of a tree, beside it."""
    target = tree.with_name("shards")
    shard_tree(tree, target, images, workers=1)
    return target


def both(tree, split):
    return scan(tree, split), scan_shards(sharded(tree), split)


def equal(a, b):
    return all(
        torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        for one, other in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_list_of_images_is_the_trees(noisy, split):
    tree, shards = both(noisy, split)
    assert (shards.files, shards.classes, shards.fingerprint) == (
        tree.files, tree.classes, tree.fingerprint,
    )  # fmt: skip
    assert np.array_equal(shards.labels, tree.labels) and shards.labels.dtype == tree.labels.dtype


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_are_those_of_the_tree(noisy, loader, split, workers):
    tree, shards = (
        make(loader, folder, train=split == "train", workers=workers)
        for folder in both(noisy, split)
    )
    for epoch, start in ((0, 0), (1, 0), (0, 1), (3, 0)):
        assert equal(tree.epoch(epoch, start), shards.epoch(epoch, start))


def test_the_share_of_a_process_is_the_trees(noisy, loader):
    tree, shards = (make(loader, folder) for folder in both(noisy, "train"))
    for each in (tree, shards):
        each.plan = Plan(11, 4, True, 1, rank=1, size=2)
    assert equal(tree.epoch(1), shards.epoch(1))


def test_every_kind_of_file(tmp_path, loader):
    folder = tmp_path / "tree/val/class"
    folder.mkdir(parents=True)
    other = tmp_path / "tree/val/other"
    other.mkdir()
    plain(1).save(other / "1.png")
    for number, content in enumerate(kinds.GOOD.values()):
        (folder / f"{number:03}.jpg").write_bytes(content)
    options = {"train": False, "size": kinds.SIDE, "resize": kinds.SIDE, "batch_size": 16}
    tree, shards = (make(loader, each, **options) for each in both(tmp_path / "tree", "val"))
    assert equal(tree.epoch(0), shards.epoch(0))
    assert shards.images == len(kinds.GOOD) + 1


def test_excluded_images_are_left_out_alike(noisy, tmp_path):
    root = sharded(noisy)
    (tmp_path / "list").write_text("train/a/04.jpg\nval/b/01.jpg\n")
    for split in ("train", "val"):
        tree, shards = (
            scan(noisy, split, str(tmp_path / "list")),
            scan_shards(root, split, str(tmp_path / "list")),
        )
        assert (shards.files, shards.fingerprint) == (tree.files, tree.fingerprint)
        assert len(shards.files) == 10
        for index, name in enumerate(shards.files):
            with shards.store.open(index, name) as file:
                assert file.read() == (noisy / name).read_bytes()
    (tmp_path / "list").write_text("train/a/x.jpg\n")
    with pytest.raises(UserError, match=r"train/a/x.jpg is no image under .*shards; correct"):
        scan_shards(root, "train", str(tmp_path / "list"))
    (tmp_path / "list").write_text("".join(f"train/b/{i:02}.jpg\n" for i in range(1, 11, 2)))
    with pytest.raises(UserError, match="leaves no images in the class folder .*/train/b; add"):
        scan_shards(root, "train", str(tmp_path / "list"))


def config(root, *words):
    small = ["data.batch_size=4", "data.size=8", "data.resize=8", "data.workers=0"]
    return make_config(
        {}, ["run.name=x", "data.dataset=imagenet", f"data.path={root}", *small, *words]
    )


def test_the_format_is_found_or_given(noisy):
    root = sharded(noisy)
    tree = build_loaders(config(noisy), CPU)
    for words in ([], ["data.format=webdataset"]):
        for ours, theirs in zip(build_loaders(config(root, *words), CPU), tree, strict=True):
            assert equal(ours.epoch(0), theirs.epoch(0)) and ours.fingerprint == theirs.fingerprint
    assert scan_of("auto", root) == scan_of("webdataset", root) == scan_shards
    assert scan_of("auto", noisy) == scan_of("folder", root) == scan
    with pytest.raises(UserError, match="data.format is 'tar'; choose one of auto, folder, webdat"):
        build_loaders(config(root, "data.format=tar"), CPU)
    with pytest.raises(UserError, match=r"tree holds no shards; set data.format=folder for a tree"):
        build_loaders(config(noisy, "data.format=webdataset"), CPU)
    manifest = json.loads((root / "manifest.json").read_text())
    for other in ([], {}, {**manifest, "command": "prepare resize"}, {**manifest, "splits": 3}):
        (root / "manifest.json").write_text(json.dumps(other))
        assert scan_of("auto", root) == scan


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"more")


def other_index(path):
    path.write_text(path.read_text().replace("v1.2", "v1.1"))


def far_number(path):
    text = path.read_text()
    path.write_text(re.sub(r"\d{8}(?=\.jpg)", "99999999", text, count=1))


def twin(path):
    shutil.copy(path.with_name("000001.tar"), path.with_name("000009.tar"))


FAULTS = {
    "archive cut": ("000001.tar", cut, "000001.tar or its index is cut short, or altered"),
    "archive longer": ("000001.tar", lengthen, "000001.tar or its index is cut short, or altered"),
    "archive gone": ("000001.tar", Path.unlink, "its images are not those of the manifest"),
    "index gone": ("000001.idx", Path.unlink, "000001.idx: No such file or directory"),
    "index cut": ("000001.idx", cut, ""),
    "index empty": ("000001.idx", lambda path: path.write_bytes(b""), ""),
    "index of bytes": ("000001.idx", lambda path: path.write_bytes(b"\xff\xfe"), ""),
    "index of another version": ("000001.idx", other_index, "cut short, or altered"),
    "a number too large": ("000001.idx", far_number, ""),
    "an archive without index": ("000000.tar", twin, "000009.idx: No such file"),
    "names gone": ("names.json", Path.unlink, "names.json: No such file or directory"),
    "names cut": ("names.json", cut, ""),
    "other names": ("names.json", lambda p: p.write_text('["train/a/1.jpg"]'), ""),
    "odd names": ("names.json", lambda p: p.write_text("[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]"), ""),
    "no names": ("names.json", lambda p: p.write_text("3"), ""),
}


@pytest.mark.parametrize(("name", "change", "message"), FAULTS.values(), ids=FAULTS)
def test_shards_that_are_not_whole(noisy, name, change, message):
    root = sharded(noisy)
    change(root / "train" / name)
    with pytest.raises(UserError) as error:
        build_loaders(config(root), CPU)
    said = str(error.value)
    assert said.startswith(f"data.path: {root}/train is not whole (") and message in said
    assert "\n" not in said and re.search(r"again: .*reste prepare shard TREE SHARDS$", said)


def test_a_split_that_is_missing(noisy):
    shutil.rmtree(noisy / "val")
    root = sharded(noisy)
    with pytest.raises(
        UserError, match=r"the shards in .*shards have no val/; make them of a tree"
    ):
        build_loaders(config(root), CPU)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_spoilt_later_is_named(noisy, loader, workers):
    folder = scan_shards(sharded(noisy), "val")
    path = Path(folder.archives[1])
    with make(loader, folder, train=False).folder.store.open(4, folder.files[4]) as file:
        image = file.read()
    path.write_bytes(path.read_bytes().replace(image, bytes(len(image))))
    bad = re.escape(f"{folder.root}/{folder.files[4]}")
    batches = make(loader, folder, train=False, workers=workers, batch_size=2).epoch(0)
    for _ in range(2):
        assert len(next(batches).labels) == 2
    with pytest.raises(UserError, match=rf"^data.path: cannot read the image {bad} \(not an image"):
        next(batches)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"000001.tar has become shorter"):
        list(make(loader, folder, train=False, workers=workers, batch_size=2).epoch(0, 2))


def test_a_run_has_the_losses_of_the_tree(noisy, tmp_path):
    """To the bit; also where it begun with the tree, and goes on in mid-epoch with shards."""
    root = sharded(noisy)
    (tmp_path / "tiny.yaml").write_text(
        "{model: {arch: resnet20}, data: {dataset: imagenet, loader: torchvision, batch_size: 2, "
        "size: 32, resize: 32, workers: 0}, train: {epochs: 2, device: cpu, compile: false}, "
        "log: {every: 1, eta: 0}, checkpoint: {every_steps: 3, keep: 9}}"
    )

    def losses(name, *words):
        where = [f"run.dir={tmp_path}/runs", f"run.name={name}"]
        train_command.main([str(tmp_path / "tiny.yaml"), *where, *words])
        lines = (tmp_path / f"runs/{name}/metrics.jsonl").read_text().splitlines()
        keys = "kind", "loss", "train_loss", "val_loss"
        return [[json.loads(line).get(key) for key in keys] for line in lines]

    tree = losses("tree", f"data.path={noisy}")
    assert len(tree) == 12 and losses("shards", f"data.path={root}") == tree
    half = min(tmp_path.glob("runs/tree/checkpoints/step_*.pt"))
    assert losses("half", f"data.path={root}", f"run.resume={half}") == tree
