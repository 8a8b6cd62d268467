"""Images as predict prepares them: what evaluation gives, and files of any size and mode."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.cifar_files import CifarSplit
from pipeline.data.loader_resident import CifarLoader
from pipeline.data.loader_torchvision import TorchvisionLoader
from pipeline.export.images import Bad, Found, find, label_of, prepare
from pipeline.export.packed import Images
from pipeline.export.source import images_of
from pipeline.run.config import load_config
from pipeline.run.errors import UserError
from tests import ROOT
from tests.data.fixtures import image_folder, make, noise

SIZES = [(90, 120), (121, 80), (64, 64), (200, 41), (33, 300), (24, 20), (56, 99)]
SMALL = Images(8, 10, 255.0, (0.0,) * 3, (1.0,) * 3)


def config(name, *overrides):
    return load_config(ROOT / f"configs/{name}.yaml", overrides)


def test_an_imagenet_image_is_that_of_its_evaluation(tmp_path):
    folder = image_folder(
        tmp_path, "val", {f"{i}.jpg": noise(*side, i) for i, side in enumerate(SIZES)}
    )
    loader = make(TorchvisionLoader, folder, train=False, batch_size=7, size=48, resize=56)
    wanted = images_of(config("imagenet_resnet18", "data.size=48", "data.resize=56"))
    ours = [torch.from_numpy(prepare(path, wanted)) for path in folder.paths(range(7))]
    assert torch.equal(torch.stack(ours), next(loader.epoch(0)).images)


def test_a_cifar_image_is_that_of_its_evaluation(tmp_path):
    pixels = torch.from_numpy(np.asarray(noise(32, 32)).copy())[None]
    split = CifarSplit(pixels, torch.zeros(1, dtype=torch.int64), ("a",), "1")
    options = {"batch_size": 1, "train": False, "augment": False, "seed": 1}
    loader = CifarLoader(split, **options, dtype=torch.float32, device=torch.device("cpu"))
    noise(32, 32).save(tmp_path / "x.png")
    wanted = images_of(config("cifar10_resnet20"))
    expected = next(loader.epoch(0)).images[0]
    assert torch.equal(torch.from_numpy(prepare(tmp_path / "x.png", wanted)), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (700, 2), (8, 8)])
def test_any_size_and_mode(mode, size, tmp_path):
    path = tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.png")
    Image.new(mode, size).save(path)
    assert prepare(path, SMALL).shape == (3, 8, 8)


def test_images_that_cannot_be_used_say_why(tmp_path):
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    Image.new("L", (2, 60_000)).save(tmp_path / "long.png")
    (tmp_path / "none.png").write_bytes(b"x")
    wide = Images(224, 256, 255.0, (0.0,) * 3, (1.0,) * 3)
    for name, why in (
        ("huge.png", "more than 178,956,970 pixels"), ("none.png", "not an image"),
        ("long.png", "too elongated"), ("gone.png", "No such file"),
    ):  # fmt: skip
        with pytest.raises(Bad, match=why):
            prepare(tmp_path / name, wide)


def test_files_and_folders_are_found(tmp_path):
    for name in ("b/cat/1.JPG", "b/cat/x/2.png", "b/.hidden.png", "b/notes.txt", "a.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find([str(tmp_path / "a.webp"), str(tmp_path / "b")])
    names = [str(each.path.relative_to(tmp_path)) for each in found]
    assert names == ["a.webp", "b/cat/1.JPG", "b/cat/x/2.png"]
    assert [label_of(each, ["cat", "dog"]) for each in found] == [None, "cat", "cat"]
    assert label_of(Found(tmp_path, ("dog", "cat")), ["cat", "dog"]) == "cat"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images .*; name another folder"):
        find([str(tmp_path / "empty")])
    with pytest.raises(UserError, match="gone: there is no such file; name an image or a folder"):
        find([str(tmp_path / "gone")])
