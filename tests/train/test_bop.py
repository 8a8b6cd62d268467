"""Bop: by its equations beside Adam, with loss scaling, and over a resumed training to the bit."""

import pytest
import torch

from models import build_model
from pipeline.run.config import make_config
from pipeline.train.optimizer import make_optimizer, set_learning_rate
from tests import first_quick
from tests.train.tiny import fit, make_trainer

BOP = ["optim.name=bop", "optim.lr=0.01", "optim.bop_gamma=0.25", "optim.bop_threshold=0.1"]


def make(*words, double=False):
    torch.manual_seed(0)
    model = build_model("resnet20")
    model = model.double() if double else model
    precision = "train.precision=fp64" if double else "train.precision=fp32"
    return model, make_optimizer(make_config({}, [*BOP, precision, *words], name="x"), model)


def test_latent_weights_become_their_signs():
    torch.manual_seed(0)
    before = build_model("resnet20")
    model, optimizer = make("optim.decay_norms=false")
    for name, conv in model.binary_convs().items():
        latent = before.get_submodule(name).weight
        assert torch.equal(conv.weight, torch.where(latent >= 0, 1.0, -1.0))
        assert conv.binarize.estimator == "ste"
    *others, binary = optimizer.param_groups
    assert {*binary["params"]} == {conv.weight for conv in model.binary_convs().values()}
    assert [group.get("weight_decay") for group in others] == [1e-4, 0]
    every = [each for group in optimizer.param_groups for each in group["params"]]
    assert len(every) == len({*every}) == len([*model.parameters()])
    model.set_progress(0.5)  # whose estimator has other parameters than the weights' now
    assert model(torch.randn(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("impl", ["torch_fused", "torch"])
def test_weights_flip_by_the_equation_and_the_others_are_adams(impl):
    """In float64, at half the learning rate, which halves gamma."""
    model, optimizer = make(f"optim.impl={impl}", double=True)
    binary = {*optimizer.param_groups[-1]["params"]}
    real = [each for each in model.parameters() if each not in binary]
    twins = [each.detach().clone().requires_grad_() for each in real]
    adam = torch.optim.Adam(twins, 0.005, weight_decay=1e-4)
    set_learning_rate(optimizer, 0.005)
    weights = {each: (each.detach().clone(), torch.zeros_like(each)) for each in binary}
    flips = 0
    for _ in range(10):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        for twin, each in zip(twins, real, strict=True):
            twin.grad = each.grad.clone()
        for each, (value, mean) in weights.items():
            mean = (1 - 0.125) * mean + 0.125 * each.grad
            flip = (mean.abs() > 0.1) & (mean.sign() == value.sign())
            weights[each] = torch.where(flip, -value, value), mean
            flips += int(flip.sum())
        optimizer.step()
        adam.step()
    for each, (value, mean) in weights.items():
        assert torch.equal(each, value)
        torch.testing.assert_close(optimizer.state[each]["exp_avg"], mean)
    for twin, each in zip(twins, real, strict=True):
        torch.testing.assert_close(each, twin, rtol=1e-10, atol=1e-12)
    assert flips > 1000


def test_scaled_gradients_give_the_same_and_an_overflow_leaves_no_trace():
    results = []
    for scale in (None, 1024.0):
        model, optimizer = make()
        scaler = torch.amp.GradScaler("cpu", enabled=scale is not None, init_scale=scale or 1.0)
        torch.manual_seed(1)
        images = torch.randn(4, 3, 32, 32)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(model(images).logsumexp(1).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append(model.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    means = [state["exp_avg"].clone() for state in optimizer.state.values()]
    optimizer.zero_grad()
    scaler.scale(sum(each.sum() for each in model.parameters()) * float("inf")).backward()
    scaler.step(optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for state, mean in zip(optimizer.state.values(), means, strict=True):
        assert torch.equal(state["exp_avg"], mean)


@pytest.mark.parametrize(
    "extra", first_quick([], ["optim.impl=torch"], ["optim.decay_norms=false"])
)
def test_a_resumed_training_is_the_same_to_the_bit(tmp_path, extra):
    words = [*BOP, *extra, "optim.bop_threshold=1e-6"]
    whole = fit(make_trainer(tmp_path / "a", *words), tmp_path / "a")
    begun = make_trainer(tmp_path / "b", *words)
    begun.run_epoch()
    resumed = make_trainer(tmp_path / "c", *words)
    assert resumed.restore(begun.state_dict()) == []
    fit(resumed, tmp_path / "c")
    for one, other in zip(whole.state.tensors(), resumed.state.tensors(), strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    weights = [conv.weight for conv in whole.state.model.binary_convs().values()]
    assert all(weight.abs().eq(1).all() for weight in weights)
