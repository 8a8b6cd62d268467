"""Packed files that are truncated, altered, foreign or hostile: one line each, and nothing else."""

import contextlib
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from pipeline.export.packed import Packed, plain
from pipeline.export.packed_file import KEY, decode, digest, encode, is_packed, read
from pipeline.export.program import Step, to_plain
from pipeline.run import checkpoint
from pipeline.run.errors import UserError
from tests.export.networks import about, packed

FILE = encode(packed())
HEADER = json.loads(FILE[8 : 8 + int.from_bytes(FILE[:8], "little")])
DATA = FILE[8 + int.from_bytes(FILE[:8], "little") :]


def refused(content, tmp_path_or_name="x.safetensors"):
    with pytest.raises(UserError) as caught:
        decode(content, tmp_path_or_name)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and "; " in message and len(message) < 400
    return message


def with_header(header, data=DATA):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def rewritten(change=lambda about: None, tensors=None):
    """The file of a writer that means it: its digest is right, whatever else is not."""
    tensors = dict(packed().tensors) if tensors is None else tensors
    known = {"version": 1, **plain(packed().about), "steps": to_plain(packed().steps)}
    change(known)
    text = json.dumps({**known, "sha256": digest(known, tensors)})
    return safetensors.numpy.save(tensors, {KEY: text})


def test_the_same_network_gives_the_same_bytes():
    assert encode(packed()) == FILE and encode(decode(FILE, "x")) == FILE


def test_everything_comes_back():
    names = ("Katze", "chien \udcff", "犬", *"abcdefg")
    known = about(classes=names, accuracy={"top1": 12.5, "top5": 50.0}, commit="v1-dirty")
    back = decode(encode(replace(packed(), about=known)), "x")
    assert back.about == known and back.steps == packed().steps
    assert back.tensors.keys() == packed().tensors.keys()


def test_a_file_is_told_by_its_beginning(tmp_path):
    (tmp_path / "a").write_bytes(FILE)
    (tmp_path / "b").write_bytes(safetensors.numpy.save({"w": np.ones(3)}))
    found = [is_packed(tmp_path / name) for name in ("a", "b", "gone", "")]
    assert found == [True, False, False, False]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, len(FILE) // 2, len(FILE) - 1])
def test_truncated(size):
    assert "damaged" in refused(FILE[:size])


def test_it_is_no_checkpoint(tmp_path):
    """Nothing to go on from: its bits are no weights."""
    (tmp_path / "x.safetensors").write_bytes(FILE)
    with pytest.raises(UserError, match=r"x\.safetensors is a packed network, .*; give the check"):
        checkpoint.load(tmp_path / "x.safetensors")


def test_longer():
    assert "damaged" in refused(FILE + b"x")


@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_no_byte_can_be_altered(place, change):
    """But for the spaces behind the header, which may become other white space."""
    altered = bytearray(FILE)
    altered[place] ^= change
    with contextlib.suppress(UserError):
        assert encode(decode(bytes(altered), "x")) == FILE
        assert FILE[place : place + 1] == b" " and altered[place : place + 1].isspace()


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(content):
    refused(content)
    refused(struct.pack("<Q", len(content)) + content)


def changed(name, **values):
    return {**HEADER, name: {**HEADER[name], **values}}


FIRST, SECOND = "layer1.0.conv1.bits", "layer1.0.conv2.bits"
HOSTILE = {
    "a header beyond the file": struct.pack("<Q", 2**62) + FILE[8:],
    "a header beyond any": struct.pack("<Q", 2**64 - 1) + FILE[8:],
    "a huge header": with_header(b" " * (2**23 + 1)),
    "nested deeply": with_header(b'{"__metadata__":' + b"[" * 100_000),
    "a list": with_header(b"[]"),
    "no UTF-8": with_header(b'{"\xff":1}'),
    "not a number": with_header(b'{"a":NaN}'),
    "1e12 elements": with_header(changed(FIRST, shape=[10**6, 10**6, 1, 1])),
    "sizes that overflow": with_header(changed(FIRST, shape=[2**32, 2**32, 1, 1])),
    "a negative size": with_header(changed(FIRST, shape=[-1, 3, 3, 2])),
    "offsets that overlap": with_header(
        changed(FIRST, data_offsets=HEADER[SECOND]["data_offsets"])
    ),
    "offsets the other way": with_header(
        changed(FIRST, data_offsets=HEADER[FIRST]["data_offsets"][::-1])
    ),
    "an unknown dtype": with_header(changed(FIRST, dtype="U7")),
    "a dtype of no NumPy": with_header(changed("linear.bias", dtype="BF16", shape=[20])),
    "another dtype": with_header(changed(FIRST, dtype="I8")),
    "another shape": with_header(changed(FIRST, shape=[3, 16, 3, 2])),
    "tensors exchanged": with_header({**HEADER, FIRST: HEADER[SECOND], SECOND: HEADER[FIRST]}),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile(content):
    assert "damaged" in refused(content)


def test_a_name_that_comes_twice():
    text = json.dumps(HEADER).encode()
    twice = text[:-1] + b"," + json.dumps({FIRST: HEADER[FIRST]}).encode()[1:]
    assert "comes twice" in refused(with_header(twice))
    inner = HEADER["__metadata__"][KEY].replace('{"version":1', '{"version":1,"version":1', 1)
    assert "comes twice" in refused(with_header({**HEADER, "__metadata__": {KEY: inner}}))


def test_a_foreign_file():
    said = refused(safetensors.numpy.save({"w": np.ones(3, np.float32)}, {"format": "pt"}))
    assert "no packed network" in said


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(about):
        for key in path:
            about = about[key]
        about[last] = value

    return change


META = {
    "a later version": put("version", 2),
    "a kind of step": put("steps", 3, "op", "exec"),
    "no kind of step": put("steps", 3, "op", ["conv"]),
    "a value that comes later": put("steps", 3, "in", [7]),
    "a value before all": put("steps", 3, "in", [-1]),
    "no value": put("steps", 3, "in", []),
    "a truth value": put("steps", 3, "in", [True]),
    "an option more": put("steps", 3, "x", 1),
    "no stride": put("steps", 0, "stride", 0),
    "a huge stride": put("steps", 0, "stride", 10**12),
    "a huge padding": put("steps", 0, "padding", 60_000),
    "another layer": put("steps", 0, "layer", "layer1.0.conv1"),
    "no layer": put("steps", 0, "layer", "gone"),
    "the scale of a real layer": put("steps", 4, "scale", 1),
    "a scale of later": put("steps", 4, "scale", 60),
    "the scale of what skips": put("steps", 32, "scale", 22),
    "the scale of the images": put("steps", 4, "scale", 0),
    "a negative eps": put("steps", 4, "eps", -1.0),
    "no steps": put("steps", []),
    "steps that are none": put("steps", {"op": "conv"}),
    "a size of images": put("images", "size", 10**12),
    "a size of no images": put("images", "size", 0),
    "a resize that is text": put("images", "resize", "32"),
    "two colours": put("images", "mean", [0, 0]),
    "a deviation of 0": put("images", "std", [1, 1, 0]),
    "classes that are numbers": put("classes", [1, 2]),
    "fewer classes": put("classes", ["a", "b"]),
    "an accuracy": put("accuracy", {"top1": "high"}),
    "an arch": put("arch", 5),
    "a key more": put("more", 5),
}


@pytest.mark.parametrize("change", META.values(), ids=META)
def test_metadata_are_not_believed(change):
    assert "damaged" in refused(rewritten(change))


def test_a_file_that_means_it_is_read():
    assert decode(rewritten(), "x").about == packed().about


TENSORS = {
    "a NaN": ("linear.bias", lambda t: t * np.nan),
    "infinity": ("bn2.norm", lambda t: t + np.inf),
    "a negative variance": ("bn2.norm", lambda t: -abs(t) - 1),
    "a scale of 0": ("layer1.0.conv1.scale", lambda t: t * 0),
    "a norm of 3 rows": ("bn1.norm", lambda t: t[:3]),
    "fewer channels": ("bn1.norm", lambda t: t[:, :8]),
    "bits in float32": (FIRST, lambda t: t.astype(np.float32)),
    "float64": ("conv1.weight", lambda t: t.astype(np.float64)),
    "int8 without units": ("conv1.weight", lambda t: t.astype(np.int8)),
    "a weight of 3 dimensions": ("conv1.weight", lambda t: t[0]),
    "no weight at all": ("conv1.weight", lambda t: t[:0]),
    "a bias of another length": ("linear.bias", lambda t: t[:5]),
    "more inputs": ("linear.weight", lambda t: np.tile(t, 2)),
}


@pytest.mark.parametrize(("name", "change"), TENSORS.values(), ids=TENSORS)
def test_tensors_are_not_believed(name, change):
    tensors = dict(packed().tensors)
    changed = np.asarray(change(tensors[name]))
    assert "damaged" in refused(rewritten(tensors={**tensors, name: changed.copy()}))


def test_missing_and_superfluous_tensors():
    tensors = dict(packed().tensors)
    assert "do not fit" in refused(rewritten(tensors={**tensors, "x.norm": tensors["bn1.norm"]}))
    del tensors["layer2.0.conv1.scale"]
    assert "do not fit" in refused(rewritten(tensors=tensors))


def test_bits_behind_the_last_channel():
    stray = Step("conv", (0,), {"layer": "a", "stride": 1, "padding": 1, "channels": 3})
    steps = (stray, Step("mean", (1,)), Step("linear", (2,), {"layer": "b"}))
    tensors = {
        "a.bits": np.full((4, 3, 3, 1), 7, np.uint8),
        "a.scale": np.full((), 1, np.float32),
        "b.weight": np.ones((10, 4), np.float32),
        "b.bias": np.ones(10, np.float32),
    }
    network = Packed(about(), steps, tensors)
    assert decode(encode(network), "x").steps == steps
    tensors["a.bits"][1, 2, 0, 0] = 8
    assert "behind the last channel" in refused(encode(network))


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "gone", tmp_path):
        with pytest.raises(UserError, match="; give a packed file, as export CHECKPOINT writes it"):
            read(path)
    (tmp_path / "there").write_bytes(FILE)
    assert read(tmp_path / "there").steps == packed().steps
