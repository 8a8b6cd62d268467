"""Values of a plan: their sizes in memory, and their places in an arena."""

from collections import defaultdict
from dataclasses import dataclass, field

BLOCK = 4  # as in native/tasks.h
WIDEST = 64
LANES = 16
MOST_ELEMENTS = 2**31 - 1  # of all planes of a value


def rounded_up(count: int, unit: int) -> int:
    """The smallest multiple of ``unit`` that is not below ``count``."""
    return -(-count // unit) * unit


@dataclass
class Value:
    """A map of C x H x W, whose rows are ``pitch`` apart, or a vector: C x 1 x 1.

    ``real`` and ``signs`` are where it lies, or -1. ``is_wide``: its signs are wide ones.
    """

    channels: int
    height: int
    width: int
    pitch: int
    real: int = -1
    signs: int = -1
    is_wide: bool = False

    @property
    def positions(self) -> int:
        return self.height * self.pitch

    @property
    def plane(self) -> int:
        """Elements of a plane of reals."""
        return 1 if self.is_vector else rounded_up(self.positions, WIDEST)

    @property
    def sign_plane(self) -> int:
        """Elements of a plane of signs."""
        return rounded_up(rounded_up(self.positions, WIDEST) + 2 * self.pitch + 3, WIDEST)

    @property
    def sign_size(self) -> int:
        """Bytes of an element of a plane of signs."""
        return 4 if self.is_wide else 1

    @property
    def is_vector(self) -> bool:
        return self.pitch == 1

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width


def a_map(channels: int, height: int, width: int, pitch: int = 0) -> Value:
    """A map with room for the border of a 3 x 3 window; raises ValueError for an impossible one."""
    if min(channels, height, width) < 1:
        raise ValueError("the images are too small for this network")
    value = Value(channels, height, width, max(pitch, width + 2))
    if rounded_up(channels, BLOCK) * value.sign_plane * 4 > MOST_ELEMENTS:
        raise ValueError("the images are too large")
    return value


def a_vector(length: int) -> Value:
    """A vector of ``length`` numbers."""
    return Value(length, 1, 1, 1)


@dataclass
class Arena:
    """Places in an arena, which are handed out again once they were given back."""

    size: int = 0
    gaps: list[int] = field(default_factory=list)  # WIDEST bytes behind each place, which stay free
    free: dict[object, list[int]] = field(default_factory=lambda: defaultdict(list))

    def take(self, size: int, kind: object = None) -> int:
        """A place of so many bytes. The bytes that nobody wrote are untouched only among places of
        one ``kind``."""
        size = rounded_up(size, WIDEST)
        if places := self.free[size, kind]:
            return places.pop()
        place = self.size
        self.gaps.append(place + size)
        self.size += size + WIDEST
        return place

    def give(self, place: int, size: int, kind: object = None) -> None:
        """Take back a place, with the size and kind that it was taken for."""
        self.free[rounded_up(size, WIDEST), kind].append(place)


def blocks(channels: int) -> int:
    """The blocks of so many channels; raises ValueError where one would not be full."""
    if channels % BLOCK:
        raise ValueError(f"{channels} channels are no multiple of {BLOCK}")
    return channels // BLOCK


def real_bytes(value: Value) -> int:
    """The bytes of all planes of reals, or of a vector, which is filled up with zeros."""
    return 4 * (
        rounded_up(value.channels, LANES) if value.is_vector else value.channels * value.plane
    )


def sign_bytes(value: Value) -> int:
    """The bytes of all planes of signs, and of one more, of no pixels."""
    return (blocks(value.channels) + 1) * value.sign_plane * value.sign_size


def kind(value: Value) -> object:
    """What places of signs must have in common for one to take another's: the same borders."""
    return ("signs", *value.shape, value.pitch, value.is_wide)
