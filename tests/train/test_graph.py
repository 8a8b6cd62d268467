"""Captured steps. Without a GPU a traced graph of operators stands in for the CUDA graph: like it,
it replays what was recorded, in the same tensors, and no Python runs again. Tracing fails where
the host reads a tensor, as capturing does."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pipeline.run import processes
from pipeline.run.checkpoint import load
from pipeline.run.config import load_config
from pipeline.run.errors import UserError
from pipeline.run.recorder import JsonLines, Recorder
from pipeline.train import graph, optimizer, trainer
from tests import first_quick
from tests.train.tiny import CONFIG, CPU, fit, make_trainer

TIMES = ("images_per_second", "data_wait", "seconds")


class Traced:
    """A stand-in for ``Graphs`` on the CPU."""

    recorded, warmup = 0, graph.WARMUP

    def warm_up(self, step):
        step()

    def record(self, step):
        stepper = step.__self__
        tensors = list(stepper.all_tensors())
        before = [tensor.detach().clone() for tensor in tensors]
        state = getattr(stepper.work.__self__, "state", None)  # None in an evaluation
        scaler = state.scaler if state else torch.amp.GradScaler("cpu")
        scale = scaler.state_dict()
        replay = make_fx(lambda: (step(), None)[1])()  # takes the step, other than a capture
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        scaler.load_state_dict(scale)
        Traced.recorded += 1
        return torch.no_grad()(replay)


@pytest.fixture
def traced(monkeypatch):
    """A maker of trainings whose steps are captured, and in a test of them no training uses what
    such a trace does not see."""
    monkeypatch.setattr("kernels._native.is_watched", lambda: True)
    monkeypatch.setattr(Traced, "recorded", 0)

    def make(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "make_graphs", lambda *_: Traced())
            return make_trainer(*arguments, **options)

    return make


def results(run):
    """All that a training leaves, but times."""
    state = run.state_dict()
    return {
        key: state[key]
        for key in (
            "state_dict",
            "optimizer",
            "scaler",
            "ema",
            "reestimated",
            "sums",
            "best",
            "last",
            "watch",
        )
    }


def assert_equal(found, expected):
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, list | tuple):
        for pair in zip(found, expected, strict=True):
            assert_equal(*pair)
    else:
        assert found == expected


EXTRAS = {
    "60 steps": ["train.epochs=10"],
    "everything": [
        "train.ema_decay=0.9",
        "train.label_smoothing=0.1",
        "indicators.enabled=true",
        "indicators.official=true",
        "estimator.name=ede",
    ],
    "fp16": ["train.precision=fp16"],
    "bf16": ["train.precision=bf16", "data.augment=false"],
    "parts": ["train.grad_accumulation=2", "indicators.enabled=true", "train.ema_decay=0.9"],
    "adam": ["optim.name=adam", "optim.lr=0.01", "indicators.enabled=true"],
    "adamw": [*("optim.name=adamw", "optim.lr=0.01"), "optim.decay_norms=false",
              "optim.schedule=linear", "train.precision=fp16"],
    "mixed": ["data.mixup=0.3", "data.jitter=0.4", "train.grad_accumulation=2"],
    "bop": ["optim.name=bop", "optim.bop_threshold=1e-6", "train.precision=fp16"],
    "ovsw": ["optim.ovsw_delta=0.04", "optim.ovsw_decay=0.0009", "indicators.enabled=true"],
    "reestimated": ["train.reestimate_bn=4"],
    "reestimated in parts": ["train.reestimate_bn=99", "train.ema_decay=0.9",
                             "train.grad_accumulation=2"],
}  # fmt: skip
TAUGHT = ["distill.teacher=given", "distill.labels=true", "train.grad_accumulation=2"]
STREAMED = {"streamed": True}
RESNET = {"streamed": True, "arch": "resnet18"}  # as ImageNet has it, with the fused stem
QUICK = "everything", "fp16"  # a training takes seconds, and each case needs two
CASES = [
    pytest.param(extra, {}, id=extra, marks=[] if extra in QUICK else [pytest.mark.slow])
    for extra in EXTRAS
]
CASES += [
    pytest.param("everything", STREAMED, id="streamed"),
    pytest.param("reestimated", STREAMED, id="streamed-reestimated", marks=pytest.mark.slow),
    pytest.param("taught", {"taught": True}, id="taught", marks=pytest.mark.slow),
]
RESNETS = [pytest.param(extra, RESNET, id=f"resnet18-{extra}") for extra in EXTRAS][2:]


@pytest.fixture
def records(monkeypatch):
    """What every training writes, without times."""
    written = {}

    def write(recorder, record, step):
        kept = {k: v for k, v in record.items() if k not in TIMES}
        written.setdefault(recorder, []).append(kept)

    monkeypatch.setattr(Recorder, "write", write)
    return written


@pytest.mark.parametrize(("extra", "options"), CASES)
def test_replays_equal_eager_steps(tmp_path, traced, records, extra, options):
    """Learning rate, estimator, order and augmentation change between and within the epochs, and
    the last batch of the evaluation is smaller than the others."""
    words = EXTRAS.get(extra, TAUGHT)
    plain = fit(make_trainer(tmp_path, *words, **options), tmp_path)
    captured = fit(traced(tmp_path, *words, **options), tmp_path)
    assert Traced.recorded == 2 + extra.startswith("reestimated")
    assert_equal(results(captured), results(plain))
    assert records[captured.recorder] == records[plain.recorder]
    losses = [
        record["train_loss"] for record in records[plain.recorder] if record["kind"] == "epoch"
    ]
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize("extra", first_quick("fp16", "everything", "adamw", "bop", "ovsw"))
def test_a_captured_training_is_resumed(tmp_path, traced, extra):
    """From the middle of an epoch, into a trainer that had captured other tensors before."""
    options = {"streamed": extra != "everything"}
    expected = fit(make_trainer(tmp_path, *EXTRAS[extra], **options), tmp_path)
    saving = "checkpoint.every_steps=9", "checkpoint.keep=99"
    first = fit(traced(tmp_path, *EXTRAS[extra], *saving, **options), tmp_path)
    saved = (tmp_path / "step_9.pt").rename(tmp_path / "kept.pt")
    others = (make(tmp_path, *EXTRAS[extra], **options) for make in (traced, make_trainer))
    for run in (first, *others):
        run.restore(load(saved))
        assert_equal(results(fit(run, tmp_path)), results(expected))
    assert Traced.recorded == 2 + 2 + 1  # the evaluation of the first kept its tensors


@pytest.mark.slow
def test_a_loader_that_dies_ends_a_captured_training_and_nothing_is_lost(tmp_path, traced):
    """In the second epoch, when steps are replayed: the loader's own line, and what was saved until
    then goes on to the same results."""
    expected = fit(make_trainer(tmp_path, streamed=True), tmp_path)
    dying = traced(tmp_path, "checkpoint.every_steps=4", "checkpoint.keep=99", streamed=True)
    epoch, line = dying.loader.epoch, "data.path: no.png cannot be read; remove it"

    def die(number, start=0):
        for at, batch in enumerate(epoch(number, start), start):
            if (number, at) == (1, 4):
                raise UserError(line)
            yield batch

    dying.loader.epoch = die
    with pytest.raises(UserError) as caught:
        fit(dying, tmp_path)
    assert str(caught.value) == line
    assert dying.stepper.captured.replay
    state = load(tmp_path / "step_8.pt")
    assert (state["epoch"], state["batch"]) == (1, 2)
    again = traced(tmp_path, streamed=True)
    again.restore(state)
    assert_equal(results(fit(again, tmp_path)), results(expected))


def test_a_replaced_tensor_is_noticed(tmp_path, traced):
    run = fit(traced(tmp_path, "train.epochs=1"), tmp_path)
    run.stepper.captured.check()
    weight = run.state.model.conv1.weight
    weight.data = weight.data.clone()
    with pytest.raises(AssertionError, match="replaced"):
        run.stepper.captured.check()


def test_a_host_that_looks_at_a_tensor_is_noticed(tmp_path, traced, monkeypatch):
    """The stand-in is able to fail."""
    run = traced(tmp_path)
    monkeypatch.setattr(run.state.sums, "update", lambda logits, labels, loss, *_: loss.item())
    with pytest.raises(RuntimeError, match="get value out of a tracing tensor"):
        fit(run, tmp_path)


def test_the_learning_rate_stays_one_tensor(tmp_path):
    run = make_trainer(tmp_path)
    (group,) = run.state.optimizer.param_groups
    rate = group["lr"]
    optimizer.set_learning_rate(run.state.optimizer, 0.25)
    assert group["lr"] is rate and rate == 0.25
    for impl in ("torch", "torch_fused"):
        other = make_trainer(tmp_path, f"optim.impl={impl}", "train.precision=fp64")
        optimizer.set_learning_rate(other.state.optimizer, 0.3)
        assert other.state.optimizer.param_groups[0]["lr"] == 0.3


CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("overrides", "device", "word"),
    [
        ([], CPU, "no CUDA device"),
        (["optim.impl=torch"], CUDA, "optim.impl=torch"),
        (["train.precision=fp64"], CUDA, "train.precision=fp64"),
        ([], CUDA, None),
    ],
)
def test_what_stands_in_the_way(monkeypatch, caplog, overrides, device, word):
    caplog.set_level("INFO", "reste")
    monkeypatch.setattr(graph, "Graphs", lambda device: "graphs")
    choices = {
        choice: load_config(CONFIG, [*overrides, f"train.cuda_graph={choice}"])
        for choice in ("auto", "true", "false")
    }
    assert graph.make_graphs(choices["false"], device) is None
    if word is None:
        assert graph.make_graphs(choices["true"], device) == "graphs"
        assert graph.make_graphs(choices["auto"], device) == "graphs"
        return
    assert graph.make_graphs(choices["auto"], device) is None
    assert [word in line for line in caplog.messages] == ([True] if device == CUDA else [])
    with pytest.raises(UserError, match=f"train.cuda_graph=true.*{word}.*cuda_graph=auto"):
        graph.make_graphs(choices["true"], device)


@pytest.mark.parametrize(
    ("backend", "word"), [("gloo", "over the host"), ("cpu:gloo,cuda:nccl", None)]
)
def test_several_processes_are_captured_over_nccl(monkeypatch, backend, word):
    monkeypatch.setattr(processes, "size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_backend_config", lambda: backend)
    reason = graph.obstacle(load_config(CONFIG, []), CUDA)
    assert reason is None if word is None else word in reason


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.parametrize(("extra", "options"), [*CASES, *RESNETS])
def test_gpu_replays_equal_eager_steps(tmp_path, records, deterministic, extra, options):
    """Bit for bit, with deterministic kernels."""
    eager, captured = (
        make_trainer(tmp_path, *EXTRAS[extra], f"train.cuda_graph={choice}", device=CUDA, **options)
        for choice in ("false", "true")
    )
    assert eager.stepper.captured is None
    for run in (eager, captured):
        fit(run, tmp_path)
    assert captured.stepper.captured.replay and captured.evaluation.stepper.captured.replay
    assert records[captured.recorder] == records[eager.recorder]
    assert_equal(results(captured), results(eager))


@pytest.mark.gpu
def test_gpu_a_captured_training_is_resumed(tmp_path, deterministic):
    options = [*EXTRAS["everything"], "train.cuda_graph=true"]
    saving = [*options, "checkpoint.every_steps=9", "checkpoint.keep=99"]
    expected = results(fit(make_trainer(tmp_path, *saving, device=CUDA), tmp_path))
    run = make_trainer(tmp_path, *options, device=CUDA)
    run.restore(load(tmp_path / "step_9.pt"))
    assert_equal(results(fit(run, tmp_path)), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", ["true", "false"])
@pytest.mark.parametrize(("extra", "options"), [*CASES, *RESNETS])
def test_gpu_an_epoch_waits_for_nothing(tmp_path, monkeypatch, graphs, extra, options):
    """But after the last step of the epoch, and where the evaluation's sums are read."""
    extras = [*EXTRAS[extra], f"train.cuda_graph={graphs}"]
    run = make_trainer(tmp_path, *extras, device=CUDA, **options)
    fit_one_epoch(run, tmp_path)  # compiles, chooses algorithms, captures
    waits = []

    def allowed(owner, name):
        original = getattr(owner, name)

        def wait(*arguments):
            waits.append(name)
            torch.cuda.set_sync_debug_mode("default")
            try:
                return original(*arguments)
            finally:
                torch.cuda.set_sync_debug_mode("error")

        monkeypatch.setattr(owner, name, wait)

    allowed(run, "_check_finite")
    allowed(run, "_log_step")
    allowed(run.evaluation.sums, "means")
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.set_learning_rate(run.state.optimizer, 0.05)
        run.state.model.set_progress(0.5)
        run._train(0.05)
        run._evaluate()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waits == ["_check_finite", "_log_step", "means"]


def fit_one_epoch(run, folder):
    """The first epoch of several."""
    run.recorder.lines = JsonLines(folder / "metrics.jsonl")
    run.run_epoch()


@pytest.mark.gpu
def test_gpu_what_cannot_be_captured_is_named(tmp_path, monkeypatch):
    run = make_trainer(tmp_path, "train.cuda_graph=true", device=CUDA)
    update = run.state.sums.update

    def look(logits, labels, loss, *watch):
        loss.item()
        update(logits, labels, loss, *watch)

    monkeypatch.setattr(run.state.sums, "update", look)
    with pytest.raises(UserError, match="cannot be captured.*train.cuda_graph=false"):
        fit(run, tmp_path)
