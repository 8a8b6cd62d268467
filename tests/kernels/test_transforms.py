"""The transforms of weights: their equations in float64, and how they reach the kernels."""

import math
import pkgutil

import numpy as np
import pytest
import torch

from kernels import ESTIMATORS, TRANSFORMS, binarize_weights, get_transform, joined, transforms
from kernels import weights as op
from kernels.transforms import register
from tests.kernels.device import DEVICE, TRITON

every_transform = pytest.mark.parametrize("name", TRANSFORMS)


def params_of(name, progress=0.7, dtype=torch.float64):
    return torch.tensor(TRANSFORMS[name].schedule(progress), dtype=dtype)


def weight(seed=0, shape=(4, 3, 3, 3)):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.1 + 0.03
    return w.to(memory_format=torch.channels_last).requires_grad_()


def by_hand(name, w):
    """u of the papers' equations, one channel after the other."""
    rows = []
    for row in w.detach().reshape(len(w), -1).numpy():
        centred = row - row.mean()
        variance = (centred**2).sum() / (len(row) - 1)
        if name == "irnet":
            rows.append(centred / math.sqrt(variance))
        else:
            rows.append(centred / (math.sqrt(variance + 1e-5) / (2 * math.sqrt(2))))
    return np.stack(rows)


def slopes(name, w, g, clamp=math.inf, step=1e-6):
    """The gradient of sum(g clamp(u)) by differences, with the clamp where it is for w itself."""

    def total(changed):
        return (g * np.clip(by_hand(name, changed), -clamp, clamp)).sum()

    found = torch.zeros_like(w)
    for at in range(w.numel()):
        near = [w.detach().clone(), w.detach().clone()]
        for each, sign in zip(near, (1, -1), strict=True):
            each.view(-1)[at] += sign * step
        found.view(-1)[at] = (total(near[0]) - total(near[1])) / (2 * step)
    return found


def test_every_file_is_registered_under_its_name():
    files = {module.name for module in pkgutil.iter_modules(transforms.__path__)}
    assert files - {"transform"} == {*TRANSFORMS}
    assert all(name == each.name and each.source for name, each in TRANSFORMS.items())
    with pytest.raises(ValueError, match="'irnet' exists"):
        register(TRANSFORMS["irnet"])
    with pytest.raises(ValueError, match="'foo' is unknown; choose one of irnet, recu"):
        get_transform("foo")


@every_transform
@pytest.mark.parametrize("progress", [0.0, 0.7, 1.0])
def test_values_and_gradients_are_those_of_the_equation(name, progress):
    w = weight().detach().contiguous().requires_grad_()
    g = np.random.default_rng(0).normal(size=(4, 27))
    u = TRANSFORMS[name].apply(w, params_of(name, progress))
    expected = by_hand(name, w)
    np.testing.assert_allclose(u.detach().reshape(4, -1), expected, rtol=1e-12, atol=1e-12)
    u.backward(torch.from_numpy(g).view_as(u))
    clamp = math.inf
    if name == "recu":
        tau = 0.85 + 0.14 * (math.exp(progress) - 1) / (math.e - 1)
        clamp = -np.abs(expected).mean() * math.log(2 - 2 * tau)
        beyond = (np.abs(expected) > clamp).sum()
        assert beyond > 0 if progress == 0 else beyond >= 0
    torch.testing.assert_close(w.grad, slopes(name, w, g, clamp), rtol=1e-6, atol=1e-6)


def test_the_clamp_of_recu_is_the_quantile_of_a_laplace_distribution():
    """The share tau of |u| lies within it, and no gradient comes from beyond."""
    generator = np.random.default_rng(0)
    w = torch.from_numpy(generator.laplace(size=(2, 1000, 3, 3))).requires_grad_()
    for progress, tau in ((0.0, 0.85), (1.0, 0.99)):
        params = params_of("recu", progress)
        assert params.item() == pytest.approx(tau)
        u = TRANSFORMS["recu"].apply(w, params)
        (inner,) = torch.autograd.grad(u.sum(), u, retain_graph=True)
        assert inner.eq(1).all()
        q = -u.abs().mean() * math.log(2 - 2 * tau)
        # P(u < q) = 1 - exp(-q / b) / 2 with b = mean |u|.
        assert (u < q).double().mean().item() == pytest.approx(tau, abs=0.01)


@every_transform
def test_progress_moves_the_gradient_alone(name):
    """So that a scale at the end of an epoch is that of any other evaluation of the weights."""
    w = weight()
    first, last = (TRANSFORMS[name].apply(w, params_of(name, p)) for p in (0.0, 1.0))
    torch.testing.assert_close(first, last, rtol=1e-14, atol=1e-14)
    assert torch.equal(first < 0, last < 0)


def test_joined_weights_lie_in_one_tensor():
    weights = [weight(1), weight(2, (2, 5, 1, 1)), weight(3, (8, 4, 3, 3)).contiguous()]
    parts = joined(weights)
    for part, each in zip(parts, weights, strict=True):
        assert torch.equal(part, each) and part.is_contiguous(memory_format=torch.channels_last)
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
    sum(part.square().sum() for part in parts).backward()
    for each in weights[:2]:
        torch.testing.assert_close(each.grad, 2 * each.detach())


@every_transform
@pytest.mark.parametrize("where", ["reference", TRITON])
def test_signs_of_transformed_weights(name, where):
    """Through transform, signs and scales; a new step makes no new table."""
    weights = [weight(n, (o, 16, 3, 3)).detach().float().to(DEVICE) for n, o in ((1, 4), (2, 8))]
    leaves = [each.requires_grad_() for each in weights]
    reste = torch.tensor(ESTIMATORS["reste"].schedule(0.5), device=DEVICE)
    params = params_of(name, dtype=torch.float32).to(DEVICE)
    tables = []
    for _ in range(3):
        us = [TRANSFORMS[name].apply(leaf, params) for leaf in leaves]
        signs, scales = binarize_weights(joined(us), reste)
        tables.append(op._tables.cache_info().misses)
        kept = torch.empty(100 + len(tables), device=DEVICE)  # the next ones lie elsewhere
    assert tables[1:] == tables[:1] * 2 and kept.numel()
    (sum(scales) + sum(sign.sum() for sign in signs)).backward()
    for leaf, u, sign, scale in zip(leaves, us, signs, scales, strict=True):
        assert torch.equal(sign, torch.where(u >= 0, 1.0, -1.0))
        torch.testing.assert_close(scale, u.abs().mean())
        assert leaf.grad.abs().sum() > 0
        # A transform takes the mean of a channel out, and so its gradient has none.
        means = leaf.grad.mean((1, 2, 3))
        torch.testing.assert_close(means, torch.zeros_like(means), atol=1e-4, rtol=0)
