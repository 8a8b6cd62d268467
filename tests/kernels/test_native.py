"""The C++ of a training on a CPU against the reference in float64, and where it cannot be built."""

import ctypes
import dataclasses
import itertools
import platform

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kernels import ESTIMATORS, _native, convolve, get_estimator, norm_pool_binarize, reference
from kernels.weights import binarize_weights
from native import build
from tests import first_quick

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 0.01}
DTYPES = [torch.float32, torch.bfloat16]
try:
    build._compiler()
    REASON = ""
except build.NoLibrary as error:
    REASON = str(error)
needs_compiler = pytest.mark.skipif(bool(REASON), reason=REASON)
ON_X86 = platform.machine() == "x86_64"
NO_TILES = "-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8"
LESS = NO_TILES, (*NO_TILES, "-mno-avx512f"), ("-march=x86-64-v3",), ("-march=x86-64",)


def close(found, expected, dtype, scale=1.0):
    tolerance = TOLERANCE[dtype] * scale
    size = max(1.0, expected.nan_to_num().abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=0, atol=tolerance * size, equal_nan=True
    )


@st.composite
def rows(draw):
    """Maps of awkward sizes as rows: few and many channels, more and less than a chunk."""
    channels = draw(st.sampled_from([1, 3, 16, 24, 64, 257, 512, 1030]))
    positions = draw(st.integers(8, 70_000 // channels))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    maps = [torch.randn(positions, channels, generator=generator) for _ in range(4)]
    if draw(st.booleans()):
        maps[0][positions // 2, channels // 2] = torch.nan
    vectors = [torch.randn(channels, generator=generator) for _ in range(2)]
    return [each.to(dtype) for each in maps], vectors, dtype


@needs_compiler
@given(rows(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_every_pass_equals_the_reference(drawn, relu, has_residual, has_real, training):
    (z, residual, dy, dyb), (weight, bias), dtype = drawn
    wide = [t.double() for t in (z, residual, dy, dyb, weight, bias)]
    mean, squares = _native.deviations(z, relu)
    for found, expected in zip((mean, squares), reference.deviations(wide[0], relu), strict=True):
        close(found, expected, torch.float32)
    rstd = (squares / len(z) + 1e-5).rsqrt()
    own = [weight, bias, mean, rstd]
    theirs = [t.double() for t in own]
    skip, wide_skip = (residual, wide[1]) if has_residual else (None, None)
    y, yb = _native.norm_binarize(z, *own, skip, True, relu)
    expected, _ = reference.norm_binarize(wide[0], *theirs, wide_skip, True, relu)
    close(y, expected, dtype, 4)
    torch.testing.assert_close(yb, reference.sign(y), rtol=0, atol=0, equal_nan=True)

    params = torch.tensor([2.0, 1.5, 0.1])
    real, wide_real = (dy, wide[2]) if has_real else (None, None)
    fixed = mean, rstd, params
    g, sums = _native.norm_binarize_reduce(real, dyb, y, z, *fixed, "reste", relu)
    fixed = [t.double() for t in fixed]
    ours = wide_real, wide[3], y.double(), wide[0]
    expected, _ = reference.norm_binarize_reduce(*ours, *fixed, "reste", relu)
    close(g, expected, dtype, 4)
    _, expected = reference.norm_binarize_reduce(g.double(), None, *ours[2:], *fixed, "", relu)
    close(sums, expected, torch.float32, 4)

    fixed = weight, mean, rstd, sums
    dz = _native.norm_binarize_apply(g, z, *fixed, None, training, relu)
    fixed = [t.double() for t in fixed]
    expected = reference.norm_binarize_apply(
        g.double(), wide[0], *fixed, torch.tensor(len(z)), training, relu
    )
    close(dz, expected, dtype, 8 * max(1, rstd.nan_to_num().max().item()))


@needs_compiler
@given(rows(), st.booleans(), st.booleans())
def test_rprelus_passes_equal_the_reference(drawn, has_sign, has_real):
    (z, residual, dy, dyb), (weight, bias), dtype = drawn
    mean, rstd = z.nan_to_num().float().mean(0), weight.abs() + 0.5
    v = reference.norm_binarize(
        z.double(), *(t.double() for t in (weight, bias, mean, rstd, residual)), False, False
    )[0]
    z[v.abs() < 1e-4] += 1  # away from the corner, where rounding would choose a side
    offset = bias * weight if has_sign else None
    learned = weight, bias, mean, rstd, residual, bias.flip(0), weight.flip(0), offset
    wide = [t if t is None else t.double() for t in learned]
    y, yb = _native.norm_prelu_binarize(z, *learned)
    expected, _ = reference.norm_prelu_binarize(z.double(), *wide)
    close(y, expected, dtype, 4)
    signs = reference.sign(y.float() + offset) if has_sign else torch.empty(0)
    torch.testing.assert_close(yb.float(), signs, rtol=0, atol=0, equal_nan=True)

    real, binary = dy if has_real or not has_sign else None, dyb if has_sign else None
    fixed = *learned[:4], *learned[5:], torch.tensor([]), "approxsign"  # without jumps
    g, sums = _native.norm_prelu_binarize_reduce(real, binary, z, residual, *fixed)
    maps = (t if t is None else t.double() for t in (real, binary, z, residual))
    expected = reference.norm_prelu_binarize_reduce(*maps, *wide[:4], *wide[5:], *fixed[-2:])
    close(g, expected[0], dtype, 8)
    close(sums, expected[1], dtype, 8)


@needs_compiler
def test_a_batchs_statistics_are_as_exact_as_torchs():
    z = 300 + torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    mean, squares = reference.deviations(z.double(), False)
    found = _native.deviations(z, False)
    variance, average = torch.var_mean(z, 0, correction=0)
    for ours, theirs, exact in zip(
        found, (average, variance * len(z)), (mean, squares), strict=True
    ):
        errors = [((each - exact).abs() / exact).max().item() for each in (ours, theirs)]
        assert errors[0] <= max(1e-6, errors[1])


@needs_compiler
@pytest.mark.parametrize("name", [n for n, e in ESTIMATORS.items() if e.native_factor])
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_every_estimators_h(name, progress):
    entry = get_estimator(name)
    params = torch.tensor(entry.schedule(progress))
    x = torch.cat([torch.linspace(-3, 3, 4001), torch.tensor([0.0, -0.0, 1e-30, 40.0])])
    found = torch.empty_like(x)
    function = getattr(_native.library(), f"factor_{name}")
    function(*(ctypes.c_void_p(t.data_ptr()) for t in (params, x, found)), len(x))
    close(found, entry.factor(x.double(), params.double()), torch.float32, 2)


@needs_compiler
def test_an_estimator_without_cpp_works_all_the_same(monkeypatch):
    y, dyb, z = torch.randn(3, 50, 8)
    own = z.mean(0), torch.ones(8), torch.tensor([2.0, 1.5, 0.1]), "reste", True
    expected = _native.norm_binarize_reduce(None, dyb, y, z, *own)
    object.__setattr__(plain := get_estimator("reste"), "native_factor", None)
    try:
        found = _native.norm_binarize_reduce(None, dyb, y, z, *own)
    finally:
        from kernels.estimators import reste

        object.__setattr__(plain, "native_factor", reste.NATIVE_FACTOR)
    for a, b in zip(found, expected, strict=True):
        close(a, b, torch.float32)


def of_stem(z, weight, bias, dx, dxb, training):
    z, weight, bias = (t.clone().requires_grad_() for t in (z, weight, bias))
    mean, rstd = z.detach().relu().mean((0, 2, 3)), weight.detach().abs() + 0.5
    options = {"params": torch.tensor([2.0, 1.5, 0.1]).to(weight), "estimator": "reste"}
    x, xb = norm_pool_binarize(z, weight, bias, mean, rstd, training=training, **options)
    torch.autograd.backward([x, xb], [dx, dxb])
    return x.detach(), z.grad, weight.grad, bias.grad


@needs_compiler
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (8, 8)])
@pytest.mark.parametrize("training", [True, False])
def test_stems_equal_the_reference(size, training):
    """On integers, whose ties both must give to the first."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(-3, 4, (2, 8, *size), generator=generator).float()
    weight, bias = torch.randn(2, 8, generator=generator)
    pooled = -(-size[0] // 2), -(-size[1] // 2)
    dx, dxb = torch.randn(2, 2, 8, *pooled, generator=generator)
    data = z, weight, bias, dx, dxb
    found = of_stem(*data, training)
    expected = of_stem(*(t.double() for t in data), training)
    for a, b in zip(found, expected, strict=True):
        close(a, b, torch.float32, 4)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_signs_of_weights_and_their_gradients(dtype):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(s, 8, 3, 3, generator=generator) for s in (16, 300)]
    weights[1][0, 0, 0] = torch.tensor([0.0, -0.0, torch.nan])
    params = torch.tensor([2.0, 1.5, 0.1])
    results = []
    for wide in (torch.float32, torch.float64):
        leaves = [w.detach().clone().to(wide).requires_grad_() for w in weights]
        signs, scales = binarize_weights(leaves, params.to(wide), dtype=dtype)
        out = sum((s.float() * w).sum() for s, w in zip(signs, weights, strict=True))
        (out + 3 * sum(scales)).backward()
        results.append((*signs, *scales, *(leaf.grad for leaf in leaves)))
    for found, expected in zip(*results, strict=True):
        close(found, expected, torch.float32, 2)


def both(x, w, stride, dz):
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    z = convolve(x, w, stride)
    z.backward(dz)
    return z.detach(), x.grad, w.grad


@needs_compiler
@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.sampled_from([8, 16, 24, 64, 136]),
    st.integers(1, 20), st.sampled_from([1, 2]), st.sampled_from(DTYPES), st.integers(0, 99),
)  # fmt: skip
def test_convolutions_of_signs(n, height, width, channels, outputs, stride, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, height, width, generator=generator).sign().to(dtype)
    w = torch.randn(outputs, channels, 3, 3, generator=generator).sign().to(dtype)
    z = nn.functional.conv2d(x.double(), w.double(), stride=stride, padding=1)
    dz = torch.randint(-4, 5, z.shape, generator=generator).to(dtype)
    assert _native.convolve(x, w, stride) is not None
    found = both(x, w, stride, dz)
    expected = both(x.double(), w.double(), stride, dz.double())
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b.to(dtype))  # all sums are of integers


@needs_compiler
@pytest.mark.skipif(not ON_X86, reason="the options are those of x86")
@pytest.mark.parametrize("options", first_quick(*LESS))
def test_a_processor_that_has_less_gives_the_same_sums(options, monkeypatch, without_library):
    """Matrix tiles, population counts and wide vectors are each taken away."""
    recipe = _native.recipe()
    fewer = dataclasses.replace(recipe, options=(*recipe.options, *options))
    monkeypatch.setattr(_native, "recipe", lambda: fewer)
    test_convolutions_of_signs()


@needs_compiler
def test_what_is_no_sign_takes_torchs_convolution():
    x, w = torch.ones(1, 8, 3, 3), torch.ones(4, 8, 3, 3)
    for value in (0.0, 0.5, torch.nan, -torch.inf):
        other = x.clone()
        other[0, 3, 1, 2] = value
        assert _native.convolve(other, w, 1) is None
        expected = nn.functional.conv2d(other, w, padding=1)
        torch.testing.assert_close(convolve(other, w), expected, equal_nan=True)
        assert _native.convolve(x, other[:, :, :3].expand(4, 8, 3, 3), 1) is None
    assert convolve(torch.ones(1, 6, 3, 3), torch.ones(4, 6, 3, 3)).shape == (1, 4, 3, 3)


@needs_compiler
def test_any_number_of_threads_gives_the_same_bits():
    generator = torch.Generator().manual_seed(0)
    z, dy = torch.randn(2, 20_000, 24, generator=generator)
    x = torch.randn(4, 64, 9, 9, generator=generator).sign()
    w = torch.randn(40, 64, 3, 3, generator=generator).sign()
    dz = torch.randn(4, 40, 9, 9, generator=generator)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            params = torch.tensor([2.0, 1.5, 0.1])
            fixed = z.mean(0), torch.ones(24), params, "reste", True
            reduced = _native.norm_binarize_reduce(dy, dy, z, z, *fixed)
            gradient = both(x, w, 1, dz)[2]
            results.append((*_native.deviations(z, True), *reduced, gradient))
    finally:
        torch.set_num_threads(before)
    for one, other in itertools.pairwise(results):
        assert all(map(torch.equal, one, other))


@pytest.fixture
def without_library():
    _native.library.cache_clear()
    yield
    _native.library.cache_clear()


def test_without_a_compiler_it_is_the_reference_and_a_line(monkeypatch, without_library):
    def fail(recipe):
        raise build.NoLibrary("there is no C++ compiler; install g++ or clang++")

    monkeypatch.setattr(build, "library", fail)
    z = torch.randn(40, 8)
    with pytest.warns(UserWarning, match="on this CPU: there is no C\\+\\+ compiler; install"):
        found = _native.deviations(z, True)
    assert all(map(torch.equal, found, reference.deviations(z, True)))
    _native.deviations(z, True)  # and says it once
    assert convolve(torch.ones(1, 8, 2, 2), torch.ones(3, 8, 3, 3)).shape == (1, 3, 2, 2)
