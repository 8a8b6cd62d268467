"""Batch norm's statistics taken anew: by hand, of which weights, and what they leave alone."""

import json
import signal

import pytest
import torch

from launch import evaluate as evaluate_command
from launch import train as train_command
from models.layers import BatchNorm, NormBinarize
from pipeline.run.checkpoint import CheckpointStore, load
from pipeline.run.errors import Interrupted
from pipeline.train.gradients import parts_of
from pipeline.train.reestimation import Reestimation
from pipeline.train.state import statistics_of
from tests.train.test_graph import assert_equal, results
from tests.train.tiny import fit, make_trainer

EXACT = "train.precision=fp64"


def by_hand(network, batches):
    """The means over ``batches`` of every norm's mean and unbiased variance in a batch."""
    found = {}

    def note(module, arguments, options):
        z, scale = arguments[0], arguments[1] if len(arguments) > 1 else None
        u = z if isinstance(module, BatchNorm) else z.relu()
        u = u if scale is None else scale * u
        dims = [dim for dim in range(u.ndim) if dim != 1]
        figures = u.mean(dims), u.var(dims, correction=1)
        found.setdefault(names[module], []).append(torch.stack(figures))

    names = {each: name for name, each in network.named_modules() if isinstance(each, NormBinarize)}
    handles = [each.register_forward_pre_hook(note, with_kwargs=True) for each in names]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.train()
    with torch.no_grad():
        for batch in batches:
            network(batch.images)
    network.load_state_dict(before)
    for handle in handles:
        handle.remove()
    means = {name: torch.stack(each).mean(0) for name, each in found.items()}
    return {f"{name}.running_{kind}": each[at] for name, each in means.items()
            for at, kind in enumerate(("mean", "var"))}  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("words", "steps", "parts"),
    [
        (["train.reestimate_bn=3"], 3, 1),
        (["train.reestimate_bn=1", "train.ema_decay=0.5"], 1, 1),
        (["train.reestimate_bn=99"], 6, 1),  # an epoch has no more
        (["train.reestimate_bn=2", "train.grad_accumulation=2"], 2, 2),
    ],
)
def test_they_are_those_by_hand(tmp_path, words, steps, parts, streamed):
    """Of the weights that are evaluated, on the first batches of the epoch that would follow."""
    run = fit(make_trainer(tmp_path, EXACT, "train.epochs=2", *words, streamed=streamed), tmp_path)
    batches = [batch for batch, _ in zip(run.loader.epoch(2), range(steps), strict=False)]
    batches = [part for batch in batches for part in parts_of(batch, parts)]
    expected = by_hand(run.state.averaged, batches)
    found = run.state_dict()["reestimated"]
    assert found.keys() == expected.keys() and len(found) > 4
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14, msg=name)
    for name, value in run.state.averaged.named_parameters():
        assert torch.equal(value, run.state.twin.get_parameter(name))


EXTRAS = {
    "plain": [],
    "averaged": ["train.ema_decay=0.9", "optim.name=adam", "optim.lr=0.01"],
    "fp16": ["train.precision=fp16", "indicators.enabled=true"],
    "parts": ["train.grad_accumulation=2"],
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_training_is_the_same(tmp_path, extra):
    """Weights, running statistics, momentum and averaged weights; the evaluation is another."""
    without, taken = (
        fit(make_trainer(tmp_path, *EXTRAS[extra], f"train.reestimate_bn={n}"), tmp_path)
        for n in (0, 2)
    )
    states = [results(run) for run in (without, taken)]
    for key in ("state_dict", "optimizer", "scaler", "ema", "watch"):
        assert_equal(states[1][key], states[0][key])
    assert states[0]["reestimated"] is None
    assert states[0]["last"]["val_loss"] != states[1]["last"]["val_loss"]


def test_statistics_are_saved_only_with_the_weights_that_they_are_of(tmp_path):
    saving = "train.reestimate_bn=2", "checkpoint.every_steps=4", "checkpoint.keep=99"
    fit(make_trainer(tmp_path, *saving), tmp_path)
    holds = {path.name: load(path)["reestimated"] is not None for path in tmp_path.glob("*.pt")}
    assert holds == {
        "step_4.pt": False, "step_8.pt": False, "step_12.pt": False, "step_16.pt": False,
        "epoch_0001.pt": True, "epoch_0002.pt": True, "epoch_0003.pt": True, "best.pt": True,
    }  # fmt: skip


def test_a_stop_among_the_batches_changes_nothing(tmp_path, monkeypatch):
    """What is saved holds no statistics, and they are taken from the beginning again."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = fit(make_trainer(whole, "train.reestimate_bn=4"), whole)
    add, calls = Reestimation._add, []

    def stop(self, batch):
        calls.append(add(self, batch))
        if len(calls) == 6:  # in the second epoch
            run.stop.signal = signal.SIGTERM

    with monkeypatch.context() as patch:
        patch.setattr(Reestimation, "_add", stop)
        run = make_trainer(parts, "train.reestimate_bn=4")
        with pytest.raises(Interrupted):
            fit(run, parts)
    state = load(parts / "step_12.pt")
    assert len(calls) == 6 and state["reestimated"] is None
    again = make_trainer(parts, "train.reestimate_bn=4")
    again.restore(state)
    assert_equal(results(fit(again, parts)), results(expected))


def test_a_restored_state_keeps_them(tmp_path):
    """So a new run that begins with a checkpoint writes the same one first."""
    run = fit(make_trainer(tmp_path, "train.reestimate_bn=2"), tmp_path)
    other = make_trainer(tmp_path, "train.reestimate_bn=2")
    assert other.state_dict()["reestimated"] is None
    other.restore(load(tmp_path / "epoch_0003.pt"))
    assert_equal(other.state_dict()["reestimated"], run.state_dict()["reestimated"])


@pytest.mark.parametrize("more", [[], ["train.ema_decay=0.9"]])
def test_the_best_checkpoint_is_scored_as_it_was(cifar, tiny_arch, tmp_path, capsys, more):
    (tmp_path / "tiny.yaml").write_text(
        "{model: {arch: tiny, num_classes: 2}, data: {batch_size: 8, eval_batch_size: 5}, seed: 3,"
        "train: {epochs: 2, reestimate_bn: 3}, log: {eta: 0}}"
    )
    data = f"data.path={cifar}"
    train_command.main([str(tmp_path / "tiny.yaml"), data, f"run.dir={tmp_path}", *more])
    best = tmp_path / "tiny/checkpoints/best.pt"
    scores, state = [], load(best)
    for reestimated in (state["reestimated"], None):
        state["reestimated"] = reestimated
        path = CheckpointStore(tmp_path / "other", 1).save(state)
        capsys.readouterr()
        evaluate_command.main([str(path), data, "--plain"])
        scores.append(json.loads(capsys.readouterr().out.splitlines()[-1])["loss"])
    assert scores[0] == pytest.approx(state["best"]["val_loss"], rel=1e-6)
    assert scores[1] != pytest.approx(scores[0], rel=1e-3)


def test_the_published_form_has_no_twin(tmp_path):
    run = make_trainer(tmp_path)
    assert run.state.twin is None and run.reestimation is None
    assert run.evaluation.model is run.state.model
    assert len(statistics_of(run.state.model)) == 2 * len(
        [each for each in run.state.model.modules() if isinstance(each, NormBinarize)]
    )
