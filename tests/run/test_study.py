"""Which trials a study has, under which names, and what is said of a file that is wrong."""

import json
import re

import pytest
import yaml

from launch.command import find_config
from pipeline.run.config import keys, load_config, to_dict
from pipeline.run.errors import UserError
from pipeline.run.study import check_folder, read_study
from tests import ROOT

STUDY = """
config: cifar10_resnet20
overrides: {train.epochs: 4, optim.warmup_epochs: 0}
seeds: [1, 2]
runs:
  - estimator.name: [reste, ste]
  - {estimator.name: [reste, ste], estimator.o_end: [1, 3, 5]}
"""
RUNS = "runs: [{estimator.name: [reste, ste]}]"


@pytest.fixture
def read(tmp_path):
    """The study with this text, in a folder of its own."""

    def read(text=STUDY, *words):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return read_study(path, (f"run.dir={tmp_path}/runs", *words), find_config)

    return read


def names(study):
    return [trial.name for trial in study.trials]


def test_what_is_the_same_is_one_trial(read, tmp_path):
    study = read()
    groups = ["reste", "ste", "reste-o_end1", "reste-o_end5"]  # 3 is the recipe's; ste has none
    assert names(study) == [f"{group}-seed{seed}" for seed in (1, 2) for group in groups]
    assert study.folder == tmp_path / "runs/mine"
    settings = [trial.settings for trial in study.trials[:4]]
    assert settings == [{}, {}, {"estimator.o_end": "1"}, {"estimator.o_end": "5"}]


def test_a_trial_is_what_train_makes_of_its_words(read):
    """In spite of the study's own name and of what comes later."""
    for trial in read(STUDY, "optim.lr=0.05", "run.name=other").trials:
        config, *overrides = trial.words
        assert load_config(find_config(config), overrides) == trial.config
        assert trial.config.train.epochs == 4 and trial.config.optim.lr == 0.05
        assert trial.config.run_folder.parent.name == "other"


def test_a_name_stays_when_other_trials_are_added(read):
    few = read("{config: cifar10_resnet20, seeds: [1], runs: [{estimator.name: reste}]}")
    more = STUDY.replace("overrides: {train.epochs: 4, optim.warmup_epochs: 0}", "")
    assert set(names(few)) < set(names(read(more)))


def test_any_value_makes_a_folder_of_its_own(read):
    study = read(
        "{config: cifar10_resnet20, runs: ["
        "{data.path: [a/b, a_b, 'a b', null, ü], optim.lr: [1e-3, 0.001, 0.01]}]}"
    )
    assert len(names(study)) == 10 and not [name for name in names(study) if "/" in name]
    assert names(study)[0] == "reste-patha%2Fb-lr0.001-seed1234"
    study = read(
        "{config: cifar10_resnet20, overrides: {data.path: v1.0},"
        "runs: [{data.path: [v2.0, null], data.augment: [true, false]}]}"
    )
    assert names(study)[2:] == ["reste-pathnull-seed1234", "reste-pathnull-augmentfalse-seed1234"]
    assert names(study)[0] == "reste-pathv2.0-seed1234"


def test_no_two_keys_look_alike_in_a_name():
    own = [key for key in keys() if not key.startswith(("run.", "estimator.name"))]
    assert len({key.rpartition(".")[2] for key in own}) == len(own)


@pytest.mark.parametrize(
    ("text", "example"),
    [
        (RUNS, "config: cifar10_resnet20"),
        (f"config: [a]\n{RUNS}", "config: cifar10_resnet20"),
        ("config: cifar10_resnet20", RUNS),
        ("{config: cifar10_resnet20, runs: []}", RUNS),
        ("{config: cifar10_resnet20, runs: [{}]}", RUNS),
        ("{config: cifar10_resnet20, runs: [estimator.name]}", RUNS),
        ("{config: cifar10_resnet20, runs: [{estimator: {name: ste}}]}", RUNS),
        ("{config: cifar10_resnet20, runs: [{estimator.name: []}]}", RUNS),
        (f"config: cifar10_resnet20\noverrides: {{train: {{}}}}\n{RUNS}",
         "overrides: {train.epochs: 10}"),
        (f"config: cifar10_resnet20\noverrides: [a=1]\n{RUNS}", "overrides: {train.epochs: 10}"),
        (f"config: cifar10_resnet20\nseeds: 3\n{RUNS}", "seeds: [1, 2, 3]"),
        (f"config: cifar10_resnet20\nseeds: []\n{RUNS}", "seeds: [1, 2, 3]"),
        (f"config: cifar10_resnet20\nseeds: [1, x]\n{RUNS}", "seeds: [1, 2, 3]"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_says_how_it_is_written(read, text, example):
    with pytest.raises(UserError) as caught:
        read(text)
    message = str(caught.value)
    assert message.endswith(f"; write it as in {example}") and "\n" not in message
    right = {**yaml.safe_load(STUDY), **yaml.safe_load(example)}
    assert read(yaml.safe_dump(right)).trials


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{STUDY}seed: 1", "seed is no part of a study; its parts are config, overrides, seeds"),
        (STUDY.replace("cifar10_resnet20", "cifar10_resnet2"), "did you mean cifar10_resnet20?"),
        (STUDY.replace("train.epochs", "train.epoch"), "train.epoch is no config key; did you mea"),
        (STUDY.replace("o_end: [1, 3, 5]", "o_end: [0, x, 5]"),
         "estimator.o_end is 0.0; it must be a number between 1 and 1000000; also estimator.o_end"),
        (STUDY.replace("[reste, ste]", "[rste]", 1), "estimator.name is 'rste'; choose one of "),
        (STUDY.replace("[1, 2]", "[-1]"), "seed is -1; it must be an integer between 0 and "),
        (STUDY.replace("[reste, ste]", f"{list(range(600))}", 1), "1212 trials are more than 1000"),
        ("[1]", "must hold keys and values, not a list; write key: value"),
        ("a: b: c", "line 1: not valid YAML"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(read, text, message):
    with pytest.raises(UserError) as caught:
        read(text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=3"], "seed stands among the keys; write seeds: [1, 2, 3]"),
        (["run.resume=none"], "run.resume is decided by the study; leave it out"),
        (["estimator.name=ste"], "its runs give estimator.name values already; "
         "leave estimator.name=ste out"),
    ],
)  # fmt: skip
def test_a_key_that_cannot_stand_there_is_named(read, words, message):
    with pytest.raises(UserError, match="^study .*mine.yaml: ") as caught:
        read(STUDY, *words)
    assert str(caught.value).endswith(message)
    assert read(STUDY).trials  # it is left out
    with pytest.raises(UserError, match="run.name is decided by the study; leave it out"):
        read(STUDY.replace("estimator.o_end: [1, 3, 5]", "run.name: [a, b]"))
    with pytest.raises(UserError, match="seed stands among the keys; write seeds"):
        read(STUDY.replace("estimator.o_end: [1, 3, 5]", "seed: [1, 2]"))


def begin(trial):
    """Leave in its folder what a run begins with."""
    trial.config.run_folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(to_dict(trial.config))
    (trial.config.run_folder / "config.yaml").write_text(text)


def test_another_folder_takes_other_settings(read):
    study = read()
    begin(study.trials[1])
    check_folder(study)
    check_folder(read(STUDY, "data.path=elsewhere", "train.device=cpu"))  # of no effect on results
    with pytest.raises(UserError, match=r"ste-seed1 .* \(optim.lr: 0.1 -> 0.05\); ") as caught:
        check_folder(read(STUDY, "optim.lr=0.05"))
    remedy = re.search(r"set (run.name=\S+) to begin", str(caught.value))[1]
    check_folder(read(STUDY, "optim.lr=0.05", remedy))


def test_the_folder_of_a_run_is_left_alone(read):
    study = read()
    study.folder.mkdir(parents=True)
    (study.folder / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="mine is the folder of a run; set run.name=mine-2 to "):
        check_folder(study)
    check_folder(read(STUDY, "run.name=mine-2"))


def test_a_trial_is_finished_when_all_its_epochs_are_recorded(read):
    trial = read().trials[0]
    begin(trial)
    for done in range(5):
        assert trial.epochs_done == done and trial.is_finished == (done == 4)
        with (trial.config.run_folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"kind": "epoch", "epoch": done}) + "\n")
        with (trial.config.run_folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"kind": "step", "step": done}) + "\n")


def test_the_shipped_study_is_right(tmp_path):
    path = find_config("estimators", "configs/studies")
    assert path == ROOT / "configs/studies/estimators.yaml"
    study = read_study(path, [f"run.dir={tmp_path}"], find_config)
    assert len(study.trials) == 3 * (10 + 3)
    assert study.open == list(study.trials)
    check_folder(study)
