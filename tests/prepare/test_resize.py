"""``prepare resize``: small JPEGs of any tree, and a list of what could not be read."""

import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch import prepare as front
from pipeline.data.tree import scan
from pipeline.prepare import resize as resize_module
from pipeline.prepare.shrink import Unreadable, shrunk
from pipeline.run.errors import UserError
from tests.data.fixtures import plain, smooth


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def shown(content):
    with Image.open(io.BytesIO(content)) as image:
        return image.format, image.size, np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Three splits of two classes, of several kinds of images."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val", "test"):
        for number, name in enumerate(("a/1.jpg", "a/deep/2.PNG", "b/3.JPEG", "b/4.webp")):
            path = Path("data", split, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            smooth(60, 90 + number, number).save(path)
    return tmp_path / "data"


def resize(*words, into="small"):
    """The exit code."""
    try:
        front.main(["resize", "data", into, "--short-side", "32", "--workers", "2", *words])
    except SystemExit as exit:
        return exit.code
    return 0


@pytest.mark.parametrize(("width", "height"), [(400, 300), (300, 400), (1500, 901), (40, 33)])
def test_the_shorter_side(width, height):
    image = smooth(12, 15).resize((width, height))
    kind, size, pixels = shown(shrunk(encoded(image, quality=98), 32, 98))
    scale = 32 / min(width, height)
    assert (kind, size) == ("JPEG", (round(width * scale), round(height * scale)))
    exact = image.resize(size, Image.Resampling.BILINEAR)
    assert abs(pixels - np.asarray(exact).astype(int)).mean() < 3  # of 255


def test_nothing_is_enlarged():
    small = encoded(smooth(30, 50), quality=30)
    assert shrunk(small, 32, 90) == small == shrunk(small, 30, 90)
    kind, size, pixels = shown(shrunk(encoded(smooth(30, 50), "PNG"), 32, 95))
    assert (kind, size) == ("JPEG", (50, 30))
    assert abs(pixels - np.asarray(smooth(30, 50)).astype(int)).mean() < 3


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1"])
def test_every_kind_of_pixels(mode):
    kind = {"CMYK": "TIFF"}.get(mode, "PNG")
    content = encoded(smooth(80, 90).convert(mode), kind)
    expected = Image.open(io.BytesIO(content)).convert("RGB").resize((36, 32), 2)
    assert abs(shown(shrunk(content, 32, 95))[2] - np.asarray(expected).astype(int)).mean() < 6


def test_the_quality():
    content = encoded(smooth(300, 300), quality=95)
    assert len(shrunk(content, 200, 50)) < len(shrunk(content, 200, 95))


def test_what_cannot_be_read():
    for content, message in ((b"", "not an image"), (encoded(smooth(9, 9))[:-9], "truncated")):
        with pytest.raises(Unreadable, match=message):
            shrunk(content, 4, 90)


def test_the_tree(data, capsys):
    assert resize() == 0
    manifest = json.loads(Path("small/manifest.json").read_text())
    names = ["a/1.jpg", "a/deep/2.PNG.jpg", "b/3.JPEG", "b/4.webp.jpg"]
    for split in ("train", "val", "test"):
        folder = scan(Path("small"), split)
        assert folder.files == [f"{split}/{name}" for name in names]
        assert all(shown(Path(path).read_bytes())[:1] == ("JPEG",) for path in folder.paths([0, 3]))
        expected = {"classes": 2, "images": 4, "fingerprint": folder.fingerprint}
        assert manifest["splits"][split] == expected
    assert manifest["short_side"] == 32 and manifest["quality"] == 90
    said = "small is ready: train/ 4 images, val/ 4 images, test/ 4 images\n"
    assert capsys.readouterr().err.endswith(said)


def test_bad_images_are_listed_and_the_others_are_there(data, capsys):
    names = ["x.jpg", "line\nfeed.jpg", "\udcff.png"]
    for name in names:
        (data / "val/b" / name).write_bytes(b"no image")
    for _ in range(2):
        assert resize() == 1
        said = "warning: 3 images could not be read; small/unreadable.txt lists them\n"
        assert capsys.readouterr().err.endswith(said)
    listed = Path("small/unreadable.txt").read_text().splitlines()
    assert listed[::2] == ["# not an image of a known format"] * 3
    assert set(listed[1::2]) == {
        "val/b/x.jpg", '"val/b/line\\nfeed.jpg"', '"val/b/\\udcff.png"',
    }  # fmt: skip
    assert len(scan(Path("small"), "val").files) == 4


def test_only_what_is_missing_is_made(data, monkeypatch):
    made = []

    def small(content, *arguments):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(content)
        return shrunk(content, *arguments)

    with monkeypatch.context() as patch, pytest.raises(BaseException, match="it goes on"):
        patch.setattr(resize_module, "shrunk", lambda c, side, quality: small(c, side, quality))
        resize()
    assert len(made) == 5 and os.listdir("small") == [".unfinished"]
    again = []
    monkeypatch.setattr(
        resize_module, "shrunk", lambda *words: again.append(words) or shrunk(*words)
    )
    assert resize() == 0 and len(again) == 7


def test_a_test_split_without_classes_is_spoken_of(data, capsys):
    for path in [*data.glob("test/*")]:
        path.rename(data / path.name)
    plain(1).save(data / "test/1.png")
    assert resize() == 0 and not Path("small/test").exists()
    assert "warning: data/test holds no images in class folders\n" in capsys.readouterr().err


def lost_class(data):
    for path in data.glob("val/b/*"):
        path.write_bytes(b"no image")


def only_in_train(data):
    for path in data.glob("val/b"):
        path.rename(data / "b")


def one_name(data):
    smooth(40, 40).save(data / "train/a/deep/2.PNG.jpg")


def nothing(data):
    data.rename("other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lost_class,
            "no image of val/b can be read, such as val/b/3.JPEG (not an image of a known",
        ),
        (only_in_train, "only in train/: b); give both the same class folders"),
        (one_name, "train/a/deep/2.PNG becomes train/a/deep/2.PNG.jpg, which is there too; rename"),
        (nothing, "data does not exist; give the folder that holds train/ and val/"),
    ],
)
def test_mistakes(data, change, message):
    change(data)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        resize()
    assert "\n" not in str(error.value) and "data.path" not in str(error.value)
    assert not Path("small/train").exists()
