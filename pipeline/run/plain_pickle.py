"""Pickles read as data: plain values, and what a table of makers makes of a few known names.

Python's own reader calls whatever a pickle names and sets attributes where it asks. torch's
restricted one believes the sizes that a pickle gives. Here a pickle is a list of steps on a stack,
each of which adds at most one value, and nothing is called but the makers.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

MOST_STEPS = 150_000  # a tensor takes about 40
_DTYPES = {f"{kind}{size}" for kind in "fiu" for size in (1, 2, 4, 8)} - {"f1"} | {"b1"}


class NotPlain(ValueError):
    """What a file holds that is not read, as words that follow the file's name."""


class Maker:
    """A known name in a pickle, and the function that stands for it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


class Namespace:
    """Stands for an ``argparse.Namespace``, in which official checkpoints hold their options;
    ``values`` is the dict of its attributes."""

    values: Any = None


class NumpyType:
    """Stands for a NumPy dtype. Only those of plain numbers are known, by their codes, such as
    "f8"; raises NotPlain for any other."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in _DTYPES:
            raise NotPlain("holds a NumPy value that is no plain number")
        self.dtype = np.dtype(code)

    def scalar(self, content: bytes | str) -> Any:
        """The Python number whose bytes are ``content``; raises ValueError for another length."""
        raw = content.encode("latin-1") if isinstance(content, str) else content
        if len(raw) != self.dtype.itemsize:
            raise ValueError("a number of another size")
        return np.frombuffer(raw, self.dtype)[0].item()


def _encode(text: str, encoding: str) -> bytes:
    """Stands for ``codecs.encode``: old pickles hold the bytes of a NumPy number as text."""
    if encoding != "latin1" or len(text) > 16:
        raise NotPlain("holds bytes that are no plain number")
    return text.encode(encoding)


def _key(key: Any) -> Any:
    """``key``, if it is text or an integer of 64 bits; else raises NotPlain."""
    if type(key) is str or (type(key) is int and abs(key) < 2**63):
        return key
    raise NotPlain("holds a key that is neither text nor an integer")


_MAKERS: dict[str, Any] = {
    "argparse.Namespace": Maker(Namespace),
    "collections.Counter": Maker(lambda counts: counts),  # without a copy: it may be large
    "collections.OrderedDict": Maker(dict),
    "__builtin__.bytes": Maker(lambda: b""),  # so is an empty one written
    "_codecs.encode": Maker(_encode),
    "numpy.dtype": Maker(NumpyType),
    "numpy.core.multiarray.scalar": Maker(NumpyType.scalar),
    "numpy._core.multiarray.scalar": Maker(NumpyType.scalar),
}


def read_pickle(
    stream: BinaryIO, names: Mapping[str, Any], persistent: Callable[[Any], Any]
) -> Any:
    """The value of the pickle at which ``stream`` stands; the stream is then behind it.

    ``names`` gives a ``Maker`` or a value for names such as ``torch.FloatStorage``, beside the few
    that are known here, and ``persistent`` the value of a persistent id. Raises NotPlain for any
    other name, and ValueError or another Exception where the pickle is damaged.
    """
    return _Reader({**_MAKERS, **names}, persistent).read(stream)


class _Reader:
    """The machine that a pickle is a program for. Each step has an opcode, whose method here is
    ``op_<opcode>``, and takes values from a stack and puts values on it.

    A mark sets the stack aside and begins an empty one; what is put on that until the mark is taken
    back are the items of a list, a tuple or a dict. The memo keeps values by number, so that one
    can be named again.
    """

    def __init__(self, names: Mapping[str, Any], persistent: Callable[[Any], Any]) -> None:
        self.names, self.persistent = names, persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def read(self, stream: BinaryIO) -> Any:
        """What ``read_pickle`` returns, and raises."""
        for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if step == MOST_STEPS:
                raise NotPlain(f"takes more than {MOST_STEPS} steps to read")
            take = getattr(self, f"op_{opcode.name.lower()}", None)
            if take is None:
                raise NotPlain(f"holds more than plain values (opcode {opcode.name})")
            take(argument)
        return self.stack.pop()

    def op_proto(self, _: Any) -> None:
        pass

    op_frame = op_stop = op_proto

    def op_push(self, value: Any) -> None:
        self.stack.append(value)

    op_binint = op_binint1 = op_binint2 = op_long1 = op_binfloat = op_push
    op_binunicode = op_short_binunicode = op_binstring = op_short_binstring = op_push
    op_binbytes = op_short_binbytes = op_push

    def op_none(self, _: Any) -> None:
        self.stack.append(None)

    def op_newtrue(self, _: Any) -> None:
        self.stack.append(True)

    def op_newfalse(self, _: Any) -> None:
        self.stack.append(False)

    def op_empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def op_empty_list(self, _: Any) -> None:
        self.stack.append([])

    def op_empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def op_mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _pop_mark(self) -> list[Any]:
        """The values since the last mark, which is taken back."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def op_tuple(self, _: Any) -> None:
        items = self._pop_mark()
        self.stack.append(tuple(items))

    def op_tuple1(self, _: Any) -> None:
        self._tuple(1)

    def op_tuple2(self, _: Any) -> None:
        self._tuple(2)

    def op_tuple3(self, _: Any) -> None:
        self._tuple(3)

    def _tuple(self, size: int) -> None:
        items = [self.stack.pop() for _ in range(size)]
        self.stack.append(tuple(reversed(items)))

    def op_append(self, _: Any) -> None:
        value = self.stack.pop()
        self._extend([value])

    def op_appends(self, _: Any) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("appends to what is no list")
        self.stack[-1].extend(items)

    def op_setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def op_setitems(self, _: Any) -> None:
        self._update(self._pop_mark())

    def _update(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise ValueError("sets a key of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][_key(key)] = value

    def op_binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    op_long_binput = op_binput

    def op_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def op_binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    op_long_binget = op_binget

    def op_global(self, name: str) -> None:
        self.stack.append(self._find(name.replace(" ", ".")))

    def op_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self._find(f"{module:s}.{name:s}"))

    def _find(self, name: str) -> Any:
        """What stands for ``name``, such as "torch.FloatStorage"; raises NotPlain for others."""
        if name in self.names:
            return self.names[name]
        shown = name[:60] if name.isprintable() else "of an odd name"
        if name.startswith("torch."):
            raise NotPlain(f"holds a {shown}, but only dense tensors of plain numbers are read")
        raise NotPlain(f"holds pickled code ({shown}), which is never executed")

    def op_reduce(self, _: Any) -> None:
        arguments, maker = self.stack.pop(), self.stack.pop()
        if type(maker) is not Maker or type(arguments) is not tuple:
            raise ValueError("calls what cannot be called")
        self.stack.append(maker.function(*arguments))

    op_newobj = op_reduce

    def op_build(self, _: Any) -> None:
        state, value = self.stack.pop(), self.stack[-1]
        if isinstance(value, NumpyType):
            value.dtype = value.dtype.newbyteorder(state[1])
        elif isinstance(value, Namespace):
            value.values = state
        elif type(value) is not dict:  # the attributes of an OrderedDict mean nothing here
            raise ValueError("sets attributes of a plain value")

    def op_binpersid(self, _: Any) -> None:
        self.stack.append(self.persistent(self.stack.pop()))
