"""The binarize op: forward, gradient, layouts, registration, and compilation without a GPU."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import kernels
from kernels import ESTIMATORS, binarize, reference
from kernels import sign as op
from tests.kernels.compilation import job, takes
from tests.kernels.device import DEVICE, DTYPES, IS_INTERPRETED

triton = pytest.importorskip("triton")
M, T = torch.tensor([0.1, 1.5]).tolist()  # as fp32 has them
EDGES = [0.0, -0.0, 1e-37, M, T, math.inf, 1.0, 0.5, 3.0, math.pi, 40.0, 6e4]
EDGES += [math.nextafter(e, d) for e in (M, T, 1.0) for d in (0.0, 9.0)]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)
# The relative error of one value that is rounded to be stored, and of what made it.
ROUNDING = {torch.float32: 2e-6, torch.float16: 1e-3}
ROUNDING[torch.bfloat16] = 8e-3 if IS_INTERPRETED else 4e-3
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def params_of(estimator, progress=0.7, dtype=torch.float32, device=DEVICE):
    return torch.tensor(ESTIMATORS[estimator].schedule(progress), dtype=dtype, device=device)


def h(x, estimator, p, activation=False):
    """The gradient factor of one number at progress ``p``, from the papers' equations."""
    a = abs(x)
    if estimator == "reste":
        o = 1 + (1 - math.cos(math.pi / 2 * p)) * 2
        if a <= 0.1:
            return 0.1 ** (1 / o) / 0.1
        return a ** ((1 - o) / o) / o if a <= 1.5 else 0.0
    if estimator == "ste":
        return float(a <= 1)
    if estimator == "approxsign":
        return max(0.0, 2 - 2 * a)
    if estimator == "ede":
        t = 1e-3 * (10 / 1e-3) ** p
        return max(1 / t, 1) * t * (1 - math.tanh(t * x) ** 2)
    if estimator == "rbnn":
        t = 10 ** (-2 + 3 * p)
        t, k = (max(t, 1), 1) if activation else (t, max(1 / t, 1))
        return k * max(0.0, math.sqrt(2) * t - t * t * a)
    if estimator == "swishsign":
        return 5 * (2 - 5 * x * math.tanh(5 * x / 2)) / (1 + math.cosh(5 * x))
    if estimator == "dsq":
        k = math.log(2 / 0.2 - 1)
        return (1 / (1 - 0.2)) * (k / 2) * (1 - math.tanh(k * x / 2) ** 2) if a <= 1 else 0.0
    if estimator == "fda":
        n = min(9 + math.floor(10 * p), 18)
        return 4 / math.pi * sum(math.cos((2 * i + 1) * x) for i in range(n + 1))
    if estimator == "biper":
        return 20 * math.cos(20 * x)
    if estimator == "exste":
        o = 10 ** (-2 + (2 + math.log10(6.3096)) * p)
        return o * math.exp(-o * a) / (1 - math.exp(-o)) if a <= 1.5 else 0.0
    raise AssertionError(f"no equation of {estimator}")


def y_of(x, estimator):
    """The sign of one number, or of its wave."""
    return 1 if (math.sin(20 * x) if estimator == "biper" else x) >= 0 else -1


@pytest.mark.parametrize("progress", [0.0, 0.7])
def test_reste_has_no_gradient_at_infinity(progress):
    x = torch.tensor([math.inf, -math.inf, 1e30])
    factor = ESTIMATORS["reste"].factor(x, params_of("reste", progress, device="cpu"))
    assert factor.tolist() == [0, 0, 0]


@every_estimator
@given(x=st.floats(-4, 4, width=32), progress=st.floats(0, 1))
@example(x=0.0, progress=1.0)
@example(x=-3.1415927410125732, progress=1.0)  # a sum of cosines in closed form is 0 / 0 near pi
def test_reference_is_the_equation(estimator, x, progress):
    entry = ESTIMATORS[estimator]
    for schedule in filter(None, (entry.schedule, entry.activation_schedule)):
        t = torch.tensor([x], dtype=torch.float64, requires_grad=True)
        y = binarize(t, torch.tensor(schedule(progress), dtype=torch.float64), estimator)
        y.backward(torch.tensor([3.0], dtype=torch.float64))
        assert y.item() == y_of(x, estimator)
        expected = 3 * h(x, estimator, progress, schedule is entry.activation_schedule)
        assert t.grad.item() == pytest.approx(expected, rel=1e-12, abs=1e-11)


@every_estimator
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_the_surrogate_has_this_derivative(estimator, progress):
    entry, params = ESTIMATORS[estimator], params_of(estimator, progress, torch.float64, "cpu")
    x = torch.linspace(-2.9, 2.9, 400, dtype=torch.float64)  # 1, 1.5 and sqrt(2) / t are not in it
    if estimator == "reste":  # whose h is linear near 0 and clipped beyond t, unlike the surrogate
        x = x[(x.abs() > 0.11) & (x.abs() < 1.49)]
    rise = entry.surrogate(x + 1e-6, params) - entry.surrogate(x - 1e-6, params)
    torch.testing.assert_close(rise / 2e-6, entry.factor(x, params), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(entry.surrogate(-x, params), -entry.surrogate(x, params))


@pytest.mark.parametrize(
    ("estimator", "options", "begin", "end"),
    [
        ("reste", {"o_end": 4.0}, (1, 1.5, 0.1), (4, 1.5, 0.1)),
        ("ste", {}, (), ()),
        ("approxsign", {}, (), ()),
        ("ede", {}, (1e-3, 1e3), (10, 1)),
        ("ede", {"ede_t_min": 0.1}, (0.1, 10), (10, 1)),
        ("rbnn", {}, (0.01, 100), (10, 1)),
        ("swishsign", {}, (5,), (5,)),
        ("swishsign", {"swishsign_b": 3.0}, (3,), (3,)),
        ("dsq", {}, (math.log(9), 1.25), (math.log(9), 1.25)),
        ("dsq", {"dsq_a": 0.5}, (math.log(3), 2), (math.log(3), 2)),
        ("fda", {}, (1, 9), (1, 18)),
        ("fda", {"fda_w": 2.0}, (2, 9), (2, 18)),
        ("biper", {}, (20,), (20,)),
        ("biper", {"biper_w0": 30.0}, (30,), (30,)),
        ("exste", {}, (0.01, 0.01 / (1 - math.exp(-0.01)), 1.5), (6.3096, 6.32110, 1.5)),
        ("exste", {"exste_o_end": 1.0}, (0.01, 1.005008, 1.5), (1, 1 / (1 - 1 / math.e), 1.5)),
    ],
)
def test_schedules_at_both_ends(estimator, options, begin, end):
    entry = ESTIMATORS[estimator]
    assert entry.schedule(0.0, **options) == pytest.approx(begin)
    assert entry.schedule(1.0, **options) == pytest.approx(end)
    defaults = {name: option.default for name, option in entry.options.items()}
    assert entry.schedule(0.6) == entry.schedule(0.6, **defaults)


def test_schedules_in_between():
    assert ESTIMATORS["ede"].schedule(0.5, ede_t_min=0.1) == pytest.approx((1, 1))
    assert ESTIMATORS["rbnn"].schedule(1 / 3) == pytest.approx((0.1, 10))
    activations = ESTIMATORS["rbnn"].activation_schedule
    for progress, t in ((0.0, 1), (0.5, 1), (1.0, 10)):
        assert activations(progress) == pytest.approx((t, 1))
    terms = [ESTIMATORS["fda"].schedule(epoch / 20)[1] for epoch in range(20)]
    assert terms == [n for n in range(9, 19) for _ in range(2)]


@pytest.mark.parametrize(
    ("estimator", "option", "value"),
    [
        ("reste", "o_end", 0.9),
        ("ede", "ede_t_min", 0.0),
        ("ede", "ede_t_min", 11.0),
        ("swishsign", "swishsign_b", 0.0),
        ("dsq", "dsq_a", 0.0),
        ("dsq", "dsq_a", 1.0),
        ("fda", "fda_w", math.nan),
        ("biper", "biper_w0", 0.0),
        ("exste", "exste_o_end", 0.0),
    ],
)
def test_bad_options_name_themselves(estimator, option, value):
    with pytest.raises(ValueError, match=option):
        ESTIMATORS[estimator].schedule(0.5, **{option: value})


def test_reste_in_numbers():
    schedule = ESTIMATORS["reste"].schedule
    assert schedule(0.5, o_end=4.0)[0] == pytest.approx(1 + (1 - math.sqrt(0.5)) * 3)
    params = torch.tensor([3.0, 1.5, 0.1])
    assert reference.binarize_backward(
        torch.ones(1), torch.zeros(1), params, "reste"
    ).item() == pytest.approx(4.6416, abs=1e-4)


def rounding(estimator, params):
    """What fp32 may lose: a share of h(0), its peak. Sums of cosines lose most."""
    peak = ESTIMATORS[estimator].factor(params.new_zeros(()), params).item()
    return (1e-5 if estimator == "fda" else 1e-6) * peak


@every_estimator
@every_dtype
@pytest.mark.parametrize("size", [1, 1023, 1025])
@pytest.mark.filterwarnings("ignore:invalid value encountered in")  # a cosine of infinity
@pytest.mark.triton
def test_triton_equals_the_reference(estimator, dtype, size):
    torch.manual_seed(size)
    x = torch.randn(size, device=DEVICE)
    edges = torch.tensor([s * e for e in EDGES for s in (1, -1)] + [math.nan], device=DEVICE)
    x[: min(size, len(edges))] = edges[:size]
    x, grad, params = x.to(dtype), torch.randn(size, device=DEVICE).to(dtype), params_of(estimator)
    torch.testing.assert_close(
        op.launch_forward(x, params, estimator),
        reference.binarize(x, params, estimator),
        rtol=0,
        atol=0,
        equal_nan=True,
    )
    torch.testing.assert_close(
        op.launch_backward(grad, x, params, estimator),
        reference.binarize_backward(grad, x, params, estimator),
        rtol=ROUNDING[dtype],
        atol=rounding(estimator, params),
        equal_nan=True,
    )


@every_estimator
@pytest.mark.parametrize("progress", [0.0, 1.0])
@pytest.mark.triton
def test_triton_and_fp32_are_near_float64(estimator, progress):
    entry = ESTIMATORS[estimator]
    points = torch.tensor([k * math.pi for k in range(-3, 4)] + [2e4])
    inner = points.nextafter(torch.zeros(()))
    x = torch.cat([torch.linspace(-4, 4, 2001), points, inner]).to(DEVICE)
    for schedule in filter(None, (entry.schedule, entry.activation_schedule)):
        params = torch.tensor(schedule(progress), device=DEVICE)
        exact = entry.factor(x.double(), params.double())
        if estimator == "fda":
            odd = 2 * torch.arange(int(params[1]) + 1, device=DEVICE) + 1
            exact = 4 / math.pi * (odd * x.double()[:, None]).cos().sum(1)
        elif estimator == "biper":
            exact = 20 * (20 * x).double().cos()  # what is rounded is the phase
        grad = torch.ones_like(x)
        for h_x in (entry.factor(x, params), op.launch_backward(grad, x, params, estimator)):
            assert (h_x - exact).abs().max() <= 2e-6 * exact.abs().max()


@pytest.mark.parametrize("estimator", ["swishsign", "fda", "biper"])
@pytest.mark.triton
def test_triton_b_and_w_stretch_x(estimator):
    """f_w(x) = f_1(w x), so h_w(x) = w h_1(w x)."""
    entry, x = ESTIMATORS[estimator], torch.linspace(-2, 2, 101, device=DEVICE)
    one, three = params_of(estimator), params_of(estimator)
    one[0], three[0] = 1, 3
    torch.testing.assert_close(entry.surrogate(x, three), entry.surrogate(3 * x, one))
    expected = 3 * entry.factor(3 * x, one)
    for h_x in (
        entry.factor(x, three),
        op.launch_backward(torch.ones_like(x), x, three, estimator),
    ):
        torch.testing.assert_close(h_x, expected, rtol=1e-5, atol=rounding(estimator, three))


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
@every_dtype
@pytest.mark.triton
def test_triton_takes_every_layout_of_x_and_of_its_gradient(dtype, layout, grad_layout):
    x = layouts()[layout].to(DEVICE, dtype)
    grad = torch.randn(x.shape, device=DEVICE, dtype=dtype)
    if grad_layout == "channels_last" and x.dim() == 4:
        grad = grad.to(memory_format=torch.channels_last)
    elif grad_layout == "expanded":
        grad = torch.randn((), device=DEVICE, dtype=dtype).expand(x.shape)
    leaf = x.detach().requires_grad_()
    y = binarize(leaf, params_of("reste"))
    y.backward(grad)
    assert torch.equal(y, reference.sign(x))
    assert y.stride() == torch.empty_like(x).stride()
    expected = reference.binarize_backward(grad, x, params_of("reste"), "reste")
    torch.testing.assert_close(leaf.grad, expected, rtol=ROUNDING[dtype], atol=1e-7)


@every_estimator
def test_nan_is_never_hidden(estimator):
    x = torch.tensor([math.nan, 1.0, -math.inf, -0.0], requires_grad=True)
    y = binarize(x, params_of(estimator, device="cpu"), estimator)
    y.backward(torch.ones(4))
    assert y[0].isnan() and x.grad[0].isnan()
    assert y[[1, 3]].tolist() == [1, 1] and x.grad[[1, 3]].isfinite().all()
    # A wave has no value at infinity; every other h is 0 there.
    assert y[2].isnan() if estimator == "biper" else y[2] == -1
    assert x.grad[2].isnan() if estimator in ("biper", "fda") else x.grad[2] == 0


@every_estimator
@pytest.mark.triton
def test_triton_registration_passes_opcheck(estimator):
    x = torch.randn(2, 3, 4, 5, device=DEVICE).to(memory_format=torch.channels_last)
    arguments = (x.requires_grad_(), params_of(estimator), estimator)
    torch.library.opcheck(op._binarize, arguments)
    x.requires_grad_(False)
    torch.library.opcheck(op._binarize_backward, (x, *arguments))


@pytest.mark.parametrize("estimator", ["reste", "fda"])
def test_one_graph_over_a_whole_schedule(estimator):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    params = params_of(estimator, device="cpu")
    compiled = torch.compile(
        lambda x: binarize(x, params, estimator) * 2, fullgraph=True, backend=backend
    )
    x = torch.randn(8, requires_grad=True)
    for epoch in range(12):
        params.copy_(params_of(estimator, epoch / 12, device="cpu"))
        x.grad = None
        compiled(x).sum().backward()
        eager = reference.binarize_backward(torch.full((8,), 2.0), x.detach(), params, estimator)
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


def gpu_jobs(types):
    jobs = []
    for t in types:
        maps = {"x_ptr": t, "y_ptr": t, "n": "i32", "BLOCK": op.BLOCK}
        wave = {"SURROGATE": ESTIMATORS["biper"].triton_surrogate, "params_ptr": "*fp32"}
        jobs += [job(op._forward_kernel, **maps, **more) for more in ({}, wave)]
        for e in ESTIMATORS.values() if t == "*fp16" else [ESTIMATORS["reste"]]:
            tensors = {"grad_ptr": t, "x_ptr": t, "params_ptr": "*fp32", "dx_ptr": t, "n": "i32"}
            constants = {"FACTOR": e.triton_factor, "BLOCK": op.BLOCK}
            jobs.append(job(op._backward_kernel, **tensors, **constants))
    return jobs


def test_compiles_for_the_gpus_we_support(usages):
    for usage in usages:
        assert usage.spilled <= (48 if takes(usage, "fda", "biper") else 0), usage


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
        atol = rounding(estimator, params)
        torch.testing.assert_close(dx, expected, rtol=2e-6, atol=atol)
