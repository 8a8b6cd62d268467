"""The torchvision loader: its pixels against torchvision's own transforms, and its workers."""

import errno
import gc
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pipeline.data import loader_torchvision
from pipeline.data.draws import FLIP_COLUMN, MEAN, STD, random_resized_crop
from pipeline.data.loader_torchvision import TorchvisionLoader, _Batches, _become_a_worker
from pipeline.run.errors import UserError
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


def test_without_shared_memory_batches_come_through_pipes(tmp_path, monkeypatch, caplog):
    folder = plain_folder(tmp_path, "train", 12)
    with_it = list(make(TorchvisionLoader, folder, workers=1).epoch(0))
    monkeypatch.setattr(loader_torchvision, "_free_shared_memory", lambda: 1000)
    monkeypatch.setattr(loader_torchvision.logger, "propagate", True)
    loader = make(TorchvisionLoader, folder, workers=1)
    without = list(loader.epoch(0))
    assert all(isinstance(each, np.ndarray) for each in next(loader._stream))
    assert len(with_it) == len(without) == 3
    for ours, theirs in zip(without, with_it, strict=True):
        assert torch.equal(ours.images, theirs.images) and torch.equal(ours.labels, theirs.labels)
    (line,) = [each for each in caplog.messages if "through pipes" in each]
    assert line.startswith("/dev/shm has 0 MB free, 1 would be used: ") and "--shm-size" in line


def test_a_worker_that_is_killed_is_one_line(tmp_path):
    loader = make(TorchvisionLoader, plain_folder(tmp_path, "train", 12), workers=1)
    handler = signal.getsignal(signal.SIGCHLD)
    batches = loader.epoch(0)
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) == handler  # torch's would raise wherever we are
    os.kill(loader._stream._workers[0].pid, signal.SIGKILL)
    with pytest.raises(
        UserError, match=r"^a loader process ended \(.*\); set data.workers=0"
    ) as end:
        list(itertools.chain(batches, loader.epoch(1), loader.epoch(2)))
    assert "\n" not in str(end.value)


@pytest.mark.parametrize("successes", range(6))
def test_workers_that_cannot_start_are_one_line(successes, tmp_path, monkeypatch):
    """Whichever of the queues, the event and the processes is the first that cannot be made; those
    that were made before it go away again, and Python prints nothing of them."""
    made, unraisable = [], []
    for name in ("Queue", "Event", "Process"):
        genuine = getattr(torch.multiprocessing, name)

        def make_or_fail(*args, genuine=genuine, **kwargs):
            if len(made) == successes:
                raise OSError(errno.ENOSPC, "No space left on device")
            made.append(genuine(*args, **kwargs))
            return made[-1]

        monkeypatch.setattr(torch.multiprocessing, name, make_or_fail)
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    loader = make(TorchvisionLoader, plain_folder(tmp_path, "train", 12), workers=3)
    with pytest.raises(UserError, match="data.workers=3: their processes cannot start: No space"):
        next(loader.epoch(0))
    gc.collect()
    assert not unraisable
    for worker in made:
        if isinstance(worker, multiprocessing.process.BaseProcess):
            worker.join(20)
            assert worker.exitcode is not None


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process that its parent died")
def test_workers_end_with_the_process_that_trains(tmp_path):
    """A worker that waits for nobody, in a process that is killed."""
    parent = os.fork()
    if not parent:
        mine = os.getpid()
        if not os.fork():
            _become_a_worker(mine, 0)
            (tmp_path / "new").write_text(str(os.getpid()))
            (tmp_path / "new").rename(tmp_path / "pid")
        time.sleep(60)
        os._exit(0)
    while not (tmp_path / "pid").exists():
        time.sleep(0.01)
    worker = int((tmp_path / "pid").read_text())
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    deadline = time.monotonic() + 20
    while is_running(worker):
        assert time.monotonic() < deadline, "it survives"
        time.sleep(0.01)


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


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
