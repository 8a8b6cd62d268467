"""The drawn data set: deterministic, whole or not there, and not solved by pixels or colours."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import synthetic
from pipeline.run.errors import UserError


def digest(root):
    files = sorted(root.rglob("*.JPEG"))
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()


def test_layout(tmp_path):
    drawn = synthetic.draw(tmp_path / "set", train=30, val=100)
    for split, count in (("train", 30), ("val", 100)):
        folders = sorted(p.name for p in (drawn / split).iterdir())
        assert folders == sorted(synthetic.SHAPES) and len(folders) == 10
        assert len(list((drawn / split).rglob("*.JPEG"))) == count
    sizes = {Image.open(p).size for p in (drawn / "val").rglob("*.JPEG")}
    assert len(sizes) > 40


def test_a_seed_gives_the_same_bytes(tmp_path):
    first = synthetic.draw(tmp_path / "a", train=60, val=20)
    assert digest(synthetic.draw(tmp_path / "b", train=60, val=20)) == digest(first)
    assert digest(synthetic.draw(tmp_path / "c", train=60, val=20, seed=1)) != digest(first)


def test_drawn_once(tmp_path, monkeypatch):
    root = synthetic.draw(tmp_path / "a", train=20, val=10)
    monkeypatch.setattr(synthetic, "picture", None)
    assert synthetic.draw(root, train=20, val=10) == root
    with pytest.raises(UserError, match="move it away"):
        synthetic.draw(root, train=30, val=10)


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    whole = synthetic.picture

    def picture(seed, split, name, number):
        if split == "val":
            raise KeyboardInterrupt
        return whole(seed, split, name, number)

    monkeypatch.setattr(synthetic, "picture", picture)
    with pytest.raises(KeyboardInterrupt):
        synthetic.draw(tmp_path / "a", train=20, val=10)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot draw"):
        synthetic.draw(tmp_path / "file" / "set", train=20, val=10)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    return synthetic.draw(tmp_path_factory.mktemp("synthetic") / "set")


def pixels(path: Path):
    return np.asarray(Image.open(path).resize((16, 16)), np.float32).ravel() / 255


def colours(path: Path):
    image = np.asarray(Image.open(path)) // 64
    codes = image[..., 0] * 16 + image[..., 1] * 4 + image[..., 2]
    return np.bincount(codes.ravel(), minlength=64) / codes.size


@pytest.mark.slow
@pytest.mark.parametrize("features", [pixels, colours])
def test_linear_classifiers_stay_below_40_per_cent(drawn, features):
    from sklearn.linear_model import RidgeClassifier  # takes seconds to import

    data = {}
    for split in ("train", "val"):
        files = sorted((drawn / split).rglob("*.JPEG"))
        data[split] = np.stack([features(p) for p in files]), [p.parent.name for p in files]
    model = RidgeClassifier(alpha=10.0).fit(*data["train"])
    assert model.score(*data["val"]) < 0.4
