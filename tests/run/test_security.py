"""What comes from others (checkpoints, configs, data sets) is never executed and writes nowhere
but into its folder; and no secret is kept. That checkpoints run no code: test_checkpoint.py; that
nothing listens to other machines: test_distributed.py."""

import os

import pytest

from launch import evaluate as evaluate_command
from launch import train as train_command
from pipeline.run.checkpoint import FORMAT, content_of, load
from pipeline.run.config import load_config, make_config
from pipeline.run.errors import UserError
from pipeline.train.scoring import values_of
from tests.data.fixtures import cifar_tree

SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def arguments(tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "{model: {num_classes: 2}, data: {batch_size: 8}, train: {epochs: 1}, log: {every: 1}}"
    )
    data = cifar_tree(tmp_path / "data")
    return [str(config), f"data.path={data}", f"run.dir={tmp_path}/runs"]


@pytest.mark.parametrize(
    "text",
    [
        "seed: !!python/object/apply:os.system ['touch executed']",
        "run: {name: !!python/name:os.system }",
        "run: {name: '${oc.env:HOME}'}",
    ],
)
def test_a_config_runs_nothing_and_reads_no_environment(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.yaml").write_text(text)
    with pytest.raises(UserError):
        load_config("evil.yaml")
    assert os.listdir(tmp_path) == ["evil.yaml"]


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "..", "a/b", "a/../../b"])
def test_a_run_stays_in_its_folder(name):
    with pytest.raises(UserError, match="run.name"):
        make_config({}, [f"run.name={name}"])


def test_a_checkpoint_says_neither_where_files_lie_nor_what_is_fetched(tmp_path, arguments):
    train_command.main(arguments)
    best = tmp_path / "runs" / "tiny" / "checkpoints" / "best.pt"
    state = load(best)
    elsewhere = tmp_path / "elsewhere"
    state["config"]["data"].update(path=str(elsewhere), download=True)
    state["config"]["model"]["weights"] = str(elsewhere / "w.pt")
    state["config"]["run"]["dir"] = str(elsewhere)
    best.write_bytes(content_of(state))
    with pytest.raises(UserError, match="data.path: not set"):
        evaluate_command.main([str(best)])
    assert not elsewhere.exists()
    evaluate_command.main([str(best), arguments[1]])
    with pytest.raises(UserError):  # and values of other types are errors, not accidents
        make_config(values_of({"format": FORMAT, "config": {"data": 3}}))


def test_files_beside_the_checkpoints_are_left_alone(tmp_path, arguments):
    """Only names that we give ourselves are read or deleted."""
    folder = tmp_path / "runs" / "tiny" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("epoch_x.pt", "mine.pt", "..pt"):
        (folder / name).write_text("mine")
    train_command.main([*arguments, "checkpoint.keep=1", "checkpoint.every_steps=1"])
    assert {"epoch_x.pt", "mine.pt", "..pt", "epoch_0001.pt"} <= set(os.listdir(folder))


def test_the_wandb_key_is_kept_nowhere(tmp_path, arguments, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_SILENT", "true")
    train_command.main([*arguments, "log.wandb=offline"])
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert any("wandb" in str(path) for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
