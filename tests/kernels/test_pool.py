"""The fused stem: against plain modules in float64, its kernels against the reference."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from kernels import (
    batch_statistics,
    binarize,
    norm,
    norm_pool_binarize,
    norm_triton,
    pool_triton,
    reference,
    running_statistics,
)
from kernels import pool as op
from tests import first_quick
from tests.kernels.compilation import known_job
from tests.kernels.device import DEVICE, TRITON
from tests.kernels.test_norm import (
    EPS,
    MOMENTUM,
    OF_ACTIVATIONS,
    TOLERANCE,
    agree,
    close,
    params_of,
    running,
)

SHAPES = [(3, 1, 5, 4), (2, 3, 7, 5), (2, 16, 8, 8), (4, 64, 3, 2), (3, 100, 1, 1), (2, 5, 1, 6)]
SHAPES += [(2, 160, 2, 3)]  # more channels than a tile has


def inputs(shape, dtype, seed=0):
    """Leaves on the device, by name. z is small integers, so that many of them are equal; some
    channels of weight are negative, where the least z becomes the largest y."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.rand(shape[1], generator=generator) + 0.5
    weight[1::3] *= -1
    leaves = {
        "z": torch.randint(-9, 10, shape, generator=generator).to(DEVICE, dtype),
        "weight": weight.to(DEVICE, wide),
        "bias": torch.randn(shape[1], generator=generator).to(DEVICE, wide),
    }
    return {name: leaf.requires_grad_() for name, leaf in leaves.items()}


def fused(leaves, buffers, estimator="reste", *, training, sign, relu=True):
    if training:
        z = leaves["z"].detach()
        statistics = batch_statistics(z, *buffers, momentum=MOMENTUM, eps=EPS, relu=relu)
    else:
        statistics = running_statistics(*buffers[:2], eps=EPS)
    return norm_pool_binarize(
        *(*leaves.values(), *statistics),
        params=params_of(estimator, buffers[0].dtype),
        estimator=estimator if sign else None,
        training=training,
        relu=relu,
    )


def plain(leaves, buffers, estimator="reste", *, training, sign, relu=True):
    """The same of separate modules."""
    mean, var, batches = buffers
    affine = leaves["weight"], leaves["bias"]
    u = leaves["z"].relu() if relu else leaves["z"]
    y = F.batch_norm(u, mean, var, *affine, training, MOMENTUM, EPS)
    batches += training
    x = F.max_pool2d(y, 3, stride=2, padding=1)
    return x, binarize(x, params_of(estimator, mean.dtype), estimator) if sign else x


def results(stem, leaves, *, dx=True, dxb=True, **options):
    """Every output, gradient and running statistic, by name."""
    buffers = running(leaves["z"].shape[1], leaves["z"].dtype)
    outputs = stem(leaves, buffers, **options)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(t.shape, generator=generator).to(t) for t in outputs]
    wanted = zip(outputs, grads, (dx, dxb), strict=True)
    sum((output * grad).sum() for output, grad, is_wanted in wanted if is_wanted).backward()
    named = dict(zip(("x", "xb", "mean", "var", "batches"), (*outputs, *buffers), strict=True))
    for name, leaf in leaves.items():
        named[f"d{name}"], leaf.grad = leaf.grad, None
    return named


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sign", [True, False])
def test_reference_equals_separate_modules(shape, training, sign):
    leaves = inputs(shape, torch.float64)
    options = {"training": training, "sign": sign}
    agree(results(fused, leaves, **options), results(plain, leaves, **options), 1e-11)


@pytest.mark.parametrize("where", ["reference", TRITON])
@pytest.mark.parametrize(("dx", "dxb"), [(True, False), (False, True)])
def test_one_gradient_alone(dx, dxb, where):
    leaves = inputs(SHAPES[1], torch.float32)
    wide = {k: v.detach().double().requires_grad_() for k, v in leaves.items()}
    options = {"training": True, "sign": True, "dx": dx, "dxb": dxb}
    agree(results(fused, leaves, **options), results(plain, wide, **options), 5e-5)


def kernel_cases():
    """All shapes in all dtypes, of which most are slow in the interpreter."""
    for shape, dtype in itertools.product(SHAPES, TOLERANCE):
        quick = dtype == torch.float32 and shape in SHAPES[1::2] or shape == SHAPES[1]
        yield pytest.param(shape, dtype, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize(("shape", "dtype"), [*kernel_cases()])
@pytest.mark.triton
def test_triton_equals_the_reference(shape, dtype):
    """Stage by stage on the same inputs, so that no rounding error moves a maximum on the way."""
    tolerance = TOLERANCE[dtype]
    leaves = {name: leaf.detach() for name, leaf in inputs(shape, dtype).items()}
    z, weight, bias = leaves.values()
    z, rows = norm.laid_out(z), norm.as_rows(z)
    for training, sign in itertools.product((True, False), repeat=2):
        buffers = *running(shape[1], torch.float32), MOMENTUM, EPS
        mean, rstd = reference.batch_statistics(rows, None, *buffers, True)
        y, _ = reference.norm_binarize(rows, weight, bias, mean, rstd, None, False, True)
        y = norm.as_map(y, z)
        x, index, top = reference.max_pool(y, z)
        found, signs, *place = pool_triton.launch_forward(z, weight, bias, mean, rstd, sign, True)
        close([found], [x], tolerance)
        # Of values that rounding makes equal in one of the two, either may be the maximum.
        assert place[0].dtype == torch.uint8
        assert dtype != torch.float32 or torch.equal(place[0], index)
        at = reference.positions(reference.places(place[0], z))
        close([reference.positions(y).gather(1, at)], [reference.positions(x)], tolerance)
        assert torch.equal(reference.positions(z).gather(1, at), reference.positions(place[1]))
        clear = x.abs() > tolerance * x.abs().max()
        assert signs.shape == (0,) if not sign else torch.equal(signs, reference.sign(found))
        assert not sign or torch.equal(signs[clear], reference.sign(x)[clear])
        generator = torch.Generator().manual_seed(1)
        dx, dxb = (torch.randn(x.shape, generator=generator).to(x) for _ in range(2))
        g, sums = norm_triton.launch_reduce(
            *map(norm.laid_out, (dx, dxb, x, top)), mean, rstd, params_of("reste"), "reste", True
        )
        everywhere = torch.cat([sums.flatten(), sums.new_full((1,), len(rows))])
        wide = norm.as_rows(reference.unpool(g.float(), index, z))
        fixed = weight, mean, rstd
        expected = reference.norm_binarize_apply(wide, rows, *fixed, sums, None, training, True)
        for given, counted in ((sums, False), (everywhere, True)):
            dz = pool_triton.launch_apply(g, index, z, *fixed, given, counted, training, True)
            close([norm.as_rows(dz)], [expected], tolerance)


@pytest.mark.triton
def test_triton_cuts_many_positions_into_programs(monkeypatch):
    monkeypatch.setattr(norm_triton, "PROGRAMS", 3)
    monkeypatch.setattr(norm_triton, "SPAN_TILE", 256)
    monkeypatch.setattr(pool_triton, "TILE", 128)
    leaves = inputs((3, 20, 7, 5), torch.float32)  # 36 windows in tiles of 4
    wide = {k: v.detach().double().requires_grad_() for k, v in leaves.items()}
    options = {"training": True, "sign": True}
    agree(results(fused, leaves, **options), results(plain, wide, **options), 2e-5)


def place_of(z, weight=1.0):
    """x and the places of the maxima of z (H, W), with fixed statistics that change nothing."""
    z = torch.tensor(z, device=DEVICE)[None, None]
    one, none = torch.ones(1, device=DEVICE), torch.zeros(1, device=DEVICE)
    x, _, index, top = op._pool(norm.laid_out(z), weight * one, none, none, one, False, True)
    assert torch.equal((weight * top.relu()).nan_to_num(7), x.nan_to_num(7))
    return x.flatten().tolist(), index.flatten().tolist()


@pytest.mark.parametrize("where", ["reference", TRITON])
def test_the_first_of_equal_values_is_the_maximum(where):
    inf, nan = torch.inf, torch.nan
    assert place_of([[2.0] * 4] * 4) == ([2.0] * 4, [4, 3, 1, 0])
    assert place_of([[-1.0, -2.0, -3.0]]) == ([0.0] * 2, [4, 3])  # ReLU makes them equal
    assert place_of([[1.0, 2.0, 3.0]] * 3) == ([2.0, 3.0] * 2, [5, 4, 2, 1])
    assert place_of([[1.0, 2.0, 3.0]] * 3, -1.0) == ([-1.0, -2.0] * 2, [4, 3, 1, 0])
    assert place_of([[inf] * 3] * 3, -1.0) == ([-inf] * 4, [4, 3, 1, 0])
    _, places = place_of([[1.0, nan, 3.0], [nan, 9.0, 4.0]])
    assert places == [7, 3]  # as in torch, the last NaN of all


@pytest.mark.parametrize("where", ["reference", TRITON])
def test_a_nan_goes_where_that_of_separate_modules_goes(where):
    leaves = inputs((2, 3, 6, 7), torch.float32)
    with torch.no_grad():
        leaves["z"][0, 1, 2, 2] = torch.nan
        leaves["z"][1, 1, 3, 3] = torch.nan
    for sign in (True, False):
        ours, theirs = (results(stem, leaves, training=False, sign=sign) for stem in (fused, plain))
        for name, expected in theirs.items():
            torch.testing.assert_close(ours[name], expected, equal_nan=True, rtol=1e-4, atol=1e-4)
        assert ours["x"][:, 1].isnan().sum() == 1 + 4 and ours["dz"].isnan().sum() == 2 * sign
        found = results(fused, leaves, training=True, sign=sign)
        assert found["x"][:, 1].isnan().all() and not found["x"][:, ::2].isnan().any()
        assert found["dz"][:, 1][~(leaves["z"] <= 0)[:, 1]].isnan().all()


@pytest.mark.parametrize("where", ["reference", TRITON])
@pytest.mark.parametrize("dtype", first_quick(*TOLERANCE))
def test_any_layout_of_inputs_and_gradients(dtype, where):
    leaves, options = inputs((2, 3, 4, 5), dtype), {"training": True, "sign": True}
    expected = results(fused, leaves, **options)
    z = leaves["z"].detach()
    for other in (
        z.contiguous(memory_format=torch.channels_last),
        torch.stack([z, z], -1)[..., 0],
        z.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        found = results(fused, leaves | {"z": other.requires_grad_()}, **options)
        agree(found, expected, 1e-6)
        assert found["x"].is_contiguous(memory_format=torch.channels_last)
    leaves = inputs((2, 3, 4, 5), torch.float32)
    x, _ = fused(leaves, running(3, torch.float32), training=False, sign=False)
    x.sum().backward()  # an expanded gradient
    theirs = {k: v.detach().requires_grad_() for k, v in leaves.items()}
    plain(theirs, running(3, torch.float32), training=False, sign=False)[0].sum().backward()
    torch.testing.assert_close(leaves["z"].grad, theirs["z"].grad)


@pytest.mark.parametrize("where", ["reference", TRITON])
def test_no_images_at_all(where):
    found = results(fused, inputs((0, 3, 5, 4), torch.float32), training=False, sign=True)
    assert found["x"].shape == (0, 3, 3, 2) and found["dz"].shape == (0, 3, 5, 4)
    assert found["dweight"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("where", ["reference", TRITON])
def test_one_map_and_what_is_pooled_are_kept_for_the_backward_pass(where):
    leaves, kept = inputs((2, 16, 8, 8), torch.float16), {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        fused(leaves, running(16, torch.float16), training=True, sign=True)
    size = leaves["z"].nbytes
    maps = sorted(each for each in kept.values() if each >= size // 8)
    assert maps == [size // 8, size // 4, size // 4, size]  # places, x, z there, z


@pytest.mark.parametrize("where", ["reference", TRITON])
@pytest.mark.parametrize("sign", [True, False])
def test_registration_passes_opcheck(where, sign):
    leaves = inputs((2, 3, 4, 5), torch.float32)
    statistics = batch_statistics(leaves["z"].detach(), *running(3, torch.float32))
    options = params_of("reste"), "reste" if sign else "", True, True, False
    arguments = *leaves.values(), *statistics, *options
    torch.library.opcheck(op._norm_pool_binarize, arguments, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"z": torch.ones(2, 3)}, r"z is .*floating point, \(N, C, H, W\)"),
        ({"z": torch.ones(2, 3, 4, 4, dtype=torch.int64)}, "z is torch.int64"),
        ({"weight": torch.ones(4)}, "weight is .*channels of z"),
        ({"rstd": torch.ones(3, device="meta")}, "rstd is .*meta"),
        ({"estimator": "foo"}, "foo.*unknown"),
        ({"estimator": "biper", "params": torch.ones(1)}, "'biper' is for weights"),
        ({"params": torch.ones(2)}, "params must be"),
    ],
)
def test_bad_arguments_name_themselves(change, word):
    one = torch.ones(3)
    arguments = {"z": torch.ones(2, 3, 4, 4), "weight": one, "bias": one, "mean": one, "rstd": one}
    arguments |= {"params": torch.tensor([1.0, 1.5, 0.1]), "estimator": "reste"}
    norm_pool_binarize(**arguments)
    with pytest.raises(ValueError, match=word):
        norm_pool_binarize(**arguments | change)


@pytest.mark.parametrize("estimator", OF_ACTIVATIONS)
def test_every_estimator(estimator):
    leaves = inputs(SHAPES[1], torch.float64)
    options = {"training": True, "sign": True, "estimator": estimator}
    agree(results(fused, leaves, **options), results(plain, leaves, **options), 1e-11)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("where", ["reference", TRITON])
def test_without_relu(training, where):
    dtype = torch.float64 if where == "reference" else torch.float32
    leaves = inputs(SHAPES[1], dtype)
    options = {"training": training, "sign": True, "relu": False}
    tolerance = 1e-11 if where == "reference" else 1e-5
    agree(results(fused, leaves, **options), results(plain, leaves, **options), tolerance)


def gpu_jobs(types):
    sizes = dict.fromkeys(("positions", "rows", "channels", "height", "width"), "i32")
    vectors = dict.fromkeys(("weight_ptr", "bias_ptr", "mean_ptr", "rstd_ptr", "sums_ptr"), "*fp32")
    known = {**sizes, **vectors, "index_ptr": "*u8"}
    known |= {"RELU": True, "BLOCK_C": 64, "BLOCK_M": pool_triton.TILE // 64}
    jobs = []
    for t in types:
        maps = {f"{name}_ptr": t for name in ("z", "x", "xb", "top", "g", "dz")}
        jobs.append(known_job(pool_triton._forward_kernel, known | maps))
        for counted, training in ((True, True), (False, True), (False, False)):
            options = {"COUNTED": counted, "TRAINING": training}
            jobs.append(known_job(pool_triton._backward_kernel, known | maps | options))
    return jobs


def test_compiles_for_the_gpus_we_support(usages):
    assert [usage for usage in usages if usage.spilled] == []


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(64, 64, 112, 112), (16, 100, 57, 31)])
def test_on_the_gpu_large_maps_agree_with_separate_modules(shape):
    leaves = inputs(shape, torch.float32)
    wide = {k: v.detach().double().requires_grad_() for k, v in leaves.items()}
    options = {"training": True, "sign": True}
    ours, theirs = results(fused, leaves, **options), results(plain, wide, **options)
    for name in ("x", "mean", "var", "dweight", "dbias"):
        error = (ours[name].double() - theirs[name]).norm() / theirs[name].norm()
        assert error < 1e-4, (name, error)
    again = results(fused, leaves, **options)
    assert all(torch.equal(again[name], ours[name]) for name in ours)  # no atomics: the same bits
