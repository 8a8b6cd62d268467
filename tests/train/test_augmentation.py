"""What happens to batches on the device: mixup by hand, its law, and draws by step alone."""

import pytest
import torch

from pipeline.data.batch import divide_batch, fit_batch
from pipeline.data.draws import uniforms
from pipeline.data.loader import Batch
from pipeline.run import processes
from pipeline.run.config import load_config
from pipeline.train.augmentation import Augmentation, make_augmentation
from pipeline.train.gradients import parts_of
from pipeline.train.loss import make_loss
from pipeline.train.mixup import DRAWS, larger_share, mixed
from tests.train.test_graph import assert_equal, results
from tests.train.tiny import CONFIG, CPU, fit, make_trainer

BOTH = ["data.mixup=0.3", "data.jitter=0.4"]


def config_of(*words):
    return load_config(CONFIG, ["model.num_classes=10", *words])


def batch_of(images=8, side=4):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(images, 3, side, side, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 10, (images,), generator=generator)
    return Batch(pixels.contiguous(memory_format=torch.channels_last), labels)


def test_a_pair_is_blended_by_hand():
    batch, share = batch_of(), torch.tensor([0.7], dtype=torch.float64)
    found = mixed(batch, share, 10)
    assert found.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found.labels, batch.labels)
    for at in range(8):
        other = at + 1 if at % 2 == 0 else at - 1
        image = 0.7 * batch.images[at] + 0.3 * batch.images[other]
        torch.testing.assert_close(found.images[at], image)
        target = torch.zeros(10, dtype=torch.float64)
        target[batch.labels[at]] += 0.7
        target[batch.labels[other]] += 0.3
        torch.testing.assert_close(found.targets[at], target)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_mean_of_both_labels(smoothing):
    """That of the paper, also where labels are smoothed."""
    batch, logits = batch_of(), torch.randn(8, 10, dtype=torch.float64)
    loss = make_loss(config_of(f"train.label_smoothing={smoothing}"), None, CPU)
    found = loss(logits, mixed(batch, torch.tensor([0.6], dtype=torch.float64), 10))
    swapped = batch.labels.view(4, 2).flip(1).flatten()
    first, second = (loss(logits, Batch(batch.images, each)) for each in (batch.labels, swapped))
    torch.testing.assert_close(found, 0.6 * first + 0.4 * second)


def test_parts_hold_what_the_whole_does():
    whole = mixed(batch_of(), torch.tensor([0.8], dtype=torch.float64), 10)
    parts = [*parts_of(whole, 2)]
    assert torch.equal(
        torch.stack([part.targets for part in parts], 1).flatten(0, 1), whole.targets
    )
    assert torch.equal(torch.stack([part.images for part in parts], 1).flatten(0, 1), whole.images)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0])
def test_the_share_is_that_of_a_beta(alpha):
    """Its larger part: P(max(s, 1 - s) < x) = F(x) - F(1 - x)."""
    stats = pytest.importorskip("scipy.stats")
    draws = uniforms(3, -1, torch.arange(4000), DRAWS)
    shares = larger_share(draws, alpha)
    assert shares.shape == (4000,) and shares.isfinite().all() and shares.min() >= 0.5
    law = stats.beta(alpha, alpha)
    for x in (0.51, 0.6, 0.75, 0.9, 0.99, 1 - 1e-6):
        wanted, found = law.cdf(x) - law.cdf(1 - x), (shares < x).double().mean().item()
        assert abs(found - wanted) < 4 * (wanted * (1 - wanted) / len(shares)) ** 0.5, x


def test_draws_at_the_edge_of_numbers_stay_finite():
    for value in (0.0, 1 - 2.0**-53):
        draws = torch.full((1, DRAWS), value, dtype=torch.float64)
        assert larger_share(draws, 0.01).item() == 0.5


def test_the_number_of_processes_changes_nothing(monkeypatch):
    """Each has a part of the batch; together they have what one would."""
    config, batch = config_of(*BOTH), batch_of()
    whole = Augmentation(config, CPU)
    whole.seek(5)
    expected = whole(batch)
    monkeypatch.setattr(processes, "size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        own = slice(4 * rank, 4 * rank + 4)
        part = Augmentation(config, CPU)
        part.seek(5)
        for found, wanted in zip(part(Batch(*(t[own] for t in batch))), expected, strict=True):
            assert torch.equal(found, wanted[own])


def test_every_step_draws_anew_and_seeking_draws_the_same():
    augmentation, batch = Augmentation(config_of(*BOTH), CPU), batch_of()
    steps = [augmentation(batch) for _ in range(3)]
    assert not torch.equal(steps[0].images, steps[1].images)
    augmentation.seek(2)
    assert_equal(tuple(augmentation(batch)), tuple(steps[2]))
    other = Augmentation(config_of(*BOTH, "seed=7"), CPU)
    assert not torch.equal(other(batch).targets, steps[0].targets)


@pytest.mark.parametrize(
    ("word", "kind"), [("data.jitter=0.4", "Batch"), ("data.mixup=1", "Mixed")]
)
def test_each_does_its_own(word, kind):
    batch = batch_of()
    changed = make_augmentation(config_of(word), CPU)(batch)
    assert type(changed).__name__ == kind and not torch.equal(changed.images, batch.images)
    assert torch.equal(changed.labels, batch.labels)
    assert make_augmentation(config_of(), CPU) is None


@pytest.mark.parametrize(
    ("words", "size", "line"),
    [
        (["data.batch_size=9"], 1, "9 -> 8, a multiple of 2 images (data.mixup)"),
        (["data.batch_size=9"], 3, "9 -> 12, a multiple of 3 processes with 2 images (data.mixup)"),
        (["data.batch_size=9", "train.grad_accumulation=4"], 1,
         "9 -> 8, a multiple of 4 parts (train.grad_accumulation) and 2 images (data.mixup)"),
    ],
)  # fmt: skip
def test_a_batch_without_pairs_is_rounded(caplog, words, size, line):
    caplog.set_level("INFO", "reste")
    divide_batch(config_of("data.mixup=0.2", *words), size)
    assert caplog.messages == [f"data.batch_size: {line}"]
    assert fit_batch(256, 7, (1, 2)) == 6


def test_a_run_that_goes_on_draws_what_it_would_have(tmp_path):
    words = [*BOTH, "train.epochs=2", "checkpoint.every_steps=4", "checkpoint.keep=9"]
    whole = fit(make_trainer(tmp_path / "whole", *words), tmp_path / "whole")
    again = make_trainer(tmp_path / "again", *words)
    again.restore(torch.load(tmp_path / "whole/step_8.pt", weights_only=False))
    assert_equal(results(fit(again, tmp_path / "again")), results(whole))
    plain = fit(make_trainer(tmp_path / "plain", "train.epochs=2"), tmp_path / "plain")
    assert results(plain)["last"] != results(whole)["last"]
