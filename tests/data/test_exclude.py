"""The list of images to leave out: its format, its errors, and the loaders that take it."""

import importlib.util
import json
import re

import numpy as np
import pytest
import torch

from launch import evaluate as evaluate_command
from launch import train as train_command
from pipeline.data.cifar_files import load_cifar
from pipeline.data.exclude import printable, read
from pipeline.data.open import build_loaders
from pipeline.data.tree import scan, scan_train_val
from pipeline.run import processes
from pipeline.run.config import make_config
from pipeline.run.errors import UserError
from pipeline.train.trainer import Trainer
from tests.data.fixtures import cifar_tree, plain_folder

ODD = ["a b.png", "#1.png", "line\nfeed.png", "\udcff.png", '"q".png', "back\\slash.png", "ö.png"]
ODD += ["\x85.png", "tab\t.png", "\u2028.png"]


def listing(folder, *lines):
    file = folder / "exclude.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    return str(file)


def fails(message, call, *args):
    with pytest.raises(UserError) as error:
        call(*args)
    assert "\n" not in str(error.value) and "data.exclude" in str(error.value)
    assert re.search(message, str(error.value)), error.value


def test_every_name_survives(tmp_path):
    names = [f"train/{name}/{name}" for name in ODD]
    assert read(listing(tmp_path, *map(printable, names)), "train", tmp_path) == set(names)


def test_people_may_write_it(tmp_path):
    file = tmp_path / "list"
    file.write_bytes(
        b"# why\r\n\r\ntrain/a/\xff.jpg\r\n  # more\nval/a/1.jpg \ntrain/a/\xc3\xb6.jpg"
    )
    assert read(str(file), "train", tmp_path) == {"train/a/\udcff.jpg", "train/a/ö.jpg"}
    assert (
        read(str(file), "val", tmp_path) == {"val/a/1.jpg"}
        and read(str(file), "test", tmp_path) == set()
    )
    assert read(None, "train", tmp_path) == set()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_systems_may_write_it(tmp_path, encoding, end):
    """As an editor or a shell of Windows does, or find."""
    lines = ["./train/a/1.jpg", "train\\a\\2.jpg", ".\\train\\ö\\3.jpg", "train/a\\4.jpg"]
    lines += ["train//a/./5.jpg", "# why", "", "./val/a/1.jpg  ", "train/a/b/../6.jpg"]
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    file = tmp_path / "list"
    file.write_bytes((mark + end.join(lines) + end).encode(encoding))
    expected = {f"train/{name}.jpg" for name in ("a/1", "a/2", "ö/3", "a/4", "a/5", "a/6")}
    assert read(str(file), "train", tmp_path) == expected
    assert read(str(file), "val", tmp_path) == {"val/a/1.jpg"}


@pytest.mark.parametrize("line", ["a/1.jpg", "/train/a/1.jpg", '"train/a', '"a/b"', "../train/1"])
def test_a_line_that_is_no_path_is_named(tmp_path, line):
    file = listing(tmp_path, "# a comment", line)
    fails(rf"line 2: {re.escape(line[:3])}.*; correct or remove", read, file, "train", tmp_path)


def test_a_list_that_cannot_be_read(tmp_path):
    fails(
        "gone: No such file.*; set data.exclude=null",
        read,
        str(tmp_path / "gone"),
        "train",
        tmp_path,
    )
    fails("Is a directory; set data.exclude=null", read, str(tmp_path), "train", tmp_path)
    fails("pipe or a device.*; set data.exclude=null", read, "/dev/zero", "train", tmp_path)
    (tmp_path / "half").write_bytes(b"\xff\xfet\0r")
    fails("broken UTF-16; set data.exclude=null", read, str(tmp_path / "half"), "train", tmp_path)
    (tmp_path / "archive").write_bytes(b"\0\x1f\x8b" * 10**5)
    fails("line 1: ", read, str(tmp_path / "archive"), "train", tmp_path)


def test_a_list_that_cannot_be_read_is_told_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.data.synthetic.draw", lambda root: pytest.fail("drawn"))
    config = make_config(
        {}, ["data.dataset=synthetic", "data.exclude=/dev/zero", "model.num_classes=10"], name="x"
    )
    fails("pipe or a device", build_loaders, config, torch.device("cpu"))


def test_scan_leaves_out(tmp_path):
    whole = plain_folder(tmp_path, "train", 6, classes=2)
    plain_folder(tmp_path, "val", 4, classes=2)
    excluded = listing(tmp_path, whole.files[1], "val/class1/003.png", "test/elsewhere/1.png")
    train, val = scan_train_val(tmp_path, excluded)
    assert train.files == [file for i, file in enumerate(whole.files) if i != 1]
    assert train.labels.tolist() == [0, 0, 1, 1, 1] and len(val.files) == 3
    assert train.fingerprint != whole.fingerprint
    assert scan(tmp_path, "train", listing(tmp_path)).fingerprint == whole.fingerprint


def test_odd_names_and_dead_links_are_left_out(tmp_path):
    folder = tmp_path / "train/a"
    folder.mkdir(parents=True)
    for name in [*ODD, "good.png"]:
        (folder / name).touch()
    (folder / "dead.png").symlink_to("nowhere")
    excluded = listing(tmp_path, *(printable(f"train/a/{name}") for name in [*ODD, "dead.png"]))
    assert scan(tmp_path, "train", excluded).files == ["train/a/good.png"]


def test_a_path_that_is_not_there_is_named(tmp_path):
    plain_folder(tmp_path, "train", 4, classes=2)
    excluded = listing(tmp_path, "train/class0/000.png", "train/class0/00.png", "val/class0/0.png")
    fails("exclude.txt: train/class0/00.png is no image under", scan, tmp_path, "train", excluded)


def test_a_class_that_loses_every_image(tmp_path):
    folder = plain_folder(tmp_path, "train", 4, classes=2)
    excluded = listing(tmp_path, *folder.files[:2])
    fails("leaves no images in the class folder .*/class0;", scan, tmp_path, "train", excluded)


def test_the_cache_of_a_cifar_tree_keeps_sets_apart(tmp_path):
    cifar_tree(tmp_path)

    def load(excluded=None):
        return load_cifar("cifar10", tmp_path, split="train", download=False, excluded=excluded)

    excluded = listing(tmp_path, "train/dark/0.png", "train/light/9.png")
    whole, part = load(), load(excluded)
    assert len(part.images) == 38 and part.labels.tolist() == [0] * 19 + [1] * 19
    assert np.array_equal(part.images, whole.images[1:39])
    assert load(excluded).fingerprint == part.fingerprint != whole.fingerprint
    assert load().fingerprint == whole.fingerprint and len(load().images) == 40


def test_torchvisions_cifar_files_cannot_be_excluded(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    excluded = listing(tmp_path, "train/dark/0.png")
    with pytest.raises(UserError, match="^data.exclude .*; set data.exclude=null$"):
        load_cifar("cifar10", tmp_path, split="train", download=False, excluded=excluded)


def test_processes_with_other_lists_do_not_train_together(tmp_path, monkeypatch):
    config = make_config({}, [f"data.path={cifar_tree(tmp_path)}", "model.num_classes=2",
                              "data.batch_size=8"], name="x")  # fmt: skip
    monkeypatch.setattr(processes, "gather", lambda mine: torch.stack([mine, mine.flip(0)]))
    fails("not the same images in all processes", build_loaders, config, torch.device("cpu"))
    monkeypatch.setattr(processes, "gather", lambda mine: torch.stack([mine, mine]))
    assert len(build_loaders(config, torch.device("cpu"))) == 2


DALI = pytest.param("dali", marks=pytest.mark.skipif(
    not (importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")),
    reason="needs DALI"))  # fmt: skip


@pytest.mark.parametrize("loader", [DALI, "torchvision"])
def test_a_run_goes_round_a_bad_image(tmp_path, capsys, loader):
    """And with another list it is another training."""
    for split, count in (("train", 12), ("val", 6)):
        plain_folder(tmp_path, split, count, classes=2)
        (tmp_path / split / "class1" / "bad.png").write_bytes(b"no image")
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "{model: {arch: resnet20, num_classes: 2}, train: {epochs: 1, device: cpu}, log: {eta: 0},"
        "data: {dataset: imagenet, batch_size: 6, size: 32, resize: 32, workers: 0}}"
    )
    arguments = [str(config), f"data.path={tmp_path}", f"run.dir={tmp_path}/runs"]
    arguments.append(f"data.loader={loader}")
    with pytest.raises(UserError, match=r"bad.png \(.*prepare verify /.* data.exclude="):
        train_command.main(arguments)
    bad = ["train/class1/bad.png", "val/class1/bad.png"]
    arguments.append(f"data.exclude={listing(tmp_path, *bad)}")
    train_command.main([*arguments, "run.name=good"])
    assert "12 training and 6 validation images" in capsys.readouterr().err
    best = tmp_path / "runs/good/checkpoints/best.pt"
    only = f"data.exclude={listing(tmp_path, bad[1], 'train/x/1.png')}"
    evaluate_command.main([str(best), only, arguments[1]])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 6
    listing(tmp_path, *bad, "train/class0/000.png")
    with pytest.raises(UserError, match=r"data.exclude=.*: the train images are not those that"):
        train_command.main([*arguments, "run.name=good", "train.epochs=1", "--check"])


def test_a_run_goes_on_without_images_that_went_bad(tmp_path, monkeypatch, capsys):
    """Between two epochs; in the middle of one it would see some images twice and others never."""
    data = cifar_tree(tmp_path / "data")
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "{model: {num_classes: 2}, train: {epochs: 2, device: cpu}, log: {eta: 0},"
        "data: {batch_size: 8}, checkpoint: {keep: 9, every_steps: 7}}"
    )
    arguments = [str(config), f"data.path={data}", f"run.dir={tmp_path}/runs"]
    step = Trainer.train_step

    def stop_at_8(self, batch):
        if self.step == 8:
            raise KeyboardInterrupt
        step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop_at_8)
        with pytest.raises(KeyboardInterrupt):
            train_command.main(arguments)
    arguments.append(f"data.exclude={listing(tmp_path, 'train/dark/3.png')}")
    with pytest.raises(UserError, match="in the middle of an epoch; .* go on in a new run"):
        train_command.main(arguments)
    (tmp_path / "runs/tiny/checkpoints/step_7.pt").unlink()
    train_command.main(arguments)
    assert "going on with what data.exclude leaves" in capsys.readouterr().err
    assert (tmp_path / "runs/tiny/checkpoints/epoch_0002.pt").exists()
