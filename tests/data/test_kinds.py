"""Every kind of image file: the same pixels from every loader, or the same refusal, which
``prepare verify`` foretells."""

import importlib.util
import os
import re
import threading
import time

import numpy as np
import pytest
from PIL import Image

from pipeline.data.header import MOST_PIXELS, is_plain
from pipeline.data.image import open_rgb
from pipeline.data.loader_torchvision import TorchvisionLoader
from pipeline.data.tree import scan
from pipeline.prepare.verify import verify
from pipeline.run.errors import UserError
from tests.data import kinds
from tests.data.fixtures import image_folder, levels, make, refusal, smooth

LOADERS = {"torchvision": TorchvisionLoader}
if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
    from pipeline.data import loader_dali

    LOADERS["dali"] = loader_dali.DaliLoader


@pytest.fixture(params=LOADERS)
def loader(request):
    return LOADERS[request.param]


SIDE = kinds.SIDE
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
OTHER_COLOURS = {"adobe rgb", "adobe rgb behind the frame", "tiff lab"}  # not what they say
COARSE = {"quality 1": 40, "p6 15": 9, "bmp 555": 8, "bmp 565": 8, "p5 100": 2, "p6 256": 1.5}
LOSSY = kinds.JPEGS.keys() | {"tiff jpeg", "webp", "jp2", "j2k", "jp2 alpha", "tiff cmyk"}


def shown(name):
    """The pixels that a file of a kind shows, (SIDE, SIDE, 3)."""
    if turned := re.search(r"turned (\d)", name):
        return np.asarray(kinds.IMAGE.transpose(TURNS[int(turned[1])]))
    if "black" in name or name in ("p1", "p4", "p2 plain 1", "p5 1"):
        return np.dstack([kinds.BLACK] * 3)
    if "palette" in name and not name.startswith("rgb"):
        return kinds.PALETTE_RGB
    if "grey" in name or name.startswith(("p2", "p5")):
        return np.dstack([kinds.GREY] * 3)
    return kinds.RGB


def folder_of(root, files, split="val"):
    """A folder of these kinds, in their order; the names say nothing about the format."""
    contents = {f"{i:03} {name.replace(':', '')}.jpg": files[name] for i, name in enumerate(files)}
    return image_folder(root, split, contents)


@pytest.mark.parametrize("name", kinds.GOOD)
def test_what_a_file_shows(tmp_path, name):
    (tmp_path / "1.jpg").write_bytes(kinds.GOOD[name])
    image = open_rgb(tmp_path, "1.jpg")
    assert (image.mode, image.size) == ("RGB", (SIDE, SIDE))
    error = np.abs(np.asarray(image, float) - shown(name))
    if name in OTHER_COLOURS:
        assert error.mean() > 9
    elif name in LOSSY | COARSE.keys():
        assert error.mean() < COARSE.get(name, 6)
    else:
        assert error.max() <= 1
    assert refusal(tmp_path / "1.jpg") is None


def test_every_loader_shows_the_same_pixels(tmp_path, loader):
    folder = folder_of(tmp_path, kinds.GOOD)
    batches = make(loader, folder, train=False, size=SIDE, resize=SIDE, batch_size=16).epoch(0)
    pixels = np.concatenate([levels(batch.images) for batch in batches])
    for name, file, got in zip(kinds.GOOD, folder.files, pixels, strict=True):
        assert np.abs(got - np.asarray(open_rgb(tmp_path, file))).max() < 0.01, name


def test_loaders_are_twins_in_training(tmp_path):
    folder = folder_of(tmp_path, kinds.GOOD, "train")
    loaders = [make(each, folder, size=32, resize=32, batch_size=20) for each in LOADERS.values()]
    for one, *others in zip(*(each.epoch(1) for each in loaders), strict=True):
        for other in others:
            error = np.abs(levels(one.images) - levels(other.images))
            assert error[:, 1:-1, 1:-1].max() < 1.01


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", kinds.BAD)
def test_every_loader_refuses_the_same_files(tmp_path, loader, name, train):
    folder = image_folder(tmp_path, "train", {f"{i}.jpg": kinds.IMAGE for i in range(3)})
    bad = tmp_path / folder.files[1]
    bad.write_bytes(kinds.BAD[name])
    with pytest.raises(UserError, match=rf"^data.path: cannot read the image {bad} \(.*\); ") as e:
        list(make(loader, folder, train=train, batch_size=3).epoch(0))
    assert "\n" not in str(e.value) and refusal(bad) in str(e.value)


def test_verify_lists_what_loaders_refuse(tmp_path):
    folder_of(tmp_path, kinds.GOOD)
    bad = folder_of(tmp_path, kinds.BAD, "train")
    assert verify(tmp_path, tmp_path / "bad.txt", 2) == (
        len(kinds.GOOD) + len(kinds.BAD),
        len(kinds.BAD),
    )
    lines = (tmp_path / "bad.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == bad.files


PLAIN_JPEGS = kinds.JPEGS.keys() - {
    "adobe rgb", "adobe rgb behind the frame", "kept rgb", "trailing zeros", "filled", "grey 2x2",
    "cmyk", "cmyk progressive",
}  # fmt: skip
PLAIN_PNGS = {"rgb", "rgb by pillow", "rgba", "grey"} | {
    name
    for name in kinds.PNGS
    if re.match("rgba? (gamma|srgb|chrom|background|exif|icc|text)", name)
}


@pytest.mark.parametrize("name", kinds.GOOD | kinds.BAD)
def test_what_dali_decodes(tmp_path, name):
    """The rest takes the way over Pillow, which is slower."""
    (tmp_path / "1").write_bytes((kinds.GOOD | kinds.BAD)[name])
    with (tmp_path / "1").open("rb") as file:
        assert is_plain(file) == (name in PLAIN_JPEGS | PLAIN_PNGS)


@pytest.mark.parametrize("content", [kinds.BROKEN, kinds.jpeg()])
def test_any_beginning_of_a_file_can_be_judged(tmp_path, content):
    for length in range(0, len(content), 7):
        (tmp_path / "1").write_bytes(content[:length])
        with (tmp_path / "1").open("rb") as file:
            assert not is_plain(file)


LARGE = {
    "png": kinds.bomb,
    "jpeg": lambda: kinds.frame(kinds.jpeg(), 0xC0, _5=99, _6=0, _7=99, _8=0),
    "ppm": lambda: b"P6\n30000 30000\n255\n" + bytes(99),
    "bmp": lambda: kinds.bmp(24, bytes(99), height=2**28),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_bomb_is_refused_before_it_is_inflated(tmp_path, loader, name):
    folder = image_folder(tmp_path, "val", {"1.jpg": LARGE[name]()})
    start = time.process_time()
    with pytest.raises(UserError, match=r"val/class/1.jpg \(more than 178,956,970 pixels\); "):
        list(make(loader, folder, train=False).epoch(0))
    assert time.process_time() - start < 2
    assert refusal(tmp_path / folder.files[0]) == "more than 178,956,970 pixels"
    assert MOST_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("batch_size", [1, 5])
def test_what_comes_before_a_bad_file_is_delivered(tmp_path, loader, batch_size):
    images = {f"{i:02}.jpg": smooth(20, 20, i) for i in range(20)}
    folder = image_folder(tmp_path, "val", {**images, "11.jpg": kinds.BAD["tiff float"]})
    batches = make(loader, folder, train=False, batch_size=batch_size).epoch(0)
    for _ in range(11 // batch_size):
        assert len(next(batches).labels) == batch_size
    with pytest.raises(UserError, match=r"11\.jpg \(pixels of the type F"):
        next(batches)


def test_pillow_decodes_what_dali_refuses(tmp_path, monkeypatch, caplog):
    """Even a file that seemed to be plain; once per stream, and it is not tried again."""
    pytest.importorskip("nvidia.dali")
    images = {f"{i:02}.jpg": kinds.IMAGE for i in range(12)}
    folder = image_folder(tmp_path, "val", {**images, "04.jpg": kinds.GOOD["tiff black"]})
    monkeypatch.setattr(loader_dali, "is_plain", lambda file: True)
    dali = make(loader_dali.DaliLoader, folder, train=False, size=SIDE, resize=SIDE)
    for _ in range(2):
        pixels = np.concatenate([levels(batch.images) for batch in dali.epoch(0)])
        for file, got in zip(folder.files, pixels, strict=True):
            assert np.abs(got - np.asarray(open_rgb(tmp_path, file))).max() < 0.01, file
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "DALI failed (nvImageCodec failure: '#3'); Pillow decodes the 12 images under way"
    ]


# What is no file at all.


@pytest.mark.parametrize("name", ["fifo.jpg", "dir.jpg", "null.jpg"])
def test_what_is_no_file_is_never_opened(tmp_path, name):
    folder = image_folder(tmp_path, "train", {"1.jpg": kinds.IMAGE})
    path = tmp_path / "train/class" / name
    if name == "dir.jpg":  # a folder, whatever it is called
        path.mkdir()
        (path / "2.jpg").write_bytes(kinds.jpeg())
        assert scan(tmp_path, "train").files == ["train/class/1.jpg", "train/class/dir.jpg/2.jpg"]
        return
    if name == "fifo.jpg":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null")
    with pytest.raises(UserError, match=rf"{name} \(not a regular file\); .* prepare verify "):
        scan(tmp_path, "train")
    (tmp_path / "list").write_text(f"train/class/{name}\n")
    assert scan(tmp_path, "train", str(tmp_path / "list")).files == folder.files
    assert verify(tmp_path, tmp_path / "bad.txt", 1) == (2, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_becomes_a_pipe(tmp_path, loader, workers):
    folder = image_folder(tmp_path, "val", {"1.jpg": kinds.IMAGE})
    (tmp_path / folder.files[0]).unlink()
    os.mkfifo(tmp_path / folder.files[0])
    with pytest.raises(UserError, match=r"1.jpg \(This is a pipe or a device, no file\); "):
        list(make(loader, folder, train=False, workers=workers).epoch(0))


def test_the_threads_of_a_loader_end_with_it(tmp_path):
    pytest.importorskip("nvidia.dali")
    folder = folder_of(tmp_path, kinds.OTHERS)
    before = set(threading.enumerate())
    loader = make(loader_dali.DaliLoader, folder, train=False, workers=2)
    assert len(list(loader.epoch(0))) == len(loader)
    started = set(threading.enumerate()) - before
    assert started
    del loader
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()
