"""The torchvision loader: its pixels against torchvision's own transforms, and its workers."""

import gc
import pickle
import weakref

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from pipeline.data.draws import FLIP_COLUMN, MEAN, STD, random_resized_crop
from pipeline.data.loader_torchvision import TorchvisionLoader, _Batches
from tests.data.fixtures import image_folder, make, noise, numbers, plain_folder

SIZES = [(90, 120), (121, 80), (64, 64), (200, 41), (33, 300), (24, 20)]


def noisy(root):
    return image_folder(
        root, "train", {f"{i}.jpg": noise(h, w, i) for i, (h, w) in enumerate(SIZES)}
    )


def normalised(image):
    tensor = v2.functional.to_dtype(v2.functional.pil_to_tensor(image), torch.float32, scale=True)
    return v2.functional.normalize(tensor, MEAN, STD)


def test_evaluation_is_torchvisions_standard(tmp_path):
    folder = noisy(tmp_path)
    loader = make(TorchvisionLoader, folder, train=False, batch_size=6, size=48, resize=56)
    standard = v2.Compose([v2.Resize(56, antialias=True), v2.CenterCrop(48)])
    expected = [normalised(standard(Image.open(path))) for path in folder.paths(range(6))]
    torch.testing.assert_close(next(loader.epoch(0)).images, torch.stack(expected))


def test_training_crops_and_flips_as_augment_says(tmp_path):
    folder = noisy(tmp_path)
    loader = make(TorchvisionLoader, folder, batch_size=6, size=48, resize=48, min_area=0.3)
    flips = 0
    for epoch in range(6):
        expected = []
        u = loader.plan.uniforms((epoch, 0))
        for index, each in zip(loader.plan.indices((epoch, 0)), u, strict=True):
            image = Image.open(folder.paths([index])[0])
            size = np.array([image.height]), np.array([image.width])
            top, left, h, w = random_resized_crop(each[None], *size, 0.3)[0].tolist()
            window = image.crop((left, top, left + w, top + h))
            image = normalised(window.resize((48, 48), Image.Resampling.BILINEAR))
            flip = each[FLIP_COLUMN] < 0.5
            flips += flip
            expected.append(image.flip(-1) if flip else image)
        torch.testing.assert_close(next(loader.epoch(epoch)).images, torch.stack(expected))
    assert 8 < flips < 28


def test_the_random_numbers_of_the_trainer_are_left_alone(tmp_path):
    loader = make(TorchvisionLoader, plain_folder(tmp_path, "train", 12), workers=1)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(loader.epoch(0))
    assert torch.equal(torch.rand(3), expected)


def test_what_a_worker_receives_is_small(tmp_path):
    """Workers that are spawned get it by pickle: the names and little else."""
    loader = make(TorchvisionLoader, plain_folder(tmp_path, "train", 200))
    batches = _Batches(loader)
    pickled = pickle.dumps(batches)
    assert len(pickled) < 200 * (len("train/class0/000.png") + 8) + 2000
    images, labels = pickle.loads(pickled)[(1, 3)]
    assert images.dtype == torch.uint8 and images.shape == (4, 8, 8, 3)
    assert torch.equal(images, batches[(1, 3)][0]) and torch.equal(labels, batches[(1, 3)][1])


def test_workers_inherit_no_garbage(tmp_path):
    """An old loader that waits for the garbage collector is gone before workers are forked."""
    folder = plain_folder(tmp_path, "train", 12)
    old = make(TorchvisionLoader, folder)
    next(old.epoch(0))
    old.itself, stream = old, weakref.ref(old._stream)
    gc.disable()
    try:
        del old
        assert stream() is not None
        loader = make(TorchvisionLoader, folder, workers=1)
        seen = sum((numbers(batch.images) for batch in loader.epoch(0)), [])
        assert stream() is None and len(seen) == 12
    finally:
        gc.enable()
