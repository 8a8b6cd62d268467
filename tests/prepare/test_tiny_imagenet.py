"""``prepare tiny_imagenet``, on archives of the official form with drawn images."""

import hashlib
import json
import os
import re
import zipfile

import pytest

from launch import prepare as front
from pipeline.prepare import tiny_imagenet as module
from pipeline.run.errors import UserError
from tests.prepare.official import jpeg

ROOT = "tiny-imagenet-200"
TRAIN = {
    f"{wnid}_{number}.JPEG": jpeg(10 * at + number)
    for at, wnid in enumerate(("n00000001", "n00000002"))
    for number in range(3)
}
VAL = {"val_0.JPEG": "n00000002", "val_1.JPEG": "n00000001", "val_2.JPEG": "n00000002"}


def files(truth=VAL):
    """What the archive holds, with another ``truth`` for the validation images."""
    lines = [f"{name}\t{wnid}\t0\t0\t62\t62\n" for name, wnid in truth.items()]
    return {
        f"{ROOT}/words.txt": b"n00000001\ttench\nn00000002\then, biddy\nn00000009\tentity\n",
        f"{ROOT}/wnids.txt": b"n00000002\nn00000001\n",
        f"{ROOT}/val/val_annotations.txt": "".join(lines).encode(),
        f"{ROOT}/test/images/test_0.JPEG": jpeg(99),
        f"{ROOT}/train/n00000001/n00000001_boxes.txt": b"n00000001_0.JPEG\t0\t0\t62\t62\n",
        "../outside.txt": b"refused",
        **{f"{ROOT}/train/{name[:9]}/images/{name}": each for name, each in TRAIN.items()},
        **{f"{ROOT}/val/images/{name}": jpeg(200 + at) for at, name in enumerate(VAL)},
    }


@pytest.fixture
def archive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "tiny.zip", files())


def write(path, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, each in content.items():
            target.writestr(name, each)
    return path


def make(*words):
    front.main(["tiny_imagenet", "tiny.zip", "tree", "--workers", "2", *words])


def tree(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_every_image_lies_under_its_class_to_the_byte(archive, tmp_path):
    make("--no-checksums")
    found = tree(tmp_path / "tree")
    expected = {f"train/{name[:9]}/{name}": each for name, each in TRAIN.items()}
    expected |= {f"val/{VAL[name]}/{name}": jpeg(200 + at) for at, name in enumerate(VAL)}
    assert found.keys() == expected.keys() | {"classes.json", "manifest.json"}
    assert all(found[name] == each for name, each in expected.items())
    assert json.loads(found["classes.json"]) == {"n00000001": "tench", "n00000002": "hen, biddy"}
    splits = json.loads(found["manifest.json"])["splits"]
    assert [splits[s]["images"] for s in ("train", "val")] == [6, 3]
    assert not (tmp_path.parent / "outside.txt").exists()


def test_it_goes_on_after_a_kill(archive, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    read, calls = module._read, []

    def some(source, member):
        calls.append(member.filename)
        if len(calls) > 5:
            raise Killed
        return read(source, member)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_read", some)
        with pytest.raises(Killed):
            make("--no-checksums", "--workers", "1")
    assert not (tmp_path / "tree/train").exists()
    make("--no-checksums")
    whole = tree(tmp_path / "tree")
    make("--no-checksums")  # there is nothing left to do
    assert tree(tmp_path / "tree") == whole and len(whole) == 11


def test_checksums(archive, monkeypatch):
    with pytest.raises(UserError, match="has the MD5 .*, not 90528.*; fetch it again from cs231n"):
        make()
    assert not os.path.exists("tree")
    monkeypatch.setattr(module, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    make()


def test_a_damaged_image_is_listed(archive, tmp_path):
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as source:
        place = source.getinfo(f"{ROOT}/val/images/val_0.JPEG").header_offset
    content[place + 200] ^= 1
    archive.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        make("--no-checksums")
    assert ended.value.code == 1
    assert "val/n00000002/val_0.JPEG" in (tmp_path / "tree/unreadable.txt").read_text()
    assert (tmp_path / "tree/val/n00000002/val_2.JPEG").exists()


def without(part):
    return {name: each for name, each in files().items() if part not in name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive", "is not the archive of Tiny ImageNet, or is damaged (File is not a zip"),
        ({"a.txt": b"x"}, "damaged (\"There is no item named 'tiny-imagenet-200/val/val_annot"),
        (files({"val_0.JPEG": "n00000002"}), "has an image without a class; fetch it again from"),
        (without("train/n00000001"), "has the class n00000001 in one split only; fetch it again"),
    ],
)
def test_mistakes(archive, content, message):
    archive.write_bytes(content) if isinstance(content, bytes) else write(archive, content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        make("--no-checksums")
    assert "\n" not in str(caught.value) and not os.path.exists("tree")


def test_an_archive_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot use tiny.zip: No such file"):
        make()
