"""``prepare shard``: archives that others read too, whole or not there."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from launch import prepare as front
from pipeline.data.shards import read_split
from pipeline.data.tree import scan
from pipeline.prepare import shard as shard_module
from pipeline.prepare import target as target_module
from pipeline.prepare.target import Target
from pipeline.run.errors import Interrupted, UserError
from tests import PATIENCE, ROOT
from tests.data.fixtures import plain, smooth

NAMES = ("a/1.jpg", "a/deep/2.PNG", "a/3.x.JPEG", "b/4.jpe", "b/5.webp")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two splits of two classes, of several kinds of images; and the words of the classes."""
    monkeypatch.chdir(tmp_path)
    for split, copies in (("train", 2), ("val", 1)):
        for number, name in enumerate(NAMES * copies):
            folder, _, file = f"data/{split}/{name}".rpartition("/")
            Path(folder).mkdir(parents=True, exist_ok=True)
            smooth(20, 30 + number, number).save(Path(folder, f"{number}{file}"))
    Path("data/classes.json").write_text('{"a": "the first"}')
    return tmp_path / "data"


def shard(*words, source="data", into="shards"):
    """The exit code."""
    try:
        front.main(["shard", source, into, "--images", "3", "--workers", "2", *words])
    except SystemExit as exit:
        return exit.code
    return 0


def files(root="shards"):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in Path(root).rglob("*")
        if path.is_file()
    }


def images(root="shards", split="train"):
    """What the archives hold: for each number ending, content and label."""
    found = {}
    for path in sorted(Path(root, split).glob("*.tar")):
        with tarfile.open(path) as archive:
            members = iter(archive.getmembers())
            for image, label in zip(members, members, strict=True):
                key, _, ending = image.name.partition(".")
                assert label.name == f"{key}.cls" and image.isreg() and label.isreg()
                content = archive.extractfile(image).read()
                found[int(key)] = ending, content, int(archive.extractfile(label).read())
    return found


def test_the_archives_hold_the_tree(data):
    assert shard() == 0
    for split, count in (("train", 10), ("val", 5)):
        tree = scan(data.parent / "data", split)
        found = images(split=split)
        assert sorted(found) == list(range(count)) and len(tree.files) == count
        for number, path in enumerate(tree.paths(range(count))):
            ending, content, label = found[number]
            assert content == Path(path).read_bytes() and label == tree.labels[number]
            assert ending == {"PNG": "png", "webp": "webp"}.get(path.rpartition(".")[2], "jpg")
        assert json.loads(Path(f"shards/{split}/names.json").read_text()) == tree.files
    assert list(images(split="val")) == list(range(5))
    assert list(images(split="train")) != list(range(10))  # they are mixed


def test_what_is_there_at_the_end(data, capsys):
    assert shard() == 0
    said = "shards is ready: train/ 10 images, val/ 5 images\n"
    assert capsys.readouterr().err.endswith(said)
    archives = [*(f"train/00000{n}" for n in range(4)), "val/000000", "val/000001"]
    assert files().keys() == {
        *(f"{name}.{kind}" for name in archives for kind in ("tar", "idx")),
        *("train/names.json", "val/names.json", "manifest.json", "classes.json"),
    }
    manifest = json.loads(Path("shards/manifest.json").read_text())
    assert (manifest["command"], manifest["images_per_shard"]) == ("prepare shard", 3)
    for split, count in (("train", 10), ("val", 5)):
        expected = {"classes": 2, "images": count, "fingerprint": scan(data, split).fingerprint}
        assert manifest["splits"][split] == expected
    before = files()
    assert shard() == 0 and files() == before
    assert capsys.readouterr().err == said
    assert shard(into="again") == 0 and files("again") == before  # they are the same to the byte


def test_the_index_is_the_one_that_dali_makes(data):
    wds2idx = pytest.importorskip("wds2idx")
    assert shard() == 0
    for path in Path("shards").rglob("*.tar"):
        creator = wds2idx.IndexCreator(str(path), f"{path}.idx", verbose=False)
        creator.create_index()
        creator.close()
        assert Path(f"{path}.idx").read_text() == path.with_suffix(".idx").read_text()


def test_dalis_own_reader_reads_them(data):
    dali = pytest.importorskip("nvidia.dali")
    assert shard() == 0
    archives = sorted(map(str, Path("shards/train").glob("*.tar")))
    indices = sorted(map(str, Path("shards/train").glob("*.idx")))

    @dali.pipeline_def(batch_size=10, num_threads=1, device_id=None)
    def pipeline():
        return tuple(
            dali.fn.readers.webdataset(
                paths=archives, index_paths=indices, ext=["jpg;png;webp", "cls"],
                missing_component_behavior="error",
            )
        )  # fmt: skip

    contents, labels = pipeline().run()
    expected = [*images().values()]
    for number, (_, content, label) in enumerate(expected):
        assert np.asarray(contents.at(number)).tobytes() == content
        assert int(np.asarray(labels.at(number)).tobytes()) == label


def test_the_library_of_the_format_reads_them(data):
    webdataset = pytest.importorskip("webdataset")
    assert shard() == 0
    urls = sorted(map(str, Path("shards/train").glob("*.tar")))
    samples = webdataset.WebDataset(urls, shardshuffle=False).decode("pil")
    found = [*samples.to_tuple("jpg;png;webp", "cls", "__key__")]
    assert [int(key) for *_, key in found] == [*images()]
    for image, label, key in found:
        assert label == images()[int(key)][2] and image.mode == "RGB"


def spoil(data):
    """Two images that cannot be read; returns their names."""
    names = ["train/a/01.jpg", "val/b/odd\nname.jpg"]
    for name in names:
        (data / name.rpartition("/")[0]).mkdir(exist_ok=True)
        (data / name).write_bytes(b"no image")
    return names


def test_bad_images_are_listed_and_left_out(data, capsys):
    bad = spoil(data)
    for _ in range(2):
        assert shard() == 1
        said = "warning: 2 images could not be read; shards/unreadable.txt lists them\n"
        assert capsys.readouterr().err.endswith(said)
    listed = Path("shards/unreadable.txt").read_text().splitlines()
    reason = "# not an image of a known format"
    assert listed == [reason, bad[0], reason, '"val/b/odd\\nname.jpg"']
    for split in ("train", "val"):
        left = scan(data, split, "shards/unreadable.txt")
        found = read_split(Path("shards"), split)
        assert (found.files, found.fingerprint) == (left.files, left.fingerprint)


def test_a_shard_without_any_good_image_is_left_out(data):
    for path in data.glob("val/b/*"):  # the last two of five
        path.write_bytes(b"no image")
    smooth(9, 9).save(data / "val/b/0.jpg")
    assert shard("--images", "1") == 1
    assert not Path("shards/val/000004.tar").exists() and Path("shards/val/000003.tar").exists()
    assert [name.rpartition("/")[2] for name in read_split(Path("shards"), "val").files] == [
        "01.jpg", "23.x.JPEG", "12.PNG", "0.jpg",
    ]  # fmt: skip


def test_a_class_that_has_lost_all_images_is_refused(data):
    for path in data.glob("val/b/*"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^no image of val/b can be read, such as val/b/\S+ \(not"):
        shard()
    assert os.listdir("shards") == [target_module.UNFINISHED]


KILL = """
import os, signal, sys
from launch.command import command
from launch.prepare import main
from pipeline.prepare import pack, shard
from pipeline.prepare.target import Target
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
count = 0
def counted(function):
    def call(*arguments):
        global count
        count += 1
        return kill() if count == {count} else function(*arguments)
    return call
{owner} = counted({owner})
sys.argv = ["prepare", "shard", "data", "shards", "--images", "3", "--workers", "2"]
command(main)
"""


slow = pytest.mark.slow  # each case starts a process


@pytest.mark.parametrize(
    ("owner", "count", "finished"),
    [
        ("pack.Shard.add", 8, 2),  # within the third shard
        pytest.param(
            *("pack.Shard.index", 3, 2), marks=slow
        ),  # its archive is there, its index not
        pytest.param(*("Target._move", 1, 6), marks=slow),
    ],
)
def test_it_goes_on_after_a_kill(data, monkeypatch, owner, count, finished):
    assert shard(into="whole") == 0
    code = KILL.format(owner=owner, count=count)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, timeout=PATIENCE)
    assert done.returncode == -9
    assert {path.name for path in Path("shards").iterdir()} == {target_module.UNFINISHED}
    made, pack = [], shard_module._pack
    monkeypatch.setattr(shard_module, "_pack", lambda *words: made.append(words[2]) or pack(*words))
    with pytest.raises(UserError, match="was made, or begun, from other files or with other sett"):
        shard("--images", "4")
    assert shard() == 0 and len(made) == 6 - finished
    assert files() == files("whole")


def test_an_archive_that_is_short_is_made_anew(data, monkeypatch):
    """As a loss of power may leave it."""
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Target, "finish", interrupt)
        shard()
    whole = {name: content for name, content in files().items() if name.endswith("tar")}
    for name, content in whole.items():
        Path("shards", name).write_bytes(content[:-1])
    assert shard() == 0
    assert {f".unfinished/{name}" for name in files()} >= whole.keys()
    assert all(files()[name.partition("/")[2]] == content for name, content in whole.items())


def interrupt(*_):
    raise KeyboardInterrupt


def full(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("method", "left"), [("add", 1), ("end", 1), ("index", 1)])
def test_a_full_disk_leaves_nothing_half_written(data, monkeypatch, method, left):
    with monkeypatch.context() as patch:
        patch.setattr(shard_module.Shard, method, full)
        with pytest.raises(UserError, match="cannot use shards: No space left on device; .* goes"):
            shard()
    names = {name.partition("/")[2] for name in files()}
    archives = {"train/000000.tar"} if method == "index" else set()
    assert names == {"train/names.json", "job.json", "classes.json"} | archives
    assert shard() == 0 and len(images()) == 10


def test_what_was_mended_meanwhile_is_taken(data, monkeypatch):
    good = (data / "train/a/01.jpg").read_bytes()
    bad = b"x" * len(good)  # the tree looks the same
    (data / "train/a/01.jpg").write_bytes(bad)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Target, "finish", interrupt)
        shard()
    (data / "train/a/01.jpg").write_bytes(good)
    assert shard() == 0 and len(images()) == 10


def pipe(data):
    os.mkfifo(data / "train/a/x.jpg")
    return {}


def capital(data):
    (data / "train").rename(data / "Train")
    return {}


def shards_of_shards(data):
    assert shard(into="first") == 0
    return {"source": "first"}


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (
            pipe,
            "cannot read the image data/train/a/x.jpg (not a regular file); replace or remove it",
        ),
        (capital, "data/Train is not called train; rename it to data/train"),
        (shards_of_shards, "first holds shards; give the tree that they were made of"),
        (
            lambda _: {"into": "data/train/s"},
            "data/train/s lies in data, which is only read; name a",
        ),
        (
            lambda _: {"source": "no"},
            "no does not exist; give the folder that holds train/ and val/",
        ),
        (lambda _: {"into": "full"}, "full is not empty; name a new folder"),
    ],
)
def test_mistakes(data, prepare, message):
    Path("full").mkdir()
    plain(1).save("full/1.png")
    with pytest.raises(UserError, match=f"^{re.escape(message)}") as error:
        shard(**prepare(data))
    said = str(error.value)
    assert "\n" not in said and "data.exclude" not in said and not Path("shards").exists()
