"""The network of a config: what an evaluation builds is what was trained."""

from pathlib import Path

import pytest
import torch

from pipeline.run.config import make_config
from pipeline.run.weights import identify
from pipeline.train.network import build_network, make_network
from pipeline.train.scoring import load_network


@pytest.mark.parametrize(
    "words",
    [
        ["estimator.name=biper", "estimator.biper_w0=30"],
        ["estimator.name=biper", "estimator.biper_w0=30", "model.bits=32w1a"],
        ["model.weight_transform=irnet"],
        ["model.weight_transform=recu", "estimator.name=ste"],
    ],
)
def test_an_evaluation_sees_the_trained_network(words):
    """At the end of a training as before any: the signs of weights, and their scale."""
    config = make_config({}, words, name="x")
    torch.manual_seed(0)
    trained, images = build_network(config), torch.randn(8, 3, 32, 32)
    plain = build_network(make_config({}, [], name="x"))
    trained(images)  # moves the running statistics
    trained.set_progress(0.9)
    state = {"state_dict": trained.state_dict()}
    evaluated = load_network(config, state, Path("x"))
    plain.load_state_dict(trained.state_dict())
    with torch.no_grad():
        expected, found, other = (each.eval()(images) for each in (trained, evaluated, plain))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(other, expected)


@pytest.mark.parametrize("arch", ["resnet20", "vgg_small", "resnet18"])
def test_binary_weights_start_from_real_ones(arch, tmp_path, caplog):
    """The second of two steps: all that the first one trained is taken over, by its name."""
    caplog.set_level("INFO")
    words = [f"model.arch={arch}", "model.num_classes=10"]
    first = build_network(make_config({}, [*words, "model.bits=32w1a"], name="x"))
    path = tmp_path / "first.pt"
    state = {"model": f"{arch}_32w1a", "state_dict": first.state_dict()}
    torch.save(state, path)
    assert identify(state) == (arch, "32w1a")
    second = make_network(make_config({}, [*words, f"model.weights={path}"], name="x"))
    assert second.bits == "1w1a" and len(second.binary_convs()) > 0
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    assert f"started from {path}" in caplog.text and "; new too" not in caplog.text
