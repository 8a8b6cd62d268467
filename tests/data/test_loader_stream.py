"""What both loaders of image folders share: training images of another size from an epoch on."""

import pytest
import torch

from pipeline.data.loader_torchvision import TorchvisionLoader
from tests.data.fixtures import image_folder, make, noise

SIZES = (8, 8, 12, 6)  # of each epoch


@pytest.fixture(params=["torchvision", "dali"])
def kind(request):
    if request.param == "torchvision":
        return TorchvisionLoader
    return pytest.importorskip("pipeline.data.loader_dali").DaliLoader


@pytest.fixture
def folder(tmp_path):
    images = {f"{i}.jpg": noise(20 + 3 * i, 40 - 2 * i, i) for i in range(9)}
    return image_folder(tmp_path, "train", images)


def test_every_epoch_has_its_size_and_its_own_crops(kind, folder, caplog):
    """Those of a loader of that size alone, to the bit, and also from the middle of an epoch."""
    caplog.set_level("INFO", "reste")
    growing = make(kind, folder, size_of=SIZES.__getitem__, workers=1)
    for epoch, size in enumerate(SIZES):
        fixed = make(kind, folder, size=size, resize=12)
        for found, expected in zip(growing.epoch(epoch), fixed.epoch(epoch), strict=True):
            assert found.images.shape == (4, 3, size, size)
            assert all(map(torch.equal, found, expected))
    assert [line[:18] for line in caplog.messages] == ["from epoch 3 on, t", "from epoch 4 on, t"]
    again = next(make(kind, folder, size_of=SIZES.__getitem__).epoch(2, 1))
    assert torch.equal(again.images, [*growing.epoch(2)][1].images)


def test_the_stream_goes_on_where_the_size_stays(kind, folder, monkeypatch):
    opened = []
    original = kind._open
    monkeypatch.setattr(kind, "_open", lambda *a: opened.append(a[1]) or original(*a))
    loader = make(kind, folder, size_of=SIZES.__getitem__)
    for epoch in range(4):
        list(loader.epoch(epoch))
    assert opened == [(0, 0), (2, 0), (3, 0)]
