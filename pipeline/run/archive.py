"""Files of tensors and plain values, checked before they are believed and read once.

``torch.save`` writes a zip archive of stored entries: a pickle, and the bytes of each storage. The
archive's directory is checked first, then the pickle (``plain_pickle``), then all of its values,
and only then the tensors' bytes are read, each entry against its checksum. torch's own reader is
not used: it takes sizes as the pickle gives them, so that a tensor may reach beyond its bytes, and
leaves memory unset for an entry that is marked as a folder.

The older format of ``torch.save``, a row of pickles, and safetensors files are read as well.
"""

import io
import math
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from pipeline.run.plain_pickle import Maker, Namespace, NotPlain, read_pickle

PACKED = b'{"__metadata__":{"reste":'  # how the header of a packed network begins
MOST_BYTES = 2**31  # of a file
MOST_PICKLE = 2**23  # bytes of its pickle, or of the header of a safetensors file
MOST_ENTRIES = 20_000
MOST_VALUES = 50_000  # each counted as often as it is reached
MOST_DEPTH = 24
MOST_TEXT = 2**16  # characters of a text
MOST_DIMENSIONS = 8

_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
DTYPES = frozenset(_STORAGES.values())
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Storage(NamedTuple):
    """A run of ``numel`` elements of one dtype in the file, which one or several tensors show.

    ``key`` is the name under which its bytes lie there. Nothing of them has been read yet.
    """

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class Dense(NamedTuple):
    """A tensor as a pickle describes it: a view of a storage that has not been read yet.

    ``offset`` and ``strides`` are counted in elements. They are what the file says, which may be of
    any type and size until ``_Geometry`` has checked it.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(file: BinaryIO, *, tensors: bool = True) -> Any:
    """What ``torch.save`` or safetensors wrote to ``file``, with its tensors on the CPU.

    Without ``tensors`` a ``Dense`` stands for each, and their bytes are not read. Raises NotPlain,
    with words that follow the file's name, for what is not read, and any other Exception where the
    file is damaged or something else.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(9)
    file.seek(0)
    if head[:4] != b"PK\3\4" and head[:1] != b"\x80" and head[8:] != b"{":
        raise ValueError("another kind of file")
    if size > MOST_BYTES:
        raise NotPlain(f"is larger than {MOST_BYTES} bytes")
    if head[8:] == b"{":
        return _read_safetensors(file, size)
    values, load = (_open_zip if head[:2] == b"PK" else _open_legacy)(file, size)
    return _plain(values, size, load if tensors else None)


def _plain(values: Any, size: int, load: Callable[[Storage], Tensor] | None) -> Any:
    """``values`` once all of them are known to be plain, with the tensors that ``load`` gives."""
    checked = _Walk(_Geometry(size))(values)
    if load is None:
        return checked
    storages: dict[str, Tensor] = {}

    def build(dense: Dense) -> Tensor:
        key = dense.storage.key
        if key not in storages:
            storages[key] = load(dense.storage)
        whole = storages[key].view(dense.storage.dtype)
        return whole.as_strided(dense.shape, dense.strides, dense.offset)

    return _Walk(build)(checked)


class _Walk:
    """Copies nested plain values, and puts what ``tensor`` returns in the place of each ``Dense``.

    Raises NotPlain for any other kind of value, and for more, deeper or longer values than the
    limits above allow. A list that is reached twice counts twice.
    """

    def __init__(self, tensor: Callable[[Dense], Any]) -> None:
        self.tensor, self.left = tensor, MOST_VALUES

    def __call__(self, value: Any, depth: int = 0) -> Any:
        self.left -= 1
        if self.left < 0:
            raise NotPlain(f"holds more than {MOST_VALUES} values, those in shared lists included")
        if depth > MOST_DEPTH:
            raise NotPlain(f"is nested deeper than {MOST_DEPTH} levels")
        if isinstance(value, Dense):
            return self.tensor(value)
        if isinstance(value, Namespace):
            return self(value.values, depth + 1)
        if isinstance(value, dict):
            return {_leaf(key): self(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([self(item, depth + 1) for item in value])
        return _leaf(value)


def _leaf(value: Any) -> Any:
    """``value``, if it is a number, text, bytes or None of bounded size; else raises NotPlain."""
    if isinstance(value, str | bytes) and len(value) > MOST_TEXT:
        raise NotPlain(f"holds a text longer than {MOST_TEXT} characters")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise NotPlain("holds an integer of more than 64 bits")
    if value is None or isinstance(value, str | bytes | bool | int | float):
        return value
    raise NotPlain("holds values that are neither plain nor tensors")


class _Geometry:
    """Checks that each tensor lies within its storage, and no two of its elements in one place;
    raises NotPlain where not. ``size`` is that of the file in bytes.

    All tensors together may have four times the bytes of the file, because some files hold a
    network's weights under several names.
    """

    def __init__(self, size: int) -> None:
        self.left = 4 * size

    def __call__(self, dense: Dense) -> Dense:
        storage, offset, shape, strides = dense
        if not (
            _are_sizes((offset, *shape)) and _are_sizes(strides) and len(shape) == len(strides)
        ):
            raise NotPlain("holds a tensor of an impossible shape")
        span = 1  # of the dimensions so far, in elements
        for stride, length in sorted(zip(strides, shape, strict=True)):
            if length > 1 and stride < span:
                raise NotPlain("holds a tensor whose elements overlap")
            span += max(0, length - 1) * stride
        if math.prod(max(1, length) for length in shape) > MOST_BYTES or (
            0 not in shape and offset + span > storage.numel
        ):
            raise NotPlain("holds a tensor that reaches beyond its bytes")
        self.left -= math.prod(shape) * storage.dtype.itemsize
        if self.left < 0:
            raise NotPlain("holds tensors that share their bytes too often")
        return dense


def _are_sizes(values: tuple[Any, ...]) -> bool:
    """Whether all ``values`` are integers from 0 to below 2**63, and not too many of them."""
    return len(values) <= 2 * MOST_DIMENSIONS + 1 and all(
        type(value) is int and 0 <= value < 2**63 for value in values
    )


def _rebuild(
    storage: Any, offset: Any, shape: Any, strides: Any, *_: object, **__: object
) -> Dense:
    """Stands for the functions by which torch rebuilds a tensor. What they take besides, such as
    requires_grad and hooks, is not used."""
    if not isinstance(storage, Storage) or type(shape) is not tuple or type(strides) is not tuple:
        raise ValueError("a tensor without storage")
    return Dense(storage, offset, shape, strides)


_NAMES: dict[str, Any] = {
    **_STORAGES,
    "torch.Size": Maker(lambda shape: shape),
    "torch._utils._rebuild_tensor": Maker(_rebuild),
    "torch._utils._rebuild_tensor_v2": Maker(_rebuild),
    "torch._utils._rebuild_parameter": Maker(lambda data, requires_grad, hooks: data),
}


def _storage(persistent: Any) -> Storage:
    """The storage that a persistent id of torch's pickles describes: ("storage", dtype, key,
    device, number of elements). Raises ValueError where it is something else."""
    word, dtype, key, _, numel, *view = persistent
    if word != "storage" or type(key) is not str or not _are_sizes((numel,)):
        raise ValueError("no storage")
    if not isinstance(dtype, torch.dtype) or any(view):
        raise ValueError("a storage of another kind")
    return Storage(key, dtype, numel)


def _tensor(content: bytes | bytearray, storage: Storage) -> Tensor:
    """A copy of ``content``, the bytes of ``storage``, as uint8 of shape (bytes,), to be viewed in
    the storage's dtype.

    Raises ValueError where it has another length, or is no truth value where it should be.
    """
    if len(content) != storage.nbytes:
        raise ValueError("a storage of another size")
    if storage.dtype == torch.bool and content.strip(b"\0\1"):
        raise ValueError("a truth value that is neither 0 nor 1")
    if not content:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _open_zip(file: BinaryIO, size: int) -> tuple[Any, Callable[[Storage], Tensor]]:
    """The values in a zip archive of ``size`` bytes, with a ``Dense`` for each tensor, and the
    function that reads the bytes of a storage."""
    archive = _directory(file, size)
    sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    (pickle,) = (name for name in sizes if name.endswith("/data.pkl"))
    folder = pickle.removesuffix("/data.pkl")
    if any(name.startswith(f"{folder}/code/") for name in sizes):
        raise NotPlain("is a TorchScript archive, which holds code")
    if sizes[pickle] > MOST_PICKLE:
        raise NotPlain(f"holds a pickle of more than {MOST_PICKLE} bytes")
    order = f"{folder}/byteorder"
    if order in sizes and (sizes[order] > 6 or archive.read(order) != b"little"):
        raise NotPlain("was written on a big-endian machine")

    def persistent(value: Any) -> Storage:
        storage = _storage(value)
        if sizes[f"{folder}/data/{storage.key}"] != storage.nbytes:
            raise NotPlain("holds a tensor that reaches beyond its bytes")
        return storage

    def load(storage: Storage) -> Tensor:
        return _tensor(archive.read(f"{folder}/data/{storage.key}"), storage)

    return read_pickle(io.BytesIO(archive.read(pickle)), _NAMES, persistent), load


def _directory(file: BinaryIO, size: int) -> zipfile.ZipFile:
    """A zip archive whose directory is one that ``torch.save`` could have written: bounded, and all
    of its entries stored as they are. None of them has been read yet."""
    count, length = _directory_size(file, size)
    if count > MOST_ENTRIES or length > MOST_ENTRIES * 256:
        raise NotPlain(f"is an archive of more than {MOST_ENTRIES} entries")
    archive = zipfile.ZipFile(file)
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise NotPlain("is a compressed archive, which torch.save does not write")
    is_odd = any(
        entry.file_size != entry.compress_size or entry.flag_bits & 1 or entry.external_attr & 0x10
        for entry in entries
    )
    names = {entry.filename for entry in entries}
    if is_odd or not len(names) == len(entries) == count:
        raise ValueError("a damaged directory")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("entries that overlap")
    return archive


def _directory_size(file: BinaryIO, size: int) -> tuple[int, int]:
    """How many entries and bytes a zip archive's directory has, by the record at the file's end.

    Raises ValueError where that record is not the last thing in the file.
    """
    file.seek(max(0, size - 98))
    tail = file.read(98)
    if tail[-22:-18] != b"PK\5\6" or tail[-2:] != b"\0\0":
        raise ValueError("no end of an archive")
    if tail[-42:-38] != b"PK\6\7":
        count, length = struct.unpack("<HL", tail[-12:-6])
        return count, length
    if tail[:4] != b"PK\6\6" or struct.unpack("<Q", tail[-34:-26]) != (size - 98,):
        raise ValueError("no end of a large archive")
    count, length = struct.unpack("<QQ", tail[32:48])
    return count, length


def _open_legacy(file: BinaryIO, size: int) -> tuple[Any, Callable[[Storage], Tensor]]:
    """The same as ``_open_zip`` for the older format: five pickles (a magic number, a version, the
    machine's byte order, the values, the keys of the storages), and then the storages' bytes."""
    stream = io.BytesIO(file.read(MOST_PICKLE))
    storages: dict[str, Storage] = {}

    def persistent(value: Any) -> Storage:
        storage = _storage(value)
        if storages.setdefault(storage.key, storage) != storage:
            raise ValueError("one storage of two kinds")
        return storage

    def read_next() -> Any:
        return read_pickle(stream, _NAMES, persistent)

    if read_next() != _LEGACY_MAGIC or read_next() != _LEGACY_PROTOCOL:
        raise ValueError("another kind of pickle")
    if read_next()["little_endian"] is not True:
        raise NotPlain("was written on a big-endian machine")
    values, keys = read_next(), read_next()
    places = _legacy_places(file, stream.tell(), [storages[key] for key in keys], size)

    def load(storage: Storage) -> Tensor:
        file.seek(places[storage.key])
        return _tensor(file.read(storage.nbytes), storage)

    return values, load


def _legacy_places(
    file: BinaryIO, place: int, storages: list[Storage], size: int
) -> dict[str, int]:
    """Where in the file the bytes of each storage begin: behind the pickles, each behind its number
    of elements. Raises ValueError where that number or the file's end is another."""
    places = {}
    for storage in storages:
        file.seek(place)
        if struct.unpack("<q", file.read(8)) != (storage.numel,):
            raise ValueError("a storage of another size")
        places[storage.key] = place + 8
        place += 8 + storage.nbytes
    if place != size:
        raise ValueError("a file of another size")
    return places


def _read_safetensors(file: BinaryIO, size: int) -> Any:
    """The tensors of a safetensors file by their names; not those of a packed network, which are
    bits and not weights."""
    if struct.unpack("<Q", file.read(8))[0] > min(size, MOST_PICKLE):
        raise ValueError("a header of an impossible size")
    if file.read(len(PACKED)) == PACKED:
        raise NotPlain(
            "is a packed network, which predict and export take; give the checkpoint that it was "
            "made from"
        )
    file.seek(0)
    return safetensors.torch.load(file.read(size))
