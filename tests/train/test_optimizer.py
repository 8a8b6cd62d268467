"""Steps of Adam by its formulas, which weights decay, and a state that other groups of weights can
take over."""

import pytest
import torch

from pipeline.run.config import make_config
from pipeline.train.optimizer import load_state, make_optimizer, set_learning_rate, state_of
from tests.train.tiny import CPU, make_trainer

DECAY = ["optim.weight_decay=0.5", "optim.lr=0.5"]


def make(model, *overrides):
    return make_optimizer(make_config({}, overrides, name="x"), model)


def small():
    """A network with a weight of every kind: of convolutions, norms and the classifier."""
    torch.manual_seed(0)
    norms = torch.nn.BatchNorm2d(4), torch.nn.LayerNorm(4)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), *norms, torch.nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand_like(parameter) + 1)
    return model


def step(model, optimizer, gradient=0.0):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()


def by_hand(name, values, gradients, lr=0.02, decay=0.25, beta1=0.75, beta2=0.875):
    """``values`` after a step for each of ``gradients``: algorithm 1 of Kingma & Ba, with an L2
    penalty, and algorithm 2 of Loshchilov & Hutter."""
    first, second = torch.zeros_like(values), torch.zeros_like(values)
    for t, gradient in enumerate(gradients, 1):
        if name == "adam":
            gradient = gradient + decay * values
        else:
            values = values - lr * decay * values
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        unbiased = first / (1 - beta1**t), second / (1 - beta2**t)
        values = values - lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    return values


ADAM = ["optim.beta1=0.75", "optim.beta2=0.875", "optim.weight_decay=0.25", "optim.lr=0.5"]


@pytest.mark.parametrize("impl", ["torch_fused", "torch"])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_is_that_of_the_papers(name, impl):
    """In float64, over 20 steps at a rate that was set after the optimizer was made."""
    model = small().double()
    words = [*ADAM, f"optim.name={name}", f"optim.impl={impl}", "train.precision=fp64"]
    optimizer = make(model, *words)
    set_learning_rate(optimizer, 0.02)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    gradients = [[torch.randn_like(each) for each in before] for _ in range(20)]
    for step_gradients in gradients:
        for parameter, gradient in zip(model.parameters(), step_gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    for found, value, *theirs in zip(model.parameters(), before, *gradients, strict=True):
        torch.testing.assert_close(found, by_hand(name, value, theirs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", ["torch_fused", "torch"])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_moments_lie_there_before_the_first_step(name, impl):
    """And torch goes on from them as from its own, to the bit."""
    models = small(), small()
    given = make(models[0], f"optim.name={name}", f"optim.impl={impl}")
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    fused = True if impl == "torch_fused" else None
    plain = kind(
        models[1].parameters(), torch.tensor(0.1) if fused else 0.1, weight_decay=1e-4, fused=fused
    )
    assert len(given.state) == 8 and not plain.state
    for optimizer, model in zip((given, plain), models, strict=True):
        for _ in range(3):
            step(model, optimizer, 0.5)
    for (key, mine), theirs in zip(
        models[0].named_parameters(), models[1].parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), key
        assert given.state[mine].keys() == plain.state[theirs].keys()
        for kept, expected in zip(
            given.state[mine].values(), plain.state[theirs].values(), strict=True
        ):
            assert torch.equal(kept, expected) and kept.dtype == expected.dtype


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_step_that_overflows_leaves_no_trace(name):
    """As loss scaling in fp16 finds it, in the first step."""
    model, before = small(), small().state_dict()
    optimizer, scaler = make(model, f"optim.name={name}"), torch.amp.GradScaler("cpu")
    scaler.scale(sum(each.sum() for each in model.parameters()) * float("inf")).backward()
    scaler.step(optimizer)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(each.any() for kept in optimizer.state.values() for each in kept.values())


def test_the_moments_of_classes_stand_in_their_order(tmp_path):
    run = make_trainer(tmp_path, "optim.name=adam")
    weight = run.state.model.linear.weight
    moments = run.state.optimizer.state[weight]
    moments["exp_avg"].normal_()
    before = moments["exp_avg"].clone()
    run.state._arrange([*reversed(range(10))])
    assert torch.equal(moments["exp_avg"], before.flip(0))


@pytest.mark.parametrize("impl", ["torch_fused", "torch"])
@pytest.mark.parametrize("decays", [True, False])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_norms_decay_only_where_they_should(name, impl, decays):
    """A step without gradients moves what decays, and nothing else."""
    model, before = small(), small().state_dict()
    words = [*DECAY, f"optim.name={name}", f"optim.impl={impl}", f"optim.decay_norms={decays}"]
    step(model, make(model, *words))
    for name, value in model.named_parameters():
        is_norm = name.startswith(("1.", "2."))
        left = 1.0 if is_norm and not decays else 0.75
        assert torch.equal(value, left * before[name]), name


def test_the_norms_of_a_network_are_found(tmp_path):
    run = make_trainer(tmp_path, "optim.decay_norms=false")
    decaying, left = run.state.optimizer.param_groups
    assert (decaying["weight_decay"], left["weight_decay"]) == (1e-4, 0)
    names = {parameter: name for name, parameter in run.state.model.named_parameters()}
    found = {names[parameter] for parameter in left["params"]}
    assert found == {name for name in names.values() if "bn" in name.split(".")[-2]}
    assert len(found) + len(decaying["params"]) == len(names)


def test_the_rate_is_that_of_all_groups():
    model = small()
    optimizer = make(model, "optim.decay_norms=false")
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


def test_other_groups_take_the_momentum_over():
    """A state is by the order of the parameters, whichever decay."""
    whole, parts = small(), small()
    before = make(whole), make(parts, "optim.decay_norms=false")
    for model, optimizer in zip((whole, parts), before, strict=True):
        for parameter in model.parameters():
            parameter.grad = parameter.detach().clone()
        optimizer.step()
    states = [
        state_of(each, model.parameters())
        for each, model in zip(before, (whole, parts), strict=True)
    ]
    assert states[0]["state"].keys() == states[1]["state"].keys() == set(range(8))
    assert states[0]["param_groups"][0]["params"] == [*range(8)]
    after = make(whole, "optim.decay_norms=false")
    rates = [group["lr"] for group in after.param_groups]
    assert not load_state(after, whole.parameters(), states[0])
    assert all(group["lr"] is rate for group, rate in zip(after.param_groups, rates, strict=True))
    assert [group["weight_decay"] for group in after.param_groups] == [1e-4, 0]
    for parameter in whole.parameters():
        buffers = [each.state[parameter]["momentum_buffer"] for each in (before[0], after)]
        assert torch.equal(*buffers)


def test_one_group_has_the_state_of_torch(tmp_path):
    run = make_trainer(tmp_path)
    optimizer = run.state.optimizer
    mine, theirs = state_of(optimizer, run.state.model.parameters()), optimizer.state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    assert [*mine["state"]] == [*theirs["state"]]
    assert run.device == CPU
