"""The arrays that the kernels read: weights in their order, offsets of taps, borders.

native/tasks.h says what they mean.
"""

import functools

import numpy as np

from native.layers import Array, Floats

BLOCK = 4
ROUND = 3
OUTSIDE = 0x80
WIDEST = 64
SIDE = 16  # outputs of a tile of weights
WIDE = 64  # channels of a tile of weights


@functools.cache
def differences() -> Array:
    """(256, 16) uint8: for two times four bits of weights, and four bits of signs, the number of
    bits that differ, for the low ones in the low half of the byte."""
    ones = np.array([bin(n).count("1") for n in range(16)], dtype=np.uint8)
    weights, signs = np.arange(256)[:, None], np.arange(16)
    table = ones[weights % 16 ^ signs] | ones[weights // 16 ^ signs] << 4
    return aligned(table)


def aligned(array: Array) -> Array:
    """A copy that begins at a multiple of WIDEST bytes."""
    room = np.empty(array.nbytes + WIDEST, dtype=np.uint8)
    start = -room.ctypes.data % WIDEST
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def binary_weights(weight: Array, steps: int) -> Array:
    """(O / 4, 2, steps) uint8 from bool (O, I, k, k): a step is four channels of a tap."""
    count, channels, size, _ = weight.shape
    fours = weight.reshape(count, channels // BLOCK, BLOCK, size * size)
    bits = (fours.transpose(0, 1, 3, 2).astype(np.uint8) << np.arange(BLOCK, dtype=np.uint8)).sum(
        -1, dtype=np.uint8
    )
    filled = np.zeros((count, steps), dtype=np.uint8)
    filled[:, : channels // BLOCK * size * size] = bits.reshape(count, -1)
    pairs = filled.reshape(count // BLOCK, BLOCK // 2, 2, steps)
    return aligned(pairs[:, :, 0] | pairs[:, :, 1] << 4)


def wide_weights(weight: Array) -> Array:
    """(O / 16, steps, 16) uint64 from bool (O, I, k, k): a step is 64 channels of a tap."""
    count, channels, size, _ = weight.shape
    steps = weight.reshape(count // SIDE, SIDE, channels // WIDE, WIDE, size * size)
    bits = np.packbits(steps.transpose(0, 2, 4, 1, 3), axis=-1, bitorder="little")
    return aligned(bits.reshape(count // SIDE, -1, SIDE, WIDE // 8).view("<u8")[..., 0])


def _taps_of_signs(size: int, stride: int, plane: int, pitch: int) -> Array:
    """(size * size,): how far from a position the sign of each tap lies, in elements."""
    taps = np.arange(size) if size == 3 else np.array([1])
    row, column = taps[:, None], taps[None, :]
    phase = (row % stride) * stride + column % stride
    return (phase * plane + row // stride * pitch + column // stride).reshape(-1)


def wide_offsets(channels: int, size: int, stride: int, plane: int, pitch: int) -> Array:
    """(steps,) int64, in bytes, in the order of ``wide_weights``."""
    tap = _taps_of_signs(size, stride, plane, pitch)
    first = np.arange(channels // WIDE) * (WIDE // BLOCK) * plane * stride**2
    return _int64(BLOCK * (first[:, None] + tap).reshape(-1))


def binary_offsets(channels: int, size: int, stride: int, plane: int, pitch: int) -> Array:
    """(steps,) int64, by block of channels and tap, filled up with bytes that are all OUTSIDE."""
    tap = _taps_of_signs(size, stride, plane, pitch)
    blocks = np.arange(channels // BLOCK) * plane * stride**2
    offsets = (blocks[:, None] + tap).reshape(-1)
    nothing = channels // BLOCK * plane * stride**2
    return _int64(np.append(offsets, [nothing] * (-len(offsets) % ROUND)))


def real_weights(weight: Floats) -> Array:
    """(O / 4, steps, 4) float32 from (O, I, k, k): a step is a channel of a tap, tap by tap."""
    count = len(weight)
    steps = weight.transpose(0, 2, 3, 1).reshape(count // BLOCK, BLOCK, -1)
    return aligned(steps.transpose(0, 2, 1).astype(np.float32))


def real_offsets(channels: int, size: int, stride: int, plane: int, pitch: int) -> Array:
    """(steps,) int64, by tap and channel."""
    phases, taps = min(size, stride), np.arange(size)
    row, column, channel = taps[:, None, None], taps[None, :, None], np.arange(channels)
    phase = channel * phases**2 + row % stride * phases + column % stride
    offsets = phase * plane + row // stride * pitch + column // stride
    return _int64(offsets.reshape(-1))


def _int64(values: Array) -> Array:
    return np.ascontiguousarray(values, dtype=np.int64)


def base(shape: tuple[int, int, int], pitch: int, size: int, stride: int, padding: int) -> Array:
    """(positions,) int16: channels times the taps of a window that lie in the map of ``shape``."""
    channels, *sides = shape
    rows, columns = (_taps(side, size, stride, padding) for side in sides)
    values = np.zeros((len(rows), pitch), dtype=np.int16)
    values[:, : len(columns)] = channels * rows[:, None] * columns
    return _filled(values, 0)


def _taps(side: int, size: int, stride: int, padding: int) -> Array:
    """How many taps of each window lie within the side."""
    count = (side + 2 * padding - size) // stride + 1
    taps = np.arange(count)[:, None] * stride - padding + np.arange(size)
    return ((taps >= 0) & (taps < side)).sum(1)


def edges(height: int, width: int, pitch: int) -> Array:
    """(positions,) uint8: OUTSIDE where a position is no pixel, else 0."""
    values = np.full((height, pitch), OUTSIDE, dtype=np.uint8)
    values[:, :width] = 0
    return _filled(values, OUTSIDE)


def _filled(values: Array, filling: int) -> Array:
    """Flat, and filled up to a multiple of WIDEST."""
    flat = values.reshape(-1)
    return aligned(np.append(flat, np.full(-len(flat) % WIDEST, filling, dtype=flat.dtype)))


def rows(weight: Floats, lanes: int) -> Array:
    """(O, I), filled up with columns of zeros to a multiple of ``lanes``."""
    filling = ((0, 0), (0, -weight.shape[1] % lanes))
    return aligned(np.pad(weight, filling).astype(np.float32))
