"""Augmentation as one op: against numpy, registration, and compilation without a GPU."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import crop as op
from kernels import crop_flip_normalize, reference
from kernels.crop import PADDING
from tests.kernels.compilation import job
from tests.kernels.device import DEVICE, DTYPES, IS_INTERPRETED, SLOW_TRITON, TRITON

pytest.importorskip("triton")
SHAPES = [(32, 32, 3), (1, 1, 3), (5, 7, 3), (33, 31, 1), (9, 40, 4)]  # height, width, channels


def draw(batch, shape=(32, 32, 3), images=10, seed=0):
    """Images, an index, mean and std, and where to crop and flip."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (images, *shape), np.uint8)
    index = rng.integers(0, images, batch)
    mean, std = rng.uniform(0.2, 0.8, (2, shape[2])).astype(np.float32)
    top, left = rng.integers(0, 2 * PADDING + 1, (2, batch))
    numbers = (pixels, index, mean, std, top, left, rng.integers(0, 2, batch) > 0)
    images, index, mean, std, *crop = (torch.from_numpy(n).to(DEVICE) for n in numbers)
    return (images, index, mean, std), tuple(crop)


def oracle(images, index, mean, std, crop=None):
    """One image after the other; numpy's arithmetic is IEEE's, in fp32 as given."""
    images, mean, std = images.cpu().numpy(), mean.cpu().numpy(), std.cpu().numpy()
    height, width = images.shape[1:3]
    batch = []
    for place, number in enumerate(index.tolist()):
        image = images[number]
        if crop is not None:
            top, left, flip = (column[place].item() for column in crop)
            padded = np.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
            image = padded[top : top + height, left : left + width]
            image = image[:, ::-1] if flip else image
        batch.append(((image / np.float32(255) - mean) / std).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(batch))


@pytest.mark.parametrize("way", ["reference", SLOW_TRITON])
def test_every_crop_and_flip_equals_the_loop(way):
    tensors, _ = draw(162, images=162)
    cases = [(top, left, flip) for top in range(9) for left in range(9) for flip in (False, True)]
    crop = tuple(torch.tensor(column, device=DEVICE) for column in zip(*cases, strict=True))
    expected = oracle(*tensors, crop)
    assert torch.equal(crop_flip_normalize(*tensors, torch.float32, crop).cpu(), expected)


@pytest.mark.parametrize("cropped", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", ["reference", TRITON])
def test_every_shape_equals_the_loop(way, shape, cropped):
    tensors, crop = draw(5, shape)
    crop = crop if cropped else None
    y = crop_flip_normalize(*tensors, torch.float32, crop)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y.cpu(), oracle(*tensors, crop))


@given(place=st.tuples(st.integers(0, 8), st.integers(0, 8)), pixel=st.integers(0, 255))
def test_black_is_what_was_padded_before_normalising(place, pixel):
    images = torch.full((1, 3, 3, 1), pixel, dtype=torch.uint8)
    crop = (torch.tensor(place[:1]), torch.tensor(place[1:]), torch.tensor([False]))
    mean, std = torch.tensor([0.5]), torch.tensor([0.25])
    y = crop_flip_normalize(images, torch.tensor([0]), mean, std, torch.float64, crop)
    seen = np.prod([max(0, 3 - abs(start - PADDING)) for start in place])
    bright = (torch.tensor(pixel / 255) - 0.5) / 0.25
    expected = torch.full((9,), -2.0, dtype=torch.float64)
    expected[: int(seen)] = bright
    assert torch.equal(y.flatten().sort().values, expected.sort().values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [0, 1, 7])
@pytest.mark.parametrize("cropped", [False, True])
@pytest.mark.triton
def test_triton_equals_the_reference(dtype, batch, cropped, monkeypatch):
    tensors, crop = draw(batch)
    crop = crop if cropped else ()
    expected = reference.crop_flip_normalize(*tensors, dtype, crop, PADDING)
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: empty(*a, **k).fill_(9))
    y = op.launch(*tensors, dtype, crop)
    assert y.stride() == expected.stride() and y.dtype == dtype
    rtol = 2**-7 if dtype == torch.bfloat16 and IS_INTERPRETED else 0
    torch.testing.assert_close(y, expected, rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_computed_in_float32_whatever_is_given(dtype):
    tensors, crop = draw(6)
    y = crop_flip_normalize(*tensors, dtype, crop)
    assert y.dtype == dtype
    assert torch.equal(y, crop_flip_normalize(*tensors, torch.float32, crop).to(dtype))


@pytest.mark.triton
def test_triton_takes_strided_draws():
    tensors, crop = draw(8)
    images, index, mean, std = tensors
    strided = tuple(torch.stack([t, t], dim=1)[:, 0] for t in (index, *crop))
    y = crop_flip_normalize(images, strided[0], mean, std, torch.float32, strided[1:])
    assert torch.equal(y, crop_flip_normalize(*tensors, torch.float32, crop))


@pytest.mark.parametrize("cropped", [False, True])
@pytest.mark.triton
def test_triton_registration_passes_opcheck(cropped):
    tensors, crop = draw(3)
    arguments = (*tensors, torch.float16, list(crop) if cropped else [])
    torch.library.opcheck(op._crop_flip_normalize, arguments)


def test_one_graph_takes_it():
    torch._dynamo.reset()

    def doubled(images, index, mean, std, crop):
        return crop_flip_normalize(images, index, mean, std, torch.float32, crop) * 2

    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    tensors, crop = draw(4)
    assert torch.equal(compiled(*tensors, crop), doubled(*tensors, crop))


def test_asking_for_a_gradient_raises():
    images, index, mean, std = draw(2)[0]
    y = crop_flip_normalize(images, index, mean.requires_grad_(), std, torch.float32)
    with pytest.raises(RuntimeError, match="does not require grad"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("images", lambda images: images.float()),
        ("images", lambda images: images[0]),
        ("images", lambda images: images.transpose(1, 2)),
        ("index", lambda index: index.int()),
        ("index", lambda index: index[0]),
        ("mean", lambda mean: mean.double()),
        ("std", lambda std: std[:2]),
        ("top", lambda top: top[:1]),
        ("left", lambda left: left.to("meta")),
        ("flip", lambda flip: flip.long()),
        ("dtype", lambda dtype: torch.uint8),
    ],
)
def test_bad_arguments_name_themselves(name, spoil):
    tensors, crop = draw(2)
    arguments = dict(zip(("images", "index", "mean", "std"), tensors, strict=True))
    arguments |= dict(zip(("top", "left", "flip"), crop, strict=True), dtype=torch.float32)
    arguments[name] = spoil(arguments[name])
    crop = tuple(arguments.pop(key) for key in ("top", "left", "flip"))
    with pytest.raises(ValueError, match=f"^{name} must be"):
        crop_flip_normalize(**arguments, crop=crop)


def gpu_jobs(types):
    sizes = {"H": 32, "W": 32, "C": 3, "PADDING": PADDING, "BLOCK": op.BLOCK}
    tensors = {"images_ptr": "*u8", "index_ptr": "*i64", "mean_ptr": "*fp32", "std_ptr": "*fp32"}
    cropped = {"top_ptr": "*i64", "left_ptr": "*i64", "flip_ptr": "*i1"}
    return [
        job(op._kernel, y_ptr=t, **tensors, **draws, **sizes)
        for t in types
        for draws in ({}, cropped)
    ]


def test_compiles_for_the_gpus_we_support(usages):
    assert [usage for usage in usages if usage.spilled] == []
