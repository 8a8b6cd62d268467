"""Blocks on a CPU through torch.compile: what they compute, and what happens where it fails."""

import itertools
import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from kernels import _compiled
from kernels._compiled import compiled_reference, fusible
from models.layers import Binarize, NormBinarize
from pipeline.run.config import load_config
from pipeline.train.precision import is_compiled

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.02}
PRODUCT = [(a, b) for a in (False, True) for b in (False, True)]  # with a residual, with a sign
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def block(channels, rows, dtype, *, residual, sign, training=True, bad=False):
    """Outputs, gradients and running statistics of a block on integers."""
    generator = torch.Generator().manual_seed(channels)
    norm = NormBinarize(channels, Binarize("reste") if sign else None).train(training)
    if sign:
        norm.binarize.params.copy_(torch.tensor([2.0, 1.5, 0.1]))
    shape = (rows, channels, 4, 4)
    maps = [torch.randint(-9, 10, shape, generator=generator).to(dtype) for _ in range(4)]
    maps = [each.contiguous(memory_format=torch.channels_last) for each in maps]
    if bad:
        maps[0][1, 1, 1, 1] = torch.nan
    z, skip = maps[0].requires_grad_(), maps[1].requires_grad_()
    scale = torch.tensor(0.1, requires_grad=True)
    y, yb = norm(z, scale, residual=skip if residual else None)
    torch.autograd.backward([y, yb], maps[2:] if sign else [maps[2], maps[2]])
    gradients = z.grad, skip.grad, scale.grad, norm.weight.grad, norm.bias.grad
    return y, yb, *gradients, norm.running_mean, norm.running_var, norm.num_batches_tracked


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
@pytest.mark.parametrize(
    ("dtype", "kinds"),
    [
        (torch.float32, [(True, True)]),  # each kind takes seconds to compile
        pytest.param(torch.float32, PRODUCT, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, PRODUCT, marks=pytest.mark.slow),
    ],
)
def test_compiled_blocks_equal_the_reference(dtype, kinds):
    cases = [
        ((channels, rows, dtype), {"residual": residual, "sign": sign, "bad": bad})
        for channels, rows in ((16, 6), (24, 8), (40, 10))  # 32 divides the positions of all
        for (residual, sign), bad in itertools.product(kinds, (False, True))
    ]
    first = 2 * len(kinds)
    expected = [block(*shape, **options) for shape, options in cases]
    torch._dynamo.reset()
    counters.clear()
    with compiled_reference(True):
        found = [block(*shape, **options) for shape, options in cases[:first]]
        compiled = counters["stats"]["unique_graphs"]
        assert compiled > 0
        found += [block(*shape, **options) for shape, options in cases[first:]]
        assert counters["stats"]["unique_graphs"] == compiled  # another shape compiles nothing
    for options in ({"training": False}, {"rows": 5}):  # 32 does not divide its positions
        shape = {"channels": 16, "rows": 6, "dtype": dtype, "residual": True, "sign": True}
        with compiled_reference(True):
            found.append(block(**shape | options))
            assert _compiled._enabled.get()  # nothing failed
        expected.append(block(**shape | options))
    tolerance = TOLERANCE[dtype]
    for pair in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        torch.testing.assert_close(*pair, equal_nan=True, rtol=tolerance, atol=tolerance)


def test_without_a_compiler_it_runs_as_it_is(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no compiler\nfor long reasons")

    monkeypatch.setattr(torch, "compile", lambda function, **_: fail)
    double = fusible(lambda x: 2 * x)
    assert double(2) == 4
    with compiled_reference(True):
        with pytest.warns(UserWarning, match="no compiler$"):
            assert double(3) == 6
        assert double(4) == 8  # and says so once


def test_the_state_is_restored_on_leaving(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda x: "compiled")
    name = fusible(lambda x: "plain")
    with pytest.raises(KeyError), compiled_reference(True):
        assert name(1) == "compiled"
        with compiled_reference(False):
            assert name(1) == "plain"
        assert name(1) == "compiled"
        raise KeyError
    assert name(1) == "plain"


@pytest.mark.parametrize(
    ("overrides", "device", "expected"),
    [
        ([], CPU, True),
        ([], CUDA, False),
        (["train.compile=true"], CUDA, False),
        (["train.compile=false"], CPU, False),
        (["train.epochs=99"], CPU, False),
        (["train.epochs=99", "train.compile=true"], CPU, True),
        (["train.precision=fp64"], CPU, False),
    ],
)
def test_what_is_compiled(overrides, device, expected):
    class Images:
        images = 1000

    config = load_config("configs/cifar10_resnet20.yaml", overrides)
    assert is_compiled(config, device, Images()) is expected
