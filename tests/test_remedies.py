"""Every error of the user's comes with a remedy, and a remedy that can be followed word for word
works: the error is provoked, what it says is done, and that succeeds.

A new error is a line in one of the lists below, or ``test_every_error_is_listed`` fails.
"""

import ast
import contextlib
import functools
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from launch import __main__ as reste
from launch import train as train_command
from launch.command import find_config
from pipeline.data import synthetic
from pipeline.data.batch import fit_batch
from pipeline.report.runs import read_run
from pipeline.run import processes
from pipeline.run.commands import command_line
from pipeline.run.config import load_config
from pipeline.run.errors import UserError
from pipeline.train.network import make_network
from tests import ROOT
from tests.data.fixtures import cifar_tree, plain_folder

pytestmark = pytest.mark.usefixtures("tiny_arch")
TINY = """\
model: {arch: tiny}
data: {batch_size: 20, eval_batch_size: 12}
train: {epochs: 1}
log: {eta: 0}
"""

# Errors of a training with these overrides, whose remedy is key=value.
KEYS = {
    "pipeline/data/tree.py:check_classes": ["model.num_classes=3"],
    "pipeline/data/loader_resident.py:_check_sides": ["data.train_sizes=24,32"],
    "pipeline/run/config.py:_crop_lies_in_the_image": ["data.resize=64"],
    "pipeline/run/config.py:_warmup_ends": ["optim.warmup_epochs=7"],
    "pipeline/run/config.py:_steps_have_milestones": ["optim.schedule=step"],
    "pipeline/run/config.py:_apex_is_for_sgd": ["optim.impl=apex", "optim.name=adam"],
    "pipeline/run/config.py:_weights_to_transform_are_binary": [
        "model.weight_transform=irnet",
        "model.bits=32w32a",
    ],
    "pipeline/run/config.py:_bop_flips_the_weights_themselves": [
        "optim.name=bop",
        "model.weight_transform=recu",
    ],
    "pipeline/run/config.py:_is_the_name_of_a_folder": ["run.name=a/b"],
    "pipeline/run/device.py:get_device": ["train.device=cuda"],
    "pipeline/train/graph.py:make_graphs": ["train.cuda_graph=true", "train.device=cpu"],
    "pipeline/train/optimizer.py:_apex_sgd": ["optim.impl=apex"],
    "pipeline/train/precision.py:_check": ["train.precision=fp16", "train.device=auto"],
    "pipeline/run/resume.py:_find": ["run.name=there", "run.resume=none"],
}
# Errors whose remedy another test follows.
FOLLOWED = {
    "launch/bench/official_run.py:flags": "test_what_it_does_not_know_is_refused",
    "launch/bench/official_run.py:train": "test_what_it_logs_becomes_a_run",
    "pipeline/report/sync.py:_explained": "test_what_wandb_does_not_take_has_a_way_out",
    "pipeline/run/sweep.py:check_folder": "test_one_name_for_every_trial_is_refused",
    "pipeline/run/recorder.py:__init__": "test_a_run_that_another_process_finishes_is_kept",
    "pipeline/prepare/archives.py:_check": "test_checksums",
    "pipeline/run/alone.py:lock": "test_what_another_process_works_at_is_left_alone",
    "pipeline/data/image.py:bad_image": "test_the_command_to_find_bad_images_works",
    "pipeline/run/cards.py:_check_launcher": "test_tritons_own_faults",
    "pipeline/train/memory.py:explained": "test_what_is_said_to_fit_does",
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
    "pipeline/run/plan.py:read_plan": "test_a_file_that_is_wrong_says_how_it_is_written",
    "pipeline/run/plan.py:check_keys": "test_a_key_that_cannot_stand_there_is_named",
    "pipeline/run/study.py:check_folder": "test_another_folder_takes_other_settings",
    "pipeline/train/teacher.py:_read": "test_a_file_says_for_itself_what_to_set",
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
    "launch/bench/inference.py:measure": "installing a compiler takes the network",
    "launch/bench/kernels.py:benchmark": "takes minutes: make bench-kernels DEVICE=cpu",
    "launch/bench/loaders.py:_training_images": FILES,
    "launch/bench/trees.py:given_images": FILES,
    "launch/bench/starts.py:_start": "the run that failed says what is wrong",
    "pipeline/data/cifar_files.py:load_cifar": FILES,
    "pipeline/data/cifar_official.py:read_official": "data.download=true needs the network",
    "pipeline/data/open.py:build_loaders": OTHERS,
    "pipeline/data/plan.py:check_batch_size": "a training makes the batch smaller before",
    "launch/evaluate.py:main": WORDS,
    "launch/export.py:_split": WORDS,
    "launch/export.py:main": WORDS,
    "launch/predict.py:main": WORDS,
    "pipeline/export/images.py:find": FILES,
    "pipeline/export/onnx_file.py:files": WORDS,
    "pipeline/export/openvino_file.py:_conv": WORDS,
    "pipeline/export/openvino_file.py:files": ROOM,
    "pipeline/export/optional.py:load": "installing takes the network",
    "pipeline/export/pack.py:_binary": FILES,
    "pipeline/export/pack.py:_other": FILES,
    "pipeline/export/pack.py:unpack": FILES,
    "pipeline/export/packed_file.py:decode": FILES,
    "pipeline/export/packed_file.py:read": FILES,
    "pipeline/export/push.py:push": "nothing of the tests leaves the machine",
    "pipeline/export/run_onnx.py:open_onnx": FILES,
    "pipeline/export/run_openvino.py:open_openvino": FILES,
    "pipeline/export/shrink.py:_float16": FILES,
    "pipeline/export/shrink.py:shrink": FILES,
    "pipeline/export/source.py:describe": FILES,
    "pipeline/export/targets.py:_check_folder": WORDS,
    "pipeline/export/targets.py:export": WORDS,
    "pipeline/export/trace.py:trace": FILES,
    "pipeline/prepare/archives.py:find": FILES,
    "pipeline/prepare/devkit.py:_refused": FILES,
    "pipeline/prepare/fill.py:check_classes": FILES,
    "pipeline/prepare/fill.py:told": ROOM,
    "pipeline/prepare/imagenet.py:_survey": FILES,
    "pipeline/prepare/imagenet.py:_val": FILES,
    "pipeline/prepare/resize.py:_place": FILES,
    "pipeline/prepare/source.py:_check": FILES,
    "pipeline/prepare/source.py:_check_tree": FILES,
    "pipeline/prepare/source.py:_in_own_words": PASSES,
    "pipeline/prepare/source.py:check_apart": WORDS,
    "pipeline/prepare/split.py:_classes_in": FILES,
    "pipeline/prepare/split.py:choose": FILES,
    "pipeline/prepare/tars.py:_members": FILES,
    "pipeline/prepare/tars.py:members": FILES,
    "pipeline/prepare/tars.py:read": FILES,
    "pipeline/prepare/target.py:_check_empty": WORDS,
    "pipeline/prepare/target.py:_described": ROOM,
    "pipeline/prepare/target.py:has_begun": WORDS,
    "pipeline/prepare/tiny_imagenet.py:_opened": FILES,
    "pipeline/prepare/tiny_imagenet.py:_survey": FILES,
    "pipeline/report/sync.py:_config_of": FILES,
    "pipeline/report/sync.py:send": "the run writes records as it goes on",
    "pipeline/run/cards.py:current": DEVICE,
    "pipeline/run/cards.py:check_number": DEVICE,
    "pipeline/run/cards.py:take": DEVICE,
    "pipeline/run/checkpoint.py:content_of": "no network is that large",
    "pipeline/run/files.py:write_together": ROOM,
    "pipeline/run/problems.py:raise_all": PASSES,
    "pipeline/run/processes.py:_disagree": OTHERS,
    "pipeline/run/processes.py:from_main": PASSES,
    "pipeline/run/recorder.py:write": ROOM,
    "pipeline/run/rendezvous.py:_meet": OTHERS,
    "pipeline/run/rendezvous.py:_open_store": OTHERS,
    "pipeline/run/trials.py:check": PASSES,
    "pipeline/train/graph.py:record": DEVICE,
    "pipeline/train/memory.py:shortage_explained": DEVICE,
    "pipeline/run/config.py:_weights_have_a_teacher": FILES,
    "pipeline/train/teacher.py:_check_finite": FILES,
    "pipeline/train/teacher.py:_fetched": "its remedies need the network, or a file of weights",
    "pipeline/train/teacher.py:_from_file": FILES,
    "pipeline/train/teacher.py:_of_torchvision": "trains a teacher first",
    "pipeline/train/teacher.py:_outputs": "takes another network from the net",
    "pipeline/train/trainer.py:_record": PASSES,
}
RAISED = ("UserError", "_NotPlain")


def errors() -> Iterator[str]:
    """The place of each error of the user's, as "file:function"."""
    for room in ("native", "kernels", "models", "pipeline", "launch"):
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
    lists = (KEYS.keys(), CASES.keys(), FOLLOWED.keys(), NOT_FOLLOWED.keys())
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
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "runs/there/plots").mkdir(parents=True)
    return [str(tmp_path / "tiny.yaml"), f"data.path={tmp_path}/data", f"run.dir={tmp_path}/runs"]


@pytest.mark.parametrize("place", KEYS)
def test_key_and_value_work_as_they_are_printed(place, words):
    with pytest.raises(UserError) as caught:
        train_command.main([*words, *KEYS[place]])
    message = str(caught.value)
    advice = re.findall(r"[a-z]+\.[a-z_]+=[^\s,;)]+", message.rpartition("; ")[2])
    assert advice, message
    chosen = advice[-1] if place.endswith(":_find") else advice[0]
    train_command.main([*words, *KEYS[place], chosen])


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
        reste.main(shlex.split(command[1]))
    train_command.main([*words, "data.exclude=bad-images.txt"])


# Errors that a case below provokes; each case does what the message says, which must succeed.
Case = Callable[["House"], None]
CASES: dict[str, list[Case]] = {}


class House:
    """A small data set, a config and a folder for runs, where nothing has run yet."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, cifar_tree(folder / "data")
        (folder / "tiny.yaml").write_text(TINY)
        self.config = folder / "tiny.yaml"

    def train(self, *words: str) -> None:
        """Train, or with --check among ``words`` look for mistakes."""
        given = {word.partition("=")[0] for word in words}
        fixed = {"data.path": self.data, "run.dir": self.folder / "runs"}
        kept = [f"{key}={value}" for key, value in fixed.items() if key not in given]
        train_command.main([str(self.config), *kept, *words])

    def refused(self, *words: str) -> str:
        """The error of a training."""
        return message_of(lambda: self.train(*words))

    def images(self) -> list[str]:
        """A tree in ImageNet's layout, and the words for a look at it."""
        for split, count in (("train", 6), ("val", 4)):
            plain_folder(self.folder / "tree", split, count, classes=2)
        small = ["data.batch_size=2", "data.size=8", "data.resize=8", "data.workers=0"]
        return [f"data.path={self.folder}/tree", "data.dataset=imagenet", "data.loader=torchvision",
                *small]  # fmt: skip

    def checkpoint(self) -> Path:
        """That of a network which nothing has trained."""
        config = load_config(self.config, ["run.name=x", "model.num_classes=2"])
        path = self.folder / "network.pt"
        torch.save({"state_dict": make_network(config).state_dict()}, path)
        return path


def message_of(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def advice(pattern: str, message: str) -> str:
    """What the message says in the place of the group in ``pattern``."""
    found = re.search(pattern, message)
    assert found, message
    return found[1]


def obey(message: str) -> None:
    """Do what the command at the end of ``message`` says."""
    words = shlex.split(advice(r"reste (.*)$", message))
    with contextlib.suppress(SystemExit):
        reste.main(words)


def provokes(place: str) -> Callable[[Case], Case]:
    """The case provokes the error at ``place``."""

    def add(case: Case) -> Case:
        CASES.setdefault(place, []).append(case)
        return case

    return add


@provokes("launch/command.py:find_config")
def _name_of_a_config(house: House) -> None:
    said = message_of(lambda: find_config("quikstart"))
    assert find_config(advice(r"did you mean (\w+)\?", said)).exists()
    said = message_of(lambda: find_config("zzz"))
    for name in advice(r"names are (.*)$", said).split(", "):
        assert find_config(name).exists()


@provokes("launch/command.py:parse")
def _options(house: House) -> None:
    house.train(advice(r"did you mean (--\w+)\?", house.refused("--chek")))
    said = house.refused("--optim.lr=0.05", "--check")
    house.train(advice(r"as in (\S+)$", said), "--check")


@provokes("launch/command.py:error")
def _a_word_that_is_missing(house: House) -> None:
    said = message_of(lambda: reste.main(["prepare", "verify"]))
    interpreter = re.escape(command_line().removesuffix(f"{ROOT}/reste"))  # where it is needed
    usage = re.sub(r" \[.*?\]", "", advice(rf"usage: {interpreter}\S*reste (.*)$", said))
    reste.main([str(house.data) if word == "DATA" else word for word in usage.split()])


@provokes("launch/command.py:choose")
def _a_command_that_is_missing(house: House) -> None:
    said = message_of(lambda: reste.main(["trian"]))
    with pytest.raises(SystemExit) as ended:
        reste.main([advice(r"did you mean (\w+)\?", said), "--help"])
    assert ended.value.code == 0
    said = message_of(lambda: reste.main(["prepare"]))
    for name in advice(r"{(.*)}", said).split(","):
        with pytest.raises(SystemExit):
            reste.main(["prepare", name, "--help"])


@provokes("launch/command.py:answer")
def _a_result_that_nobody_gets(house: House) -> None:
    code = "from launch.command import answer, command; command(lambda _: answer('{}'))"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = functools.partial(
        subprocess.run, shell=True, capture_output=True, text=True, env=env, cwd=house.folder
    )
    refused = run(f"{command} > /dev/full")
    assert refused.returncode == 2
    assert run(f"{command} {advice(r'(> .*)', refused.stderr)}").returncode == 0
    assert (house.folder / "result.json").read_text() == "{}\n"


@provokes("pipeline/data/cifar_files.py:_load_tree")
def _a_tree_without_tests(house: House) -> None:
    shutil.move(house.data / "test", house.folder)
    folder = advice(r"no folder (\S+)/; add it", house.refused("--check"))
    shutil.move(house.folder / folder, house.data)
    house.train("--check")


@provokes("pipeline/data/cifar_files.py:_read_image")
def _an_image_of_another_size(house: House) -> None:
    Image.new("RGB", (40, 30)).save(house.data / "train/dark/0.png")
    path = advice(r"data.path: (\S+) is 40x30, not 32x32; resize it", house.refused("--check"))
    Image.open(path).resize((32, 32)).save(path)
    house.train("--check")


@provokes("pipeline/data/exclude.py:read")
def _a_list_that_cannot_be_read(house: House) -> None:
    said = house.refused("data.exclude=gone.txt", "--check")
    house.train(advice(r"set (data.exclude=null)", said), "--check")
    obey(said)
    house.train(advice(r"or (data.exclude=\S+) after", said), "--check")


@provokes("pipeline/data/exclude.py:_name")
@provokes("pipeline/data/tree.py:check_listed")
def _a_list_that_is_of_other_data(house: House) -> None:
    for line in ("x", "train/dark/999.png"):
        Path("bad-images.txt").write_text(f"{line}\n")  # its name is taken
        said = house.refused("data.exclude=bad-images.txt", "--check")
        house.train(advice(r"set (data.exclude=null)", said), "--check")
        obey(said)
        house.train(advice(r"or (data.exclude=\S+) after", said), "--check")


@provokes("pipeline/data/tree.py:_check_not_empty")
def _an_empty_class(house: House) -> None:
    (house.data / "train/none").mkdir()
    Path(advice(r"in the class folder (\S+); .* or remove", house.refused("--check"))).rmdir()
    house.train("--check")


@provokes("pipeline/data/tree.py:check_not_emptied")
def _a_class_that_the_list_emptied(house: House) -> None:
    names = [f"train/dark/{i}.png\n" for i in range(20)]
    Path("list.txt").write_text("".join(names))
    said = house.refused("data.exclude=list.txt", "--check")
    folder = advice(r"in the class folder (\S+); add good ones", said)
    Image.new("RGB", (32, 32)).save(Path(folder) / "good.png")
    house.train("data.exclude=list.txt", "--check")


@provokes("pipeline/data/tree.py:_told")
def _an_image_that_leads_nowhere(house: House) -> None:
    (house.data / "train/dark/x.png").symlink_to("nowhere")
    Path(advice(r"cannot read (\S+): .* remove it", house.refused("--check"))).unlink()
    house.train("--check")


@provokes("pipeline/data/tree.py:_class_names")
@provokes("pipeline/data/tree.py:check_same_classes")
def _a_tree_that_is_half(house: House) -> None:
    words = [*house.images(), "--check"]
    shutil.move(house.folder / "tree/val", house.folder / "val")
    said = house.refused(*words)
    obey(said)
    made = advice(r"prepare split \S+ (\S+)$", said)
    house.train(f"data.path={made}", *words[1:])
    root, name = re.search(r"data.path: (\S+) has no folder (\w+)/;", said).groups()
    (Path(root) / name).mkdir()
    folder = advice(r"sort the images into (\w+/)<class>/", house.refused(*words))
    shutil.move(house.folder / "val/class0", Path(root) / folder)
    missing = advice(r"only in train/: (\w+)\); give both", house.refused(*words))
    shutil.move(house.folder / "val" / missing, Path(root) / folder)
    house.train(*words)


@provokes("pipeline/data/tree.py:check_case")
def _a_split_in_capitals(house: House) -> None:
    words = [*house.images(), "--check"]
    shutil.move(house.folder / "tree/val", house.folder / "tree/VAL")
    old, new = re.search(
        r"data.path: (\S+) is not .*; rename it to (\S+)", house.refused(*words)
    ).groups()
    shutil.move(old, new)
    house.train(*words)


@provokes("pipeline/data/open.py:open_tree")
def _no_path(house: House) -> None:
    path, *words = house.images()
    key = advice(r"(data.path) is not set", house.refused("data.path=null", *words, "--check"))
    house.train(f"{key}={path.partition('=')[2]}", *words, "--check")


@provokes("pipeline/data/open.py:_look_up")
def _a_loader_that_there_is_not(house: House) -> None:
    words = [*house.images(), "--check"]
    said = house.refused(*words, "data.loader=x")
    house.train(*words, "data.loader=" + advice(r"choose one of .*, (\w+)$", said))


@provokes("pipeline/data/shards.py:_scan")
def _shards_that_there_are_not(house: House) -> None:
    tree, *words = house.images()
    words = [*words, "--check"]
    said = house.refused(tree, *words, "data.format=webdataset")
    house.train(tree, *words, advice(r"set (data.format=\w+) for a tree", said))
    command = advice(r"of one: .*reste (prepare shard) TREE SHARDS$", said).split()
    shards = house.folder / "shards"
    words = [f"data.path={shards}", *words, "data.format=webdataset"]
    shutil.move(house.folder / "tree/val", house.folder / "val")
    reste.main([*command, f"{house.folder}/tree", str(shards)])
    said = house.refused(*words)
    assert advice(r"make them of a tree that has one: .*reste (prepare shard)", said)
    shutil.move(house.folder / "val", house.folder / "tree/val")
    for spoil in (shutil.rmtree, lambda path: (path / "val/000000.idx").unlink()):
        spoil(shards)
        if shards.exists():
            assert advice(r"make the shards again: .*reste (prepare .*)$", house.refused(*words))
            shutil.rmtree(shards)
        reste.main([*command, f"{house.folder}/tree", str(shards)])
        house.train(*words)


@provokes("pipeline/data/loader_torchvision.py:_open")
@provokes("pipeline/data/loader_torchvision.py:_read")
def _loader_processes_that_fail(house: House) -> None:
    words = [*house.images(), "data.workers=1"]
    errors = OSError(11, "Resource temporarily unavailable"), RuntimeError("DataLoader worker (pid")
    for name, error in zip(("__init__", "__next__"), errors, strict=True):
        with pytest.MonkeyPatch.context() as patch:
            real = getattr(_BaseDataLoaderIter, name)

            def fail(self, *args, real=real, error=error):
                if not args or args[0].num_workers:
                    raise error
                return real(self, *args)

            kind = _MultiProcessingDataLoaderIter if name == "__init__" else _BaseDataLoaderIter
            patch.setattr(kind, name, fail)
            said = house.refused(*words, f"run.name={name}")
            patch.undo()
            house.train(*words, f"run.name={name}", advice(r"set (data.workers=0)", said))


@provokes("pipeline/prepare/verify.py:_check_report")
@provokes("pipeline/prepare/verify.py:__init__")
def _a_report_in_the_way(house: House) -> None:
    Path("taken.txt").write_text("mine")
    Path("other.txt.state").write_text("mine, and long enough")
    for name in ("taken.txt", "other.txt"):
        words = ["prepare", "verify", str(house.data)]
        said = message_of(lambda: reste.main([*words, "--report", name]))  # noqa: B023
        assert re.search("name another (file|report)$", said)
        reste.main([*words, advice(r"(--report): ", said), f"new-{name}"])


@provokes("pipeline/prepare/source.py:none_there")
def _a_tree_to_verify_that_is_none(house: House) -> None:
    words = ["prepare", "verify", str(house.data / "train")]
    said = message_of(lambda: reste.main(words))
    assert said.endswith("give the folder that holds train/ and val/")
    reste.main(["prepare", "verify", str(house.data)])


@provokes("pipeline/prepare/verify.py:verify_tree")
def _a_report_that_cannot_be_written(house: House) -> None:
    words = ["prepare", "verify", str(house.data)]
    said = message_of(lambda: reste.main([*words, "--report", "no/folder/bad.txt"]))
    reste.main([*words, advice(r"choose another (--report)", said), "bad.txt"])


@provokes("pipeline/run/checkpoint.py:_read")
@provokes("pipeline/run/checkpoint.py:load")
@provokes("pipeline/train/network.py:_start_from")
def _weights_that_cannot_be_taken(house: House) -> None:
    good = house.checkpoint()
    state = torch.load(good)["state_dict"]
    nan = {k: v * math.nan if v.is_floating_point() else v for k, v in state.items()}
    bad = {"damaged": b"x", "missing": None, "empty": {"a": 1}, "nan": nan}
    for name, content in bad.items():
        path = house.folder / f"{name}.pt"
        if isinstance(content, dict):
            torch.save({"state_dict": content} if name == "nan" else content, path)
        elif content:
            path.write_bytes(content)
        said = house.refused(f"model.weights={path}", "--check")
        assert re.search(r"; (take another|take an earlier one|give the path of a .pt file)$", said)
    house.train(f"model.weights={good}", "--check")


@provokes("pipeline/run/weights.py:_check_kinds")
def _weights_that_were_converted(house: House) -> None:
    good = house.checkpoint()
    state = torch.load(good)["state_dict"]
    converted = {k: v.to(torch.int8) if v.is_floating_point() else v for k, v in state.items()}
    torch.save({"state_dict": converted}, house.folder / "int8.pt")
    said = house.refused(f"model.weights={house.folder}/int8.pt", "--check")
    assert said.endswith("take one that was saved before it was converted")
    house.train(f"model.weights={good}", "--check")


@provokes("pipeline/train/scoring.py:load_network")
def _a_network_of_other_classes(house: House) -> None:
    words = ["evaluate", str(house.checkpoint()), f"data.path={house.data}", "data.dataset=cifar10",
             "model.arch=tiny", "model.bits=1w1a"]  # fmt: skip
    said = message_of(lambda: reste.main([*words, "model.num_classes=7"]))
    reste.main([*words, advice(r"set (model.num_classes=\d+)$", said)])


@provokes("pipeline/train/counting.py:count_config")
@provokes("pipeline/train/counting.py:_refusal")
def _networks_that_cannot_be_counted(house: House) -> None:
    words = ["summary", str(house.config), "model.arch=vgg_small"]
    bad = ["model.num_classes=1000000000000000", "data.dataset=imagenet"]
    for word in bad:
        said = message_of(lambda: reste.main([*words, word]))  # noqa: B023
        reste.main([*words, word, *advice(r"; set (.*)$", said).split()])


@provokes("pipeline/run/weights.py:fit_weights")
@provokes("pipeline/train/scoring.py:values_of")
def _checkpoints_to_evaluate(house: House) -> None:
    good, words = house.checkpoint(), [f"data.path={house.data}", "data.dataset=cifar10"]
    known = ["model.arch=tiny", "model.bits=1w1a"]
    other = [*words, "model.arch=resnet18_cifar", "model.bits=1w1a"]
    said = message_of(lambda: reste.main(["evaluate", str(good), *other]))
    keys = advice(r"set (model.arch, model.bits) or model.num_classes$", said).split(", ")
    assert keys == [word.partition("=")[0] for word in known]
    state = torch.load(good)["state_dict"]
    torch.save({"format": 5, "state_dict": state}, house.folder / "foreign.pt")
    message_of(lambda: reste.main(["evaluate", str(house.folder / "foreign.pt"), *words, *known]))
    state.pop(next(key for key in state if key.endswith("running_mean")))
    torch.save({"state_dict": state}, house.folder / "a part.pt")
    said = message_of(
        lambda: reste.main(["evaluate", str(house.folder / "a part.pt"), *words, *known])
    )
    house.train(*shlex.split(advice(r"train from it: (.*)$", said)), "--check")
    reste.main(["evaluate", str(good), *words, *known])


@provokes("pipeline/data/synthetic.py:_exists")
@provokes("pipeline/data/synthetic.py:draw")
def _a_drawn_data_set_in_the_way(house: House) -> None:
    draw = functools.partial(synthetic.draw, train=10, val=10)
    root = draw(house.folder / "drawn")
    next(root.glob("*/*/*.JPEG")).unlink()
    shutil.rmtree(
        advice(r"^(\S+) has lost .*; remove it, to be drawn", message_of(lambda: draw(root)))
    )
    draw(root)
    said = message_of(lambda: draw(house.data))
    shutil.move(
        advice(r"^(\S+) holds something else .*; move it away", said), house.folder / "moved"
    )
    draw(house.data)
    said = message_of(lambda: draw(house.config / "set"))
    assert advice(r"or set (data.path)$", said)
    words = [f"data.path={root}", "data.dataset=synthetic", "data.size=8", "data.resize=8"]
    house.train(*words, "data.batch_size=5", "data.loader=torchvision", "--check")


@provokes("pipeline/data/batch.py:fit_batch")
def _more_processes_than_images(house: House) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "size", lambda: 8)
        said = message_of(lambda: fit_batch(256, 7))
    assert int(advice(r"start one process with GPUS=(\d)", said)) == 1 and fit_batch(256, 7) == 7
    said = message_of(lambda: fit_batch(256, 7, (8, 1)))
    assert advice(r"set (.*)$", said) == "train.grad_accumulation=1 data.mixup=0"
    assert fit_batch(256, 7) == 7


@provokes("pipeline/data/workers.py:limit_workers")
def _no_room_for_a_thread(house: House) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.data.workers.startable", lambda count: 3)
        said = house.refused("data.workers=2", "--check")
    assert "raise the limit of processes (ulimit -u" in said  # there is more room now
    house.train("data.workers=2", "--check")


@provokes("pipeline/report/compare.py:compared")
@provokes("pipeline/report/compare.py:_lacking")
@provokes("pipeline/report/compare.py:_unwritable")
@provokes("pipeline/report/gathering.py:_read")
def _runs_that_cannot_be_compared(house: House) -> None:
    house.train()
    run, other = f"{house.folder}/runs/tiny", house.folder / "other"
    assert message_of(lambda: reste.main(["compare", str(other)])).endswith("; give a run's folder")
    other.mkdir()
    (other / "metrics.jsonl").write_text("{}")
    assert message_of(lambda: reste.main(["compare", str(other)])).endswith("; give a run's folder")
    said = message_of(lambda: reste.main(["compare", run, "--metric", "top1"]))
    metric = advice(r"choose one of .*(val_top1)", said)
    said = message_of(lambda: reste.main(["compare", run, "--out", f"{house.config}/x"]))
    option = advice(r"name another folder with (--out)$", said)
    reste.main(["compare", run, "--metric", metric, option, "comparison"])


@provokes("pipeline/report/runs.py:_record")
@provokes("pipeline/report/runs.py:read_records")
def _records_that_are_none(house: House) -> None:
    (house.folder / "none.jsonl").write_text("x\n")
    for name in ("none.jsonl", "gone.jsonl"):
        said = message_of(lambda: read_run(house.folder / name))  # noqa: B023
        assert re.search(r"; give (a run's folder|a metrics.jsonl as a training writes it)$", said)
    house.train()
    assert read_run(house.folder / "runs/tiny").records


@provokes("pipeline/run/config.py:_refuse")
def _keys_and_values(house: House) -> None:
    said = house.refused("train.epoch=1", "--check")
    house.train(advice(r"did you mean (\S+)\?", said) + "=1", "--check")
    said = house.refused("optim.lr", "--check")
    house.train(advice(r"such as (\S+)$", said).replace("VALUE", "0.1"), "--check")
    said = house.refused("train.device=cuta", "--check")
    assert advice(r"did you mean (\w+)\?", said) == "cuda"
    said = house.refused("optim.impl=sgd", "--check")
    house.train("optim.impl=" + advice(r"choose .*?(torch_fused)", said), "--check")
    said = house.refused("seed=-1", "--check")
    house.train("seed=" + advice(r"must be an integer between (\d+) and", said), "--check")


@provokes("pipeline/run/config.py:_sections")
@provokes("pipeline/run/plain_yaml.py:load")
@provokes("pipeline/run/plain_yaml.py:parse")
@provokes("pipeline/run/plain_yaml.py:_error")
def _configs_that_are_none(house: House) -> None:
    text, end = house.config.read_text(), r"; [a-z].*$"
    many = ", ".join(f"k{i}: 1" for i in range(2000))
    for content in ("- 1", "a: [", 'a: "\\UFFFFFFFF"', "seed: 1\nseed: 2", "seed: !!int 3",
                    f"data: {{{many}}}", "\udcff"):  # fmt: skip
        house.config.write_text(content, encoding="utf-8", errors="surrogateescape")
        assert re.search(end, house.refused("--check")), content
    assert "take one of configs/*.yaml" in house.refused("--check")
    house.config.write_text(text)
    house.train("--check")


@provokes("pipeline/run/folder.py:_open")
def _a_folder_that_cannot_be_written(house: House) -> None:
    key = advice(r"set (run.dir) to a folder", house.refused(f"run.dir={house.config}/x"))
    house.train(f"{key}={house.folder}/other")


@provokes("pipeline/run/recorder.py:_lock")
def _a_run_that_another_process_trains(house: House) -> None:
    (house.folder / "runs/tiny").mkdir(parents=True)
    path = house.folder / "runs/tiny/metrics.jsonl"
    code = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); "
    code += "print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        house.train(advice(r"set (run.name=\S+) to start another", house.refused()))
        other.communicate()
    house.train()


@pytest.mark.parametrize("case", [pytest.param(case, id=case.__name__) for case in dict.fromkeys(
    case for cases in CASES.values() for case in cases)])  # fmt: skip
def test_what_the_message_says_succeeds(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case(House(tmp_path))
