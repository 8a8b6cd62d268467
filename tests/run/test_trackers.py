"""wandb and TensorBoard: the numbers that they get, and that no failure of theirs ends a run."""

import importlib
import sys

import pytest

from pipeline.run.commands import command_line
from pipeline.run.config import load_config
from pipeline.run.recorder import Recorder
from pipeline.run.trackers import open_trackers
from tests import ROOT
from tests.run.fake_wandb import history, transactions
from tests.run.wandb_server import KEY, Server

STEP = {"kind": "step", "step": 5, "epoch": 0, "loss": 0.5}
EPOCH = {"kind": "epoch", "epoch": 1, "val_top1": 50.0, "indicators": {"a": {"b": 1}}}


@pytest.fixture
def record(tmp_path):
    """A function that opens the trackers of config overrides, gives them records, each with its
    step, ends them, and returns the run's folder."""

    def do(overrides, *records, exit_code=0):
        words = [f"run.dir={tmp_path}", "data.batch_size=10", *overrides]
        config = load_config(ROOT / "configs/quickstart.yaml", words)
        config.run_folder.mkdir(exist_ok=True)
        recorder = Recorder()
        recorder.open(config)
        for each, step in records:
            recorder.write(each, step)
        recorder.close(exit_code)
        recorder.lines.file.file.close()
        return config.run_folder

    return do


def test_wandb_gets_the_numbers_and_one_identity(wandb, record):
    for _ in range(2):
        record(["log.wandb=offline"], (EPOCH, 7))
    first, second = wandb.named("init")
    assert first["mode"] == "offline" and first["resume"] == "allow"
    assert first["id"] == second["id"]  # a resumed run goes on in the same curve
    numbers = {"epoch/epoch": 1, "epoch/val_top1": 50.0, "epoch/indicators/a/b": 1}
    axes = {"step": 7, "epoch": 1, "images_seen": 70}
    assert wandb.named("log")[0] == {"numbers": {**numbers, **axes}}
    assert wandb.named("finish")[0] == {"exit_code": 0}


HISTOGRAMS = {"kind": "histograms", "epoch": 1,
              "weights": {"conv": {"limit": 0.5, "counts": [1, 0, 2, 1]}}}  # fmt: skip


def test_wandb_gets_histograms(wandb, record):
    record(["log.wandb=offline"], (HISTOGRAMS, 7))
    shown = ([1, 0, 2, 1], [-0.5, -0.25, 0, 0.25, 0.5])
    values = {"histograms/epoch": 1, "histograms/weights/conv": shown}
    axes = {"step": 7, "epoch": 1, "images_seen": 70}
    assert wandb.named("log") == [{"numbers": {**values, **axes}}]


def test_wandb_is_told_what_the_config_says_of_the_run(wandb, record):
    words = ["log.group=study", "log.tags=a, b c,", "log.notes=7 up", "log.project=p", "seed=3"]
    record(["log.wandb=online", *words])
    (init,) = wandb.named("init")
    expected = {"group": "study", "tags": ["a", "b c"], "notes": "7 up", "project": "p"}
    assert {key: init[key] for key in expected} == expected
    assert init["config"]["seed"] == 3 and init["config"]["versions"].startswith("Python")
    assert {"host", "cpu", "gpu", "gpus", "commit"} <= init["config"].keys()


@pytest.mark.parametrize(("exit_code", "sent"), [(0, True), (130, False)])
def test_wandb_gets_the_best_checkpoint_of_a_whole_run(wandb, record, tmp_path, exit_code, sent):
    best = tmp_path / "quickstart/checkpoints/best.pt"
    best.parent.mkdir(parents=True)
    best.write_bytes(b"weights")
    record(["log.wandb=online", "log.artifacts=best"], exit_code=exit_code)
    assert wandb.named("log_artifact") == ([{"files": [str(best)]}] if sent else [])
    assert wandb.named("finish") == [{"exit_code": exit_code}]


def test_wandb_without_a_server_records_offline(wandb, record, warnings):
    wandb.fails = ("init online",)
    folder = record(["log.wandb=online"], (STEP, 5))
    (warning,) = warnings()
    assert warning.startswith("wandb records offline (no init today)")
    assert warning.endswith(command_line("sync", str(folder)))
    assert [each["mode"] for each in wandb.named("init")] == ["online", "offline"]
    assert len(wandb.named("log")) == 1


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_wandb_failure_is_one_warning(wandb, record, fails, warnings):
    wandb.fails = (fails,)
    record(["log.wandb=offline"], *((STEP, step) for step in range(3)), exit_code=1)
    assert warnings() == [f"wandb is off for this run: no {fails} today"]
    assert len(wandb.named(fails)) == 1


def test_a_divergence_is_an_alert(wandb, tmp_path):
    words = [f"run.dir={tmp_path}", "log.wandb=online"]
    (tmp_path / "quickstart").mkdir()
    (tracker,) = open_trackers(load_config(ROOT / "configs/quickstart.yaml", words), {})
    tracker.alert("the loss is nan in step 3")
    assert wandb.named("alert") == [
        {"title": "quickstart ended", "text": "the loss is nan in step 3"}
    ]


def test_planted_links_are_not_followed(wandb, record, tmp_path):
    folder = tmp_path / "quickstart"
    folder.mkdir()
    for name in ("wandb_id", ".wandb_id.tmp"):
        (folder / name).symlink_to(tmp_path / "nothing")
    record(["log.wandb=offline"])
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("module", "override", "name"),
    [
        ("wandb", "log.wandb=offline", "wandb"),
        ("torch.utils.tensorboard", "log.tensorboard=true", "TensorBoard"),
    ],
)
def test_a_tracker_that_is_not_installed_is_one_warning(
    record, monkeypatch, warnings, module, override, name
):
    monkeypatch.setitem(sys.modules, module, None)
    folder = record([override], (STEP, 5), (STEP, 6))
    assert len(warnings()) == 1 and f"{name} is off" in warnings()[0]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2


def test_what_is_not_asked_for_is_not_even_imported(record, monkeypatch, warnings):
    for module in ("wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    folder = record([], (STEP, 5))
    assert warnings() == []
    assert {each.name for each in folder.iterdir()} == {"metrics.jsonl", "origin.json"}


@pytest.mark.slow
def test_wandbs_file_keeps_what_a_resumed_run_repeats(record, monkeypatch):
    """A real file of wandb's: nested figures, axes of ours, and steps that fall."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    steps = [({**STEP, "step": step}, step) for step in (5, 6, 3, 4)]
    last = {"kind": "epoch", "epoch": 0, "indicators": {"total": {"error": 2.5}}}
    folder = record(["log.wandb=offline", "log.tags=a,b"], *steps, (last, 6), (HISTOGRAMS, 6))
    importlib.import_module("wandb").teardown()  # until then its service may hold the last rows
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    records, found = list(transactions(file)), history(file)
    assert [each["step"] for each in found] == [5, 6, 3, 4, 6, 6]
    assert [each["images_seen"] for each in found] == [50, 60, 30, 40, 60, 60]
    assert all(each["step/loss"] == 0.5 for each in found[:4])
    assert found[4]["epoch/indicators/total/error"] == 2.5 and found[4]["epoch"] == 0
    kind, counts, edges = (
        found[5][f"histograms/weights/conv/{part}"] for part in ("_type", "values", "bins")
    )
    assert (kind, counts, edges) == ("histogram", [1, 0, 2, 1], [-0.5, -0.25, 0, 0.25, 0.5])
    axes = {r.metric.glob_name or r.metric.name: r.metric.step_metric for r in records
            if r.WhichOneof("record_type") == "metric"}  # fmt: skip
    assert axes["step/*"] == "step" and axes["epoch/*"] == "epoch"
    assert ["a", "b"] in [list(r.run.tags) for r in records]


@pytest.mark.slow
def test_an_online_run_goes_on_and_ends_as_its_command_does(record, monkeypatch):
    """The real client, and a stand-in for its server."""
    wandb = pytest.importorskip("wandb")
    with Server() as server:
        for name, value in (("BASE_URL", server.url), ("API_KEY", KEY), ("SILENT", "true")):
            monkeypatch.setenv(f"WANDB_{name}", value)
        for step, code in ((5, 143), (6, 2)):
            wandb.teardown()  # its service keeps what the environment was
            record(["log.wandb=online"], ({**STEP, "step": step}, step), exit_code=code)
            assert [*server.codes.values()] == [code]
        wandb.teardown()
    (rows,) = server.rows.values()
    assert [(row["step"], row["_step"]) for row in rows] == [(5, 0), (6, 1)]


def test_tensorboards_files_hold_the_numbers(record):
    """What a resumed run repeats takes the place of what was there."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = [({**STEP, "loss": float(step)}, step) for step in (5, 6)]
    record(["log.tensorboard=true"], *steps)
    ends = [({**STEP, "loss": -6.0}, 6), (HISTOGRAMS, 7), (EPOCH, 7)]
    folder = record(["log.tensorboard=true"], *ends)
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    values = [(each.step, each.value) for each in found.Scalars("step/loss")]
    assert values == [(5, 5.0), (6, -6.0)]
    assert [each.value for each in found.Scalars("epoch/indicators/a/b")] == [1.0]
    (histogram,) = found.Histograms("histograms/weights/conv")
    shown = histogram.histogram_value
    assert (histogram.step, shown.num, shown.min, shown.max) == (7, 4, -0.5, 0.5)
    assert shown.bucket == [1, 0, 2, 1] and shown.bucket_limit == [-0.25, 0, 0.25, 0.5]
    assert shown.sum == -0.375 + 2 * 0.125 + 0.375
