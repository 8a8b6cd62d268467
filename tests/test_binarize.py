"""The binarize op: forward, gradient, layouts, registration, and compilation without a GPU."""

import importlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernels
from kernels import ESTIMATORS, binarize, reference
from tests.compilation import TYPES, compile_jobs, job

op = importlib.import_module("kernels.binarize")
triton = pytest.importorskip("triton")
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"  # without a GPU the kernels run in Triton's interpreter
M, T = torch.tensor([0.1, 1.5]).tolist()  # as fp32 has them
EDGES = [0.0, -0.0, 1e-37, M, T, math.inf, 1.0, 0.5, 3.0]
EDGES += [math.nextafter(e, d) for e in (M, T, 1.0) for d in (0.0, 9.0)]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


@pytest.fixture(autouse=True)
def kernels_on_this_device(monkeypatch, request):
    if "triton" in request.node.name:
        monkeypatch.setattr(op, "uses_triton", lambda x: x.dtype != torch.float64)


def params_of(estimator, progress=0.7, dtype=torch.float32, device=DEVICE):
    return torch.tensor(ESTIMATORS[estimator].schedule(progress), dtype=dtype, device=device)


def h(x, estimator, o):
    """The gradient factor of one number, from the equations."""
    a = abs(x)
    if estimator == "ste":
        return float(a <= 1)
    if a <= M:
        return M ** (1 / o) / M
    return a ** ((1 - o) / o) / o if a <= T else 0.0


@every_estimator
@given(x=st.floats(-4, 4, width=32), progress=st.floats(0, 1))
def test_reference_is_the_equation(estimator, x, progress):
    params = torch.tensor(ESTIMATORS[estimator].schedule(progress), dtype=torch.float64)
    if estimator == "reste":
        params[1:] = torch.tensor([T, M], dtype=torch.float64)
    t = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    y = binarize(t, params, estimator)
    y.backward(torch.tensor([3.0], dtype=torch.float64))
    assert y.item() == (1 if x >= 0 else -1)
    o = params[0].item() if len(params) else 1.0
    assert t.grad.item() == pytest.approx(3 * h(x, estimator, o), rel=1e-12)


def test_o_at_both_ends():
    schedule = ESTIMATORS["reste"].schedule
    assert schedule(0.0, o_end=3.0) == (1.0, 1.5, 0.1)
    assert schedule(1.0, o_end=3.0)[0] == pytest.approx(3.0)
    assert schedule(0.5, o_end=4.0)[0] == pytest.approx(1 + (1 - math.sqrt(0.5)) * 3)
    params = torch.tensor([3.0, 1.5, 0.1])
    assert reference.binarize_backward(
        torch.ones(1), torch.zeros(1), params, "reste"
    ).item() == pytest.approx(4.6416, abs=1e-4)
    with pytest.raises(ValueError, match="o_end"):
        schedule(0.5, o_end=0.9)


@every_estimator
@every_dtype
@pytest.mark.parametrize("size", [1, 1023, 1025])
def test_triton_equals_the_reference(estimator, dtype, size):
    torch.manual_seed(size)
    x = torch.randn(size, device=DEVICE)
    edges = torch.tensor([s * e for e in EDGES for s in (1, -1)] + [math.nan], device=DEVICE)
    x[: min(size, len(edges))] = edges[:size]
    x, grad, params = x.to(dtype), torch.randn(size, device=DEVICE).to(dtype), params_of(estimator)
    torch.testing.assert_close(
        op.launch_forward(x), reference.sign(x), rtol=0, atol=0, equal_nan=True
    )
    # bf16 stores truncate in the interpreter
    rtol = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3 if GPU else 8e-3}[dtype]
    torch.testing.assert_close(
        op.launch_backward(grad, x, params, estimator),
        reference.binarize_backward(grad, x, params, estimator),
        rtol=rtol,
        atol=1e-7,
        equal_nan=True,
    )


def layouts():
    x = torch.randn(2, 3, 4, 5)
    return {
        "contiguous": x,
        "channels_last": x.to(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 2),
        "sliced": torch.randn(2, 6, 4, 10)[:, ::2, :, ::2],
        "expanded": torch.randn(2, 1, 4, 5).expand(2, 3, 4, 5),
        "empty": torch.randn(0, 3, 4, 5),
        "scalar": torch.randn(()),
    }


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("grad_layout", ["contiguous", "channels_last", "expanded"])
def test_triton_takes_every_layout_of_x_and_of_its_gradient(layout, grad_layout):
    x = layouts()[layout].to(DEVICE)
    grad = torch.randn(x.shape, device=DEVICE)
    if grad_layout == "channels_last" and x.dim() == 4:
        grad = grad.to(memory_format=torch.channels_last)
    elif grad_layout == "expanded":
        grad = torch.randn((), device=DEVICE).expand(x.shape)
    leaf = x.detach().requires_grad_()
    y = binarize(leaf, params_of("reste"))
    y.backward(grad)
    assert torch.equal(y, reference.sign(x))
    assert y.stride() == torch.empty_like(x).stride()
    expected = reference.binarize_backward(grad, x, params_of("reste"), "reste")
    torch.testing.assert_close(leaf.grad, expected, rtol=2e-6, atol=1e-7)


@every_estimator
def test_nan_is_never_hidden(estimator):
    x = torch.tensor([math.nan, 1.0, -math.inf, -0.0], requires_grad=True)
    y = binarize(x, params_of(estimator, device="cpu"), estimator)
    y.backward(torch.ones(4))
    assert y[0].isnan() and x.grad[0].isnan()
    assert y[1:].tolist() == [1, -1, 1] and x.grad[1:].isfinite().all()


@every_estimator
def test_triton_registration_passes_opcheck(estimator):
    x = torch.randn(2, 3, 4, 5, device=DEVICE).to(memory_format=torch.channels_last)
    arguments = (x.requires_grad_(), params_of(estimator), estimator)
    torch.library.opcheck(op._binarize, arguments)
    x.requires_grad_(False)
    torch.library.opcheck(op._binarize_backward, (x, *arguments))


def test_one_graph_over_a_whole_schedule():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    params = params_of("reste", device="cpu")
    compiled = torch.compile(lambda x: binarize(x, params) * 2, fullgraph=True, backend=backend)
    x = torch.randn(8, requires_grad=True)
    for epoch in range(12):
        params.copy_(params_of("reste", epoch / 12, device="cpu"))
        x.grad = None
        compiled(x).sum().backward()
        eager = reference.binarize_backward(torch.full((8,), 2.0), x.detach(), params, "reste")
        torch.testing.assert_close(x.grad, eager)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("x", "params", "estimator", "word"),
    [
        (torch.ones(2), torch.ones(3), "foo", "foo"),
        (torch.ones(2, dtype=torch.int64), torch.ones(3), "reste", "floating"),
        (torch.ones(2), torch.ones(2), "reste", "params"),
        (torch.ones(2), torch.ones(3, dtype=torch.int64), "reste", "params"),
        (torch.ones(2, device="meta"), torch.ones(3), "reste", "meta"),
    ],
)
def test_bad_arguments_name_themselves(x, params, estimator, word):
    with pytest.raises(ValueError, match=word):
        kernels.binarize(x, params, estimator)


def test_compiles_for_the_gpus_we_support():
    jobs = []
    for t in TYPES:
        jobs.append(job(op._forward_kernel, x_ptr=t, y_ptr=t, n="i32", BLOCK=op.BLOCK))
        for e in ESTIMATORS.values():
            tensors = {"grad_ptr": t, "x_ptr": t, "params_ptr": "*fp32", "dx_ptr": t, "n": "i32"}
            constants = {"FACTOR": e.triton_factor, "BLOCK": op.BLOCK}
            jobs.append(job(op._backward_kernel, **tensors, **constants))
    assert [usage for usage in compile_jobs(jobs) if usage.spilled] == []


@pytest.mark.gpu
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_on_the_gpu_a_captured_graph_follows_the_schedule(estimator):
    x = torch.randn(4096, device="cuda")
    params, grad = params_of(estimator), torch.randn(4096, device="cuda")
    op._binarize_backward(grad, x, params, estimator)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        dx = op._binarize_backward(grad, x, params, estimator)
    for progress in (0.0, 0.5, 1.0):
        params.copy_(params_of(estimator, progress))
        graph.replay()
        expected = reference.binarize_backward(grad, x, params, estimator)
        torch.testing.assert_close(dx, expected, rtol=2e-6, atol=1e-7)
