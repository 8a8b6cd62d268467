"""``prepare imagenet``: the tree is torchvision's, and no archive can do harm."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import imagenet as torchvisions

from launch import prepare as front
from pipeline.data.tree import scan_train_val
from pipeline.prepare import archives as archives_module
from pipeline.prepare import target as target_module
from pipeline.prepare.archives import CHECKSUMS, DEVKIT, TRAIN, VAL
from pipeline.prepare.shrink import shrunk
from pipeline.run.errors import UserError
from tests import PATIENCE, ROOT, first_quick
from tests.prepare import official
from tests.prepare.official import TRAIN_FILES, VAL_FILES, devkit, entry, tar, train_tar

IMAGES = sum(map(len, TRAIN_FILES.values())) + len(VAL_FILES)


@pytest.fixture
def archives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    official.write(tmp_path / "archives")
    return tmp_path / "archives"


def prepare(*words):
    """Make the tree "tree" of the archives; returns the exit code."""
    try:
        front.main(["imagenet", "archives", "tree", "--workers", "2", *words])
    except SystemExit as exit:
        return exit.code
    return 0


def files(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for split in ("train", "val")
        for path in (root / split).rglob("*")
        if path.is_file()
    }


def test_the_checksums_are_torchvisions():
    assert dict(torchvisions.ARCHIVE_META.values()) == CHECKSUMS


def test_the_tree_is_the_one_that_torchvision_makes(archives, monkeypatch, tmp_path):
    assert prepare("--no-checksums") == 0
    theirs = tmp_path / "theirs"
    sums = official.write(theirs)
    meta = {key: (name, sums[name]) for key, (name, _) in torchvisions.ARCHIVE_META.items()}
    monkeypatch.setattr(torchvisions, "ARCHIVE_META", meta)
    sets = [torchvisions.ImageNet(theirs, split) for split in ("train", "val")]
    assert files(Path("tree")) == files(theirs) and len(files(theirs)) == IMAGES
    words = json.loads(Path("tree/classes.json").read_text())
    expected = [tuple(words[wnid].split(", ")) for wnid in sets[0].wnids]
    assert expected == sets[0].classes and set(words) == set(sets[0].wnids)


def test_what_is_there_at_the_end(archives, capsys):
    assert prepare("--no-checksums") == 0
    assert {path.name for path in Path("tree").iterdir()} == {
        "train", "val", "classes.json", "manifest.json",
    }  # fmt: skip
    train, val = scan_train_val(Path("tree"))
    manifest = json.loads(Path("tree/manifest.json").read_text())
    assert manifest["splits"] == {
        "train": {"classes": 3, "images": 12, "fingerprint": train.fingerprint},
        "val": {"classes": 3, "images": 7, "fingerprint": val.fingerprint},
    }
    said = "tree is ready: train/ 12 images, val/ 7 images\n"
    assert capsys.readouterr().err.endswith(said)
    times = {path: os.stat(path).st_mtime_ns for path in Path("tree").rglob("*")}
    assert prepare("--no-checksums") == 0  # there is nothing to do
    assert capsys.readouterr().err == said
    assert {path: os.stat(path).st_mtime_ns for path in Path("tree").rglob("*")} == times


def test_small_images(archives):
    assert prepare("--no-checksums", "--short-side", "48", "--quality", "80") == 0
    found = files(Path("tree"))
    originals = {f"train/{wnid}/{name}": content for wnid, each in TRAIN_FILES.items()
                 for name, content in each.items()}  # fmt: skip
    assert len(found) == IMAGES
    for name, content in originals.items():
        assert found[name] == shrunk(content, 48, 80)
        with Image.open(f"tree/{name}") as image:
            assert min(image.size) == 48 and image.format == "JPEG"


def test_an_image_that_cannot_be_read_is_listed(archives):
    bad = TRAIN_FILES["n00000001"]["n00000001_0.JPEG"][:-40]
    train = {**TRAIN_FILES, "n00000001": {**TRAIN_FILES["n00000001"], "n00000001_0.JPEG": bad}}
    official.write(archives, train=train_tar(train))
    for _ in range(2):  # it is said again
        assert prepare("--no-checksums", "--short-side", "48") == 1
    listed = Path("tree/unreadable.txt").read_text()
    reason, name = listed.splitlines()
    assert reason.startswith("# image file is truncated")
    assert name == "train/n00000001/n00000001_0.JPEG"
    assert len(files(Path("tree"))) == IMAGES - 1


def test_checksums(archives, monkeypatch, capsys):
    with pytest.raises(UserError, match=rf"{DEVKIT} has the MD5 .*--no-checksums$"):
        prepare()
    assert not Path("tree").exists()
    sums = official.write(archives)
    monkeypatch.setattr(archives_module, "CHECKSUMS", sums)
    content = bytearray((archives / TRAIN).read_bytes())
    content[2000] ^= 1
    (archives / TRAIN).write_bytes(content)
    with pytest.raises(UserError, match=f"{TRAIN} has the MD5 "):
        prepare()
    assert prepare("--no-checksums") == 0
    official.write(archives)
    Path("tree").rename("other")
    assert prepare() == 0


def faults():
    """Archives with one fault each, and what is said of it."""
    wnid = "n00000002"
    images = TRAIN_FILES[wnid]
    inner = tar(images)

    def train(content):  # another archive for one class
        whole = {f"{each}.tar": tar(TRAIN_FILES[each]) for each in TRAIN_FILES}
        return {"train": tar({**whole, f"{wnid}.tar": content})}

    def member(info):
        return train(tar(images, more=[info]))

    later = inner.index(b"n00000002_20.JPEG")  # the header of the third image
    val, kit = tar(VAL_FILES), devkit()
    link, device = tarfile.SYMTYPE, tarfile.CHRTYPE
    place, gone = "which has no place in it", "is cut short or damaged"
    return {
        "absolute path": (member(entry("/etc/n00000002_5.JPEG")), place),
        "path upwards": (member(entry("../n00000002_5.JPEG")), place),
        "link": (member(entry("n00000002_5.JPEG", type=link, linkname="/etc/passwd")), place),
        "device": (member(entry("n00000002_5.JPEG", type=device)), place),
        "twice": (member(entry("n00000002_0.JPEG")), place),
        "another class": (member(entry("n00000001_5.JPEG")), place),
        "line feed": (member(entry("n0\n5.JPEG")), r'holds "n0\n5.JPEG", which'),
        "size that lies": (member(entry("n00000002_5.JPEG", size=2**33)), f"{wnid}.tar {gone}"),
        "size below zero": (member(entry("n00000002_5.JPEG", size=-512)), f"{wnid}.tar {gone}"),
        "damaged header": (train(inner[: later + 150] + b"9" + inner[later + 151 :]),
                           f"{wnid}.tar {gone}"),
        "inner archive cut in an image": (train(inner[: later - 100]), gone),
        "inner archive cut in a header": (train(inner[: later + 100]), gone),
        "inner archive cut between images": (train(inner[:later]), gone),
        "inner archive that is none": (train(b"<html>" * 500), f"{wnid}.tar {gone}"),
        "empty class": (train(tar({})), f"{TRAIN} lacks the class {wnid}"),
        "class missing": ({"train": train_tar({k: v for k, v in TRAIN_FILES.items() if k != wnid})},
                          f"{TRAIN} lacks the class {wnid}"),
        "class too many": ({"train": train_tar({**TRAIN_FILES, "n8": {}})},
                           f"{TRAIN} holds n8.tar"),
        "unknown class": ({"train": train_tar({**TRAIN_FILES, "n00000008": {
            "n00000008_1.JPEG": b"x"}})}, f"{DEVKIT} lacks the class n00000008"),
        "train cut": ({"train": train_tar()[:-12000]}, f"{TRAIN} is cut short or damaged"),
        "train empty": ({"train": b""}, f"{TRAIN} is cut short or damaged"),
        "val cut": ({"val": val[: len(val) // 2]}, f"{VAL} is cut short or damaged"),
        "val without one": ({"val": tar(dict(list(VAL_FILES.items())[1:]))},
                            f"{VAL} holds 6 images, but"),
        "val with one too many": ({"val": tar({**VAL_FILES, "ILSVRC2012_val_00000008.JPEG": b"x"})},
                                  "00000008.JPEG, which has no class"),
        "swapped": ({"val": train_tar(), "train": val}, f"{TRAIN} holds ILSVRC2012_val_"),
        "devkit cut": ({"devkit": kit[:-50]}, f"{DEVKIT} is not the development kit"),
        "devkit no archive": ({"devkit": b"x"}, f"{DEVKIT} is not the development kit"),
        "devkit empty": ({"devkit": b""}, f"{DEVKIT} is not the development kit"),
        "devkit of another year": ({"devkit": devkit(meta="devkit-1.0/data/meta.mat")},
                                   f"{DEVKIT} is not the development kit of ILSVRC2012"),
        "class without a validation image": (
            {"devkit": devkit(labels=[1, 1, 2, 2, 1, 1, 1])},
            f"{DEVKIT} has no validation image of the class n00000002"),
        "devkit with other numbers": ({"devkit": devkit(labels=[5])}, "is not the development kit"),
    }  # fmt: skip


FAULTS = faults()


@pytest.mark.parametrize(("contents", "message"), FAULTS.values(), ids=FAULTS)
def test_archives_that_are_not_in_order(archives, contents, message):
    official.write(archives, **contents)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        prepare("--no-checksums")
    assert "\n" not in str(error.value) and "again from image-net.org" in str(error.value)
    assert not Path("tree").exists() and {p.name for p in Path().iterdir()} == {"archives"}


def test_archives_that_are_not_there(archives):
    (archives / VAL).unlink()
    with pytest.raises(UserError, match=f"archives lacks {VAL}; fetch them"):
        prepare()


KILL = """
import os, signal, sys
from pathlib import Path
from launch.command import command
from launch.prepare import main
from pipeline.prepare.target import Target
write, done = Target.write, []
def until_half(self, name, content):
    write(self, name, content)
    done.append(name)
    if len(done) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
Target.write = until_half
sys.argv = ["prepare", "imagenet", "archives", "tree", "--no-checksums", "--workers", "2", {more}]
command(main)
"""


@pytest.mark.parametrize("words", first_quick([], ["--short-side", "48"]))
def test_it_goes_on_after_a_kill(archives, words, monkeypatch):
    code = KILL.format(more=", ".join(map(repr, words)))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, timeout=PATIENCE)
    assert done.returncode == -9
    assert {path.name for path in Path("tree").iterdir()} == {target_module.UNFINISHED}
    there = files(Path("tree/.unfinished"))
    assert 8 <= len(there) <= 10
    cut = next(iter(sorted(there)))  # as a loss of power may leave it
    Path("tree/.unfinished", cut).write_bytes(there[cut][:-30])
    read, write = [], target_module.Target.write
    monkeypatch.setattr(
        target_module.Target, "write", lambda *args: (read.append(args[1]), write(*args))
    )
    with pytest.raises(UserError, match="was made, or begun, from other files or with other sett"):
        prepare("--no-checksums", "--short-side", "32")
    assert prepare("--no-checksums", *words) == 0
    assert sorted(read) == sorted(files(Path("tree")).keys() - there.keys() | {cut})
    assert {p.name for p in Path("tree").iterdir()} == {
        "train", "val", "classes.json", "manifest.json",
    }  # fmt: skip


def test_checksums_are_not_compared_again(archives, monkeypatch):
    monkeypatch.setattr(archives_module, "CHECKSUMS", official.write(archives))
    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left on device"):
        patch.setattr(target_module.Target, "write", full)
        prepare()
    monkeypatch.setattr(archives_module, "check", None)
    assert prepare() == 0


def full(*_):
    raise OSError(28, "No space left on device")
