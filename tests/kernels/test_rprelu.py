"""ReActNet's fused block: against plain modules in float64, its kernels against the reference."""

import pytest
import torch
import torch.nn.functional as F

from kernels import (
    ESTIMATORS,
    batch_statistics,
    binarize,
    norm_prelu_binarize,
    running_statistics,
)
from kernels import rprelu as op
from kernels import rprelu_triton as launchers
from tests.kernels.compilation import TYPES, known_job, takes
from tests.kernels.device import DEVICE, TRITON
from tests.kernels.test_norm import (
    EPS,
    MOMENTUM,
    OF_ACTIVATIONS,
    TOLERANCE,
    agree,
    params_of,
    results,
    running,
)

SHAPES = [(3, 1, 5, 4), (2, 3, 7, 5), (1, 16, 8, 8), (4, 64, 3, 3), (3, 100, 1, 1), (2, 160, 1, 2)]
VECTORS = "weight", "bias", "slope", "shift", "offset"


def inputs(shape, dtype, *, scale=True, seed=0):
    """z of small integers, as binary convolutions give, and slopes of either sign; leaves on the
    device, by name."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = {"z": torch.randint(-20, 21, shape, generator=generator).to(DEVICE, dtype)}
    leaves["residual"] = torch.randn(shape, generator=generator).to(DEVICE, dtype)
    for name in VECTORS:
        leaves[name] = (torch.randn(shape[1], generator=generator) * 0.4).to(DEVICE, wide)
    leaves["weight"] += 1
    leaves["scale"] = torch.tensor(0.03, dtype=wide, device=DEVICE) if scale else None
    return {name: leaf if leaf is None else leaf.requires_grad_() for name, leaf in leaves.items()}


def fused(leaves, buffers, estimator="reste", *, training, sign):
    z, scale = leaves["z"], leaves["scale"]
    if training:
        options = {"scale": scale, "momentum": MOMENTUM, "eps": EPS, "relu": False}
        statistics = batch_statistics(z.detach(), *buffers, **options)
    else:
        statistics = running_statistics(*buffers[:2], scale=scale, eps=EPS)
    return norm_prelu_binarize(
        *(z, leaves["weight"], leaves["bias"], *statistics),
        *(leaves["residual"], leaves["slope"], leaves["shift"]),
        offset=leaves["offset"] if sign else None,
        scale=scale,
        params=params_of(estimator, buffers[0].dtype),
        estimator=estimator if sign else None,
        training=training,
        eps=EPS,
    )


def plain(leaves, buffers, estimator="reste", *, training, sign):
    """The same of separate modules, the scale multiplied in."""
    z = leaves["z"] if leaves["scale"] is None else leaves["z"] * leaves["scale"]
    mean, var, batches = buffers
    v = F.batch_norm(z, mean, var, leaves["weight"], leaves["bias"], training, MOMENTUM, EPS)
    batches += training
    y = F.prelu(v + leaves["residual"], leaves["slope"]) + leaves["shift"].view(-1, 1, 1)
    if not sign:
        return y, y
    x = y + leaves["offset"].view(-1, 1, 1)
    return y, binarize(x, params_of(estimator, mean.dtype), estimator)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("sign", [True, False])
def test_reference_equals_separate_modules(shape, training, scale, sign):
    leaves = inputs(shape, torch.float64, scale=scale)
    options = {"training": training, "sign": sign}
    agree(results(fused, leaves, **options), results(plain, leaves, **options), 1e-9)


@pytest.mark.parametrize(("dy", "dyb"), [(True, False), (False, True)])
@pytest.mark.parametrize("where", ["reference", TRITON])
def test_one_of_two_gradients(dy, dyb, where):
    leaves = inputs((2, 5, 6, 4), torch.float32)
    wide = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    options = {"training": True, "sign": True, "dy": dy, "dyb": dyb}
    found, expected = results(fused, leaves, **options), results(plain, wide, **options)
    if dyb is False:  # plain modules leave what has no gradient without one
        assert not found.pop("doffset").any() and expected.pop("doffset", None) is None
    agree(found, expected, 2e-5)


@pytest.mark.parametrize("training", [True, False])
def test_reference_agrees_with_finite_differences(training):
    """Where it is smooth: without the sign, away from the corner of PReLU."""
    leaves = inputs((3, 2, 3, 3), torch.float64)
    del leaves["offset"]
    buffers = running(2, torch.float64)

    def block(*values):
        copies = [each.clone() for each in buffers]
        named = dict(zip(leaves, values, strict=True)) | {"offset": None}
        return fused(named, copies, training=training, sign=False)[0]

    assert torch.autograd.gradcheck(block, tuple(leaves.values()), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("training", "sign"), [(True, True), (True, False), (False, True)])
@pytest.mark.triton
def test_triton_equals_the_reference(shape, dtype, training, sign, monkeypatch):
    leaves = inputs(shape, dtype)
    options = {"training": training, "sign": sign}
    found = results(fused, leaves, **options)
    for module in ("norm", "rprelu"):
        monkeypatch.setattr(f"kernels.{module}.uses_triton", lambda x: False)
    expected = results(fused, leaves, **options)
    if sign:  # rounding may move what lies next to 0 across it
        x = expected["y"].float() + leaves["offset"].view(-1, 1, 1)
        clear = x.abs() > TOLERANCE[dtype] * x.abs().max()
        assert torch.equal(found.pop("yb")[clear], expected.pop("yb")[clear])
    agree(found, expected, 4 * TOLERANCE[dtype])
    assert found["y"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("estimator", OF_ACTIVATIONS)
@pytest.mark.triton
def test_triton_takes_every_estimator(estimator):
    leaves = inputs((2, 16, 6, 6), torch.float32)
    wide = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    options = {"training": True, "sign": True}
    ours = results(fused, leaves, estimator, **options)
    agree(ours, results(plain, wide, estimator, **options), 1e-3 if estimator == "fda" else 1e-4)


@pytest.mark.triton
def test_triton_cuts_many_rows_into_programs(monkeypatch):
    monkeypatch.setattr("kernels.norm_triton.PROGRAMS", 3)
    monkeypatch.setattr(launchers, "TILE", 256)
    monkeypatch.setattr(launchers, "SPAN_TILE", 256)
    leaves = inputs((5, 20, 9, 7), torch.float32)  # 315 rows in tiles of 8: uneven at the end
    wide = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    options = {"training": True, "sign": True}
    agree(results(fused, leaves, **options), results(plain, wide, **options), 2e-5)


@pytest.mark.parametrize("where", ["reference", TRITON])
def test_nan_is_never_hidden(where):
    leaves = inputs((2, 3, 4, 4), torch.float32)
    with torch.no_grad():
        leaves["z"][0, 1, 2, 2] = torch.nan
    found = results(fused, leaves, training=True, sign=True)
    for name in ("y", "yb", "dz", "dresidual"):
        assert found[name][:, 1].isnan().all() and not found[name][:, ::2].isnan().any(), name
    for name in ("mean", "var", "dweight", "dbias", "dslope", "dshift", "doffset"):
        assert found[name].isnan().tolist() == [False, True, False], name
    assert found["dscale"].isnan()


@pytest.mark.parametrize("where", ["reference", TRITON])
@pytest.mark.parametrize("sign", [True, False])
def test_registration_passes_opcheck(where, sign):
    leaves = inputs((2, 3, 4, 5), torch.float32)
    statistics = running_statistics(*running(3, torch.float32)[:2])
    offset, estimator = (leaves["offset"], "reste") if sign else (None, "")
    learned = leaves["slope"], leaves["shift"], offset, leaves["scale"], params_of("reste")
    arguments = leaves["z"], leaves["weight"], leaves["bias"], *statistics, leaves["residual"]
    every = (*arguments, *learned, estimator, True, EPS, False)
    torch.library.opcheck(op._op, every, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("where", ["reference", TRITON])
def test_no_images_at_all(where):
    found = results(fused, inputs((0, 3, 4, 4), torch.float32), training=False, sign=True)
    assert found["y"].shape == found["dz"].shape == (0, 3, 4, 4)
    assert found["dslope"].tolist() == [0, 0, 0]


def test_two_maps_are_kept_for_the_backward_pass():
    """z, and the residual, which the block before has made."""
    leaves, kept = inputs((2, 16, 8, 8), torch.float16), {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        fused(leaves, running(16, torch.float16), training=True, sign=True)
    maps = [size for size in kept.values() if size >= leaves["z"].nbytes]
    assert maps == [leaves["z"].nbytes] * 2


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"z": torch.ones(2, 3)}, r"z is .*\(N, C, H, W\)"),
        ({"slope": torch.ones(4)}, "slope is .*channels of z"),
        ({"offset": torch.ones(3, 1)}, "offset is"),
        ({"offset": None}, "offset goes with an estimator"),
        ({"residual": torch.ones(2, 3, 4, 1)}, "residual is .*shape and device of z"),
        ({"estimator": "biper", "params": torch.ones(1)}, "'biper' is for weights"),
    ],
)
def test_bad_arguments_name_themselves(change, word):
    one, map_ = torch.ones(3), torch.ones(2, 3, 4, 4)
    names = "weight", "bias", "mean", "rstd", "slope", "shift", "offset"
    arguments = {"z": map_, "residual": map_, **dict.fromkeys(names, one)}
    arguments |= {"params": torch.tensor([1.0, 1.5, 0.1]), "estimator": "reste"}
    norm_prelu_binarize(**arguments)
    with pytest.raises(ValueError, match=word):
        norm_prelu_binarize(**arguments | change)


def gpu_jobs(types):
    names = "weight bias mean rstd slope shift offset params partials sums"
    known = {f"{name}_ptr": "*fp32" for name in names.split()} | {"arrivals_ptr": "*i32"}
    known |= dict.fromkeys(("rows", "channels", "span"), "i32") | {"BLOCK_C": 64}
    jobs = []
    for t in types:
        maps = {f"{name}_ptr": t for name in ("z", "residual", "y", "yb", "dy", "dyb", "g")}
        every = known | maps
        jobs.append(known_job(launchers._forward_kernel, every | {"BLOCK_M": launchers.TILE // 64}))
        large = {"BLOCK_M": launchers.SPAN_TILE // 64, "num_warps": 8}
        for name in OF_ACTIVATIONS if (t, types) == ("*fp16", TYPES) else ["reste"]:
            more = {**large, "FACTOR": ESTIMATORS[name].triton_factor}
            jobs.append(known_job(launchers._reduce_kernel, every | more))
        jobs.append(known_job(launchers._reduce_kernel, every | large | {"dyb_ptr": None}))
    return jobs


def test_compiles_for_the_gpus_we_support(usages):
    for usage in usages:  # the assembler of Triton 3.8 spills a few registers
        assert usage.spilled <= (48 if takes(usage, "fda") else 16), usage
