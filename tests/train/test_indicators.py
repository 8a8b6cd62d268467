"""The indicators of estimators, against an independent count in NumPy."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from kernels import ESTIMATORS
from models import ARCHS, BITS, build_model
from models.layers import NormBinarize
from pipeline.train import trainer
from pipeline.train.activations import sample
from pipeline.train.indicators import Indicators
from tests import quick_where
from tests.train.tiny import fit, make_trainer

WATCHED = ["indicators.enabled=true", "indicators.official=true"]


def epochs(folder):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == "epoch"]


class Witness:
    """Notes gradients, weights and activations of every step of a training in float64."""

    def __init__(self, run, monkeypatch):
        self.run, self.gradients, self.maps = run, [], []
        self.weights = [self.present()]
        model = run.state.model
        for norm in model.modules():
            if isinstance(norm, NormBinarize):
                norm.register_forward_hook(self.see)
        original = Indicators.update

        def update(indicators):
            self.gradients.append([g.grad.numpy().copy() for g in self.convs()])
            original(indicators)

        monkeypatch.setattr(Indicators, "update", update)
        finish = trainer.Trainer._finish_epoch
        monkeypatch.setattr(
            trainer.Trainer,
            "_finish_epoch",
            lambda *a: (self.weights.append(self.present()), finish(*a)),
        )

    def convs(self):
        return [conv.weight for conv in self.run.state.model.binary_convs().values()]

    def present(self):
        return [weight.detach().numpy().copy() for weight in self.convs()]

    def see(self, norm, inputs, pair):
        if norm.training and not isinstance(norm.binarize, nn.Identity):
            self.maps.append(pair[0].detach().permute(0, 2, 3, 1).numpy().ravel())


def sign(x):
    return np.where(x >= 0, 1.0, -1.0)


def power(x, o):
    return np.sign(x) * np.abs(x) ** (1 / o)


def test_every_figure_is_that_of_numpy(tmp_path, monkeypatch):
    # 1,000 of the smallest map's 4,096 activations, at every 3rd or so: see test_samples.
    run = make_trainer(tmp_path, *WATCHED, "train.precision=fp64", "indicators.samples=1000")
    witness = Witness(run, monkeypatch)
    names, steps = list(run.state.model.binary_convs()), 6
    fit(run, tmp_path)
    for epoch, record in enumerate(epochs(tmp_path)):
        figures, o = record["indicators"], record["o"]
        now, before = witness.weights[epoch + 1], witness.weights[epoch]
        gradients = witness.gradients[epoch * steps : (epoch + 1) * steps]
        assert figures["steps"] == steps and list(figures["weights"]) == names
        for i, name in enumerate(names):
            assert figures["weights"][name] == pytest.approx(
                {
                    "error": np.linalg.norm(sign(now[i]) - power(now[i], o)),
                    "flipped": np.mean(sign(now[i]) != sign(before[i])),
                    "outside": np.mean(np.abs(now[i]) > 1.5),
                    "stability": np.mean([np.var(np.abs(g[i]), ddof=1) for g in gradients]),
                },
                rel=1e-9,
            )
        flat = np.concatenate([each.ravel() for each in now])
        old = np.concatenate([each.ravel() for each in before])
        updates = [np.concatenate([each.ravel() for each in step]) for step in gradients]
        total = figures["total"]
        assert {name: total[name] for name in ("error", "flipped", "outside", "stability")} == (
            pytest.approx(
                {
                    "error": np.linalg.norm(sign(flat) - power(flat, o)),
                    "flipped": np.mean(sign(flat) != sign(old)),
                    "outside": np.mean(np.abs(flat) > 1.5),
                    "stability": np.mean([np.var(np.abs(g), ddof=1) for g in updates]),
                },
                rel=1e-9,
            )
        )
        signs = len(figures["activations"])
        maps = witness.maps[epoch * steps * signs : (epoch + 1) * steps * signs]
        for i, found in enumerate(figures["activations"].values()):
            seen = np.concatenate([spread(each, 1000) for each in maps[i::signs]])
            error = np.sqrt(np.mean((sign(seen) - power(seen, o)) ** 2))
            assert found == pytest.approx({"error": error, "positive": np.mean(seen >= 0)})
        means = [np.mean([a[n] for a in figures["activations"].values()]) for n in found]
        assert [total["activation_error"], total["positive"]] == pytest.approx(means)
        assert figures["official"] == pytest.approx(
            {
                "estimating_error": sum(np.linalg.norm(sign(w) - power(w, 3.0)) for w in now),
                "gradient_stability": sum(np.var(np.abs(g), ddof=1) for g in gradients[-1]),
            }
        )
    assert total["flipped"] > 0 and 0.2 < total["positive"] < 0.8


def spread(flat, count):
    distance = max(d for d in range(1, len(flat) // count + 1) if math.gcd(d, len(flat)) == 1)
    return flat[np.arange(count) * distance]


def test_samples():
    """They lie in all images, channels and rows alike, and are all there is where that is few."""
    x = torch.arange(8 * 16 * 12 * 12).view(8, 12, 12, 16).permute(0, 3, 1, 2)
    found = sample([x, x[:1]], 500)
    assert found.shape == (2, 500) and len(found.unique(dim=1).T) == 500
    assert torch.bincount(found[0] % 16).double().std() < 2  # by channels
    assert torch.bincount(found[0] // (16 * 144)).double().std() < 10  # by images
    whole = sample([x, x[:1]], 10**6)
    assert torch.equal(whole[1], torch.arange(16 * 144))
    assert torch.equal(sample([x[:, :, 0, 0]], 10**6)[0], x[:, :, 0, 0].reshape(-1))


@pytest.mark.parametrize("bits", BITS[:2])
@pytest.mark.parametrize("arch", quick_where(lambda arch: "resnet34" not in arch, *ARCHS))
def test_every_network(arch, bits):
    model = build_model(arch, bits).train().to(memory_format=torch.channels_last)
    indicators = Indicators(model, samples=64, official=True)
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    for _ in range(2):
        model(images).logsumexp(1).sum().backward()
        indicators.update()
        model.eval()(images)  # an evaluation adds nothing
        model.train()
    figures = indicators.record()
    assert figures["steps"] == 2 and list(figures["weights"]) == list(model.binary_convs())
    signs = len(figures["activations"])
    assert signs == (len(figures["weights"]) if bits == "1w1a" else 0)
    everything = [*figures["weights"].values(), *figures["activations"].values()]
    values = [value for each in (*everything, figures["total"]) for value in each.values()]
    assert all(math.isfinite(value) and value >= 0 for value in values)
    if arch.endswith("_react") and signs:  # of a stem without ReLU, nearly all maxima are positive
        assert figures["activations"].pop("binarize")["positive"] > 0.9
    assert all(0.1 < each["positive"] < 1 for each in figures["activations"].values())
    assert figures["total"]["flipped"] == 0  # no optimizer moved a weight
    if arch == "vgg_small" and signs:
        assert list(figures["activations"]) == ["bn0", "binarize", "bn2", "binarize#2", "bn4"]
    indicators.close()
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator(estimator, tmp_path):
    run = make_trainer(tmp_path, *WATCHED, f"estimator.name={estimator}", "optim.lr=0.001")
    fit(run, tmp_path)
    figures = epochs(tmp_path)[0]["indicators"]
    assert figures["total"]["error"] > 0 and 0 <= figures["total"]["outside"] <= 1


def test_a_step_that_fp16_skips_is_left_out():
    model = build_model("resnet20").train()
    indicators = Indicators(model, samples=64, official=True, skips=True)
    images = torch.randn(2, 3, 32, 32)

    def step(scale):
        model.zero_grad()
        (model(images).logsumexp(1).sum() * scale).backward()
        indicators.update()

    step(1.0)
    expected = indicators.record()
    for scale in (1.0, math.inf, math.nan):
        step(scale)
    found = indicators.record()
    assert found == expected and found["steps"] == 1
    step(math.inf)
    assert indicators.record()["steps"] == 0


def test_fp16_records_finite_figures(tmp_path):
    """A loss scale so large that the first steps overflow."""
    run = make_trainer(tmp_path, *WATCHED, "train.precision=fp16", "train.device=cpu")
    run.state.scaler.load_state_dict({**run.state.scaler.state_dict(), "scale": 2.0**18})
    fit(run, tmp_path)
    first, *others = (record["indicators"] for record in epochs(tmp_path))
    assert first["steps"] < 6 and others[-1]["steps"] == 6
    for figures in (first, *others):
        assert all(math.isfinite(value) for value in figures["total"].values())


def test_a_network_without_binary_weights_has_none():
    from pipeline.run.config import load_config
    from pipeline.train.state import make_state
    from tests.train.tiny import CONFIG, CPU

    config = load_config(CONFIG, WATCHED)
    assert make_state(config, build_model("resnet20", "32w32a"), CPU).indicators is None
    assert make_state(config, build_model("resnet20", "1w32a"), CPU).indicators is not None


def test_a_state_of_another_version_begins_anew():
    model = build_model("resnet20").train()
    indicators = Indicators(model, samples=64, official=False)
    assert not indicators.load_state({"sums": {}, "steps": torch.zeros(()), "last_official": 0})
    assert not indicators.load_state({}) and indicators.load_state(indicators.state())
