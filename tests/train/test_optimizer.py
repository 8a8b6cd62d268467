"""Which weights decay, and a state that other groups of weights can take over."""

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


@pytest.mark.parametrize("impl", ["torch_fused", "torch"])
@pytest.mark.parametrize("decays", [True, False])
def test_norms_decay_only_where_they_should(impl, decays):
    """A step without gradients moves what decays, and nothing else."""
    model, before = small(), small().state_dict()
    words = [*DECAY, f"optim.impl={impl}", f"optim.decay_norms={decays}"]
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
