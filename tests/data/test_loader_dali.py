"""The DALI loader: its windows, its pixels against Pillow's, every kind of file, its buffers."""

import gc
import io
import math
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pipeline.data.draws import (
    CROP_UNIFORMS,
    FLIP_COLUMN,
    crop_place,
    crop_sides,
    random_resized_crop,
)
from pipeline.data.loader_torchvision import TorchvisionLoader
from tests.data.fixtures import (
    image_folder,
    levels,
    make,
    noise,
    numbers,
    plain_folder,
    smooth,
)

pytest.importorskip("nvidia.dali")

from nvidia import dali

from pipeline.data import loader_dali
from pipeline.data.loader_dali import (
    PREFETCH,
    DaliLoader,
    _central_window,
    _crop_window,
    _images_and_labels,
    _Source,
)

fn, types = dali.fn, dali.types


def run(definition, *inputs):
    """One batch of ``inputs``, arrays (N, ...), through DALI operators; the outputs as arrays."""
    pipeline = dali.Pipeline(
        batch_size=len(inputs[0]), num_threads=2, device_id=None, prefetch_queue_depth=1
    )
    with pipeline:
        fed = fn.external_source(lambda: inputs, num_outputs=len(inputs))
        pipeline.set_outputs(*definition(*fed))
    return [np.asarray(output.as_tensor()) for output in pipeline.run()]


def test_random_windows_equal_those_of_augment():
    """All of them, the ones that no attempt fits into included."""
    rng = np.random.default_rng(0)
    height, width = np.exp(rng.uniform(0, 8, (2, 5000))).astype(np.int64)
    u = rng.random((5000, CROP_UNIFORMS))
    u[:9] = np.array([0, 0.5, 1 - 2**-53]).repeat(3)[:, None]
    hw = np.stack([height, width], axis=1).astype(np.float64)
    start, shape = run(_crop_window, hw, crop_sides(u, 0.08), crop_place(u).copy())
    expected = random_resized_crop(u, height, width, 0.08)
    assert np.array_equal(np.concatenate([start, shape], axis=1), expected)


def test_central_windows_equal_torchvisions():
    rng = np.random.default_rng(0)
    height, width = np.exp(rng.uniform(0, 8, (2, 5000))).astype(np.int64)
    for resize, size in ((256, 224), (224, 224), (232, 224), (37, 20)):
        hw = np.stack([height, width], axis=1).astype(np.float64)
        start, end = run(lambda hw, r=resize, s=size: _central_window(hw, r, s), hw)
        resized = np.trunc(resize * hw / hw.min(axis=1, keepdims=True))
        margin = np.rint((resized - size) / 2.0)  # as round does: halves to the even number
        scale = hw / resized
        np.testing.assert_allclose(start, margin * scale, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(end, (margin + size) * scale, rtol=1e-6)


SIZES = [(90, 120), (121, 80), (64, 64), (200, 41), (33, 300), (24, 20)]


@pytest.fixture
def waves(tmp_path):
    """Smooth images, on which a resize's rounding shows, but not how it treats the border."""
    images = {f"{i}.jpg": smooth(h, w, i) for i, (h, w) in enumerate(SIZES)}
    return image_folder(tmp_path, "train", images)


def test_training_pixels_equal_pillows(waves):
    """Window, flip and resize, by one level of 255 (the last rows and columns by three: there
    DALI repeats the edge where Pillow normalises the filter)."""
    loader = make(DaliLoader, waves, batch_size=6, size=48, resize=48)
    flips = 0
    for epoch in range(6):
        pixels = levels(next(loader.epoch(epoch)).images)
        u = loader.plan.uniforms((epoch, 0))
        for index, each, got in zip(loader.plan.indices((epoch, 0)), u, pixels, strict=True):
            image = Image.open(waves.paths([index])[0])
            size = np.array([image.height]), np.array([image.width])
            top, left, h, w = random_resized_crop(each[None], *size)[0].tolist()
            window = image.crop((left, top, left + w, top + h))
            flip = each[FLIP_COLUMN] < 0.5
            flips += flip
            resized = np.asarray(window.resize((48, 48), Image.Resampling.BILINEAR), dtype=float)
            error = np.abs(got - (resized[:, ::-1] if flip else resized))
            assert error[1:-1, 1:-1].max() < 1.01 and error.max() < 3.01
            assert error.mean() < 0.35
    assert 8 < flips < 28


@pytest.mark.parametrize(("resize", "size"), [(56, 48), (48, 48), (33, 20)])
def test_evaluation_pixels_equal_torchvisions(waves, resize, size):
    """torchvision's standard transforms, by one level of 255."""
    standard = v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(size)])
    loader = make(DaliLoader, waves, batch_size=6, train=False, resize=resize, size=size)
    pixels = levels(next(loader.epoch(0)).images)
    for path, got in zip(waves.paths(range(6)), pixels, strict=True):
        expected = np.asarray(standard(Image.open(path)), dtype=float)
        error = np.abs(got - expected)
        assert error.max() < 1.01 and error.mean() < 0.35


@pytest.mark.parametrize("train", [True, False])
def test_the_torchvision_loader_is_a_twin(tmp_path, train):
    """Same order, crops, flips and labels; noise, on which any difference of them would show."""
    images = {f"{i:02}.jpg": noise(60 + 5 * i, 100 - 3 * i, i) for i in range(12)}
    folder = image_folder(tmp_path, "train", images)
    loaders = [
        make(kind, folder, train=train, size=32, resize=40)
        for kind in (DaliLoader, TorchvisionLoader)
    ]
    for epoch in range(2):
        for ours, twin in zip(*(loader.epoch(epoch) for loader in loaders), strict=True):
            error = np.abs(levels(ours.images) - levels(twin.images))
            assert error[:, 1:-1, 1:-1].max() < 1.01 and error.mean() < 0.5
            assert torch.equal(ours.labels, twin.labels)


def png(pixels):
    """A PNG file of 16 bits per channel, which Pillow cannot write in colour."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_every_kind_of_file_is_used(tmp_path):
    image = smooth(40, 60)
    grey = image.convert("L")
    alpha = image.convert("RGBA")
    alpha.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees", which is to be ignored
    rotated, renamed = io.BytesIO(), io.BytesIO()
    image.save(rotated, "JPEG", exif=exif, quality=100)
    image.save(renamed, "PNG")
    folder = image_folder(
        tmp_path,
        "val",
        {
            "alpha.png": alpha,
            "bitmap.bmp": image,
            "cmyk.jpg": image.convert("CMYK"),
            "deep.png": png(np.asarray(image).astype(np.uint16) * 257),
            "exif.jpg": rotated.getvalue(),
            "grey.jpg": grey,
            "grey.png": grey,
            "grey16.png": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
            "palette.png": image.quantize(128),
            "png.jpeg": renamed.getvalue(),
            "rgb.JPEG": image,
            "webp.webp": image,
        },
    )
    options = {"train": False, "size": 32, "resize": 32, "batch_size": 12}
    ours, twin = (
        levels(next(make(kind, folder, **options).epoch(0)).images)
        for kind in (DaliLoader, TorchvisionLoader)
    )
    assert np.abs(ours - twin).max() < 1.01
    box = (10, 0, 50, 40)
    colour = np.asarray(image.crop(box).resize((32, 32), Image.Resampling.BILINEAR), dtype=float)
    luma = np.asarray(grey.crop(box).resize((32, 32), Image.Resampling.BILINEAR), dtype=float)
    for name, got in zip(folder.files, ours, strict=True):
        expected = luma[..., None] if "grey" in name else colour
        assert np.abs(got - expected).mean() < 6, name  # a palette and JPEG's chroma cost this


def test_batches_are_dalis_own_buffers(tmp_path, monkeypatch):
    """Zero-copy, and written once: no later batch goes where a living one lies."""
    folder = plain_folder(tmp_path, "train", 40)
    loader = make(DaliLoader, folder, batch_size=4)
    addresses = []
    run_pipeline = dali.Pipeline.run

    def spy(pipeline):
        outputs = run_pipeline(pipeline)
        addresses.append([output.as_tensor().data_ptr() for output in outputs])
        return outputs

    monkeypatch.setattr(dali.Pipeline, "run", spy)
    kept = [batch for epoch in range(2) for batch in loader.epoch(epoch)]
    assert [[b.images.data_ptr(), b.labels.data_ptr()] for b in kept] == addresses
    assert len({images for images, _ in addresses}) == 20
    seen = sum((numbers(batch.images) for batch in kept), [])
    dealt = [loader.plan.indices((epoch, batch)) for epoch in range(2) for batch in range(10)]
    assert seen == np.concatenate(dealt).tolist()
    del loader
    gc.collect()
    assert sum((numbers(batch.images) for batch in kept), []) == seen


@pytest.mark.parametrize("train", [True, False])
def test_the_next_epoch_is_read_ahead(tmp_path, monkeypatch, train):
    """One pipeline for all epochs, and the first batches of the next are already under way when
    the last of an epoch is delivered."""
    folder = plain_folder(tmp_path, "train", 20)
    opened, asked = [], []
    call, open_stream = _Source.__call__, DaliLoader._open
    monkeypatch.setattr(
        _Source, "__call__", lambda self: asked.append(self._position) or call(self)
    )
    monkeypatch.setattr(
        DaliLoader, "_open", lambda self, at: opened.append(at) or open_stream(self, at)
    )
    loader = make(DaliLoader, folder, train=train)
    for epoch in range(3):
        assert len(list(loader.epoch(epoch))) == 5
        following = epoch + 1 if train else 0
        assert asked[-(PREFETCH - 1) :] == [(following, 0), (following, 1)]
    assert opened == [(0, 0)]


def test_a_failure_that_is_no_files_fault_is_passed_on(tmp_path, monkeypatch):
    def fail(pipeline):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(dali.Pipeline, "run", fail)
    with pytest.raises(RuntimeError, match="^out of memory$"):
        next(make(DaliLoader, plain_folder(tmp_path, "train", 20)).epoch(0))


@pytest.mark.parametrize("random", [True, False])
def test_the_pipeline_can_be_defined_for_a_gpu(random, waves):
    """Devices of operators and of their arguments are checked without a GPU; running is not."""
    decoder = loader_dali._decoder(make(DaliLoader, waves))
    pipeline = _images_and_labels(
        lambda: None,
        decoder,
        random,
        256,
        224,
        types.FLOAT16,
        batch_size=2,
        num_threads=1,
        device_id=0,
    )
    assert isinstance(pipeline, dali.Pipeline)


@pytest.mark.parametrize("batch", [1, 16, 256, 750, 4096])
@pytest.mark.parametrize("workers", [0, 4, 64])
def test_the_decoders_buffers_fit(batch, workers):
    plan = SimpleNamespace(local_batch_size=batch)
    loader = SimpleNamespace(workers=workers, plan=plan, hw_decoder_load=0.75)
    options = loader_dali._decoder(loader)
    pixels = options["preallocate_width_hint"] * options["preallocate_height_hint"]
    assert batch * 0.75 * 3 * pixels <= loader_dali.ROOM
    assert workers * options["device_memory_padding"] <= loader_dali.ROOM
    assert pixels == math.prod(loader_dali.LARGEST) or batch > 1
    assert options["hw_decoder_load"] == 0.75 and options["device"] == "mixed"


@pytest.mark.gpu
@pytest.mark.parametrize("train", [True, False])
def test_the_gpu_gives_the_same_batches(waves, train):
    """JPEG decoders differ in how they interpolate colour: by two levels on average at most."""
    options = {"train": train, "batch_size": 2, "size": 48, "resize": 56, "dtype": torch.float16}
    loader = make(DaliLoader, waves, device=torch.device("cuda"), **options)
    kept = [batch for epoch in range(20) for batch in loader.epoch(epoch)]
    cpu = make(DaliLoader, waves, **options)
    for ours, theirs in zip(kept, (b for e in range(20) for b in cpu.epoch(e)), strict=True):
        assert ours.images.is_cuda and ours.images.dtype == torch.float16
        assert ours.images.is_contiguous(memory_format=torch.channels_last)
        assert np.abs(levels(ours.images) - levels(theirs.images)).mean() < 2
        assert torch.equal(ours.labels.cpu(), theirs.labels)
