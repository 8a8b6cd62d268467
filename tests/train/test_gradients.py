"""A batch taken in parts: the gradients of the whole, and what is done once a step stays so."""

import pytest
import torch

from kernels import binarize_weights
from models.layers import NormBinarize
from pipeline.data.batch import divide_batch
from pipeline.run.config import load_config
from pipeline.run.points import flatten
from pipeline.run.recorder import Recorder
from tests.train.tiny import CONFIG, fit, make_trainer

TIMES = ("images_per_second", "data_wait", "seconds")


@pytest.fixture
def train_without_statistics(tmp_path, monkeypatch):
    """A function that trains in float64 with norms that never look at a batch, and returns the
    trainer and its records."""

    def train(*overrides):
        written = []
        monkeypatch.setattr(Recorder, "write", lambda self, record, step: written.append(record))
        run = make_trainer(tmp_path, "train.precision=fp64", *overrides)
        for module in run.state.model.modules():
            if isinstance(module, NormBinarize):
                module.eval()
                module.train = lambda mode=True, module=module: module
        return fit(run, tmp_path), [
            {key: value for key, value in record.items() if key not in TIMES} for record in written
        ]

    return train


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_give_the_gradients_of_the_whole(train_without_statistics, parts):
    """After 18 steps with momentum, label smoothing and averaged weights."""
    options = ["train.label_smoothing=0.1", "train.ema_decay=0.9"]
    whole, expected = train_without_statistics(*options)
    run, records = train_without_statistics(*options, f"train.grad_accumulation={parts}")
    weights = run.state.model.state_dict()
    for name, value in whole.state.model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-9, atol=1e-12, msg=name)
    for name, value in whole.state.ema.module.state_dict().items():
        torch.testing.assert_close(run.state.ema.module.state_dict()[name], value, msg=name)
    for found, record in zip(records, expected, strict=True):
        assert found.pop("kind") == record.pop("kind")
        assert found == pytest.approx(record, rel=1e-9)


def test_batch_norm_sees_a_part_at_a_time(tmp_path):
    """The description of the key says so."""
    runs = [
        fit(make_trainer(tmp_path, "train.epochs=1", f"train.grad_accumulation={parts}"), tmp_path)
        for parts in (1, 2)
    ]
    whole, parts = (run.state.model.bn1.num_batches_tracked for run in runs)
    assert (whole, parts) == (6, 12)
    assert not torch.equal(*(run.state.model.conv1.weight for run in runs))


def test_indicators_are_means_of_steps(train_without_statistics):
    enabled = "indicators.enabled=true", "indicators.samples=99999999"
    _, whole = train_without_statistics(*enabled)
    _, parts = train_without_statistics(*enabled, "train.grad_accumulation=2")
    last = [record["indicators"] for record in (whole[-1], parts[-1])]
    assert last[0]["steps"] == last[1]["steps"]
    found, expected = (flatten(indicators, "") for indicators in last)
    assert found.keys() == expected.keys()
    for name, value in expected.items():  # of activations, each part has samples of its own
        rel = 0.1 if "activation" in name or "positive" in name else 1e-9
        assert found[name] == pytest.approx(value, rel=rel), name


@pytest.mark.parametrize("triton", [False, True])
def test_gradients_of_binary_weights_add_up(monkeypatch, triton):
    """They are views of one tensor, to which a second backward pass adds in place."""
    if triton:
        pytest.importorskip("triton")
        monkeypatch.setattr("kernels.weights.uses_triton", lambda x: True)
    torch.manual_seed(0)
    params = torch.tensor([1.5, 1.5, 0.1])
    layers = [torch.randn(4, 3, 3, 3), torch.randn(8, 4, 3, 3)]
    layers = [w.to(memory_format=torch.channels_last).requires_grad_() for w in layers]

    def gradients(factor):
        signs, scales = binarize_weights(layers, params)
        loss = sum(factor * (s * w.detach()).sum() + s.abs().mean() * a
                   for s, a, w in zip(signs, scales, layers, strict=True))  # fmt: skip
        loss.backward()
        return [w.grad.clone() for w in layers]

    first = gradients(1.0)
    for w in layers:
        w.grad = None
    second = gradients(-3.0)
    both = gradients(1.0)
    for one, other, added in zip(first, second, both, strict=True):
        torch.testing.assert_close(added, one + other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "words"),
    [(1, "8, a multiple of 4 parts (train.grad_accumulation)"),
     (2, "8, a multiple of 2 processes with 4 parts (train.grad_accumulation)")],
)  # fmt: skip
def test_a_batch_without_equal_parts_is_rounded(caplog, size, words):
    caplog.set_level("INFO", "reste")
    config = load_config(CONFIG, ["data.batch_size=9", "train.grad_accumulation=4"])
    assert divide_batch(config, size).data.batch_size == 8
    assert caplog.messages == [f"data.batch_size: 9 -> {words}"]
