"""OvSW's corrections of the gradients: by its equations, and over a resumed training to the bit."""

import pytest
import torch

from pipeline.train.ovsw import OvSW
from tests.train.tiny import fit, make_trainer, small

BOTH = ["optim.ovsw_delta=0.04", "optim.ovsw_decay=0.0009"]


def network():
    torch.manual_seed(0)
    model = small().double()
    for conv in model.binary_convs().values():
        conv.weight.grad = torch.randn_like(conv.weight)
        conv.weight.grad[::2] *= 1e-4  # every second channel moves too little
    return model


def of_channels(tensor):
    return tensor.flatten(1).norm(dim=1)


def test_small_gradients_of_a_channel_become_as_large_as_they_should():
    model = network()
    before = [conv.weight.grad.clone() for conv in model.binary_convs().values()]
    OvSW(model, delta=0.04, decay=0).correct()
    for conv, gradient in zip(model.binary_convs().values(), before, strict=True):
        found, least = of_channels(conv.weight.grad), 0.04 * of_channels(conv.weight)
        torch.testing.assert_close(found[::2], least[::2])
        assert torch.equal(conv.weight.grad[1::2], gradient[1::2])  # far above: left alone
        cosines = torch.cosine_similarity(conv.weight.grad.flatten(1), gradient.flatten(1))
        torch.testing.assert_close(cosines, torch.ones_like(cosines))


def test_no_gradient_at_all_stays_none():
    """And is not divided by."""
    model = network()
    conv = next(iter(model.binary_convs().values()))
    conv.weight.grad.zero_()
    OvSW(model, delta=0.04, decay=0).correct()
    assert not conv.weight.grad.any()


@pytest.mark.slow
def test_weights_that_never_flip_are_drawn_towards_zero():
    """A flip lifts the moving average to 1e-3, from where it takes ln(10) / 1e-3 steps to 1e-4."""
    model = network()
    conv = next(iter(model.binary_convs().values()))
    corrections = OvSW(model, delta=0, decay=0.5)
    with torch.no_grad():
        conv.weight[0].neg_()
    expected = 0.5 * conv.weight.detach()
    silent = []
    for _ in range(2310):
        conv.weight.grad.zero_()
        corrections.correct()
        silent.append(bool(conv.weight.grad[0].any()))
        assert torch.equal(conv.weight.grad[1:], expected[1:])
    assert torch.equal(conv.weight.grad, expected)
    assert silent.index(True) == 2302 and all(silent[2302:])  # 0.999^2302 < 0.1 <= 0.999^2301


def test_both_off_is_no_correction(tmp_path):
    assert make_trainer(tmp_path).state.ovsw is None
    assert make_trainer(tmp_path, "optim.ovsw_delta=0.1").state.ovsw is not None


@pytest.mark.parametrize("extra", [[], ["train.precision=fp16"]])
def test_a_resumed_training_is_the_same_to_the_bit(tmp_path, extra):
    words = [*BOTH, *extra, "checkpoint.every_epochs=1"]
    whole = fit(make_trainer(tmp_path / "a", *words), tmp_path / "a")
    begun = make_trainer(tmp_path / "b", *words)
    for _ in range(2):
        begun.run_epoch()
    resumed = make_trainer(tmp_path / "c", *words)
    assert resumed.restore(begun.state_dict()) == []
    fit(resumed, tmp_path / "c")
    for one, other in zip(whole.state.tensors(), resumed.state.tensors(), strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert any(flips.any() for flips in whole.state.ovsw.flips)


def test_it_changes_the_training_and_an_older_checkpoint_begins_anew(tmp_path):
    plain = fit(make_trainer(tmp_path / "a"), tmp_path / "a")
    run = fit(make_trainer(tmp_path / "b", *BOTH), tmp_path / "b")
    weights = [each.state.model.layer1[0].conv1.weight for each in (plain, run)]
    assert not torch.equal(*weights)
    other = make_trainer(tmp_path / "c", *BOTH)
    assert other.restore(plain.state_dict()) == ["the flips that OvSW counts"]
    signs = other.state.ovsw.signs[0]
    assert torch.equal(signs.bool(), other.state.model.layer1[0].conv1.weight >= 0)
