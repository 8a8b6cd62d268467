"""The binary convolution with statistics: against F.conv2d, and compiled for every GPU."""

import pytest
import torch
import torch.nn.functional as F

from kernels import norm_triton, reference
from kernels.candidates import convolution
from kernels.candidates.convolution import convolve, launch_convolve, tiles
from tests import first_quick
from tests.kernels.compilation import job
from tests.kernels.device import DEVICE, IS_INTERPRETED

pytest.importorskip("triton")
FP8 = torch.float8_e4m3fn
# The interpreter multiplies bf16 as if its bits were integers.
INTERPRETED = [torch.int8, torch.float16, FP8]
# images, channels in and out, height, width: rows that fill no tile, channels that fill no block
SHAPES = [
    (3, 16, 16, 8, 8),
    (1, 16, 32, 5, 7),
    (5, 32, 64, 8, 5),
    (3, 64, 64, 1, 1),
    (3, 24, 48, 5, 5),
    (1, 3, 144, 8, 1),
]


def signs(*shape, dtype=torch.int8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    t = torch.randint(0, 2, shape, generator=generator, dtype=torch.float32) * 2 - 1
    return t.to(DEVICE, dtype)


def operands(shape, dtype=torch.int8):
    if dtype == FP8 and DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no fp8")
    n, c, o, h, w = shape
    xb = signs(n, c, h, w, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return xb, signs(o, c, 3, 3, dtype=dtype, seed=1).contiguous(memory_format=torch.channels_last)


def launch(xb, weight, stride=1, dtype=torch.float16, relu=True, tile=None):
    tile = tile or tiles(len(weight), xb.itemsize)[0]
    return launch_convolve(xb, weight, stride, dtype, relu, tile)


def check(found, xb, weight, stride, dtype, relu):
    """z to the bit (the interpreter rounds to bf16 towards 0); statistics of z as stored."""
    z, mean, squares = found
    expected = F.conv2d(xb.double(), weight.double(), stride=stride, padding=1).to(dtype)
    rounding = 2**-7 if dtype == torch.bfloat16 and IS_INTERPRETED else 0
    torch.testing.assert_close(z, expected, rtol=rounding, atol=0)
    assert z.is_contiguous(memory_format=torch.channels_last)
    rows = z.permute(0, 2, 3, 1).reshape(-1, len(weight))
    wanted = reference.deviations(rows.double(), relu)
    assert mean.dtype == squares.dtype == torch.float32
    torch.testing.assert_close(mean.double(), wanted[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(squares.double(), wanted[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", first_quick(*INTERPRETED))
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_exact(shape, dtype, stride):
    xb, weight = operands(shape, dtype)
    check(launch(xb, weight, stride), xb, weight, stride, torch.float16, True)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", first_quick(*convolution.OUTPUTS))
@pytest.mark.triton
def test_statistics_are_those_of_what_is_stored(dtype, relu):
    xb, weight = signs(9, 300, 4, 4).abs(), signs(3, 300, 3, 3, seed=1).abs()  # 2700: rounded
    check(launch(xb, weight, 1, dtype, relu), xb, weight, 1, dtype, relu)


@pytest.mark.parametrize("tile", first_quick(*tiles(32, 1)))
@pytest.mark.triton
def test_many_rows_are_cut_into_programs(tile, monkeypatch):
    monkeypatch.setattr(norm_triton, "PROGRAMS", 3)
    xb, weight = operands((41, 16, 20, 5, 5))  # 1025 rows: one in the last tile
    check(launch(xb, weight, tile=tile), xb, weight, 1, torch.float16, True)


@pytest.mark.triton
def test_any_layout():
    xb, weight = operands(SHAPES[0])
    expected = launch(xb, weight)
    for found in (
        launch(xb.contiguous(), weight.contiguous()),
        launch(torch.stack([xb, xb], -1)[..., 0], torch.stack([weight, weight], -1)[..., 1]),
    ):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("run", [launch, convolve])
@pytest.mark.triton
def test_no_images_at_all(run):
    z, mean, squares = run(*operands((0, 16, 8, 4, 4)))
    assert z.shape == (0, 8, 4, 4) and mean.shape == squares.shape == (8,)


@pytest.mark.parametrize("dtype", convolution.OPERANDS)
@pytest.mark.parametrize("stride", [1, 2])
def test_reference(dtype, stride):
    xb, weight = (t.cpu() for t in operands(SHAPES[1], dtype))
    found = convolve(xb, weight, stride=stride, dtype=torch.bfloat16, relu=False)
    check(found, xb, weight, stride, torch.bfloat16, False)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"xb": torch.ones(2, 16, 4)}, r"xb is torch.float32 of shape \(2, 16, 4\)"),
        ({"xb": torch.ones(2, 16, 4, 4)}, "xb is torch.float32"),
        ({"xb": torch.ones(2, 0, 4, 4).half()}, r"xb is .*\(2, 0, 4, 4\)"),
        ({"weight": torch.ones(8, 16, 1, 1).half()}, r"weight is .*\(O, 16, 3, 3\)"),
        ({"weight": torch.ones(8, 8, 3, 3).half()}, "weight is"),
        ({"weight": torch.ones(()).half()}, "weight is"),
        ({"weight": torch.ones(8, 16, 3, 3).char()}, "weight is torch.int8"),
        ({"weight": torch.ones(8, 16, 3, 3, device="meta").half()}, "weight is .*meta"),
        ({"stride": 3}, "stride is 3"),
        ({"dtype": torch.int8}, "dtype is torch.int8"),
    ],
)
def test_bad_arguments_name_themselves(change, word):
    arguments = {"xb": torch.ones(2, 16, 4, 4).half(), "weight": torch.ones(8, 16, 3, 3).half()}
    convolve(**arguments)
    with pytest.raises(ValueError, match=word):
        convolve(**arguments | change)


def compilation(operand, channels, tile, archs=(80, 90, 100)):
    pointers = {"x_ptr": operand, "w_ptr": operand, "z_ptr": "*fp16"}
    pointers |= {"mean_ptr": "*fp32", "squares_ptr": "*fp32"}
    numbers = ("rows", "span", "height", "width", "out_height", "out_width")
    blocks = {"BLOCK_M": tile.m, "BLOCK_O": tile.o, "BLOCK_K": tile.k}
    constants = {"CHANNELS_IN": channels, "CHANNELS": channels, "STRIDE": 1, "RELU": True, **blocks}
    return job(
        convolution._convolution_kernel,
        tile.warps,
        num_stages=tile.stages,
        archs=archs,
        **pointers,
        **dict.fromkeys(numbers, "i32"),
        **constants,
    )


def gpu_jobs(types):
    jobs = [compilation(t, 16, tiles(16, 2)[0]) for t in types if t != "*fp32"]
    for channels in (16, 32, 64, 128) if "*bf16" in types else ():
        jobs += [compilation("*i8", channels, tile) for tile in tiles(channels, 1)]
        jobs.append(compilation("*fp16", channels, tiles(channels, 2)[0]))
        jobs.append(compilation("*fp8e4nv", channels, tiles(channels, 1)[0], archs=(90, 100)))
    return jobs


def test_compiles_for_the_gpus_we_support(usages):
    assert [usage for usage in usages if usage.spilled > 24] == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", convolution.OPERANDS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [*SHAPES, (65, 16, 16, 32, 32), (65, 512, 512, 8, 8)])
def test_on_the_gpu_sums_are_exact(shape, dtype, stride):
    xb, weight = operands(shape, dtype)
    for tile in tiles(len(weight), xb.itemsize):
        found = convolve(xb, weight, stride=stride, tile=tile)
        check(found, xb, weight, stride, torch.float16, True)
