"""Checkpoints: atomic, checked, safe, and in the order of what they hold."""

import hashlib
import io
import math
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.run import archive
from pipeline.run.checkpoint import FORMAT, CheckpointStore, content_of, digest, load
from pipeline.run.console import logger
from pipeline.run.errors import Interrupted, UserError
from pipeline.run.files import write_atomically
from pipeline.train.randomness import rng_state, set_rng_state


def state(epoch, step=0, batch=0):
    return {"state_dict": {"w": torch.arange(500.0) + epoch}, "epoch": epoch, "batch": batch,
            "step": step}  # fmt: skip


def same(a, b):
    return digest(a) == digest(b)


def test_keeps_the_newest_and_the_best(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for epoch in range(1, 5):
        store.save(state(epoch), best=epoch == 2)
    store.save(state(4, step=41, batch=1))
    assert [p.name for p in store.files()] == ["step_41.pt", "epoch_0004.pt"]
    assert load(tmp_path / "best.pt")["epoch"] == 2
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "epoch_0004.pt", "step_41.pt"]


def test_every_damage_is_noticed_or_harmless(tmp_path):
    path = CheckpointStore(tmp_path, 1).save(state(1))
    whole = path.read_bytes()
    rng = random.Random(0)
    noticed = 0
    for _ in range(150):
        at = rng.randrange(len(whole))
        path.write_bytes(
            whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :]
        )
        try:
            assert same(load(path), state(1)), at
        except UserError:
            noticed += 1
    assert noticed > 50
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="epoch_0001.pt"):
            load(path)


def ours(epoch=1, **more):
    """A state with all that a checkpoint of ours holds."""
    empty = dict.fromkeys(("config", "data", "optimizer", "scaler", "rng", "best", "last"), {})
    return {**state(epoch, 10 * epoch), **empty, "format": FORMAT, "metrics": ("loss",),
            "sums": torch.zeros(1, 1), "watch": torch.tensor([0, 0, 0, -1]), "times": [0.0, 0.0],
            "metrics_size": 0, **more}  # fmt: skip


def altered(values):
    """States that differ in one value, each in another way."""
    yield {**values, "epoch": values["epoch"] + 1}
    yield {**values, "more": None}
    yield {key: value for key, value in values.items() if key != "times"}
    yield {**values, "metrics": list(values["metrics"])}
    yield {**values, "sums": values["sums"].float().double() + 1e-300}
    yield {**values, "watch": values["watch"].int()}
    for weight in (values["state_dict"]["w"].flip(0), values["state_dict"]["w"][None]):
        yield {**values, "state_dict": {"w": weight}}


def test_what_was_loaded_is_held_against_the_digest(tmp_path):
    path = tmp_path / "c.pt"
    path.write_bytes(content_of(ours()))
    loaded = load(path)
    assert same(loaded, ours()) and "digest" not in loaded
    torch.save(ours(), path)  # without a digest
    with pytest.raises(UserError, match=r"c.pt is damaged \(its digest is wrong\); take another"):
        load(path)
    for other in altered(ours()):
        torch.save({**other, "digest": digest(ours())}, path)
        with pytest.raises(UserError, match="digest is wrong"):
            load(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("epoch", -1), ("batch", True), ("step", 1.0), ("config", None), ("optimizer", []),
     ("sums", 0), ("times", None), ("rng", torch.ones(1)), ("metrics_size", "0")],
)  # fmt: skip
def test_a_state_of_other_kinds_is_refused(tmp_path, key, value):
    """Even where its digest is right."""
    path = tmp_path / "c.pt"
    path.write_bytes(content_of(ours(**{key: value})))
    with pytest.raises(UserError, match=rf"c.pt is damaged \(in {key}\)"):
        load(path)


def test_one_of_an_older_format_needs_no_digest(tmp_path):
    torch.save(ours(format=FORMAT - 1), tmp_path / "old.pt")
    assert load(tmp_path / "old.pt")["format"] == FORMAT - 1


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
    | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.text(max_size=2) | st.integers(-5, 5), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


def written(value):
    """Plain values as text that tells types and signs of zero apart, whatever the order of keys."""
    if isinstance(value, dict):
        items = sorted(f"{written(key)}: {written(item)}" for key, item in value.items())
        return f"{{{items}}}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}{[written(item) for item in value]}"
    return f"{type(value).__name__} {value!r}"


@settings(max_examples=200, deadline=None)
@given(PLAIN, PLAIN)
def test_equal_digests_mean_equal_values(a, b):
    assert (digest(a) == digest(b)) == (written(a) == written(b))


@settings(max_examples=40, deadline=None)
@given(PLAIN)
def test_a_digest_outlives_a_file(value):
    file = io.BytesIO()
    torch.save([value, torch.ones(2, 3)], file)
    assert digest(archive.read(file)) == digest([value, torch.ones(2, 3)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=4), st.randoms(use_true_random=False), st.data())
def test_a_digest_sees_elements_shape_and_dtype_only(shape, rng, data):
    tensor = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    axes = list(range(len(shape)))
    rng.shuffle(axes)
    back = [axes.index(axis) for axis in range(len(axes))]
    assert digest(tensor.permute(axes).contiguous().permute(back)) == digest(tensor)
    assert digest(tensor) not in (digest(tensor[None]), digest(tensor.double()))
    if tensor.numel():
        other = tensor.clone()
        other.view(-1)[data.draw(st.integers(0, tensor.numel() - 1))] += 0.5
        assert digest(other) != digest(tensor)


def test_a_digest_is_the_same_everywhere():
    """A checkpoint of another machine or version stays one: the digest is part of the format."""
    value = {"b": [1, True, None, 0.5], "a": ("x", b"y"), 3: torch.tensor([[1.0], [-2.0]])}
    canonical = (
        b"dict 3;int 3;torch.float32 (2, 1);\0\0\x80?\0\0\0\xc0str 1;atuple 2;str 1;xbytes 1;y"
        b"str 1;blist 4;int 1;bool True;None;float 0.5;"
    )
    assert digest(value) == hashlib.sha256(canonical).hexdigest()


@pytest.mark.parametrize("value", [{1}, torch.zeros(2, dtype=torch.complex64), object()])
def test_what_could_not_be_read_again_is_not_saved(tmp_path, value):
    with pytest.raises(TypeError, match="cannot hold"):
        CheckpointStore(tmp_path, 1).save({**state(1), "x": value})
    assert os.listdir(tmp_path) == []


def test_what_is_too_large_to_be_read_again_is_not_saved(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, 1)
    monkeypatch.setattr(archive, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match=r"has \d+ bytes, more than 1000; set model.arch"):
        store.save(state(1))
    assert os.listdir(tmp_path) == []


def copies(tmp_path, *states, keep=9):
    store = CheckpointStore(tmp_path, keep)
    return store, [store.save(each).name for each in states]


def names(store):
    return [path.name for path in store.files()]


def test_neither_times_nor_copies_change_the_order(tmp_path):
    store, saved = copies(tmp_path, state(1, 10), state(2, 20), state(2, 23, 3), state(3, 30))
    for age, name in enumerate(saved):  # as tar and touch leave them: the oldest is the latest
        os.utime(tmp_path / name, (10**9 - age, 10**9 - age))
    assert names(store) == names(CheckpointStore(tmp_path, 9)) == saved[::-1]
    for name in saved:
        shutil.copy(tmp_path / name, tmp_path / "copy")
        os.replace(tmp_path / "copy", tmp_path / name)
    assert names(CheckpointStore(tmp_path, 9)) == saved[::-1]


def test_a_name_does_not_fool_it(tmp_path):
    store, (first, second) = copies(tmp_path, state(1, 10), state(2, 20))
    os.rename(tmp_path / first, tmp_path / "epoch_9999.pt")
    os.rename(tmp_path / second, tmp_path / "step_1.pt")
    assert names(store) == ["step_1.pt", "epoch_9999.pt"]
    path, newest = next(store.newest())
    assert path.name == "step_1.pt" and newest["epoch"] == 2


def test_the_newest_stay(tmp_path):
    store, _ = copies(tmp_path, state(1, 10), state(2, 20), state(3, 30))
    os.utime(tmp_path / "epoch_0003.pt", (1, 1))
    other = CheckpointStore(tmp_path, 2)
    other.save(state(4, 40))
    assert names(other) == ["epoch_0004.pt", "epoch_0003.pt"]


def test_a_damaged_one_is_not_kept_for_a_good_one(tmp_path):
    store, _ = copies(tmp_path, state(1, 10), state(2, 20), keep=2)
    (tmp_path / "epoch_0007.pt").write_bytes(b"damaged")
    store.save(state(3, 30))
    assert names(store) == ["epoch_0003.pt", "epoch_0002.pt"]


def test_the_tensors_of_others_are_not_read_to_order_them(tmp_path, monkeypatch):
    store, saved = copies(tmp_path, state(1, 10), state(2, 20))
    monkeypatch.setattr(archive, "_tensor", None)
    assert names(store) == names(CheckpointStore(tmp_path, 9)) == saved[::-1]


def test_what_is_no_file_is_passed_over_with_one_line(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logger, "propagate", True)
    store, _ = copies(tmp_path, state(1, 10), state(2, 20))
    (tmp_path / "epoch_0003.pt").symlink_to(tmp_path / "gone")
    (tmp_path / "epoch_0004.pt").mkdir()
    os.mkfifo(tmp_path / "step_99.pt")
    for _ in range(2):
        assert [path.name for path, _ in store.newest()] == ["epoch_0002.pt", "epoch_0001.pt"]
    lines = [record.message for record in caplog.records]
    assert len(lines) == 3 and all("no file; passed over" in line for line in lines)
    store.keep = 1
    (tmp_path / ".x.tmp").mkdir()
    store.save(state(3, 30))  # over the link, and nothing else of these goes
    assert sorted(os.listdir(tmp_path)) == [
        ".x.tmp",
        "epoch_0003.pt",
        "epoch_0004.pt",
        "step_99.pt",
    ]
    assert not (tmp_path / "epoch_0003.pt").is_symlink()


def test_a_link_to_a_checkpoint_is_one(tmp_path):
    (tmp_path / "a").mkdir()
    elsewhere, _ = copies(tmp_path / "a", state(2, 20))
    store, _ = copies(tmp_path, state(1, 10))
    (tmp_path / "epoch_0002.pt").symlink_to(elsewhere.files()[0])
    assert names(store) == ["epoch_0002.pt", "epoch_0001.pt"]


def test_the_one_before_a_damaged_one_is_offered(tmp_path):
    store = CheckpointStore(tmp_path, 2)
    store.save(state(1))
    second = store.save(state(2))
    second.write_bytes(second.read_bytes()[:-100])
    (path, error), (_, good) = store.newest()
    assert path == second and isinstance(error, UserError)
    assert same(good, state(1))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    write_atomically(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left.*run.dir"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_signal_while_it_loads_is_no_damage(tmp_path, monkeypatch):
    path = CheckpointStore(tmp_path, 1).save(state(1))

    def interrupted(*_, **options):
        raise Interrupted(15, "now")

    monkeypatch.setattr(archive, "read", interrupted)
    with pytest.raises(Interrupted):
        load(path)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_pickled_code_is_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "evil.pt")
    with pytest.raises(UserError, match="evil.pt holds pickled code"):
        load(Path("evil.pt"))
    assert not Path("executed").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 no zip", bytes(1000)])
def test_what_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="x.pt"):
        load(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="state_dict"):
        load(path)
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "none.pt")


def test_random_generators_go_on(tmp_path):
    path = tmp_path / "r.pt"
    torch.save({**state(1), "rng": rng_state()}, path)
    drawn = [random.random(), np.random.rand(), torch.rand(1).item()]  # noqa: NPY002
    set_rng_state(load(path)["rng"])
    assert drawn == [random.random(), np.random.rand(), torch.rand(1).item()]  # noqa: NPY002
