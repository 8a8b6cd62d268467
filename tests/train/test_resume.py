"""What a run goes on from, in its own folder and in a new one, and what is never lost."""

import json
import math
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from launch import __main__ as reste
from launch import evaluate as evaluate_command
from launch import train as train_command
from pipeline.run import archive, best
from pipeline.run.checkpoint import CheckpointStore, load
from pipeline.run.config import load_config
from pipeline.run.errors import Interrupted, UserError
from pipeline.run.resume import Request, Start, check_config
from pipeline.train import session
from pipeline.train.evaluation import Evaluation
from tests.data.fixtures import cifar_tree
from tests.train.test_trainer import lines, stop_at, weights

CONFIG = (
    "{model: {arch: tiny}, data: {batch_size: 8, eval_batch_size: 5}, seed: 3, deterministic: true,"
    "train: {epochs: 3}, log: {every: 2, eta: 0}, checkpoint: {keep: 9}}"
)


pytestmark = pytest.mark.usefixtures("tiny_arch")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_arch):
    """A folder with data, a config and a finished run of 3 epochs of 5 steps."""
    root = tmp_path_factory.mktemp("finished")
    cifar_tree(root / "data")
    (root / "tiny.yaml").write_text(CONFIG)
    train_command.main(words(root))
    yield root
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def root(finished, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "root"))


def words(root):
    return [str(root / "tiny.yaml"), f"data.path={root}/data", f"run.dir={root}/runs"]


def run(root, *overrides):
    train_command.main([*words(root), *overrides])


def refused(root, *overrides):
    with pytest.raises(UserError) as caught:
        run(root, *overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def follow(message):
    """Do what the command in ``message`` says, word for word."""
    *_, line = message.split("reste ")
    reste.main(shlex.split(line))


def checkpoints(root, name="tiny"):
    return root / "runs" / name / "checkpoints"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def alter(path, change):
    """Let ``change`` alter the state in a checkpoint, which stays a whole file."""
    state = load(path)
    change(state)
    folder = path.parent.parent / "altered"
    folder.mkdir(exist_ok=True)
    CheckpointStore(folder, 1).save(state).replace(path)


def same(a, b):
    return all(torch.equal(value, b[key]) for key, value in a.items())


# What is there is kept.


def test_a_run_that_another_process_finishes_is_kept(root, monkeypatch):
    """It is looked at before it is locked; what came between is not trained again."""
    records = root / "runs/tiny/metrics.jsonl"
    whole = records.read_bytes()
    checkpoints(root).joinpath("epoch_0003.pt").rename(root / "kept.pt")
    first = len(b"".join(whole.splitlines(True)[:4]))
    records.write_bytes(whole[:first])
    look = session.find_start

    def look_and_wait(*arguments, **options):
        found = look(*arguments, **options)
        records.write_bytes(whole)
        return found

    monkeypatch.setattr(session, "find_start", look_and_wait)
    assert "another process trained this run meanwhile" in refused(root)
    assert records.read_bytes() == whole
    monkeypatch.undo()
    (root / "kept.pt").rename(checkpoints(root) / "epoch_0003.pt")
    run(root)
    assert records.read_bytes() == whole


def test_a_finished_run_with_best_alone_is_kept(root, capsys):
    for path in checkpoints(root).glob("epoch_*.pt"):
        path.unlink()
    before = {p: c for p, c in contents(root / "runs").items() if p.suffix in (".pt", ".jsonl")}
    run(root)
    said = capsys.readouterr().err
    assert "finished" in said and "evaluate" in said
    assert {p: c for p, c in contents(root / "runs").items() if p in before} == before
    follow(said.strip().splitlines()[-1])


@pytest.mark.parametrize("word", ["train.timeout=1200", "data.workers=3", "log.every=1"])
def test_what_changes_no_result_may_change_as_a_run_goes_on(root, word):
    (checkpoints(root) / "epoch_0003.pt").unlink()
    run(root, word)
    assert (checkpoints(root) / "epoch_0003.pt").exists()


def test_each_checkpoint_is_loaded_once_at_most(root, monkeypatch):
    loaded, read = [], archive.read

    def counted(file, *, tensors=True):
        loaded.extend([Path(file.name).name] if tensors else [])
        return read(file, tensors=tensors)

    monkeypatch.setattr(archive, "read", counted)
    for name in ("epoch_0003.pt", "best.pt"):
        (checkpoints(root) / name).unlink()
    run(root)
    assert loaded[0] == "epoch_0002.pt" and len(loaded) == len(set(loaded))


def test_an_unfinished_run_goes_on_from_best(root, monkeypatch, capsys):
    reference = lines(root / "runs/tiny")
    shutil.rmtree(root / "runs")
    stop_at_step = 13
    with monkeypatch.context() as patch:
        stop_at(patch, stop_at_step)
        with pytest.raises(KeyboardInterrupt):
            run(root)
    records = (root / "runs/tiny/metrics.jsonl").read_bytes()
    for path in checkpoints(root).glob("epoch_*.pt"):
        path.unlink()
    run(root)
    assert "only best.pt is left" in capsys.readouterr().err
    assert lines(root / "runs/tiny") == reference
    copies = [path.read_bytes() for path in (root / "runs/tiny").glob("metrics_*.jsonl")]
    assert records in copies


def test_a_run_without_any_checkpoint_is_not_started_over(root):
    shutil.rmtree(checkpoints(root))
    before = contents(root / "runs")
    message = refused(root)
    assert contents(root / "runs") == before
    run(root, message.split("set ")[1].split()[0], "train.epochs=1")
    assert (checkpoints(root, "tiny-2") / "best.pt").exists()


def stop_before_the_first_save(patch):
    def save(self, content, *, best):
        raise KeyboardInterrupt

    patch.setattr(CheckpointStore, "save", save)


@pytest.mark.parametrize(
    "stop", [lambda patch: stop_at(patch, 3), stop_before_the_first_save], ids=["step", "save"]
)
def test_a_run_that_was_killed_before_it_saved_begins_again(root, monkeypatch, stop):
    reference = lines(root / "runs/tiny")
    shutil.rmtree(root / "runs")
    with monkeypatch.context() as patch:
        stop(patch)
        with pytest.raises(KeyboardInterrupt):
            run(root)
    records = (root / "runs/tiny/metrics.jsonl").read_bytes()
    assert records
    run(root)
    assert lines(root / "runs/tiny") == reference
    assert (root / "runs/tiny/metrics_1.jsonl").read_bytes() == records


@pytest.mark.parametrize("sign", ["config.yaml", "metrics.jsonl", "log.txt", "plots"])
def test_any_sign_of_a_run_is_one(root, sign):
    for path in (root / "runs/tiny").iterdir():
        if path.name != sign:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    message = refused(root, "run.resume=none")
    assert "holds a run already" in message and "run.name=tiny-2" in message


def test_where_all_checkpoints_are_damaged_another_run_starts(root):
    for path in checkpoints(root).glob("*.pt"):
        path.write_bytes(path.read_bytes()[:-1000])
    before = contents(root / "runs")
    message = refused(root)
    assert "every checkpoint" in message and contents(root / "runs") == before
    run(root, message.rpartition("set ")[2].split()[0], "train.epochs=1")


# best.pt


def epoch_of_best(root, name="tiny"):
    return best.record_of(checkpoints(root, name) / "best.pt")


def test_a_lost_best_is_copied_from_the_checkpoint_of_its_epoch(root):
    wanted = epoch_of_best(root)
    (checkpoints(root) / "best.pt").unlink()
    run(root)
    assert epoch_of_best(root) == wanted == load(checkpoints(root) / "epoch_0003.pt")["best"]


def test_a_new_run_has_the_best_of_the_old_one(root, capsys):
    wanted = load(checkpoints(root) / "epoch_0003.pt")["best"]
    source = checkpoints(root) / f"epoch_{max(1, wanted['epoch'] + 1):04d}.pt"
    run(root, f"run.resume={source}", "run.name=new", "train.epochs=4", "optim.lr=0")
    state = load(checkpoints(root, "new") / "epoch_0004.pt")
    assert epoch_of_best(root, "new") == state["best"]
    follow(capsys.readouterr().err.strip().splitlines()[-1])


def test_where_the_best_is_lost_the_next_best_is_it(root, capsys):
    def change(state):
        state["best"] = {**state["best"], "epoch": 0, "val_top1": 100.0, "val_loss": 0.123}

    for path in (checkpoints(root) / "best.pt", checkpoints(root) / "epoch_0003.pt"):
        path.unlink()
    alter(checkpoints(root) / "epoch_0002.pt", change)
    run(root)
    said = capsys.readouterr().err
    assert "best.pt of epoch 1 is lost" in said
    assert "of epoch 1 no checkpoint is left" in said
    left = [best.record_of(path)["val_top1"] for path in checkpoints(root).glob("epoch_*.pt")]
    assert epoch_of_best(root)["val_top1"] == max(left)
    follow(said.strip().splitlines()[-1])


def test_a_full_disk_leaves_no_other_best(root, monkeypatch):
    """It is full when best.pt is to be written, behind the checkpoint of the same epoch."""
    reference = contents(checkpoints(root))[checkpoints(root) / "best.pt"]
    shutil.rmtree(root / "runs")
    from pipeline.run import checkpoint

    original = checkpoint.write_atomically

    def full(path, content):
        if path.name == "best.pt":
            raise UserError("cannot write best.pt: No space left on device; make room")
        original(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", full)
        with pytest.raises(UserError, match="No space"):
            run(root)
    run(root)
    assert load(checkpoints(root) / "best.pt")["best"] == epoch_of_best(root)
    assert len(reference) > 0


# Going on with other settings.

CHANGES = {
    "longer": ["train.epochs=5"],
    "another rate": ["optim.lr=0.01", "optim.momentum=0.5", "optim.weight_decay=0"],
    "another batch": ["data.batch_size=10"],
    "another estimator": ["estimator.name=ste"],
    "averaged": ["train.ema_decay=0.9", "indicators.enabled=true"],
    "no momentum": ["optim.momentum=0"],
    "other decay": ["optim.decay_norms=false"],
    "half": ["train.precision=bf16", "optim.impl=torch"],
}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(name, marks=() if name in ("longer", "another batch") else pytest.mark.slow)
        for name in CHANGES
    ],
)
def test_the_command_in_the_error_goes_on_with_other_settings(root, change, capsys):
    (checkpoints(root) / "epoch_0003.pt").unlink()
    (checkpoints(root) / "best.pt").unlink()
    message = refused(root, *CHANGES[change])
    for override in CHANGES[change]:
        assert override in message
    follow(message)
    said = capsys.readouterr().err
    assert "a new run from" in said and CHANGES[change][0].partition("=")[0] in said
    records = [line for line in lines(root / "runs/tiny-2") if line["kind"] == "epoch"]
    epochs = 5 if change == "longer" else 3
    assert [record["epoch"] for record in records] == list(range(epochs))
    rate = 0.01 if change == "another rate" else 0.1
    expected = rate / 2 * (1 + math.cos(math.pi * 2 / epochs))
    assert records[2]["lr"] == pytest.approx(expected)
    group = load(checkpoints(root, "tiny-2") / f"epoch_{epochs:04d}.pt")["optimizer"][
        "param_groups"
    ]
    if change == "another rate":
        assert (group[0]["momentum"], group[0]["weight_decay"]) == (0.5, 0)
    run(root, *CHANGES[change], "run.name=tiny-2")  # it is a run like any other


def test_a_new_run_without_a_change_is_the_old_one_to_the_bit(root):
    run(root, f"run.resume={checkpoints(root)}/epoch_0001.pt", "run.name=new")
    assert lines(root / "runs/new") == lines(root / "runs/tiny")
    assert same(weights(root / "runs/new"), weights(root / "runs/tiny"))


def test_a_finished_run_is_trained_longer(root):
    source = f"run.resume={checkpoints(root)}/epoch_0003.pt"
    message = refused(root, source, "run.name=new")
    assert "train.epochs=6" in message
    run(root, source, "run.name=new", "train.epochs=6")
    assert lines(root / "runs/new")[-1]["epoch"] == 5


@pytest.fixture
def interrupted(root, monkeypatch):
    """A run that stopped in the middle of its second epoch."""
    shutil.rmtree(root / "runs")
    with monkeypatch.context() as patch:
        stop_at(patch, 7, Interrupted)
        with pytest.raises(Interrupted):
            run(root)
    assert (checkpoints(root) / "step_8.pt").exists()
    return root


def test_in_the_middle_of_an_epoch_another_batch_goes_on_from_its_beginning(interrupted):
    root = interrupted
    message = refused(root, "data.batch_size=10")
    assert "epoch_0001.pt" in message
    again = refused(root, f"run.resume={checkpoints(root)}/step_8.pt", "run.name=new",
                    "data.batch_size=10")  # fmt: skip
    assert "in the middle of an epoch" in again and "epoch_0001.pt" in again
    follow(message)
    assert lines(root / "runs/tiny-2")[-1]["epoch"] == 2


def test_in_the_middle_of_an_epoch_another_rate_goes_on_there(interrupted):
    root = interrupted
    message = refused(root, "optim.lr=0.01")
    assert "step_8.pt" in message
    follow(message)
    assert lines(root / "runs/tiny-2")[-1]["epoch"] == 2


def test_other_images_go_on_in_a_new_run(root):
    (root / "data/train/dark/0.png").unlink()
    for name in ("epoch_0003.pt", "best.pt"):
        (checkpoints(root) / name).unlink()
    message = refused(root)
    assert "train images" in message
    follow(message)
    assert lines(root / "runs/tiny-2")[-1]["epoch"] == 2


def test_an_image_is_left_out_in_the_middle_of_an_epoch(interrupted):
    root = interrupted
    (root / "bad.txt").write_text("train/dark/0.png\n")
    message = refused(root, f"data.exclude={root}/bad.txt")
    assert "middle of an epoch" in message
    follow(message)
    assert lines(root / "runs/tiny-2")[-1]["epoch"] == 2


def test_other_metrics_go_on_from_the_end_of_an_epoch(interrupted):
    root = interrupted

    def change(state):
        state["metrics"], state["sums"] = ("loss", "x"), torch.zeros(1, 2, dtype=torch.float64)

    alter(checkpoints(root) / "step_8.pt", change)
    message = refused(root)
    assert "counts loss, x" in message and "epoch_0001.pt" in message
    follow(message)


def test_another_network_starts_from_the_weights_or_anew(root):
    (checkpoints(root) / "epoch_0003.pt").unlink()
    (checkpoints(root) / "best.pt").unlink()
    message = refused(root, "model.bits=1w32a")
    assert "model.weights=" in message
    follow(message)
    message = refused(root, "model.arch=resnet20_bireal")
    run(root, "model.arch=resnet20_bireal", "train.epochs=1", *message.split("set ")[1].split()[:2])


def test_another_optimizer_starts_from_the_weights(root):
    """Its moments are others; also where the change is asked for in a new run."""
    (checkpoints(root) / "epoch_0003.pt").unlink()
    (checkpoints(root) / "best.pt").unlink()
    adam = "optim.name=adam", "optim.lr=0.01"
    message = refused(root, *adam)
    assert "model.weights=" in message
    again = refused(root, *adam, f"run.resume={checkpoints(root)}/epoch_0001.pt", "run.name=new")
    assert "is of another optimizer (optim.name: sgd -> adam" in again
    for each in (message, again):
        follow(each)
    for name in ("tiny-2", "new-2"):
        state = load(checkpoints(root, name) / "epoch_0003.pt")["optimizer"]["state"][0]
        assert state.keys() == {"step", "exp_avg", "exp_avg_sq"} and state["step"] == 15


# The state against the config.


def set_in(*path, value):
    def change(state):
        *most, last = path
        for key in most:
            state = state[key]
        state[last] = value

    return change


DAMAGES = {
    "momentum": set_in("optimizer", "param_groups", 0, "momentum", value=0.5),
    "weight decay": set_in("optimizer", "param_groups", 0, "weight_decay", value=0.5),
    "nan momentum": set_in("optimizer", "param_groups", 0, "momentum", value=math.nan),
    "groups": lambda state: state["optimizer"]["param_groups"].append(
        dict(state["optimizer"]["param_groups"][0])
    ),
    "shapes": set_in("optimizer", "state", 0, "momentum_buffer", value=torch.zeros(3)),
    "another optimizer": set_in("optimizer", "state", 0, "exp_avg", value=torch.zeros(3)),
    "statistics": set_in("reestimated", value={"bn1.running_mean": torch.zeros(3)}),
    "batch": lambda state: state.update(batch=6, step=state["step"] + 6),
    "longer epoch": lambda state: state.update(batch=7, steps=7, step=state["epoch"] * 7 + 7),
    "negative batch": set_in("batch", value=-1),
    "nan step": set_in("step", value=math.nan),
    "best": set_in("best", value={"epoch": 7, "val_top1": 50.0}),
    "best is none": set_in("best", value=None),
    "nan best": set_in("best", "val_top1", value=math.nan),
    "last": set_in("last", value={}),
    "sums": set_in("sums", value=torch.zeros(1, 9)),
    "times": set_in("times", value=[math.nan, 0.0]),
    "size": set_in("metrics_size", value=-5),
    "watch": set_in("watch", value=torch.zeros(2)),
}


@pytest.mark.parametrize("damage", ["momentum", "groups", "shapes", "longer epoch"])
def test_a_state_that_no_training_wrote_is_refused(root, damage):
    for path in checkpoints(root).glob("*.pt"):
        if path.name != "epoch_0002.pt":
            path.unlink()
    alter(checkpoints(root) / "epoch_0002.pt", DAMAGES[damage])
    message = refused(root)
    assert "epoch_0002.pt" in message
    if damage in ("momentum", "groups"):  # for the others the remedy is the same
        remedy = message.rpartition("; ")[2]
        run(root, *[word for word in remedy.split() if "=" in word], "train.epochs=1")


@pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - {"groups", "shapes", "longer epoch"}))
def test_what_does_not_fit_a_config_is_found(finished, damage):
    path = checkpoints(finished) / "epoch_0002.pt"
    state, config = load(path), load_config(words(finished)[0])
    check_config(Start(state, path), Request(config))
    DAMAGES[damage](state)
    with pytest.raises(UserError, match="epoch_0002.pt cannot be resumed from: .*; set run.resume"):
        check_config(Start(state, path), Request(config))


def test_a_config_that_is_none_is_refused(root):
    for path in checkpoints(root).glob("*.pt"):
        if path.name != "epoch_0002.pt":
            path.unlink()
    alter(checkpoints(root) / "epoch_0002.pt", set_in("config", "model", "bits", value="3w"))
    message = refused(root)
    remedy = message.rpartition("; ")[2]
    assert "model.bits is '3w'" in message
    run(root, *[word for word in remedy.split() if "=" in word], "train.epochs=1")


def test_an_epoch_past_the_end_is_refused(root):
    def change(state):
        state.update(epoch=9, step=45)
        state["last"]["epoch"] = 8

    alter(checkpoints(root) / "epoch_0003.pt", change)
    assert "train.epochs is 3" in refused(root)


# A failure in the evaluation.


@pytest.mark.parametrize("error", [RuntimeError("out of memory")])
def test_a_failed_evaluation_loses_no_epoch(root, monkeypatch, error):
    reference = lines(root / "runs/tiny")
    expected = weights(root / "runs/tiny")
    shutil.rmtree(root / "runs")
    original, steps = Evaluation._add, []

    def fail(self, batch):
        steps.append(1)
        if len(steps) == 5:  # in the second evaluation
            raise error
        original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "_add", fail)
        with pytest.raises(type(error)):
            run(root)
    assert load(checkpoints(root) / "step_10.pt")["batch"] == 5
    trained = []
    original_step = train_step_of()
    with monkeypatch.context() as patch:
        patch.setattr(
            "pipeline.train.trainer.Trainer.train_step",
            lambda self, batch: trained.append(self.step) or original_step(self, batch),
        )
        run(root)
    assert trained == list(range(10, 15))
    assert lines(root / "runs/tiny") == reference
    assert same(weights(root / "runs/tiny"), expected)


def train_step_of():
    from pipeline.train.trainer import Trainer

    return Trainer.train_step


def test_a_bad_image_of_the_evaluation_is_left_out_afterwards(root, monkeypatch):
    shutil.rmtree(root / "runs")
    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "_add", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(root)
    (root / "bad.txt").write_text("test/dark/0.png\n")
    run(root, f"data.exclude={root}/bad.txt")
    assert lines(root / "runs/tiny")[-1]["epoch"] == 2


# Classes by name.


def rename(root, names):
    for split in ("train", "test"):
        for old, new in names.items():
            (root / "data" / split / old).rename(root / "data" / split / new)


def evaluated(root, capsys):
    evaluate_command.main([str(checkpoints(root) / "best.pt"), f"data.path={root}/data"])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_classes_in_another_order_are_matched_by_name(root, capsys):
    path = checkpoints(root) / "best.pt"
    assert load(path)["classes"] == ("dark", "light")
    before = evaluated(root, capsys)

    def change(state):
        state["classes"] = ("light", "dark")  # as if the folders had sorted otherwise
        for key in ("linear.weight", "linear.bias"):
            state["state_dict"][key] = state["state_dict"][key].flip(0)

    alter(path, change)
    after = evaluated(root, capsys)
    assert after["top1"] == before["top1"] and after["loss"] == pytest.approx(before["loss"])
    run(root, f"model.weights={path}", "run.name=tuned", "optim.lr=0", "train.epochs=1")
    row = load(checkpoints(root, "tuned") / "best.pt")["state_dict"]["linear.weight"]
    assert torch.equal(row, load(path)["state_dict"]["linear.weight"].flip(0))


@pytest.mark.parametrize("names", [{"dark": "gloomy"}])
def test_renamed_classes_are_refused(root, names, capsys):
    rename(root, names)
    with pytest.raises(UserError, match="only the checkpoint has .*only the data have"):
        evaluated(root, capsys)
    (checkpoints(root) / "epoch_0003.pt").unlink()
    (checkpoints(root) / "best.pt").unlink()
    message = refused(root)
    assert "only the data have" in message
    follow(message)
    assert "with a new classifier" in capsys.readouterr().err


def test_an_added_class_is_refused(root, capsys):
    for split in ("train", "test"):
        shutil.copytree(root / "data" / split / "dark", root / "data" / split / "night")
    with pytest.raises(UserError, match=r"only the data have night"):
        evaluated(root, capsys)


def test_classes_without_names_are_taken_by_position(root, capsys):
    path = checkpoints(root) / "best.pt"
    alter(path, lambda state: state.pop("classes"))
    evaluate_command.main([str(path), f"data.path={root}/data"])
    assert "names no classes: its 2 outputs are taken as dark, light" in capsys.readouterr().err


# Data of one's own.


def test_classes_and_batch_come_from_the_data(root, capsys):
    run(root, "run.name=own", "data.batch_size=750", "train.epochs=1")
    said = capsys.readouterr().err
    assert "data.batch_size: 750 -> 40" in said and "of 2 classes" in said
    state = load(checkpoints(root, "own") / "best.pt")
    assert state["config"]["data"]["batch_size"] == 40
    assert state["config"]["model"]["num_classes"] == 2
    run(root, "run.name=own", "data.batch_size=750", "train.epochs=1")  # it is finished
    assert "finished" in capsys.readouterr().err


def test_what_fills_no_batch_is_said(root, capsys):
    run(root, "run.name=own", "data.batch_size=12", "train.epochs=1")
    assert "12 images a step, 4 left for the next epoch's shuffle" in capsys.readouterr().err


def test_all_problems_come_together(root):
    message = refused(root, "data.path=/nowhere", "run.resume=/nothing.pt", "run.name=x",
                      "model.weights=/none.pt", "train.device=cpu")  # fmt: skip
    for word in ("/nowhere", "/nothing.pt", "/none.pt"):
        assert word in message
