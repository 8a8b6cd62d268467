"""``prepare verify``: every kind of bad image, its report, going on after a kill."""

import errno
import io
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch import prepare as front
from launch.command import command
from pipeline.data.exclude import read
from pipeline.data.image import open_rgb, unreadable
from pipeline.data.shards import scan_shards
from pipeline.data.tree import scan_train_val
from pipeline.prepare import verify as verify_module
from pipeline.prepare.shard import shard_tree
from pipeline.run.errors import Interrupted, UserError
from tests import PATIENCE, ROOT, first_quick
from tests.data.fixtures import plain, plain_folder, refusal, smooth


def encoded(kind="JPEG", **options):
    buffer = io.BytesIO()
    smooth(60, 70).save(buffer, kind, **options)
    return buffer.getvalue()


JPEG, PROGRESSIVE, PNG = encoded(), encoded(progressive=True), encoded("PNG")
BAD = {
    "text": b"no image\n" * 20,
    "empty": b"",
    "zeros": bytes(3000),
    "zero tail": JPEG[: len(JPEG) // 2] + bytes(len(JPEG) // 2),
    "half": JPEG[: len(JPEG) // 2],
    "few bytes short": JPEG[:-8],
    "end marker cut": JPEG[:-1],
    "progressive": PROGRESSIVE[:-8],
    "png": PNG[: len(PNG) // 2],
    "png without its end": PNG[:-12],
    "png without its last byte": PNG[:-1],
    "webp": encoded("WEBP")[:-4],
    "tiff": encoded("TIFF")[:-4],
    "bmp": encoded("BMP")[:-4],
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """100 training and 20 val images; the report goes beside them."""
    monkeypatch.chdir(tmp_path)
    plain_folder(tmp_path / "data", "train", 100)
    plain_folder(tmp_path / "data", "val", 20)
    return tmp_path / "data"


def verify(*arguments):
    """Its exit code, and the names that the report lists as bad."""
    code = 0
    try:
        front.main(["verify", *map(str, arguments)])
    except SystemExit as exit:
        code = exit.code
    return code, set().union(
        *(read("bad-images.txt", split, data) for split in ("train", "val", "test"))
    )


@pytest.fixture
def looked(monkeypatch):
    """The paths that are decoded."""
    paths = []
    monkeypatch.setattr(
        verify_module, "unreadable", lambda it: paths.append(it.args[0]) or unreadable(it)
    )
    return paths


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_every_kind_of_bad_image_is_found(tmp_path, content):
    path = tmp_path / "1.jpg"
    path.write_bytes(content)
    reason = refusal(path)
    assert reason and "\n" not in reason and str(path) not in reason


@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_whatever_loaders_decode_is_good(tmp_path):
    path = str(tmp_path / "1.jpg")
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x1a\x01\x05\0\x01\0\0\0\0\x10\0\0\0\0\0\0"  # cut off
    for content in (JPEG, PROGRESSIVE, PNG, encoded(exif=exif), JPEG + b"more"):
        Path(path).write_bytes(content)
        assert open_rgb(tmp_path, "1.jpg").size == (70, 60) and refusal(path) is None


def test_no_program_is_run_for_an_eps_file(tmp_path):
    (tmp_path / "1.jpg").write_bytes(BAD["eps"])
    assert refusal(tmp_path / "1.jpg") == "not an image of a known format"


def test_what_is_no_file(data):
    (data / "train/class0/link.png").symlink_to("nowhere")
    server = socket.socket(socket.AF_UNIX)
    server.bind("data/train/class0/socket.png")
    server.close()
    assert verify(data) == (1, {"train/class0/link.png", "train/class0/socket.png"})
    report = Path("bad-images.txt").read_text()
    assert f"# {os.strerror(errno.ENXIO)}\ntrain/class0/socket.png\n" in report
    assert f"# {os.strerror(errno.ENOENT)}\ntrain/class0/link.png\n" in report


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_a_file_that_may_not_be_read(data):
    path = data / "train/class0/000.png"
    path.chmod(0)
    assert verify(data) == (1, {"train/class0/000.png"})
    path.chmod(0o600)  # neither size nor time of change tell
    assert verify(data) == (0, set())


def test_good_data(data, capsys, looked):
    assert verify(data) == (0, set())
    said = f"{data}: looking at its images\nall 120 images are good\n"
    assert capsys.readouterr().err == said and len(looked) == 120
    assert scan_train_val(data, "bad-images.txt")[0].files  # an empty list is a list
    assert {path.name for path in data.iterdir()} == {"train", "val"}


def test_the_report_goes_into_data_exclude(data, capsys):
    names = ["a b.jpg", "#1.jpg", "line\nfeed.jpg", "\udcff.jpg", "\x1b[31m.jpg"]
    for name in names:
        (data / "val/class1" / name).write_bytes(JPEG[:-8])
    code, bad = verify(data, "--report", "bad-images.txt", "--workers", 3)
    assert code == 1 and bad == {f"val/class1/{name}" for name in names}
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("warning: 5 of 125 images are bad, listed in bad-images.txt: ")
    assert line.endswith(" data.exclude=bad-images.txt")
    assert (
        Path("bad-images.txt").read_text(encoding="utf-8").count("# image file is truncated") == 5
    )
    train, val = scan_train_val(data, "bad-images.txt")
    assert (len(train.files), len(val.files)) == (100, 20)


def test_only_what_changed_or_is_bad_is_looked_at_again(data, looked):
    (data / "train/class0/000.png").write_bytes(b"no image")
    for number in (1, 2):
        (data / f"train/class0/00{number}.png").write_bytes(b"no image")
    assert verify(data)[0] == 1
    looked.clear()
    plain(0).save(data / "train/class0/000.png")
    os.utime(data / "train/class1/040.png", ns=(0, 1))
    plain(7, 30, 30).save(data / "val/class0/000.png")
    (data / "train/class0/001.png").unlink()
    plain(8).save(data / "val/class0/new.png")
    assert verify(data) == (1, {"train/class0/002.png"})
    train = [f"train/{name}" for name in ("class0/000", "class0/002", "class1/040")]
    changed = [*train, "val/class0/000", "val/class0/new"]
    assert sorted(looked) == [f"{data}/{name}.png" for name in changed]


KILL = """
import os, signal, sys, time
from launch.command import command
from launch.prepare import main
from pipeline.prepare import verify as verify_module
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
look, verify_module.BLOCK, signals = verify_module.unreadable, 4, [signal.{signal}]
def until_half(path):
    if os.path.getsize("bad-images.txt.state") > 8 * 41 and signals:
        os.kill(os.getpid(), signals.pop())
        time.sleep(1)  # until the main thread has noticed
    return look(path)
verify_module.unreadable = until_half
sys.argv = ["prepare", "verify", {data!r}, "--workers", "2"]
command(main)
"""


@pytest.mark.parametrize("name", first_quick("SIGKILL", "SIGINT"))
def test_it_goes_on_after_a_kill(data, looked, name):
    (data / "train/class0/000.png").write_bytes(b"no image")
    code = KILL.format(signal=name, data=str(data))
    done = python("-c", code)
    assert done.returncode == (-9 if name == "SIGKILL" else 130), done.stderr
    if name == "SIGINT":
        assert done.stderr.splitlines()[1:] == ["interrupted; started again, it goes on"]
    assert not Path("bad-images.txt").exists()  # half a report could be taken for a whole one
    good = os.path.getsize("bad-images.txt.state") // 8 - 1
    assert verify(data) == (1, {"train/class0/000.png"})
    assert 41 <= good < 119 and len(looked) == 120 - good


def test_a_damaged_state_costs_only_time(data, looked):
    verify(data)
    state = Path("bad-images.txt.state")
    state.write_bytes(state.read_bytes()[:-3])
    looked.clear()
    assert verify(data) == (0, set()) and len(looked) == 1
    looked.clear()
    assert verify(data) == (0, set()) and looked == []
    state.unlink()
    assert verify(data) == (0, set()) and len(looked) == 120


def test_few_images_are_under_way(data, monkeypatch):
    walked = 0

    def walk(root, split, left_out):
        nonlocal walked
        for name in names(root, split, left_out):
            walked += 1
            yield name

    names = verify_module.walk
    monkeypatch.setattr(verify_module, "walk", walk)
    monkeypatch.setattr(verify_module, "BLOCK", 4)
    memory = verify_module.Memory(data.parent / "state")
    with memory.file:
        for seen, _ in enumerate(verify_module._verdicts(data, memory, 1)):
            assert walked <= seen + 4 * verify_module.BLOCK
    assert walked == seen + 1 == 120


def test_only_its_own_files_are_written_over(data):
    for name in ("bad-images.txt", "bad-images.txt.state"):
        Path(name).write_text("train/mine/1.jpg\n")
        with pytest.raises(UserError, match=r"^--report: bad-images.txt.*; name another"):
            verify(data)
        assert Path(name).read_text() == "train/mine/1.jpg\n"
        Path(name).unlink()
        Path("bad-images.txt.state").unlink(missing_ok=True)
    verify(data)
    plain_folder(data.parent / "other", "test", 3)
    with pytest.raises(UserError, match="is no report of these data"):
        verify("other")
    assert verify("other", "--report", "other.txt")[0] == 0  # a tree of test images alone


def test_a_split_without_class_folders_is_spoken_of(data, capsys):
    (data / "test").mkdir()
    plain(1).save(data / "test/1.png")
    assert verify(data)[0] == 0
    assert f"warning: {data}/test holds no images in class folders\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a word is missing; usage: "),
        (["verfiy", "data"], "prepare verfiy; did you mean verify?"),
        (["verify"], "DATA is missing; usage: "),
        (["verify", "data", "more"], "more is one word too many; usage: "),
        (["verify", "data", "--reprt=1.txt"], "--reprt is no option; did you mean --report?"),
        (["verify", "gone"], "gone does not exist; give the folder"),
        (["verify", "data/train"], "holds no images in train/<class>/"),
        (["verify", "data/train/class0/000.png"], "holds no images in train/<class>/"),
        (
            ["verify", "data", "--workers", "0"],
            "--workers: 0 is no whole number between 1 and 1024",
        ),
        (["verify", "data", "--workers", "two"], "--workers: two is no whole number"),
        (["verify", "data", "--report", "no/1.txt"], "cannot use no/1.txt.state: No such file"),
        (["verify", "data", "--report", "."], "cannot use"),
    ],
)
def test_mistakes(data, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        front.main(arguments)
    assert "\n" not in str(error.value)


def test_ctrl_c(data, monkeypatch):
    def interrupt(_path):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify_module, "unreadable", interrupt)
    with pytest.raises(Interrupted, match="started again, it goes on") as stop:
        front.main(["verify", str(data)])
    assert stop.value.signal == signal.SIGINT


def python(*arguments):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=PATIENCE
    )


def test_exit_codes(data, monkeypatch, capsys):
    def outcome(*arguments):
        monkeypatch.setattr(sys, "argv", ["prepare", "verify", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            command(front.main)
        return end.value.code, *capsys.readouterr()

    (data / "val/class0/000.png").write_bytes(b"")
    for arguments, code, line in (
        ([data], 1, f"{data}: looking at its images\nwarning: 1 of 120 images are bad"),
        (["gone"], 2, "error: "),
    ):
        found, out, err = outcome(*arguments)
        assert (found, out, err.count("\n")) == (code, "", 1 + line.count("\n"))
        assert err.startswith(line)
    (data / "val/class0/000.png").unlink()
    code, out, err = outcome(data)
    assert (code, out) == (0, "") and err.endswith("all 119 images are good\n")


def test_shards(tmp_path, data, capsys, looked):
    """They are looked at where they lie, and what they remember is that of their archives."""
    shard_tree(data, tmp_path / "shards", 30, workers=1)
    looked.clear()
    capsys.readouterr()
    shards = Path("shards")
    for times in (120, 0):
        assert verify(shards) == (0, set())
        assert capsys.readouterr().err.endswith("all 120 images are good\n")
        assert len(looked) == times
        looked.clear()
    folder = scan_shards(shards, "val")
    archive, start, size = folder.places[3].tolist()
    content = bytearray(folder.archives[archive].read_bytes())
    content[start : start + size] = bytes(size)
    folder.archives[archive].write_bytes(content)
    assert verify(shards) == (1, {folder.files[3]})
    assert len(looked) == 20  # those of the archive, which is another one now
    assert len(scan_shards(shards, "val", "bad-images.txt").files) == 19
    folder.archives[archive].unlink()
    with pytest.raises(UserError, match="shards/val is not whole"):
        verify(shards)
