"""Every error of the user's comes with a remedy, and a remedy that can be followed word for word
works: the error is provoked, what it says is done, and that succeeds.

A new error is a line in one of the lists below, or ``test_every_error_is_listed`` fails.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from launch import __main__ as reste
from launch import train as train_command
from pipeline.run.errors import UserError
from tests import ROOT
from tests.data.fixtures import cifar_tree

# Errors of a training with these overrides, whose remedy is key=value.
KEYS = {
    "pipeline/data/tree.py:check_classes": ["model.num_classes=3"],
    "pipeline/run/config.py:_crop_lies_in_the_image": ["data.resize=64"],
    "pipeline/run/config.py:_warmup_ends": ["optim.warmup_epochs=7"],
    "pipeline/run/config.py:_is_the_name_of_a_folder": ["run.name=a/b"],
    "pipeline/run/device.py:get_device": ["train.device=cuda"],
    "pipeline/train/graph.py:make_graphs": ["train.cuda_graph=true", "train.device=cpu"],
    "pipeline/train/optimizer.py:_apex_sgd": ["optim.impl=apex"],
    "pipeline/train/precision.py:_check": ["train.precision=fp16", "train.device=auto"],
    "pipeline/run/resume.py:_find": ["run.name=there", "run.resume=none"],
}
# Errors whose remedy another test follows.
FOLLOWED = {
    "pipeline/run/classes.py:match": "test_renamed_classes_are_refused",
    "pipeline/run/environment.py:number": "test_a_count_that_is_none_is_named_with_what_helps",
    "pipeline/run/rendezvous.py:start": "test_the_remedy_works_as_printed",
    "pipeline/run/consistency.py:check_state": "test_a_state_that_no_training_wrote_is_refused",
    "pipeline/run/consistency.py:check_optimizer": "test_a_state_that_no_training_wrote_is_refused",
    "pipeline/run/resume.py:_config_of": "test_a_config_that_is_none_is_refused",
    "pipeline/run/resume.py:_newest": "test_where_all_checkpoints_are_damaged_another_run_starts",
    "pipeline/run/resume.py:_check_nothing_is_lost":
        "test_a_run_without_any_checkpoint_is_not_started_over",
    "pipeline/run/resume.py:check_config":
        "test_the_command_in_the_error_goes_on_with_other_settings",
    "pipeline/run/resume.py:_check_new": "test_a_finished_run_is_trained_longer",
    "pipeline/run/resume.py:check_data": "test_other_images_go_on_in_a_new_run",
    "pipeline/run/resume.py:check_classes": "test_renamed_classes_are_refused",
    "pipeline/run/resume.py:check_place": "test_other_metrics_go_on_from_the_end_of_an_epoch",
}  # fmt: skip
FILES = "the person's own files are to be mended, or named"
ROOM = "the disk or its rights are to be mended"
WORDS = "the remedy is a word of the command line, which the person chooses"
OTHERS = "other machines or processes are to be mended"
DEVICE = "no machine of the tests can provoke it"
PASSES = "passes the words of another error on"
# Errors whose remedy cannot be followed by a test.
NOT_FOLLOWED = {
    "launch/bench/collectives.py:measure": OTHERS,
    "launch/bench/kernels.py:benchmark": "takes minutes: make bench-kernels DEVICE=cpu",
    "launch/bench/loaders.py:measure": FILES,
    "launch/bench/starts.py:_start": "the run that failed says what is wrong",
    "launch/command.py:answer": ROOM,
    "launch/command.py:choose": WORDS,
    "launch/command.py:error": WORDS,
    "launch/command.py:find_config": WORDS,
    "launch/command.py:parse": WORDS,
    "pipeline/data/batch.py:fit_batch": OTHERS,
    "pipeline/data/cifar_files.py:_load_official": "data.download=true needs the network",
    "pipeline/data/cifar_files.py:_load_tree": FILES,
    "pipeline/data/cifar_files.py:_read_image": FILES,
    "pipeline/data/cifar_files.py:load_cifar10": FILES,
    "pipeline/data/exclude.py:_name": FILES,
    "pipeline/data/exclude.py:read": FILES,
    "pipeline/data/image.py:bad_image": FILES,
    "pipeline/data/loader_torchvision.py:_open": DEVICE,
    "pipeline/data/loader_torchvision.py:_read": PASSES,
    "pipeline/data/open.py:_look_up": WORDS,
    "pipeline/data/open.py:build_loaders": OTHERS,
    "pipeline/data/open.py:open_tree": FILES,
    "pipeline/data/plan.py:check_batch_size": "a training makes the batch smaller before",
    "pipeline/data/synthetic.py:_exists": FILES,
    "pipeline/data/synthetic.py:draw": ROOM,
    "pipeline/data/tree.py:_class_names": FILES,
    "pipeline/data/tree.py:_check_not_empty": FILES,
    "pipeline/data/tree.py:_check_not_emptied": FILES,
    "pipeline/data/tree.py:_told": FILES,
    "pipeline/data/tree.py:_scan": FILES,
    "pipeline/data/tree.py:check_same_classes": FILES,
    "pipeline/data/workers.py:limit_workers": DEVICE,
    "pipeline/prepare/verify.py:__init__": FILES,
    "pipeline/prepare/verify.py:_check_report": FILES,
    "pipeline/prepare/verify.py:_count": FILES,
    "pipeline/prepare/verify.py:verify_tree": ROOM,
    "pipeline/report/runs.py:_record": FILES,
    "pipeline/report/runs.py:read_records": FILES,
    "pipeline/run/checkpoint.py:_read": FILES,
    "pipeline/run/checkpoint.py:content_of": "no network is that large",
    "pipeline/run/checkpoint.py:load": FILES,
    "pipeline/run/config.py:_refuse": WORDS,
    "pipeline/run/config.py:_sections": FILES,
    "pipeline/run/files.py:write_atomically": ROOM,
    "pipeline/run/folder.py:_open": ROOM,
    "pipeline/run/plain_yaml.py:_error": FILES,
    "pipeline/run/plain_yaml.py:load": FILES,
    "pipeline/run/plain_yaml.py:parse": FILES,
    "pipeline/run/problems.py:raise_all": PASSES,
    "pipeline/run/processes.py:_disagree": OTHERS,
    "pipeline/run/processes.py:from_main": PASSES,
    "pipeline/run/recorder.py:_lock": OTHERS,
    "pipeline/run/recorder.py:write": ROOM,
    "pipeline/run/rendezvous.py:_meet": OTHERS,
    "pipeline/run/rendezvous.py:_open_store": OTHERS,
    "pipeline/run/rendezvous.py:_take_gpu": DEVICE,
    "pipeline/run/weights.py:_check_kinds": FILES,
    "pipeline/run/weights.py:fit_weights": WORDS,
    "pipeline/train/graph.py:record": DEVICE,
    "pipeline/train/network.py:_start_from": FILES,
    "pipeline/train/scoring.py:_network": WORDS,
    "pipeline/train/scoring.py:values_of": FILES,
    "pipeline/train/trainer.py:_record": PASSES,
}
RAISED = ("UserError", "_NotPlain")


def errors() -> Iterator[str]:
    """The place of each error of the user's, as "file:function"."""
    for room in ("kernels", "models", "pipeline", "launch"):
        for path in sorted((ROOT / room).rglob("*.py")):
            place = str(path.relative_to(ROOT))
            yield from _calls(ast.parse(path.read_text(encoding="utf-8")), place, "")


def _calls(node: ast.AST, place: str, function: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call) and child.args:
            called = child.func.value if isinstance(child.func, ast.Attribute) else child.func
            if isinstance(called, ast.Name) and called.id in RAISED:
                yield f"{place}:{function}"
        name = child.name if isinstance(child, ast.FunctionDef) else function
        yield from _calls(child, place, name)


def test_every_error_is_listed():
    lists = (KEYS.keys(), FOLLOWED.keys(), NOT_FOLLOWED.keys())
    listed = [name for each in lists for name in each]
    assert len(listed) == len(set(listed))
    found = set(errors())
    assert sorted(found - set(listed)) == [], "say how their remedies are tested"
    assert sorted(set(listed) - found) == [], "these errors are no more"


def test_the_tests_that_follow_remedies_exist():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in FOLLOWED.values() if f"def {name}(" not in text] == []


@pytest.fixture
def words(tmp_path):
    cifar_tree(tmp_path / "data")
    (tmp_path / "tiny.yaml").write_text(
        "{data: {batch_size: 20, eval_batch_size: 12}, train: {epochs: 1}, log: {eta: 0}}"
    )
    (tmp_path / "runs/there/plots").mkdir(parents=True)
    return [str(tmp_path / "tiny.yaml"), f"data.path={tmp_path}/data", f"run.dir={tmp_path}/runs"]


@pytest.mark.parametrize("place", KEYS)
def test_key_and_value_work_as_they_are_printed(place, words):
    needs_none = {"train.device=cuda", "train.precision=fp16"}
    if needs_none & {*KEYS[place]} and torch.cuda.device_count():
        pytest.skip("there is one")
    with pytest.raises(UserError) as caught:
        train_command.main([*words, *KEYS[place]])
    message = str(caught.value)
    advice = re.findall(r"[a-z]+\.[a-z_]+=[^\s,;)]+", message.rpartition("; ")[2])
    assert advice, message
    chosen = advice[-1] if place.endswith(":_find") else advice[0]
    train_command.main([*words, *KEYS[place], chosen])


def test_a_word_that_is_meant_is_named_so_that_it_works(capsys):
    with pytest.raises(UserError) as caught:
        reste.main(["trian", "quickstart"])
    (word,) = re.findall(r"did you mean (\w+)\?", str(caught.value))
    with pytest.raises(SystemExit) as ended:
        reste.main([word, "--help"])
    assert ended.value.code == 0 and "usage" in capsys.readouterr().out


def test_the_command_to_find_bad_images_works(words, capsys, monkeypatch, tmp_path):
    """It is part of the remedy for an image that cannot be read."""
    bad = Path(words[1].partition("=")[2]) / "train/dark/0.png"
    bad.write_bytes(b"no image")
    with pytest.raises(UserError) as caught:
        train_command.main(words)
    command = re.search(r"reste (prepare verify \S+)", str(caught.value))
    assert command, caught.value
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        reste.main(shlex.split(command[1].replace("DATA", f"{tmp_path}/data")))
    train_command.main([*words, "data.exclude=bad-images.txt"])
