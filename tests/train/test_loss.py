"""What a training makes small: by hand in float64, with a teacher and without."""

import math

import pytest
import torch
from torch import nn

from pipeline.data.loader import Batch
from pipeline.run.config import load_config
from pipeline.train.loss import divergence, make_loss
from tests.train.test_graph import assert_equal, results
from tests.train.tiny import CONFIG, CPU, fit, make_trainer

LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0], [-1.0, 0.0, 2.0]], dtype=torch.float64)
WANTED = torch.tensor([[2.0, 0.0, -1.0], [1.0, 0.5, 0.0], [0.0, 0.0, 4.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2])  # of the second image the teacher says 0


class Says(nn.Module):
    """A teacher that says the same whatever it is shown."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images):
        assert not self.training and not torch.is_grad_enabled()
        return self.logits


def probabilities(row):
    total = sum(map(math.exp, row))
    return [math.exp(value) / total for value in row]


def distances():
    """Of each image, from what the teacher says to what the network does, written out."""
    for ours, theirs in zip(LOGITS.tolist(), WANTED.tolist(), strict=True):
        p, q = probabilities(ours), probabilities(theirs)
        yield sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))


def loss(*words):
    config = load_config(CONFIG, ["train.precision=fp64", "distill.teacher=given", *words])
    images = torch.zeros(3, 3, 8, 8, dtype=torch.float64)
    return make_loss(config, Says(WANTED), CPU)(LOGITS, Batch(images, LABELS)).item()


def test_the_distance_to_the_teacher():
    assert divergence(LOGITS, WANTED).tolist() == pytest.approx([*distances()], rel=1e-12)
    assert loss() == pytest.approx(sum(distances()) / 3, rel=1e-12)
    assert divergence(WANTED, WANTED).abs().max() == 0
    assert divergence(LOGITS.half(), WANTED.half()).dtype == torch.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_label_where_the_teacher_errs(smoothing):
    first, _, third = distances()
    logs = [math.log(each) for each in probabilities(LOGITS[1].tolist())]
    second = -(1 - smoothing) * logs[1] - smoothing * sum(logs) / 3
    found = loss("distill.labels=true", f"train.label_smoothing={smoothing}")
    assert found == pytest.approx((first + second + third) / 3, rel=1e-12)


def test_the_gradient_is_the_difference_of_probabilities():
    logits = LOGITS.clone().requires_grad_()
    divergence(logits, WANTED).sum().backward()
    expected = [
        [a - b for a, b in zip(probabilities(ours), probabilities(theirs), strict=True)]
        for ours, theirs in zip(LOGITS.tolist(), WANTED.tolist(), strict=True)
    ]
    torch.testing.assert_close(logits.grad, torch.tensor(expected, dtype=torch.float64))


def test_the_teacher_stays_as_it_is(tmp_path):
    taught = make_trainer(tmp_path, taught=True)
    before = {key: value.clone() for key, value in taught.loss.teacher.state_dict().items()}
    plain = fit(make_trainer(tmp_path), tmp_path)
    assert_equal(fit(taught, tmp_path).loss.teacher.state_dict(), before)
    assert results(plain)["last"] != results(taught)["last"]
