"""The estimators: their files, and one that is added from outside."""

import pkgutil
import re

import pytest
import torch

from kernels import ESTIMATORS, binarize, estimators, reference
from kernels.estimators import Estimator, Option, register
from models import build_model

WIDTH = Option(2.0, 0.5, 4.0, "the width of the slope")


def schedule(progress, toy_width=WIDTH.default):
    WIDTH.check("toy_width", toy_width)
    return (toy_width * (1 + progress),)


TOY = Estimator(
    name="toy",
    source="this test",
    parameters=("w",),
    schedule=schedule,
    factor=lambda x, params: x.abs().le(params[0]) / params[0],
    triton_factor=None,
    surrogate=lambda x, params: (x / params[0]).clamp(-1, 1),
    options={"toy_width": WIDTH},
)


@pytest.fixture
def toy():
    register(TOY)
    yield TOY
    del ESTIMATORS["toy"]


def test_every_file_is_registered_under_its_name_and_the_default_comes_first():
    files = {module.name for module in pkgutil.iter_modules(estimators.__path__)}
    names = [*ESTIMATORS]
    assert files - {"_sech2", "estimator"} == {*names}
    assert names == ["reste", *sorted(names[1:])]
    assert all(name == estimator.name for name, estimator in ESTIMATORS.items())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_options_bound_what_their_schedule_takes(name):
    for option, entry in ESTIMATORS[name].options.items():
        assert entry.low <= entry.default <= entry.high and entry.meaning
        for value in (entry.low, entry.high):
            assert len(ESTIMATORS[name].schedule(0.5, **{option: value}))
        limits = re.escape(f"must lie in [{entry.low:g}, {entry.high:g}]")
        for value in (entry.low - 1e-6, entry.high + 1e-6):
            with pytest.raises(ValueError, match=f"{option} is .*{limits}"):
                ESTIMATORS[name].schedule(0.5, **{option: value})


def test_one_from_outside_trains(toy):
    model = build_model("resnet20", estimator="toy", toy_width=3.0)
    model.set_progress(0.5)
    assert model.estimator_parameters() == {"w": 4.5}
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert all(conv.weight.grad.abs().sum() > 0 for conv in model.binary_convs().values())
    x = torch.tensor([-5.0, 1.0])
    grad = reference.binarize_backward(torch.ones(2), x, torch.tensor([4.5]), "toy")
    torch.testing.assert_close(grad, torch.tensor([0, 1 / 4.5]))
    with pytest.raises(ValueError, match=r"toy_width is 5.0; it must lie in \[0.5, 4\]"):
        build_model("resnet20", estimator="toy", toy_width=5.0)


def test_after_removal_it_is_unknown():
    with pytest.raises(ValueError, match="'toy' is unknown"):
        build_model("resnet20", estimator="toy")


@pytest.mark.parametrize(
    ("name", "option", "word"),
    [
        ("toy", "w", "'toy' exists"),
        ("other", "toy_width", "'toy_width'"),
        ("other", "name", "'name'"),
    ],
)
def test_a_name_that_is_taken_is_refused(toy, name, option, word):
    known = dict(ESTIMATORS)
    with pytest.raises(ValueError, match=word):
        register(Estimator(name, "", (), schedule, toy.factor, None, toy.factor, {option: WIDTH}))
    assert known == ESTIMATORS


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("o_end", [3.0, 1e6])
def test_short_instructions_are_precise_enough_for_reste(progress, o_end):
    """On a GPU the power is made of a logarithm and an exponential with an error of 2^-22 each. An
    error of the logarithm moves the factor like one of its argument."""
    reste = ESTIMATORS["reste"]
    o, t, m = reste.schedule(progress, o_end=o_end)
    a = torch.linspace(m, t, 10_001, dtype=torch.float64)
    exact = a ** ((1 - o) / o)
    for error in (-(2.0**-22), 2.0**-22):
        log = a.log2()
        log += error * log.abs().clamp(min=1)  # relative, and near log 1 = 0 absolute
        power = (log * ((1 - o) / o)).exp2() * (1 + error)
        assert ((power - exact) / exact).abs().max() < 1.1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("progress", [0.0, 0.3, 0.7, 1.0])
def test_on_the_gpu_the_power_is_precise(progress):
    x = torch.linspace(-2, 2, 100_001, device="cuda", requires_grad=True)
    params = torch.tensor(ESTIMATORS["reste"].schedule(progress), device="cuda")
    (found,) = torch.autograd.grad(binarize(x, params).sum(), x)
    exact = reference.binarize_backward(
        torch.ones_like(x).double(), x.detach().double(), params.double(), "reste"
    )
    jumps = (x.abs() - params[1:, None]).abs().min(0).values < 1e-6  # at t and at m
    assert ((found - exact).abs() <= 2e-6 * exact.abs())[~jumps].all()
