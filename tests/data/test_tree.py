"""Scanning an ImageNet tree with every bad input, and the contract that both loaders keep."""

import importlib.util
import io
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.image import open_rgb
from pipeline.data.loader import Batch
from pipeline.data.loader_torchvision import TorchvisionLoader
from pipeline.data.open import build_loaders
from pipeline.data.plan import permutation
from pipeline.data.tree import scan, scan_train_val
from pipeline.run.config import make_config
from pipeline.run.errors import UserError
from tests import PATIENCE, ROOT
from tests.data.fixtures import image_folder, make, noise, numbers, plain, plain_folder, smooth

KINDS = {"torchvision": TorchvisionLoader}
if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
    from pipeline.data.loader_dali import DaliLoader

    KINDS["dali"] = DaliLoader


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def tree(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


# Scanning.


def test_scan_sorts_classes_and_files(tmp_path):
    names = ["b/2.jpg", "b/10.JPEG", "a/z.PNG", "a/deep/er/x.webp", "c/ö 1.bmp", "c/2.JFIF"]
    folder = scan(tree(tmp_path, *(f"train/{name}" for name in names)), "train")
    assert folder.root == tmp_path and folder.classes == ("a", "b", "c")
    assert folder.files == [
        "train/a/deep/er/x.webp",
        "train/a/z.PNG",
        "train/b/10.JPEG",
        "train/b/2.jpg",
        "train/c/2.JFIF",
        "train/c/ö 1.bmp",
    ]
    assert folder.labels.dtype == np.int64 and folder.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert folder.paths([4, 0]) == [f"{tmp_path}/{folder.files[i]}" for i in (4, 0)]


def test_scan_ignores_what_is_hidden_or_no_image(tmp_path):
    tree(tmp_path, "val/a/1.jpg", "val/a/.2.jpg", "val/a/.git/3.jpg", "val/a/list.txt")
    tree(tmp_path, "val/.ipynb_checkpoints/4.jpg", "val/5.jpg", "val/a/6jpg", "val/a/7.jpg.gz")
    folder = scan(tmp_path, "val")
    assert folder.classes == ("a",) and folder.files == ["val/a/1.jpg"]


def test_what_is_left_out_is_counted_in_one_line(tmp_path, caplog):
    caplog.set_level("INFO")
    tree(tmp_path, "val/a/1.jpg", "val/b/2.jpg")
    scan(tmp_path, "val")
    assert caplog.records == []
    tree(tmp_path, *(f"val/a/{name}" for name in (".DS_Store", "._1.jpg", "Thumbs.db", "README")))
    tree(tmp_path, *(f"val/{name}" for name in ("desktop.ini", "3.jpg", ".DS_Store")))
    tree(tmp_path, "val/b/@eaDir/2.jpg/thumb.jpg", "val/@eaDir/x/thumb.jpg", "val/__MACOSX/a/1.jpg")
    tree(tmp_path, "val/a/4.GIF", "val/a/5.gif", "val/a/6.gif", "val/a/7.gif")
    assert scan(tmp_path, "val").files == ["val/a/1.jpg", "val/b/2.jpg"]
    (record,) = caplog.records
    head, _, counts = record.getMessage().partition(" in class folders: ")
    assert head == f"{tmp_path}/val: left out as no images"
    assert sorted(counts.split(", ")) == sorted(
        ["4 .gif", "3 hidden", "2 @eaDir/", "1 __MACOSX/", "1 .db", "1 .ini", "1 .jpg",
         "1 without ending"]
    )  # fmt: skip


def test_scan_follows_links(tmp_path):
    tree(tmp_path, "store/1.jpg", "store/more/2.jpg", "data/val/b/3.jpg")
    (tmp_path / "data/val/a").symlink_to(tmp_path / "store")
    (tmp_path / "data/val/b/4.jpg").symlink_to(tmp_path / "store/1.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    folder = scan(tmp_path / "link", "val")
    names = ["a/1.jpg", "a/more/2.jpg", "b/3.jpg", "b/4.jpg"]
    assert folder.files == [f"val/{name}" for name in names]


def test_fingerprint_changes_with_names_and_sizes(tmp_path):
    def fingerprint():
        return scan(tmp_path, "train").fingerprint

    tree(tmp_path, "train/a/1.jpg", "train/b/2.jpg")
    seen = [fingerprint()]
    assert fingerprint() == seen[0] and len(seen[0]) == 64
    (tmp_path / "train/a/1.jpg").write_bytes(b"longer than before")
    seen.append(fingerprint())
    (tmp_path / "train/a/1.jpg").rename(tmp_path / "train/a/3.jpg")
    seen.append(fingerprint())
    (tmp_path / "train/a/3.jpg").rename(tmp_path / "train/b/3.jpg")
    tree(tmp_path, "train/a/1.jpg")
    seen.append(fingerprint())
    assert len(set(seen)) == 4


def test_scan_train_val(tmp_path):
    tree(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg", "val/b/4.jpg", "val/b/5.jpg")
    train, val = scan_train_val(tmp_path)
    assert train.classes == val.classes == ("a", "b")
    assert (len(train.files), len(val.files)) == (2, 3)


A_AND_B = ["train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg", "val/b/4.jpg"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "has no folder train/; it must hold train/<class>/"),
        (["1.jpg"], "has no folder train/; it must hold train/<class>/"),
        (["val/a/1.jpg"], "has no folder train/; it must hold train/<class>/"),
        (["train/a/1.jpg"], "has no folder val/; it must hold train/<class>/"),
        (
            ["train/a/1.jpg", "val/2.jpg"],
            "no class folders, so no images; sort the images into val",
        ),
        (["train/a/1.txt", "val/a/2.jpg"], "no images in the class folder {}/train/a; add some"),
        ([*A_AND_B, "train/c/.1.jpg"], "no images in the class folder {}/train/c; add some"),
        ([*A_AND_B, "train/c/1.jpg"], "(only in train/: c); give both the same"),
        ([*A_AND_B, "val/c/1.jpg"], "(only in val/: c); give both the same"),
        (["train/a/1.jpg", "val/b/2.jpg"], "(only in train/: a; only in val/: b); give both"),
        (
            [*A_AND_B, *(f"val/c{i}/1.jpg" for i in range(5))],
            "(only in val/: c0, c1, c2 and 2 more); give",
        ),
        (
            [*A_AND_B, "train/\u00e9/1.jpg", "val/e\u0301/1.jpg"],  # which look alike
            r"(only in train/: '\xe9'; only in val/: 'e\u0301'); give both",
        ),
        ([*A_AND_B, "train/c\nd/1.jpg"], r"(only in train/: 'c\nd'); give both the same"),
    ],
)
def test_bad_trees(tmp_path, names, message):
    tree(tmp_path, *names)
    with pytest.raises(UserError) as error:
        scan_train_val(tmp_path)
    text = str(error.value)
    assert text.startswith("data.path: ") and str(tmp_path) in text and "\n" not in text
    assert message.format(tmp_path) in text


def test_all_mistakes_in_a_tree_are_told_together(tmp_path):
    tree(tmp_path, "train/a/1.jpg", "train/empty/1.txt", "train/too/2.txt", "train/d/1.jpg")
    (tmp_path / "train/d/2.jpg").symlink_to(tmp_path / "nowhere")
    config = make_config({}, ["model.num_classes=7", f"data.path={tmp_path}", "data.exclude=/gone",
                              "data.dataset=imagenet"], name="x")  # fmt: skip
    with pytest.raises(UserError) as error:
        build_loaders(config, torch.device("cpu"))
    said = str(error.value).split("; also ")
    for words in (
        "data.exclude=/gone: No such file",
        f"no images in 2 class folders of {tmp_path}/train (empty, too); add some",
        f"cannot read {tmp_path}/train/d/2.jpg",
        f"{tmp_path} has no folder val/",
        "model.num_classes is 7, but data.path=",
    ):
        assert sum(words in each for each in said) == 1, words
    assert len(said) == 5


def test_all_mistakes_in_a_cifar_tree_are_told_together(tmp_path):
    tree(tmp_path, "train/a/1.txt", "train/b/1.jpg", "test/a/1.jpg", "test/b/1.txt")
    config = make_config({}, [f"data.path={tmp_path}", "data.dataset=cifar10"], name="x")
    with pytest.raises(UserError) as error:
        build_loaders(config, torch.device("cpu"))
    assert [each.partition(";")[0] for each in str(error.value).split("; also ")] == [
        f"data.path: no images in the class folder {tmp_path}/train/a",
        f"data.path: no images in the class folder {tmp_path}/test/b",
    ]


def test_a_tree_with_countless_mistakes_is_still_a_line(tmp_path):
    tree(tmp_path, *A_AND_B)
    for i in range(50):
        (tmp_path / f"train/c{i}").mkdir()
        (tmp_path / f"train/c{i}/1.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError) as error:
        scan_train_val(tmp_path)
    assert len(str(error.value)) < 4000 and str(error.value).endswith("; also 43 more")


def test_bad_paths(tmp_path):
    tree(tmp_path, "train/a/1.jpg", "archive.tar")
    for name, message in (
        ("missing", "does not exist; give the folder that holds"),
        ("archive.tar", "is not a folder; give the folder that holds"),
    ):
        with pytest.raises(UserError, match=f"^data.path: {tmp_path}/{name} {message}"):
            scan(tmp_path / name, "train")
    (tmp_path / "train/a/2.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot read .*/train/a/2.jpg: .*; repair or remove it"):
        scan(tmp_path, "train")


# Decoding.


def test_open_rgb_of_every_kind(tmp_path):
    rgb = smooth(9, 14)
    sixteen = np.arange(9 * 14, dtype=np.uint16).reshape(9, 14) * 520
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees", which is to be ignored
    kinds = {
        "rgb.png": (rgb, rgb),
        "grey.png": (rgb.convert("L"), rgb.convert("L").convert("RGB")),
        "alpha.png": (rgb.convert("RGBA"), rgb),
        "palette.png": (rgb.quantize(32), rgb.quantize(32).convert("RGB")),
        "sixteen.png": (
            Image.fromarray(sixteen),
            Image.fromarray((sixteen // 256).astype(np.uint8)).convert("RGB"),
        ),
    }
    for name, (image, expected) in kinds.items():
        image.save(tmp_path / name)
        got = open_rgb(tmp_path, name)
        assert got.mode == "RGB" and np.array_equal(np.asarray(got), np.asarray(expected)), name
    rgb.save(tmp_path / "exif.jpg", exif=exif)
    assert open_rgb(tmp_path, "exif.jpg").size == (14, 9)


def truncated_jpeg():
    buffer = io.BytesIO()
    noise(40, 50).save(buffer, "JPEG")
    return buffer.getvalue()[: len(buffer.getvalue()) // 3]


BAD_FILES = {"text": b"no image\n" * 20, "truncated": truncated_jpeg(), "empty": b"", "gone": None}


def spoil(path, content):
    path.unlink()
    if content is not None:
        path.write_bytes(content)


def names(path):
    """A pattern for the message of the one line that blames this file."""
    return (
        rf"^data\.path: cannot read the image {re.escape(str(path))} \(.*\); replace or remove it, "
        r"or leave out all such: .* prepare verify /.* lists them for data\.exclude=bad-images.txt$"
    )


# The contract of the loaders: tests run once with each of them.


def equal(a, b):
    """Whether two sequences of batches are the same, bit by bit."""
    return len(a) == len(b) and all(
        torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        for one, other in zip(a, b, strict=True)
    )


@pytest.fixture
def noisy(tmp_path):
    """22 different images, so that every crop and flip shows."""
    sizes = [(20 + 3 * i, 50 - i) for i in range(22)]
    return image_folder(
        tmp_path, "train", {f"{i:02}.png": noise(h, w, i) for i, (h, w) in enumerate(sizes)}
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("train", [True, False])
def test_batches_have_the_promised_form(kind, noisy, dtype, train):
    loader = make(kind, noisy, dtype=dtype, train=train)
    assert loader.classes == ("class",) and loader.fingerprint == noisy.fingerprint
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == (5 if train else 6)
    assert loader.images == sum(len(batch.labels) for batch in batches) == (20 if train else 22)
    for images, labels in batches:
        assert images.shape == (len(labels), 3, 8, 8) and images.dtype == dtype
        assert images.stride() == (3 * 64, 1, 3 * 8, 3) and labels.dtype == torch.int64
        assert images.device == labels.device == torch.device("cpu")


def test_training_follows_the_permutation(kind, tmp_path):
    folder = plain_folder(tmp_path, "train", 22)
    loader = make(kind, folder, seed=5)
    for epoch in (0, 1, 7):
        seen, labels = [], []
        for batch in loader.epoch(epoch):
            seen += numbers(batch.images)
            labels += batch.labels.tolist()
        assert seen == permutation(5, epoch, 22)[:20].tolist()
        assert labels == folder.labels[seen].tolist()
    assert loader.classes == ("class0", "class1", "class2")


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(1, [1] * 10), (4, [4, 4, 2]), (64, [10]), (10**12, [10])]
)
def test_evaluation_sees_every_image_once_in_order(kind, tmp_path, batch_size, sizes):
    folder = plain_folder(tmp_path, "val", 10)
    loader = make(kind, folder, batch_size=batch_size, train=False)
    assert loader.images == 10
    for epoch in (0, 1, 5):  # evaluation does not know epochs
        batches = list(loader.epoch(epoch))
        assert [len(batch.labels) for batch in batches] == sizes
        assert sum((numbers(batch.images) for batch in batches), []) == list(range(10))
        assert torch.cat([batch.labels for batch in batches]).tolist() == folder.labels.tolist()


def test_an_epoch_is_a_pure_function(kind, noisy):
    loader = make(kind, noisy)
    epochs = [list(loader.epoch(epoch)) for epoch in (0, 1, 0, 3, 1)]
    assert equal(epochs[0], epochs[2]) and equal(epochs[1], epochs[4])
    assert equal(list(make(kind, noisy).epoch(3)), epochs[3])
    assert not equal(epochs[0], epochs[1])
    assert not equal(list(make(kind, noisy, seed=2).epoch(0)), epochs[0])


@pytest.mark.parametrize("train", [True, False])
def test_resuming_gives_the_tail(kind, noisy, train):
    whole = list(make(kind, noisy, train=train).epoch(2))
    resumed = make(kind, noisy, train=train)
    for start in (3, 0, len(whole) - 1, len(whole)):
        assert equal(list(resumed.epoch(2, start)), whole[start:])


def test_the_crops_of_an_image_change_from_epoch_to_epoch(kind, tmp_path):
    folder = image_folder(tmp_path, "train", {"1.png": noise(40, 40), "2.png": noise(40, 40)})
    loader = make(kind, folder, batch_size=2)
    seen = [next(loader.epoch(epoch)).images for epoch in range(4)]
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_without_augmentation_training_sees_what_evaluation_sees(kind, noisy):
    train = torch.cat([b.images for b in make(kind, noisy, augment=False).epoch(1)])
    val = torch.cat([b.images for b in make(kind, noisy, train=False).epoch(0)])
    assert torch.equal(train, val[permutation(1, 1, 22)[:20]])


def test_the_number_of_workers_changes_nothing(kind, noisy):
    epochs = [list(make(kind, noisy, workers=workers).epoch(0)) for workers in (0, 1, 2)]
    assert equal(epochs[0], epochs[1]) and equal(epochs[0], epochs[2])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_abandoned(kind, noisy, workers):
    loader = make(kind, noisy, workers=workers)
    whole = list(make(kind, noisy).epoch(0))
    for taken in (1, 2, 4):
        batches = loader.epoch(0)
        assert equal([next(batches) for _ in range(taken)], whole[:taken])
        del batches
    assert equal(list(loader.epoch(0)), whole)


def test_iterations_do_not_disturb_each_other(kind, noisy):
    """Two of one loader in turn, and a loader of the other split between them."""
    loader, val = make(kind, noisy, workers=1), make(kind, noisy, train=False, workers=1)
    expected = list(loader.epoch(0)), list(loader.epoch(1)), list(val.epoch(0))
    turns = list(zip(loader.epoch(0), loader.epoch(1), val.epoch(0), strict=False))
    for got, whole in zip(zip(*turns, strict=True), expected, strict=True):
        assert equal(got, whole[:5])


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_batches_stay_valid(kind, noisy, workers):
    loader = make(kind, noisy, workers=workers)
    kept = [batch for epoch in range(3) for batch in loader.epoch(epoch)]
    copies = []
    for epoch in range(3):
        for images, labels in make(kind, noisy).epoch(epoch):
            copies.append(Batch(images.clone(), labels.clone()))
    assert equal(kept, copies)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_named(kind, tmp_path, content, train):
    folder = plain_folder(tmp_path, "train", 12)
    path = Path(folder.paths([7])[0])
    spoil(path, content)
    with pytest.raises(UserError, match=names(path)):
        list(make(kind, folder, train=train, batch_size=3).epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_recovers_from_a_bad_file(kind, tmp_path, workers):
    folder = plain_folder(tmp_path, "val", 12)
    path = Path(folder.paths([7])[0])
    spoil(path, b"")
    loader = make(kind, folder, train=False, batch_size=3, workers=workers)
    batches = loader.epoch(0)
    assert numbers(next(batches).images) == [0, 1, 2]  # what lies before it is delivered
    stream = weakref.ref(loader._stream)
    with pytest.raises(UserError, match=names(path)):
        list(batches)
    assert stream() is None  # its threads, processes and memory are gone, without the collector
    plain(7).save(path)
    assert numbers(next(loader.epoch(0, 2)).images) == [6, 7, 8]
    assert numbers(torch.cat([b.images for b in loader.epoch(0)])) == list(range(12))


def test_odd_names_work(kind, tmp_path):
    names = ["ö ä.png", "日本.png", "a'b\"c.png", "  .png", "x" * 200 + ".png"]
    images = {name: plain(i) for i, name in enumerate(names)}
    folder = image_folder(tmp_path / "my data", "val", images)
    loader = make(kind, folder, train=False)
    seen = numbers(torch.cat([batch.images for batch in loader.epoch(0)]))
    assert [f"val/class/{names[number]}" for number in seen] == folder.files


def test_fewer_training_images_than_a_batch(kind, tmp_path):
    folder = plain_folder(tmp_path, "train", 5)
    for batch_size in (6, 2**40):
        more = f"^data.batch_size is {batch_size}, more than the 5 .*; set data.batch_size=5$"
        with pytest.raises(UserError, match=more):
            make(kind, folder, batch_size=batch_size)
    with pytest.raises(UserError, match="^data.batch_size is 1, .*; set data.batch_size=2$"):
        make(kind, folder, batch_size=1)
    assert len(make(kind, folder, batch_size=5)) == 1


LEAVE = """
import sys
from pathlib import Path
from pipeline.data.tree import scan
from tests.data.fixtures import make
from {module} import {kind}
folder = scan(Path({root!r}), "train")
loader = make({kind}, folder, workers=2)
dropped = make({kind}, folder, workers=2)
next(dropped.epoch(0))
del dropped
batches = loader.epoch(0)
next(batches)
print("leaving", flush=True)
"""


@pytest.mark.slow
def test_a_program_can_end_in_mid_epoch(kind, tmp_path):
    plain_folder(tmp_path, "train", 22)
    code = LEAVE.format(module=kind.__module__, kind=kind.__name__, root=str(tmp_path))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout) == (0, "leaving\n"), done.stderr
