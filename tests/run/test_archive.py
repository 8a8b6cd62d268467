"""Crafted and damaged files: each is refused in one line, at once and in little memory."""

import argparse
import collections
import io
import os
import pickle
import random
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from pipeline.run import archive
from pipeline.run.checkpoint import load
from pipeline.run.errors import UserError

FLOATS = np.arange(6, dtype=np.float32).tobytes()


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Stored(NamedTuple):
    kind: type = torch.FloatStorage
    key: str = "0"
    numel: int = 6


class Crafter(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Stored):
            return "storage", value.kind, value.key, "cpu", value.numel
        return None


def dense(shape=(2, 3), strides=(3, 1), offset=0, storage=Stored()):  # noqa: B008
    return Call(
        torch._utils._rebuild_tensor_v2,
        storage, offset, shape, strides, False, collections.OrderedDict(),
    )  # fmt: skip


def large():
    return dense((10**5,), (1,), storage=Stored(numel=10**5))


def pickled(value, protocol=2):
    buffer = io.BytesIO()
    Crafter(buffer, protocol).dump(value)
    return buffer.getvalue()


def zipped(content, entries=(("data/0", FLOATS),), options=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", options) as file:
        file.writestr("x/data.pkl", content)
        for name, data in entries:
            file.writestr(f"x/{name}", data)
    return buffer.getvalue()


def network(tensor, **more):
    return {"state_dict": {"w": tensor}, **more}


def holding(tensor, *entries, **more):
    return zipped(pickled(network(tensor, **more)), entries or (("data/0", FLOATS),))


def beside(value):
    return holding(dense(), x=value)


def shared(levels=60):
    value = [1]
    for _ in range(levels):
        value = [value, value]
    return value


def recursive(kind):
    value = kind()
    (value.append if kind is list else lambda v: value.update(x=v, y=v))(value)
    return value


def deep(levels):
    return b"\x80\x02" + b"]" * levels + b"a" * (levels - 1) + b"."


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def legacy(value):
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


GOOD = holding(dense())


def patched(find, offset, layout, value, content=GOOD, last=True):
    """``content`` with other bytes at ``offset`` behind a signature."""
    at = (content.rfind if last else content.find)(find) + offset
    new = struct.pack(layout, value)
    return content[:at] + new + content[at + len(new) :]


def entry(offset, layout, value):
    return patched(b"PK\1\2", offset, layout, value)


def bomb(size=50_000_000):
    return zipped(pickled(network(dense())), [("data/0", bytes(size))], zipfile.ZIP_DEFLATED)


def twice():
    with pytest.warns(UserWarning, match="Duplicate name"):
        return holding(dense(), ("data/0", FLOATS), ("data/0", FLOATS))


def large_directory(reach=0, end=98):
    """A directory as of an archive of more than 4 GiB, that claims to have 2**40 bytes."""
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, 2**40, 0)
    at = len(GOOD) - 22 + reach
    return GOOD[:-22] + record + struct.pack("<4sIQI", b"PK\6\7", 0, at, 1) + GOOD[-22:]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


CRAFTED = {
    # tensors
    "expanded": lambda: holding(dense(strides=(0, 1))),
    "overlapping": lambda: holding(dense(strides=(1, 1))),
    "rows that overlap": lambda: holding(dense((2, 3), (2, 1))),
    "shape beyond": lambda: holding(dense((3, 3))),
    "offset beyond": lambda: holding(dense(offset=1)),
    "negative stride": lambda: holding(dense(strides=(-3, 1), offset=3)),
    "negative size": lambda: holding(dense((-2, 3))),
    "negative offset": lambda: holding(dense(offset=-1)),
    "huge size": lambda: holding(dense((2**62, 3))),
    "2 TB": lambda: holding(dense((10**9, 512), (512, 1))),
    "product past 64 bits": lambda: holding(dense((2**40, 2**40), (0, 0))),
    "size past 64 bits": lambda: holding(dense((2**70, 1))),
    "nothing of a huge shape": lambda: holding(dense((0, 2**62))),
    "one stride": lambda: holding(dense((2, 3), (1,))),
    "boolean size": lambda: holding(dense((True, 3))),
    "real size": lambda: holding(dense((2.0, 3))),
    "list for a shape": lambda: holding(dense([2, 3])),
    "40 dimensions": lambda: holding(dense((1,) * 40, (1,) * 40)),
    "no storage": lambda: holding(Call(torch._utils._rebuild_tensor_v2, 1, 0, (), (), False, {})),
    "more elements than bytes": lambda: holding(dense((2, 3), storage=Stored(numel=2**40))),
    "fewer elements than bytes": lambda: holding(dense((5,), (1,), storage=Stored(numel=5))),
    "negative elements": lambda: holding(dense(storage=Stored(numel=-6))),
    "another key": lambda: holding(dense(storage=Stored(key="1"))),
    "a path for a key": lambda: holding(dense(storage=Stored(key="../../x"))),
    "bytes that are no truth": lambda: holding(dense(storage=Stored(torch.BoolStorage, "0", 24),
                                                     shape=(24,), strides=(1,))),
    "shared often": lambda: holding(large(), ("data/0", bytes(4 * 10**5)),
                                     x=[large() for _ in range(5)]),
    "complex": lambda: saved(network(torch.zeros(2, dtype=torch.complex64))),
    "quantized": lambda: saved(network(torch.quantize_per_tensor(torch.ones(2), 1, 0,
                                                                 torch.qint8))),
    "sparse": lambda: saved(network(torch.eye(2).to_sparse())),
    "csr": lambda: saved(network(torch.eye(2).to_sparse_csr())),
    "meta": lambda: saved(network(torch.empty(10**12, device="meta"))),
    "uint16": lambda: saved(network(torch.zeros(2, dtype=torch.uint16))),
    # values
    "shared lists": lambda: beside(shared()),
    "shared lists of few levels": lambda: beside(shared(20)),
    "recursive list": lambda: beside(recursive(list)),
    "recursive dict": lambda: beside(recursive(dict)),
    "deep": lambda: zipped(deep(100_000)),
    "many values": lambda: beside([1] * 60_000),
    "many steps": lambda: beside([1] * 200_000),
    "huge integer": lambda: beside(2**64),
    "endless integer": lambda: beside(1 << 4_000_000),
    "long text": lambda: beside("x" * 70_000),
    "a real key": lambda: beside({1.5: 1}),
    "a key of nested tuples": lambda: zipped(b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\1s."),
    "a set": lambda: beside({1, 2}),
    "a NumPy array": lambda: beside(np.zeros(3)),
    "a NumPy object": lambda: beside(Call(np.dtype, "O", False, True)),
    "a storage alone": lambda: beside(Stored()),
    "a dtype": lambda: beside(torch.FloatStorage),
    # code
    "code": lambda: beside(Evil()),
    "code for weights": lambda: zipped(pickled({"state_dict": Evil()})),
    "code in a new protocol": lambda: zipped(pickled({"state_dict": Evil()}, 4)),
    "eval": lambda: beside(Call(eval, "1")),
    "a terabyte": lambda: beside(Call(bytearray, 10**12)),
    "much of one byte": lambda: beside(Call(bytes, 10**12)),
    "an old class": lambda: zipped(b"(ios\nmkdir\n."),
    "an extension": lambda: zipped(b"\x80\x02\x82\x01."),
    "attributes of a maker": lambda: zipped(b"\x80\x02ccollections\nOrderedDict\n}b."),
    "attributes of a list": lambda: zipped(b"\x80\x02]}b."),
    "a call of a list": lambda: zipped(b"\x80\x02])R."),
    "no memo": lambda: zipped(b"\x80\x02h\x05."),
    "no stack": lambda: zipped(b"\x80\x02a."),
    "no mark": lambda: zipped(b"\x80\x02]e."),
    "no end": lambda: zipped(b"\x80\x02]"),
    "nothing": lambda: zipped(b""),
    "much announced": lambda: zipped(b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x."),
    "bytes announced": lambda: zipped(b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x."),
    "no dict": lambda: zipped(pickled([1, 2])),
    "no weights": lambda: zipped(pickled({"state_dict": {"w": 1}, "epoch": 1})),
    # archives
    "bomb": bomb,
    "compressed": lambda: zipped(pickled(network(dense())), options=zipfile.ZIP_BZIP2),
    "twice": twice,
    "no pickle": lambda: zipped(b"").replace(b"data.pkl", b"data.pkx"),
    "two pickles": lambda: holding(dense(), ("data/0", FLOATS), ("y/data.pkl", b"")),
    "a large pickle": lambda: zipped(bytes(archive.MOST_PICKLE + 1)),
    "big-endian": lambda: holding(dense(), ("data/0", FLOATS), ("byteorder", "big")),
    "code in an archive": lambda: holding(dense(), ("data/0", FLOATS), ("code/a.py", "1")),
    "a folder": lambda: entry(38, "<I", 0x10),
    "encrypted": lambda: entry(8, "<H", 1),
    "smaller": lambda: entry(24, "<I", 20),
    "larger": lambda: entry(24, "<I", 2**32 - 2),
    "both larger": lambda: patched(b"PK\1\2", 20, "<I", 2**32 - 2, entry(24, "<I", 2**32 - 2)),
    "elsewhere": lambda: entry(42, "<I", 0),
    "another checksum": lambda: entry(16, "<I", 1),
    "a comment": lambda: patched(b"PK\5\6", 20, "<H", 3) + b"abc",
    "30,000 entries": lambda: holding(dense(), *((f"data/{i}", "") for i in range(30_000))),
    "65,535 entries": lambda: patched(b"PK\5\6", 10, "<H", 65_535),
    "a directory of a terabyte": large_directory,
    "a directory elsewhere": lambda: large_directory(reach=1),
    "cut": lambda: GOOD[:-30],
    "its beginning": lambda: GOOD[:100],
    "something before": lambda: b"x" * 10 + GOOD,
    # other formats
    "legacy code": lambda: legacy({"state_dict": Evil()}),
    "legacy, longer": lambda: legacy(network(torch.ones(3))) + b"x",
    "legacy, cut": lambda: legacy(network(torch.ones(3)))[:-5],
    "legacy magic": lambda: pickled(1) + pickled(1001),
    "plain pickle": lambda: pickle.dumps({"state_dict": {}}),
    "deep pickle": lambda: deep(10_000),
    "safetensors": lambda: struct.pack("<Q", 2**62) + b'{"w":1}',
    "nothing in safetensors": lambda: struct.pack("<Q", 2) + b"{}",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of quantized and sparse tensors
@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_files_are_refused_at_once(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = Path("crafted.pt")
    path.write_bytes(CRAFTED[name]())
    begin = time.process_time()
    with pytest.raises(UserError) as caught:
        load(path)
    assert time.process_time() - begin < 5
    message = str(caught.value)
    assert "crafted.pt" in message and "; " in message and message.isprintable()
    assert len(message) < 300
    assert os.listdir() == ["crafted.pt"]


def test_the_good_one_is_read():
    """What the crafted files are variants of."""
    state = load(io.BytesIO(GOOD))
    assert torch.equal(state["state_dict"]["w"], torch.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("name", ["bomb", "shared lists", "much announced", "2 TB", "no pickle"])
def test_crafted_files_take_little_memory(name):
    file = io.BytesIO(CRAFTED[name]())
    tracemalloc.start()
    with pytest.raises(UserError):
        load(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * archive.MOST_PICKLE + 16 * 2**20


def test_a_file_that_is_too_large(tmp_path):
    path = tmp_path / "large.pt"
    with open(path, "wb") as file:
        file.write(b"PK\3\4")
        file.truncate(archive.MOST_BYTES + 1)
    with pytest.raises(UserError, match=f"large.pt is larger than {archive.MOST_BYTES} bytes"):
        load(path)


def flipped(content, bit):
    at, place = divmod(bit, 8)
    return content[:at] + bytes([content[at] ^ (1 << place)]) + content[at + 1 :]


def test_a_flipped_bit_is_refused_or_changes_nothing():
    """Every bit of the directory and what follows it, and some of those before. Such a file has no
    digest: the reader alone notices."""
    wanted = {"w": torch.arange(40.0), "n": torch.tensor(3)}
    content = saved({"state_dict": wanted, "epoch": 3})
    begin, bits = content.index(b"PK\1\2") * 8, len(content) * 8
    chosen = [*random.Random(0).sample(range(begin), 400), *range(begin, bits)]
    refused = 0
    for bit in chosen:
        try:
            state = load(io.BytesIO(flipped(content, bit)))
        except UserError:
            refused += 1
            continue
        assert state["epoch"] == 3 and state["state_dict"].keys() == wanted.keys()
        assert all(torch.equal(state["state_dict"][key], wanted[key]) for key in wanted), bit
    assert refused > len(chosen) / 3


def same(a, b):
    """Equal in values and types."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


VALUES = {
    "none": None, "yes": True, "no": False, "small": 3, "negative": -70_000, "large": 2**63,
    "real": 0.1, "text": "ä\n", "bytes": b"\0\xff", "no bytes": b"",
    "list": [1, [2, ()]], "tuple": (1, 2, 3, 4),
    5: {"empty": {}}, "tensors": [torch.tensor(1.5), torch.empty(0), torch.eye(3)[:, 1]],
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "parameter": torch.arange(3), **{str(d): torch.ones(3).to(d) for d in archive.DTYPES},
}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("is_new", [True, False])
def test_plain_values_come_back(protocol, is_new):
    buffer = io.BytesIO()
    torch.save(VALUES, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=is_new)
    values = archive.read(buffer)
    assert same(values, VALUES)
    assert values["channels last"].is_contiguous(memory_format=torch.channels_last)


def test_other_peoples_values_come_back():
    whole = torch.arange(10.0)
    values = {
        "parameter": torch.nn.Parameter(torch.ones(2)), "args": argparse.Namespace(lr=0.1, x=[1]),
        "ordered": collections.OrderedDict(a=1), "counter": collections.Counter([3, 3]),
        "size": torch.Size([2, 3]), "parts": [whole[:5], whole[5:]],
        "numpy": [np.float64(0.1), np.float32(0.5), np.int64(-3), np.bool_(True), np.float16(2)],
    }  # fmt: skip
    read = archive.read(io.BytesIO(saved(values)))
    assert read["args"] == {"lr": 0.1, "x": [1]} and read["ordered"] == {"a": 1}
    assert read["counter"] == {3: 2} and read["size"] == (2, 3)
    assert same(read["numpy"], [0.1, 0.5, -3, True, 2.0])
    assert torch.equal(read["parameter"], torch.ones(2))
    assert same(read["parts"], values["parts"])


def test_swapped_bytes_of_a_numpy_number():
    scalar = np.float64(1).__reduce__()[0]
    call = Call(scalar, np.dtype(">f8"), struct.pack(">d", 1.5))
    assert archive.read(io.BytesIO(zipped(pickled({"x": call}))))["x"] == 1.5


def test_without_tensors_none_of_their_bytes_is_read():
    content = patched(b"x/data/0", 8, "<I", 1, GOOD, last=False)  # the bytes are damaged
    with pytest.raises(zipfile.BadZipFile):
        archive.read(io.BytesIO(content))
    tensor = archive.read(io.BytesIO(content), tensors=False)["state_dict"]["w"]
    assert tensor.shape == (2, 3) and tensor.storage.dtype == torch.float32
