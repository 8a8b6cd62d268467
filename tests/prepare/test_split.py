"""``prepare split``: the same share of every class, chosen by the seed, and nothing lost."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from launch import prepare as front
from pipeline.data.tree import scan_train_val
from pipeline.prepare import target as target_module
from pipeline.prepare.target import Target
from pipeline.run.errors import UserError
from tests.data.fixtures import plain

COUNTS = {"Cat": 30, "dog": 14, "ünï \udcff": 2}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in COUNTS.items():
        for number in range(count):
            put(f"photos/{name}/{number}.png", number)
    return tmp_path / "photos"


def put(path, number=0):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    plain(number).save(path)


def split(*words, source="photos", into="data"):
    front.main(["split", source, into, *words])


def names(root, split):
    return {str(path.relative_to(root / split)) for path in (root / split).glob("*/*")}


def test_every_class_gives_its_share(photos, capsys):
    split("--val", "20%")
    train, val = names(Path("data"), "train"), names(Path("data"), "val")
    assert not train & val and train | val == {
        f"{name}/{i}.png" for name, count in COUNTS.items() for i in range(count)
    }
    counts = Counter(name.partition("/")[0] for name in val)
    assert counts == {"Cat": 6, "dog": 3, "ünï \udcff": 1}
    found = scan_train_val(Path("data"))  # a training takes it
    manifest = json.loads(Path("data/manifest.json").read_text())
    assert [manifest["splits"][name] for name in ("train", "val")] == [
        {"classes": 3, "images": len(each.files), "fingerprint": each.fingerprint} for each in found
    ]
    assert capsys.readouterr().err.endswith("data is ready: train/ 36 images, val/ 10 images\n")


def test_links_and_copies(photos):
    split()
    split("--copy", into="copies")
    for root, is_link in ((Path("data"), True), (Path("copies"), False)):
        for each in (*root.glob("train/*/*"), *root.glob("val/*/*")):
            original = photos / each.relative_to(root).relative_to(each.relative_to(root).parts[0])
            assert each.is_symlink() == is_link
            assert each.read_bytes() == original.read_bytes()
    assert names(Path("data"), "val") == names(Path("copies"), "val")


def test_the_seed_alone_chooses(photos):
    for into, words in {"a": [], "b": [], "c": ["--seed", "1"]}.items():
        split(*words, into=into)
    a, b, c = (names(Path(into), "val") for into in "abc")
    assert a == b != c
    put("photos/Cat/new.png")
    split(into="d")
    assert len(a ^ names(Path("d"), "val")) <= 2  # it may take the place of one


def test_the_classes_may_lie_in_train(photos):
    photos.rename("photos-2")
    (photos / "train").parent.mkdir()
    Path("photos-2").rename(photos / "train")
    split()
    assert len(names(Path("data"), "val")) == 5
    (photos / "val").mkdir()
    with pytest.raises(UserError, match="photos is split already; train with data.path="):
        split(into="other")


def test_started_again_it_does_what_is_left(photos, capsys):
    split()
    capsys.readouterr()
    before = {path: os.lstat(path).st_mtime_ns for path in Path("data").rglob("*")}
    split()
    assert capsys.readouterr().err == "data is ready: train/ 41 images, val/ 5 images\n"
    assert {path: os.lstat(path).st_mtime_ns for path in Path("data").rglob("*")} == before
    for change in (["--seed", "1"], ["--val", "5"], ["--copy"]):
        with pytest.raises(UserError, match="data was made, or begun, from other files or with"):
            split(*change)
    put("photos/Cat/new.png")
    with pytest.raises(UserError, match="remove it, or name another folder$"):
        split()


@pytest.mark.parametrize("words", [[], ["--copy"]])
def test_a_full_disk(photos, words, monkeypatch):
    real, made = Target._place, []

    def place(self, name, make):
        if len(made) == 20:
            raise OSError(28, "No space left on device")
        made.append(name)
        real(self, name, make)

    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        patch.setattr(Target, "_place", place)
        split(*words)
    assert str(error.value).startswith("cannot use data: No space left on device; mend that, or")
    assert os.listdir("data") == [target_module.UNFINISHED]
    split(*words)
    assert sorted(os.listdir("data")) == ["manifest.json", "train", "val"]
    assert len(names(Path("data"), "train")) == 41


@pytest.mark.parametrize("last", range(4))
def test_a_kill_while_the_parts_are_moved(photos, last, monkeypatch):
    real, moved = Path.replace, []

    def replace(path, other):
        if path.parent.name == target_module.UNFINISHED and "." not in path.name[:1]:
            if len(moved) == last:
                raise KeyboardInterrupt
            moved.append(path.name)
        return real(path, other)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        try:
            split()
        except BaseException as stop:
            assert "started again, it goes on" in str(stop)
    split()
    assert len(moved) == min(last, 3)
    assert sorted(os.listdir("data")) == ["manifest.json", "train", "val"]
    assert len(names(Path("data"), "train")) + len(names(Path("data"), "val")) == 46


def test_what_is_no_image_is_left_out_and_counted(photos, capsys):
    for name in (".DS_Store", "Cat/.DS_Store", "Cat/._1.jpg", "dog/@eaDir/1.png", "dog/Thumbs.db"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"x")
    split()
    assert (
        f"{photos}: left out as no images in class folders: 3 hidden, " in capsys.readouterr().err
    )
    assert len(names(Path("data"), "train")) + len(names(Path("data"), "val")) == 46


def test_a_disk_that_tells_no_cases_apart(photos, monkeypatch):
    real = Target._place
    monkeypatch.setattr(
        Target, "_place", lambda self, name, make: real(self, name.replace("dog", "Cat"), make)
    )
    with pytest.raises(UserError, match="in 2 classes in place of .* in 3; where a disk does not"):
        split()
    assert os.listdir("data") == [target_module.UNFINISHED]


def alone(root):
    put(root / "Cat2/1.png")


def empty(root):
    (root / "Cat2").mkdir()


def one(root):
    for name in ("dog", "ünï \udcff"):
        (root / name).rename(root.parent / name)


def taken(root):
    put(root.parent / "data/mine.png")


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (alone, ["photos", "data"], "Cat2/1.png is the only image of its class, which cannot be"),
        (empty, ["photos", "data"], "no images in the class folder"),
        (one, ["photos", "data"], "photos has one class only, Cat; add those of others"),
        (taken, ["photos", "data"], "data is not empty; name a new folder"),
        (empty, ["photos", "photos/data"], "photos/data lies in photos, which is only read; name"),
        (empty, ["photos", "photos"], "photos lies in photos, which is only read; name a folder"),
        (empty, ["gone", "data"], "has no folder gone/"),
        (empty, ["photos/dog", "data"], "holds no class folders"),
    ],
)
def test_mistakes(photos, change, words, message):
    change(photos)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        front.main(["split", *words])
    assert "\n" not in str(error.value) and "data.path" not in str(error.value)
