"""All binary weights in one op: against autograd, its kernels against the reference."""

import itertools

import pytest
import torch

from kernels import ESTIMATORS, binarize, binarize_weights
from kernels import weights as op
from tests.kernels.compilation import job, takes
from tests.kernels.device import DEVICE, DTYPES, TRITON

triton = pytest.importorskip("triton")
FORMATS = [torch.channels_last, torch.contiguous_format]
SHAPES = [(1, 1, 1, 1), (5, 3, 3, 3), (16, 64, 2, 2), (4097, 1, 1, 1), (32, 37, 3, 3)]


def params_of(estimator, dtype=torch.float32):
    values = ESTIMATORS[estimator].schedule(0.7)
    return torch.tensor(values, dtype=dtype, device=DEVICE)


def make_weights(dtype=torch.float32, memory_format=torch.channels_last):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) * 0.3 for shape in SHAPES]
    for w in weights:
        w.view(-1)[:1] = 0  # |w| has the derivative 0 there
    return [
        w.to(DEVICE, dtype, memory_format=memory_format).requires_grad_() for w in weights
    ]  # fmt: skip


def gradients(weights, signs, scales):
    generator = torch.Generator().manual_seed(1)
    total = 0
    for sign, scale in zip(signs, scales, strict=True):
        factor = torch.randn(sign.shape, generator=generator).to(DEVICE)
        total += (sign.to(scale.dtype) * factor).sum() + scale * factor.sum()
    return torch.autograd.grad(total, weights)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_reference_equals_a_layer_at_a_time(estimator, memory_format):
    weights = make_weights(torch.float64, memory_format)
    params = params_of(estimator, torch.float64)
    signs, scales = binarize_weights(weights, params, estimator)
    one_by_one = [binarize(w, params, estimator) for w in weights]
    means = [w.abs().mean() for w in weights]
    for ours, theirs in zip((*signs, *scales), (*one_by_one, *means), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)
    expected = gradients(weights, one_by_one, means)
    for ours, theirs in zip(gradients(weights, signs, scales), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def kernel_cases():
    """All estimators in all dtypes and layouts: h has to do with neither of these."""
    for estimator, dtype, layout in itertools.product(ESTIMATORS, DTYPES, FORMATS):
        quick = estimator == "reste" or (dtype, layout) == (DTYPES[0], FORMATS[0])
        yield pytest.param(estimator, dtype, layout, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize(("estimator", "dtype", "memory_format"), [*kernel_cases()])
@pytest.mark.triton
def test_triton_equals_the_reference(estimator, dtype, memory_format, monkeypatch):
    weights, params = make_weights(memory_format=memory_format), params_of(estimator)
    signs, scales = binarize_weights(weights, params, estimator, dtype)
    found = gradients(weights, signs, scales)
    monkeypatch.setattr(op, "uses_triton", lambda x: False)
    expected_signs, expected_scales = binarize_weights(weights, params, estimator, dtype)
    expected = gradients(weights, expected_signs, expected_scales)
    for ours, theirs, w in zip(signs, expected_signs, weights, strict=True):
        assert ours.dtype == dtype and ours.shape == w.shape and torch.equal(ours, theirs)
        assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(torch.stack(scales), torch.stack(expected_scales))
    for ours, theirs in zip(found, expected, strict=True):
        peak = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * peak)


@pytest.mark.parametrize("where", ["reference", TRITON])
def test_nan_is_never_hidden(where):
    weights = make_weights()
    with torch.no_grad():
        weights[1][2, 1, 1, 1] = torch.nan
    signs, scales = binarize_weights(weights, params_of("reste"))
    assert [bool(scale.isnan()) for scale in scales] == [False, True, False, False, False]
    assert signs[1].isnan().sum() == 1 and signs[1][2, 1, 1, 1].isnan()
    grads = gradients(weights, signs, [scale.nan_to_num() for scale in scales])
    assert grads[1][2, 1, 1, 1].isnan() and not grads[0].isnan().any()


@pytest.mark.parametrize(
    ("weights", "params", "estimator", "word"),
    [
        ([], torch.ones(3), "reste", "weights is empty"),
        ([torch.ones(2, 2)], torch.ones(3), "reste", r"weights\[0\] is"),
        ([torch.ones(1, 1, 1, 1), torch.ones(0, 1, 1, 1)], torch.ones(3), "reste", r"weights\[1\]"),
        (
            [torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1).double()],
            torch.ones(3),
            "reste",
            "all of",
        ),
        ([torch.ones(1, 1, 1, 1).half()], torch.ones(3), "reste", "float16; keep them in float32"),
        ([torch.ones(1, 1, 1, 1)], torch.ones(2), "reste", "params"),
        ([torch.ones(1, 1, 1, 1)], torch.ones(3, device="meta"), "reste", "params is on meta"),
        ([torch.ones(1, 1, 1, 1)], torch.ones(3), "foo", "foo"),
    ],
)
def test_bad_arguments_name_themselves(weights, params, estimator, word):
    with pytest.raises(ValueError, match=word):
        binarize_weights(weights, params, estimator)


@pytest.mark.parametrize("where", ["reference", TRITON])
def test_registration_passes_opcheck(where):
    flat = [w.detach().reshape(-1).requires_grad_() for w in make_weights()[:3]]
    arguments = (flat, params_of("reste"), "reste", torch.float32)
    torch.library.opcheck(op._binarize_weights, arguments, atol=1e-5, rtol=1e-5)


def gpu_jobs(types):
    tables = {"weights_ptr": "*fp32", "chunks_ptr": "*i64", "layers_ptr": "*i64"}
    tables |= {"ALIGNED": True, "BLOCK": op.BLOCK}
    scales = {"partials_ptr": "*fp32", "arrivals_ptr": "*i32", "scales_ptr": "*fp32"}
    grads = {"dscale_ptrs": ["*fp32"] * 16, "params_ptr": "*fp32", "dw_ptr": "*fp32"}
    jobs = []
    for t in types:
        wave = {"SURROGATE": ESTIMATORS["biper"].triton_surrogate, "params_ptr": "*fp32"}
        for more in ({}, wave):
            jobs.append(job(op._forward_kernel, **tables, **scales, signs_ptr=t, **more))
        for estimator in ESTIMATORS.values() if t == "*fp16" else [ESTIMATORS["reste"]]:
            factor = estimator.triton_factor
            more = {**tables, **grads, "dsign_ptrs": [t] * 16, "FACTOR": factor}
            jobs.append(job(op._backward_kernel, **more))
    return jobs


def test_compiles_for_the_gpus_we_support(usages):
    for usage in usages:  # the assembler of Triton 3.6 spills a few registers
        assert usage.spilled <= (48 if takes(usage, "fda", "biper") else 16), usage


@pytest.mark.gpu
def test_on_the_gpu_a_captured_graph_follows_weights_and_schedule():
    weights, params = make_weights(), params_of("reste")
    grads = [torch.randn_like(w) for w in weights]

    def step():
        signs, scales = binarize_weights(weights, params)
        return *signs, *scales, *torch.autograd.grad(signs, weights, grads)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        params.copy_(torch.tensor(ESTIMATORS["reste"].schedule(0.9)))
        for w in weights:
            w.mul_(-0.5)
    graph.replay()
    for ours, theirs in zip(captured, step(), strict=True):
        assert torch.equal(ours, theirs)
