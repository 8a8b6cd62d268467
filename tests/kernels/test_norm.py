"""The fused block: against plain modules in float64, its kernels against the reference."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as hypothesis_arrays

from kernels import (
    ESTIMATORS,
    batch_statistics,
    binarize,
    norm_binarize,
    reference,
    running_statistics,
    sign,
    weights,
)
from kernels import norm as op
from kernels import norm_triton as launchers
from models.resnet_cifar import CifarResNet
from tests import first_quick
from tests.kernels.compilation import TYPES, known_job, takes
from tests.kernels.device import DEVICE, TRITON

triton = pytest.importorskip("triton")
EPS, MOMENTUM = 1e-3, 0.1  # a large eps, so that its folding shows
SHAPES = [(3, 1, 5, 4), (2, 3, 7, 5), (1, 16, 8, 8), (4, 64, 3, 3), (3, 100, 1, 1)]
SHAPES += [(2, 160, 1, 2), (2, 512, 1, 2)]  # more channels than a tile has
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 5e-2}
OF_ACTIVATIONS = [name for name, each in ESTIMATORS.items() if not each.activations]
ALL = dict.fromkeys(("relu", "scale", "residual", "sign", "training"), True)


def params_of(estimator, dtype=torch.float32):
    return torch.tensor(ESTIMATORS[estimator].schedule(0.7), dtype=dtype, device=DEVICE)


def inputs(shape, dtype, *, scale=True, residual=True, seed=0):
    """z of small integers, as binary convolutions give; leaves on the device, by name."""
    generator = torch.Generator().manual_seed(seed)
    c = shape[1]
    z = torch.randint(-20, 21, shape, generator=generator)
    leaves = {
        "z": z.to(dtype),
        "weight": torch.rand(c, generator=generator) + 0.5,
        "bias": torch.randn(c, generator=generator),
        "scale": torch.tensor(0.03) if scale else None,
        "residual": torch.randn(shape, generator=generator).to(dtype) if residual else None,
    }
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name, leaf in leaves.items():
        if leaf is not None:
            kept = dtype if name in ("z", "residual") else wide
            leaves[name] = leaf.to(DEVICE, kept).requires_grad_()
    return leaves


def running(c, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    mean, var = torch.linspace(-1, 1, c, dtype=wide), torch.linspace(0.5, 2, c, dtype=wide)
    return [t.to(DEVICE) for t in (mean, var, torch.zeros((), dtype=torch.int64))]


def fused(leaves, buffers, estimator="reste", *, relu, training, sign, params=None):
    z, scale = leaves["z"], leaves["scale"]
    if training:
        statistics = batch_statistics(
            z.detach(), *buffers, scale=scale, momentum=MOMENTUM, eps=EPS, relu=relu
        )
    else:
        statistics = running_statistics(*buffers[:2], scale=scale, eps=EPS)
    return norm_binarize(
        *(z, leaves["weight"], leaves["bias"], *statistics),
        scale=scale,
        residual=leaves["residual"],
        params=params_of(estimator, buffers[0].dtype) if params is None else params,
        estimator=estimator if sign else None,
        training=training,
        eps=EPS,
        relu=relu,
    )


def plain(leaves, buffers, estimator="reste", *, relu, training, sign):
    """The same of separate modules, the scale multiplied in."""
    u = leaves["z"].relu() if relu else leaves["z"]
    u = u if leaves["scale"] is None else u * leaves["scale"]
    mean, var, batches = buffers
    y = F.batch_norm(u, mean, var, leaves["weight"], leaves["bias"], training, MOMENTUM, EPS)
    batches += training
    y = y if leaves["residual"] is None else y + leaves["residual"]
    return y, binarize(y, params_of(estimator, mean.dtype), estimator) if sign else y


def results(block, leaves, estimator="reste", *, dy=True, dyb=True, **options):
    """Every output, gradient and running statistic, by name."""
    buffers = running(leaves["z"].shape[1], leaves["z"].dtype)
    outputs = block(leaves, buffers, estimator, **options)
    generator = torch.Generator().manual_seed(1)
    terms = []
    for output, wanted in zip(outputs, (dy, dyb), strict=True):
        grad = torch.randn(output.shape, generator=generator).to(output)
        if wanted:
            terms.append((output * grad).sum())
    sum(terms).backward()
    named = dict(zip(("y", "yb", "mean", "var", "batches"), (*outputs, *buffers), strict=True))
    for name, leaf in leaves.items():
        if leaf is not None:
            named[f"d{name}"], leaf.grad = leaf.grad, None
    return {name: value for name, value in named.items() if value is not None}


def agree(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        size = expected.double().abs().max().item() or 1
        error = (ours[name].double() - expected.double()).abs().max().item()
        assert error <= tolerance * size, (name, error, size)


@pytest.mark.parametrize("shape", [*SHAPES, (8, 5)])
@pytest.mark.parametrize("switched", [*ALL, None])
def test_reference_equals_separate_modules(shape, switched):
    options = {name: name != switched for name in ALL}
    leaves = inputs(
        shape, torch.float64, scale=options.pop("scale"), residual=options.pop("residual")
    )
    theirs = results(plain, leaves, **options)
    agree(results(fused, leaves, **options), theirs, 1e-11)


@pytest.mark.parametrize(("dy", "dyb"), [(True, False), (False, True)])
def test_one_gradient_alone(dy, dyb):
    leaves = inputs(SHAPES[1], torch.float64)
    options = {"relu": True, "training": True, "sign": True, "dy": dy, "dyb": dyb}
    theirs = results(plain, leaves, **options)
    agree(results(fused, leaves, **options), theirs, 1e-11)


def kernel_cases():
    """All shapes in all dtypes, of which most are slow in the interpreter.

    The dtypes differ in loads and stores alone, and 512 channels are more tiles than 160.
    """
    for shape, dtype in itertools.product([*SHAPES, (8, 5)], TOLERANCE):
        quick = dtype == torch.float32 and shape[1] < 512 or shape in (SHAPES[1], (8, 5))
        yield pytest.param(shape, dtype, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize(("shape", "dtype"), [*kernel_cases()])
@pytest.mark.triton
def test_triton_equals_the_reference(shape, dtype):
    """Stage by stage on the same inputs, so that no rounding error turns a sign on the way."""
    generator = torch.Generator().manual_seed(1)
    c, tolerance = shape[1], TOLERANCE[dtype]
    leaves = {k: v.detach() for k, v in inputs(shape, dtype).items()}
    z, scale = op.as_rows(leaves["z"]), leaves["scale"]
    affine = leaves["weight"], leaves["bias"]
    for training, relu, more in itertools.product((True, False), repeat=3):
        theirs, ours = running(c, torch.float32), running(c, torch.float32)
        options = scale if more else None, *theirs, MOMENTUM, EPS, relu
        statistics = reference.batch_statistics(z, *options)
        found = launchers.launch_statistics(z, options[0], *ours, MOMENTUM, EPS, relu)
        close((*found, *ours), (*statistics, *theirs), 1e-5)
        residual = op.as_rows(leaves["residual"]) if more else None
        y, yb = reference.norm_binarize(z, *affine, *statistics, residual, more, relu)
        found, signs = launchers.launch_forward(z, *affine, *statistics, residual, more, relu)
        close([found], [y], tolerance)
        clear = y.abs() > tolerance * y.abs().max()
        assert not more or torch.equal(signs[clear], yb[clear])
        dy, dyb = (torch.randn(z.shape, generator=generator).to(z) for _ in range(2))
        for grads in ((dy, dyb), (None, dyb)) if more else ((dy, None),):
            arguments = (y, z, affine[0], *statistics, params_of("reste"), "reste", training, relu)
            stages = reference.norm_binarize_reduce, reference.norm_binarize_apply
            expected = backward(*stages, *grads, *arguments)
            close(backward(launchers.launch_reduce, apply, *grads, *arguments), expected, tolerance)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [1, 5, 16, 64, 513])
@pytest.mark.triton
def test_triton_scale_gradient_equals_the_reference(channels, training):
    generator = torch.Generator().manual_seed(channels)
    sums = torch.randn(2, channels, generator=generator).to(DEVICE)
    weight, mean = torch.randn(2, channels, generator=generator).to(DEVICE)
    rstd = torch.rand(channels, generator=generator).to(DEVICE) + 0.5
    scale = torch.tensor(0.25, device=DEVICE)
    vectors = sums, weight, mean, rstd, scale
    expected = reference.scale_gradient(*(t.double() for t in vectors), training, EPS)

    def gradient(rows):
        z = torch.ones(rows, channels, device=DEVICE)
        everywhere = torch.zeros_like(sums)  # of all processes: that is not what counts
        options = everywhere, False, training, True, scale, sums, EPS
        return launchers.launch_apply(z, z, weight, mean, rstd, *options)[1]

    found = gradient(3)
    terms = weight.abs() * (rstd**2 + mean.abs() * rstd + 1) * sums.abs().sum(0)
    size = (EPS / scale**3 if training else 1 / scale) * terms.sum()
    assert found.shape == () and found.dtype == torch.float32
    assert (found - expected).abs() <= 1e-6 * size
    sums[1, channels // 2] = torch.nan
    assert gradient(3).isnan()
    assert gradient(0) == 0


def apply(*arguments):
    """``launch_apply`` without a scale."""
    *tensors, count, training, relu = arguments
    assert count is None
    options = False, training, relu, None, tensors[5], EPS
    dz, dscale = launchers.launch_apply(*tensors, *options)
    assert dscale.shape == (0,)
    return dz


def backward(reduce, apply, dy, dyb, y, z, weight, mean, rstd, params, estimator, training, relu):
    g, sums = reduce(dy, dyb, y, z, mean, rstd, params, estimator, relu)
    return g, sums, apply(g, z, weight, mean, rstd, sums, None, training, relu)


def close(ours, theirs, tolerance):
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        error = (found.double() - expected.double()).abs().max().item()
        assert error <= tolerance * expected.double().abs().max().item()


@pytest.mark.parametrize("estimator", OF_ACTIVATIONS)
@pytest.mark.triton
def test_triton_takes_every_estimator(estimator):
    leaves = inputs((2, 16, 6, 6), torch.float32)
    wide = {k: v.detach().double().requires_grad_() for k, v in leaves.items()}
    options = {"relu": True, "training": True, "sign": True}
    agree(
        results(fused, leaves, estimator, **options),
        results(plain, wide, estimator, **options),
        1e-3 if estimator == "fda" else 5e-5,
    )


@pytest.mark.triton
def test_triton_cuts_many_rows_into_programs(monkeypatch):
    monkeypatch.setattr(launchers, "PROGRAMS", 3)
    monkeypatch.setattr(launchers, "TILE", 256)
    monkeypatch.setattr(launchers, "SPAN_TILE", 256)
    leaves = inputs((5, 20, 9, 7), torch.float32)  # 315 rows in tiles of 8: uneven at the end
    wide = {k: v.detach().double().requires_grad_() for k, v in leaves.items()}
    options = {"relu": True, "training": True, "sign": True}
    agree(results(fused, leaves, **options), results(plain, wide, **options), 2e-5)


def train(images, steps):
    """Losses of a small network with every kind of block."""
    torch.manual_seed(0)
    # Eight channels or more: with fewer, oneDNN writes past the gradient of a 1x1 convolution of
    # stride 2 that is channels_last, on processors without AVX-512 (torch 2.14).
    model = CifarResNet("tiny", "1w1a", 10, "reste", widths=(8, 16), depth=1, project=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    labels = torch.arange(len(images)) % 10
    losses = []
    for step in range(steps):
        model.set_progress(step / steps)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("steps", first_quick(2, 15))
def test_triton_network_drifts_no_more_than_by_rounding(steps, monkeypatch):
    """One turned sign separates two runs for good, so the yardstick is how fast the reference
    leaves itself when its images change by 1e-7. The interpreter adds the rows of a tile one after
    the other, a GPU in a tree: small tiles keep its sums as exact as a GPU's.

    In the interpreter only, which always gives the same: of runs that differ by rounding alone,
    one in five drifts furthest."""

    def take(in_triton):
        for module in (op, sign, weights):
            monkeypatch.setattr(module, "uses_triton", lambda x: in_triton)

    monkeypatch.setattr(launchers, "SPAN_TILE", 512)
    images = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    take(in_triton=True)
    ours = train(images, steps)
    take(in_triton=False)
    expected = train(images, steps)
    noise = [torch.randn_like(images) * 1e-7 for _ in range(4)]
    drifts = torch.stack([(train(images + n, steps) - expected).abs() for n in noise])
    yardstick = drifts.cummax(1).values.max(0).values  # so far, over four perturbations
    assert ours[0] == pytest.approx(expected[0].item(), rel=1e-6)
    assert ((ours - expected).abs() <= yardstick + 1e-6).all()


@given(
    z=hypothesis_arrays(np.float64, (4, 2), elements=st.floats(-50, 50)),
    factor=st.floats(0.1, 10),
    shift=st.floats(-50, 50),
)
def test_batch_norm_takes_scale_and_shift_out(z, factor, shift):
    z = torch.from_numpy(z) + torch.arange(4.0, dtype=torch.float64)[:, None] * 7  # no constant
    one = torch.ones(2, dtype=torch.float64)

    def norm(u):
        statistics = batch_statistics(u, *running(2, torch.float64), eps=0.0, relu=False)
        return norm_binarize(u, one, 0 * one, *statistics, eps=0.0, relu=False)[0]

    torch.testing.assert_close(norm(z * factor + shift), norm(z), rtol=1e-8, atol=1e-8)
    y = norm(z)
    torch.testing.assert_close(y.mean(0), 0 * one, rtol=0, atol=1e-9)
    torch.testing.assert_close(y.square().mean(0), one, rtol=1e-9, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_reference_agrees_with_finite_differences(training):
    """Where it is smooth: without the sign, away from ReLU's corner."""
    leaves = inputs((3, 2, 3, 3), torch.float64)
    buffers = running(2, torch.float64)
    with torch.no_grad():
        leaves["z"][leaves["z"] == 0] = 5.0

    def block(z, weight, bias, scale, residual):
        values = (z, weight, bias, scale, residual)
        names = dict(zip(leaves, values, strict=True))
        copies = [b.clone() for b in buffers]
        return fused(names, copies, relu=True, training=training, sign=False)[0]

    assert torch.autograd.gradcheck(block, tuple(leaves.values()), atol=1e-6)


@pytest.mark.parametrize("where", ["reference", TRITON])
@pytest.mark.parametrize(("mean", "std"), [(1e4, 1.0), (-3e3, 0.1), (0.0, 1e-6)])
def test_statistics_are_sound(where, mean, std):
    z = (torch.randn(64, 3, 16, 16, dtype=torch.float64) * std + mean).float().to(DEVICE)
    found, rstd = batch_statistics(z, *running(3, torch.float32), eps=0.0, relu=False)
    var, expected = torch.var_mean(z.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(found.double(), expected, rtol=2e-7, atol=1e-9)
    torch.testing.assert_close(rstd.double(), var.rsqrt(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("where", ["reference", TRITON])
@pytest.mark.parametrize("dtype", first_quick(*TOLERANCE))
def test_any_layout_of_inputs_and_gradients(dtype, where):
    options = {"relu": True, "training": True, "sign": True}
    leaves = inputs((2, 3, 4, 5), dtype)
    expected = results(fused, leaves, **options)
    for layout in ("contiguous", "sliced", "transposed"):
        other = dict(leaves)
        for name in ("z", "residual"):
            t = leaves[name].detach()
            if layout == "sliced":
                t = torch.stack([t, t], -1)[..., 0]
            elif layout == "transposed":
                t = t.transpose(2, 3).contiguous().transpose(2, 3)
            other[name] = t.requires_grad_()
        found = results(fused, other, **options)
        agree(found, expected, 1e-6)
        assert found["y"].is_contiguous(memory_format=torch.channels_last)
    mean, rstd = batch_statistics(leaves["z"], *running(3, dtype))
    y, _ = norm_binarize(leaves["z"], leaves["weight"], leaves["bias"], mean, rstd)
    y.sum().backward()  # an expanded gradient
    assert leaves["z"].grad.abs().max() < 1e-4  # batch norm takes constants out


@pytest.mark.parametrize("where", ["reference", TRITON])
def test_nan_is_never_hidden(where):
    leaves = inputs((2, 3, 4, 4), torch.float32)
    with torch.no_grad():
        leaves["z"][0, 1, 2, 2] = torch.nan
    found = results(fused, leaves, relu=True, training=True, sign=True)
    open_relu = ~(leaves["z"] <= 0)  # where dz is 0 whatever comes
    for name, at in {"y": ..., "yb": ..., "dz": open_relu[:, 1]}.items():
        assert found[name][:, 1][at].isnan().all() and not found[name][:, ::2].isnan().any(), name
    assert found["mean"].isnan().tolist() == [False, True, False]
    assert found["var"].isnan().tolist() == [False, True, False]
    assert found["dweight"][1].isnan() and found["dscale"].isnan()


def test_two_maps_are_kept_for_the_backward_pass():
    leaves, kept = inputs((2, 16, 8, 8), torch.float16), {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        fused(leaves, running(16, torch.float16), relu=True, training=True, sign=True)
    maps = [size for size in kept.values() if size >= leaves["z"].nbytes]
    assert maps == [leaves["z"].nbytes] * 2  # z and y


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (1, 4)])
def test_a_single_value_per_channel_is_refused(shape):
    z, buffers = torch.ones(shape, device=DEVICE), running(4, torch.float32)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_statistics(z, *buffers)
    assert buffers[2] == 0
    mean, rstd = running_statistics(*buffers[:2])
    assert norm_binarize(z, *buffers[:2], mean, rstd, training=False)[0].isfinite().all()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"z": torch.ones(2, 3, 4)}, r"z is .*\(N, C\) or \(N, C, H, W\)"),
        ({"z": torch.ones(2, 3, 4, 4, dtype=torch.int64)}, "z is torch.int64"),
        ({"weight": torch.ones(4)}, "weight is .*channels of z"),
        ({"bias": torch.ones(3, 1)}, "bias is"),
        ({"mean": torch.ones(3, device="meta")}, "mean is .*meta"),
        ({"rstd": torch.ones(3, dtype=torch.int32)}, "rstd is torch.int32"),
        ({"scale": torch.ones(3)}, "scale is .*0-dim"),
        ({"residual": torch.ones(2, 3, 4, 1)}, "residual is .*shape and device of z"),
        ({"residual": torch.ones(2, 3, 4, 4, device="meta")}, "residual is"),
        ({"estimator": "foo"}, "foo.*unknown"),
        ({"estimator": "biper", "params": torch.ones(1)}, "'biper' is for weights"),
        ({"params": torch.ones(2)}, "params must be"),
        ({"params": torch.ones(3, device="meta")}, "params is on meta"),
    ],
)
def test_bad_arguments_name_themselves(change, word):
    one = torch.ones(3)
    arguments = {"z": torch.ones(2, 3, 4, 4), "weight": one, "bias": one, "mean": one, "rstd": one}
    arguments |= {"params": torch.tensor([1.0, 1.5, 0.1]), "estimator": "reste"}
    norm_binarize(**arguments)
    with pytest.raises(ValueError, match=word):
        norm_binarize(**arguments | change)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"running_mean": torch.ones(4)}, "running_mean is"),
        ({"running_var": torch.ones(3, device="meta")}, "running_var is"),
        ({"scale": torch.ones(1)}, "scale is"),
        ({"z": torch.ones(0, 3, 4, 4)}, "more than 1 value"),
    ],
)
def test_bad_statistics_name_themselves(change, word):
    arguments = {"z": torch.ones(2, 3, 4, 4), "running_mean": torch.ones(3)}
    arguments |= {"running_var": torch.ones(3), "num_batches_tracked": torch.tensor(0)}
    with pytest.raises(ValueError, match=word):
        batch_statistics(**arguments | change)


@pytest.mark.parametrize("where", ["reference", TRITON])
def test_no_images_at_all(where):
    leaves = inputs((0, 3, 4, 4), torch.float32)
    found = results(fused, leaves, relu=True, training=False, sign=True)
    assert found["y"].shape == found["dz"].shape == (0, 3, 4, 4)
    assert found["dweight"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("where", ["reference", TRITON])
@pytest.mark.parametrize("sign", [True, False])
def test_registration_passes_opcheck(where, sign):
    leaves = inputs((2, 3, 4, 5), torch.float32)
    buffers = running(3, torch.float32)
    z, scale = leaves["z"], leaves["scale"]
    torch.library.opcheck(
        op._batch_statistics, (z.detach(), scale.detach(), *buffers, MOMENTUM, EPS, True, False)
    )
    statistics = batch_statistics(z.detach(), *buffers, scale=scale)
    arguments = (z, leaves["weight"], leaves["bias"], *statistics, scale, leaves["residual"])
    options = (params_of("reste"), "reste" if sign else "", True, EPS, True, False)
    torch.library.opcheck(op._norm_binarize, (*arguments, *options), atol=1e-5, rtol=1e-5)


def gpu_jobs(types):
    sizes = dict.fromkeys(("positions", "rows", "channels", "span"), "i32")
    sizes |= {"RELU": True, "BLOCK_C": 64}
    small = {**sizes, "BLOCK_M": launchers.TILE // 64}
    large = {**sizes, "BLOCK_M": launchers.SPAN_TILE // 64, "num_warps": 8}
    names = "weight bias mean rstd params sums own_sums dscale scale running_mean running_var "
    names += "means squares partial_g partial_gx"
    vectors = {f"{name}_ptr": "*fp32" for name in names.split()} | {"arrivals_ptr": "*i32"}
    vectors |= {"batches_ptr": "*i64", "eps": "fp32", "momentum": "fp32"}
    finish = {**vectors, "channels": "i32", "BLOCK_C": launchers.FINISH, "sums_ptr": "*fp64"}
    jobs = [known_job(launchers._finish_kernel, finish)]
    for t in types:
        maps = {f"{n}_ptr": t for n in ("z", "y", "yb", "residual", "dy", "dyb", "g", "dz")}
        known = {**vectors, **maps}
        for sums in (None, "*fp64"):
            every = {**known, **large, "sums_ptr": sums}
            jobs.append(known_job(launchers._statistics_kernel, every))
        jobs.append(known_job(launchers._forward_kernel, known | small))
        for counted, training in ((True, True), (False, True), (False, False)):
            options = {"COUNTED": counted, "TRAINING": training, "ALL_C": 64}
            # The scale's gradient is code of its own, whatever the maps are.
            for scale in ({}, {"scale_ptr": None})[: 2 if t == "*fp16" else 1]:
                jobs.append(known_job(launchers._backward_kernel, known | small | options | scale))
        for name in OF_ACTIVATIONS if (t, types) == ("*fp16", TYPES) else ["reste"]:
            more = {"FACTOR": ESTIMATORS[name].triton_factor, "packed_ptr": "*fp32"}
            jobs.append(known_job(launchers._reduce_kernel, known | large | more))
    return jobs


def test_compiles_for_the_gpus_we_support(usages):
    for usage in usages:  # the assemblers of Triton 3.6 and 3.8 spill a few registers
        assert usage.spilled <= (48 if takes(usage, "fda") else 24), usage


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_on_the_gpu_a_captured_graph_gives_the_same(dtype):
    leaves = inputs((8, 64, 14, 14), dtype)
    options = {"relu": True, "training": True, "sign": True}
    buffers = running(64, dtype)
    grads = [torch.randn_like(leaves["z"]) for _ in range(2)]
    wanted = [leaf for leaf in leaves.values() if leaf is not None]
    params = params_of("reste", buffers[0].dtype)  # a capture cannot copy them from the host

    def step():
        outputs = fused(leaves, buffers, params=params, **options)
        return *outputs, *torch.autograd.grad(outputs, wanted, grads)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles before the capture
        expected = [t.clone() for t in step()]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    for ours, theirs in zip(captured, expected, strict=True):
        assert torch.equal(ours, theirs)  # no atomics: the same bits


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(64, 64, 56, 56), (256, 16, 32, 32), (64, 100, 7, 7)])
def test_on_the_gpu_large_maps_agree_with_separate_modules(shape):
    leaves = inputs(shape, torch.float32)
    wide = {k: v.detach().double().requires_grad_() for k, v in leaves.items()}
    options = {"relu": True, "training": True, "sign": True}
    ours, theirs = results(fused, leaves, **options), results(plain, wide, **options)
    for name in ("y", "mean", "var", "dweight", "dbias"):
        error = (ours[name].double() - theirs[name]).norm() / theirs[name].norm()
        assert error < 1e-4, (name, error)
