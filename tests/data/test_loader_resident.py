"""CIFAR-10: both sources, the cache, every bad input, and the augmentation against a loop."""

import hashlib
import logging
import os
import pickle
import shutil
import sys
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets.cifar
from PIL import Image, ImageOps
from torchvision import transforms
from torchvision.datasets import CIFAR10

from pipeline.data import cifar_files
from pipeline.data.cifar_files import CifarSplit, load_cifar
from pipeline.data.draws import MEAN, STD, uniforms
from pipeline.data.loader import IGNORED
from pipeline.data.loader_resident import CifarLoader
from pipeline.data.plan import permutation
from pipeline.run.console import logger
from pipeline.run.errors import UserError

CLASSES = ("cat", "dog", "eel")


@pytest.fixture(autouse=True)
def quiet_logger(monkeypatch, caplog):
    """Other tests may have started the console; ``caplog`` hears what propagates."""
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, logger="reste")


def noise(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), np.uint8)


def load(path, split="train", **options):
    return load_cifar("cifar10", path, split=split, download=False, **options)


def fails(path, split="train", download=False):
    with pytest.raises(UserError) as caught:
        load_cifar("cifar10", path, split=split, download=download)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("data.path: ") and "; " in message
    return message


def refuse(*_, **__):
    raise AssertionError("must not be called")


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# An image-folder tree: 3 classes of 4 (train) and 2 (test) PNG files.


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    for seed, (split, count) in enumerate((("train", 4), ("test", 2))):
        pixels = iter(noise(3 * count, seed))
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(next(pixels)).save(root / split / name / f"{number}.png")
    return root


@pytest.mark.parametrize(("split", "seed", "count"), [("train", 0, 4), ("test", 1, 2)])
def test_tree_gives_every_pixel_sorted_by_class_and_name(tree, split, seed, count):
    for _ in range(2):  # decoded, then from the cache
        loaded = load(tree, split)
        assert loaded.images.dtype == torch.uint8 and loaded.labels.dtype == torch.int64
        assert np.array_equal(loaded.images, noise(3 * count, seed))
        assert loaded.labels.tolist() == [label for label in range(3) for _ in range(count)]
        assert loaded.classes == CLASSES


def test_blocks_of_any_length_fill_their_places(tree, monkeypatch):
    for block in (1, 5, 12, 13):
        monkeypatch.setattr(cifar_files, "BLOCK", block)
        os.utime(tree / "train" / "cat" / "0.png", ns=(0, block))
        assert np.array_equal(load(tree).images, noise(12))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_other_colour_modes_are_converted(tree, mode):
    file = tree / "train" / "cat" / ("0.jpg" if mode == "CMYK" else "0.png")
    (tree / "train" / "cat" / "0.png").unlink()
    Image.fromarray(noise(1)[0]).convert(mode).save(file)
    with Image.open(file) as image:
        assert image.mode == mode
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(load(tree).images[0], expected)


def test_hidden_files_are_left_out(tree):
    expected = load(tree).fingerprint
    (tree / "train" / "cat" / ".hidden.png").write_bytes(b"x")
    (tree / "train" / ".ipynb_checkpoints").mkdir()
    (tree / "test" / ".ipynb_checkpoints2").mkdir()
    assert load(tree).fingerprint == expected


def test_test_split_leaves_the_training_images_alone(tree):
    (tree / "train" / "cat" / "0.png").write_bytes(b"broken")
    assert len(load(tree, "test").images) == 6
    shutil.rmtree(tree / "train")
    assert len(load(tree, "test").images) == 6


def test_progress_is_one_line_or_a_bar(tree, caplog, capsys, monkeypatch):
    load(tree)
    first, *more = [record.getMessage() for record in caplog.records]
    assert first == f"decoding the 12 images of {tree / 'train'} once"
    assert all(line.startswith("decoding train/  step 1/1 ") for line in more)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    load(tree, "test")
    assert "decoding test/" in capsys.readouterr().err


def test_fingerprint_is_that_of_the_contents(tree):
    first = load(tree)
    assert len(first.fingerprint) == 64 and first.fingerprint != load(tree, "test").fingerprint
    moved = tree.rename(tree.with_name("moved"))
    os.utime(moved / "train" / "cat" / "0.png")
    assert load(moved).fingerprint == first.fingerprint
    (moved / "train" / "eel").rename(moved / "train" / "fox")
    (moved / "test" / "eel").rename(moved / "test" / "fox")
    assert load(moved).fingerprint != first.fingerprint


# Bad trees.


def save(file, size=(32, 32)):
    Image.new("RGB", size).save(file)


def cut(file, keep):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])


def remove(*folders):
    for folder in folders:
        shutil.rmtree(folder)


def link(file):
    file.symlink_to(file.parent / "gone")


@pytest.mark.parametrize(
    ("spoil", "named"),
    {
        "no test": (lambda t: remove(t / "test"), "no folder test/"),
        "no train": (lambda t: remove(t / "train"), "no folder train/"),
        "other class": (lambda t: (t / "test/dog").rename(t / "test/fox"), "only in train/: dog"),
        "class missing": (lambda t: remove(t / "test/dog"), "only in train/: dog"),
        "class more": (lambda t: (t / "test/ant").mkdir(), "only in test/: ant"),
        "one class": (lambda t: remove(*t.glob("*/[de]*")), "one class only"),
        "no class": (lambda t: remove(*t.glob("*/*")), "train"),
        "empty class": (lambda t: [f.unlink() for f in t.glob("train/dog/*")], "train/dog"),
        "wrong size": (lambda t: save(t / "train/dog/1.png", (32, 31)), "dog/1.png is 32x31"),
        "no image": (lambda t: (t / "train/dog/a.jpg").write_text("hello"), "train/dog/a.jpg"),
        "empty file": (lambda t: (t / "train/dog/a.jpg").touch(), "train/dog/a.jpg"),
        "truncated": (lambda t: cut(t / "train/dog/1.png", 0.5), "train/dog/1.png"),
        "dangling": (lambda t: link(t / "train/dog/a.png"), "train/dog/a.png"),
    }.values(),
)
def test_bad_tree_is_named(tree, spoil, named):
    spoil(tree)
    assert named in fails(tree)
    assert {item.name for item in tree.iterdir()} <= {"train", "test"}


def test_bad_test_split_is_named(tree):
    (tree / "train/dog").rename(tree / "train/fox")
    assert "only in test/: dog; only in train/: fox" in fails(tree, "test")
    shutil.rmtree(tree / "test")
    assert "no folder test/" in fails(tree, "test")


def test_truncated_jpeg_and_the_first_of_two_bad_files_are_named(tree):
    file = tree / "train" / "dog" / "0.jpg"
    Image.fromarray(noise(1)[0]).save(file)
    cut(file, 0.8)
    cut(tree / "train" / "eel" / "3.png", 0.5)
    assert str(file) in fails(tree)


def test_bad_paths(tmp_path):
    assert "not set" in fails(None) and "not set" in fails(None, "test", download=True)
    assert "does not exist" in fails(tmp_path / "nowhere")
    assert "holds neither" in fails(tmp_path)
    (tmp_path / "file").touch()
    assert "holds neither" in fails(tmp_path / "file")
    assert "cannot be fetched" in fails(tmp_path / "file", download=True)


# The cache of a tree.


@pytest.fixture
def cached(tree):
    """The tree's cache file."""
    load(tree)
    (file,) = tree.glob("*.npz")
    return file


def test_cache_is_reused(tree, cached, monkeypatch):
    monkeypatch.setattr(cifar_files, "open_rgb", refuse)
    assert np.array_equal(load(tree).images, noise(12))


@pytest.mark.parametrize(
    "change",
    {
        "touched": lambda t: os.utime(t / "train/cat/0.png", ns=(0, 1)),
        "changed": lambda t: save(t / "train/cat/0.png"),
        "added": lambda t: save(t / "train/dog/new.png"),
        "removed": lambda t: (t / "train/dog/2.png").unlink(),
        "renamed": lambda t: (t / "train/dog/2.png").rename(t / "train/dog/9.png"),
    }.values(),
)
def test_changed_tree_is_decoded_again(tree, cached, change, caplog):
    change(tree)
    caplog.clear()
    again = load(tree)
    assert caplog.text.count("decoding the") == 1
    cached.unlink()
    assert torch.equal(again.images, load(tree).images)


def test_damaged_cache_is_never_trusted(tree, cached, caplog):
    whole = cached.read_bytes()
    damaged = [whole[:keep] for keep in (0, 1, 100, len(whole) // 2, len(whole) - 1)]
    for place in np.random.default_rng(0).integers(0, len(whole), 40):
        damaged.append(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
    for content in damaged:
        cached.write_bytes(content)
        assert np.array_equal(load(tree).images, noise(12))
    assert sum("is damaged" in message for message in warnings(caplog)) > 35


@pytest.mark.parametrize("key", ["images", "fingerprint"])
def test_forged_cache_is_decoded_again(tree, cached, key, caplog):
    content = dict(np.load(cached))
    content[key] = np.roll(content[key], 1) if key == "images" else np.array("0" * 64)
    np.savez(cached, **content)
    assert np.array_equal(load(tree).images, noise(12)) and "wrong checksum" in caplog.text


def test_a_pipe_in_the_place_of_the_cache_is_replaced(tree, cached, caplog):
    cached.unlink()
    os.mkfifo(cached)
    assert np.array_equal(load(tree).images, noise(12)) and "is damaged" in caplog.text
    assert cached.is_file()


def test_cache_with_a_pickle_is_not_unpickled(tree, cached, caplog):
    np.savez(cached, source=np.array([object()]), images=noise(12))
    assert np.array_equal(load(tree).images, noise(12)) and "is damaged" in caplog.text


def test_interrupted_write_leaves_nothing(tree, monkeypatch, caplog):
    def interrupted(_):
        raise KeyboardInterrupt

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(tree)
    assert {item.name for item in tree.iterdir()} == {"train", "test"}
    monkeypatch.setattr(os, "fsync", full)
    assert np.array_equal(load(tree).images, noise(12))
    assert {item.name for item in tree.iterdir()} == {"train", "test"}
    assert len(warnings(caplog)) == 1 and "No space left on device" in caplog.text


def test_cache_folder(tree, tmp_path, monkeypatch):
    load(tree, cache=tmp_path / "a" / "b")
    assert len(list((tmp_path / "a" / "b").iterdir())) == 1 and not list(tree.glob("*.npz"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    load(tree)
    assert len(list((tmp_path / "data" / "cache").iterdir())) == 1


def test_two_trees_share_a_cache_folder(tree, tmp_path, caplog):
    other = shutil.copytree(tree, tmp_path / "other")
    for _ in range(2):
        load(tree, cache=tmp_path / "cache")
        load(other, cache=tmp_path / "cache")
    assert caplog.text.count("decoding the") == 2


def test_unwritable_cache_is_one_warning(tree, tmp_path, caplog):
    (tmp_path / "file").touch()
    assert np.array_equal(load(tree, cache=tmp_path / "file" / "cache").images, noise(12))
    assert len(warnings(caplog)) == 1 and "no cache in" in caplog.text


# Torchvision's files: pickles of our own, whose checksums torchvision is told to expect.


def write_pickle(file, content):
    file.write_bytes(pickle.dumps(content))
    return hashlib.md5(file.read_bytes()).hexdigest()


def write_official(root, monkeypatch):
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    batches = {f"data_batch_{i}": noise(4, i) for i in range(1, 6)} | {"test_batch": noise(3, 6)}
    sums = {}
    for name, pixels in batches.items():
        data = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), 3072)
        labels = list(range(len(pixels)))
        sums[name] = write_pickle(folder / name, {"data": data, "labels": labels})
    names = [f"class{label}" for label in range(10)]
    meta = write_pickle(folder / "batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "train_list", [[n, sums[n]] for n in sums if n != "test_batch"])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": meta})
    return folder


def fetch_by(monkeypatch, function):
    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", function)


def test_official_files(tmp_path, monkeypatch):
    folder = write_official(tmp_path, monkeypatch)
    for path in (tmp_path, folder):
        train, test = load(path), load(path, "test")
        assert np.array_equal(train.images, np.concatenate([noise(4, i) for i in range(1, 6)]))
        assert np.array_equal(test.images, noise(3, 6))
        assert train.labels.tolist() == [0, 1, 2, 3] * 5 and test.labels.tolist() == [0, 1, 2]
        assert train.labels.dtype == torch.int64 and train.images.is_contiguous()
        assert train.classes == test.classes == tuple(f"class{i}" for i in range(10))
        assert train.fingerprint != test.fingerprint


@pytest.mark.parametrize("name", ["data_batch_2", "batches.meta", "test_batch"])
def test_a_pipe_among_the_official_files_is_named(tmp_path, monkeypatch, name):
    folder = write_official(tmp_path, monkeypatch)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"{name} is no regular file; remove it and set data.download=true" in fails(tmp_path)


def test_official_test_split_needs_no_training_files(tmp_path, monkeypatch):
    folder = write_official(tmp_path, monkeypatch)
    fetch_by(monkeypatch, refuse)
    (folder / "data_batch_3").write_bytes(b"broken")
    assert len(load(tmp_path, "test").images) == 3
    assert "data.download=true" in fails(tmp_path)
    (folder / "test_batch").unlink()
    assert "incomplete or damaged" in fails(folder, "test")


def test_download_only_when_asked(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise URLError("no route")

    def unpack(*_, **__):
        write_official(target, monkeypatch)

    target = tmp_path / "new"
    fetch_by(monkeypatch, refuse)
    assert "data.download=true" in fails(target)
    fetch_by(monkeypatch, offline)
    assert "no route" in fails(target, download=True)
    fetch_by(monkeypatch, unpack)
    assert len(load_cifar("cifar10", target, split="train", download=True).images) == 20
    fetch_by(monkeypatch, refuse)
    assert len(load_cifar("cifar10", target, split="test", download=True).images) == 3


def test_a_tree_is_taken_before_a_download(tree):
    assert len(load_cifar("cifar10", tree, split="train", download=True).images) == 12


# The augmentation.


def oracle(pixels, top, left, flip):
    """One image through Pillow: pad with black, crop, mirror."""
    padded = ImageOps.expand(Image.fromarray(pixels), 4, 0)
    image = padded.crop((left, top, left + 32, top + 32))
    return np.asarray(ImageOps.mirror(image) if flip else image)


def normalised(pixels):
    """As the official code does it."""
    return transforms.Normalize(MEAN, STD)(transforms.ToTensor()(pixels.copy()))


def numbered(n):
    """Images whose label is their own number."""
    return CifarSplit(torch.from_numpy(noise(n)), torch.arange(n), ("a", "b"), "0")


def loader(split, batch_size, **options):
    settings = {
        "train": True,
        "augment": True,
        "seed": 1,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
    }
    return CifarLoader(split, batch_size=batch_size, **{**settings, **options})


def by_number(loader, epoch=0):
    return {
        int(label): image
        for batch in loader.epoch(epoch)
        for image, label in zip(batch.images, batch.labels, strict=True)
    }


def assert_same(batches, expected):
    for ours, theirs in zip(batches, expected, strict=True):
        assert torch.equal(ours.images, theirs.images) and torch.equal(ours.labels, theirs.labels)


def test_epoch_equals_the_loop():
    split, before = numbered(40), noise(40)
    order = permutation(1, 3, 40)
    draws = uniforms(1, 3, torch.from_numpy(order), 3).numpy()
    batches = list(loader(split, 10).epoch(3))
    assert np.array_equal(torch.cat([batch.labels for batch in batches]), order)
    images = torch.cat([batch.images for batch in batches])
    for got, number, (u, v, w) in zip(images, order, draws, strict=True):
        expected = oracle(before[number], int(9 * u), int(9 * v), bool(w < 0.5))
        torch.testing.assert_close(got, normalised(expected), rtol=0, atol=1e-6)
    assert np.array_equal(split.images, before)


def test_crops_are_uniform_and_half_are_flipped():
    n = 8100
    row, column = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    ramp = torch.stack([row, column, row], dim=-1).to(torch.uint8)
    split = CifarSplit(ramp.expand(n, 32, 32, 3), torch.zeros(n).long(), ("a", "b"), "0")
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    cases = []
    for images, _ in loader(split, 900).epoch(0):
        pixels = ((images * std + mean) * 255).round().long()
        y, left, right = pixels[:, 0, 16, 16], pixels[:, 1, 16, 15], pixels[:, 1, 16, 16]
        x = torch.minimum(left, right)
        cases.append(((y - 12) * 9 + x - 11) * 2 + (left > right))
    counts = torch.bincount(torch.cat(cases), minlength=162)
    assert len(counts) == 162
    # Chi-squared with k degrees of freedom has mean k and deviation sqrt(2 k).
    for observed in (counts, counts.view(81, 2).sum(1), counts.view(81, 2).sum(0)):
        k, expected = len(observed) - 1, n / len(observed)
        statistic = ((observed - expected) ** 2 / expected).sum().item()
        assert abs(statistic - k) < 5 * (2 * k) ** 0.5


def test_epochs_are_pure():
    split = numbered(50)
    train = loader(split, 7)
    first = list(train.epoch(2))
    assert_same(loader(split, 7).epoch(2), first)
    for start in (0, 1, 6, 7):
        assert_same(train.epoch(2, start), first[start:])


def test_an_image_is_augmented_alike_in_every_batch_size():
    split = numbered(60)
    reference = by_number(loader(split, 60))
    assert sorted(reference) == list(range(60))
    for batch_size in (2, 7, 30):
        for number, image in by_number(loader(split, batch_size)).items():
            assert torch.equal(image, reference[number])


def test_epochs_and_seeds_differ():
    split = numbered(60)
    reference = by_number(loader(split, 60))
    for other in (by_number(loader(split, 60), 1), by_number(loader(split, 60, seed=2))):
        assert list(other) != list(reference)
        assert sum(torch.equal(other[number], reference[number]) for number in other) < 10


# Batches.


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 20, 64, 10**12])
def test_evaluation_gives_every_image_once_in_order(batch_size, augment):
    test = loader(numbered(20), batch_size, train=False, augment=augment)
    batches = list(test.epoch(0))
    assert len(batches) == len(test) == -(-20 // batch_size) and test.images == 20
    labels = torch.cat([batch.labels for batch in batches])
    assert len(labels) == len(test) * min(batch_size, 20)
    assert labels.tolist() == [*range(20), *[IGNORED] * (len(labels) - 20)]
    expected = torch.stack([normalised(image) for image in noise(20)])
    images = torch.cat([batch.images for batch in batches])[:20]
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
    assert_same(test.epoch(5, 1), batches[1:])


def test_a_cursor_keeps_its_tensors():
    """What a captured step relies on: ``draw`` alone moves on, in tensors that stay."""
    train = loader(numbered(50), 7)
    cursor = train.cursor()
    cursor.seek(0)
    places = cursor.contents.data_ptr(), cursor.at.data_ptr()
    for epoch, start in ((0, 0), (2, 0), (3, 4), (3, 0), (5, 1)):
        cursor.look_ahead(epoch + epoch % 2)  # sometimes that of another epoch
        cursor.seek(epoch, start)
        drawn = [cursor.draw() for _ in range(start, len(train))]
        assert_same(drawn, list(loader(numbered(50), 7).epoch(epoch, start)))
    assert (cursor.contents.data_ptr(), cursor.at.data_ptr()) == places


@pytest.mark.parametrize("batch_size", [2, 7, 20])
def test_training_drops_the_ragged_batch(batch_size):
    train = loader(numbered(20), batch_size)
    batches = list(train.epoch(0))
    assert len(batches) == len(train) == 20 // batch_size
    assert all(len(batch.images) == len(batch.labels) == batch_size for batch in batches)
    assert train.images == len(by_number(train)) == 20 // batch_size * batch_size
    assert train.classes == ("a", "b") and train.fingerprint == "0"


def test_without_augmentation_images_are_only_shuffled():
    shuffled = by_number(loader(numbered(20), 20, augment=False))
    plain = by_number(loader(numbered(20), 20, train=False))
    assert list(shuffled) != list(plain)
    assert all(torch.equal(shuffled[number], plain[number]) for number in plain)


def test_batch_larger_than_the_training_set():
    for batch_size in (21, 2**40):
        more = f"^data.batch_size is {batch_size}, more than the 20 .*; set data.batch_size=20$"
        with pytest.raises(UserError, match=more):
            loader(numbered(20), batch_size)


def test_a_batch_of_one_image_has_no_statistics():
    with pytest.raises(UserError, match="^data.batch_size is 1, .*; set data.batch_size=2$"):
        loader(numbered(20), 1)
    with pytest.raises(UserError, match="^data.batch_size is 1, .*; add images$"):
        loader(numbered(1), 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("batch_size", [2, 5])
@pytest.mark.parametrize("train", [False, True])
def test_layout_and_dtype(dtype, batch_size, train):
    batch = next(loader(numbered(5), batch_size, train=train, dtype=dtype).epoch(0))
    assert batch.images.dtype == dtype and batch.labels.dtype == torch.int64
    assert batch.images.shape == (batch_size, 3, 32, 32) and batch.labels.shape == (batch_size,)
    assert batch.images.stride() == (3072, 1, 96, 3)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    reference = next(loader(numbered(5), batch_size, train=train).epoch(0)).images
    assert torch.equal(batch.images, reference.to(dtype))


@pytest.mark.gpu
def test_gpu_equals_cpu_and_is_never_waited_for():
    split = numbered(500)
    resident = loader(split, 100, device=torch.device("cuda"))
    list(resident.epoch(1))  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = list(resident.epoch(0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, expected in zip(got, loader(split, 100).epoch(0), strict=True):
        assert torch.equal(ours.labels.cpu(), expected.labels)
        torch.testing.assert_close(ours.images.cpu(), expected.images, rtol=0, atol=1e-6)
