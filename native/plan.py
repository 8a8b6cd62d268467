"""A program for images of one size: which steps, and where each value lies.

native/tasks.h describes the maps. All values of an image lie in one arena. A value takes a place
that no later layer reads any more; that of a convolution's residual, where it can.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from native import packing
from native.layers import (
    Affine,
    Array,
    AvgPool,
    Convolution,
    Flatten,
    Layer,
    Linear,
    MaxPool,
    Mean,
    Norm,
    Prelu,
    Skip,
    reads,
)
from native.library import Program, Step
from native.values import (
    LANES,
    WIDEST,
    Arena,
    Value,
    a_map,
    a_vector,
    blocks,
    kind,
    real_bytes,
    rounded_up,
    sign_bytes,
)

SPREAD, PHASES, BINARY, REAL, POOL, SIGN, SKIP, MEAN, FLATTEN, NORM, LINEAR, AVERAGE = range(12)


class Plan:
    """``program`` for images of ``channels`` x ``height`` x ``width``, and ``arena``, its bytes.

    ``has_tiles``: its kernels take wide signs too. Raises ValueError, with a reason, where the
    layers do not fit together or do what the library cannot.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        channels: int,
        height: int,
        width: int,
        *,
        has_tiles: bool = False,
    ) -> None:
        self.layers, self._has_tiles = layers, has_tiles
        self.zeros: list[tuple[int, int]] = []  # places and bytes that are zeros at first
        self._joined: tuple[Step, int, int] | None = None  # a convolution that pools, and its input
        self.kept: list[Any] = []  # the arrays that the steps point to
        self.steps: list[Step] = []
        self._arena = Arena()
        self._last_use = _last_uses(layers)
        self.values = [a_map(channels, height, width)]
        self._read_images()
        for number, layer in enumerate(layers, start=1):
            self.values.append(_ADD[type(layer)](self, number, layer))
            self._end(number)
        self.arena, self.gaps = self._arena.size, self._arena.gaps
        self.program = self._program()
        self.arenas: list[Array] = []

    @property
    def result(self) -> Value:
        return self.values[-1]

    def places(self, count: int) -> list[int]:
        """The addresses of ``count`` arenas."""
        while len(self.arenas) < count:
            content = np.full(self.arena, packing.OUTSIDE, np.uint8)
            for place, count_of_bytes in self.zeros:
                content[place : place + count_of_bytes] = 0
            self.arenas.append(packing.aligned(content))
        return [arena.ctypes.data for arena in self.arenas[:count]]

    def _program(self) -> Program:
        self.kept.append((Step * len(self.steps))(*self.steps))
        end = self.result
        return Program(
            steps=self.kept[-1],
            count=len(self.steps),
            out_channels=end.channels,
            out_height=end.height,
            out_width=end.width,
            out_pitch=end.pitch,
            output=end.real,
            output_plane=end.plane,
            out_length=int(np.prod(end.shape)),
            differences=self._pointer(packing.differences()),
        )

    def _pointer(self, array: Array) -> int:
        self.kept.append(array)
        return array.ctypes.data

    def _step(self, kind: int, **fields: Any) -> None:
        arrays = {n: self._pointer(v) for n, v in fields.items() if isinstance(v, np.ndarray)}
        none = {"input": -1, "output": -1, "residual": -1, "next": -1}
        self.steps.append(Step(kind=kind, **{**none, **fields, **arrays}))

    # What values are needed as, and their places.

    def _is_read_as(self, number: int, *, signs: bool) -> bool:
        """Whether a later layer, or the caller, reads a value's signs, or the value itself."""
        if not signs and number == len(self.layers):
            return True
        return any(
            (number == layer.input and _takes_signs(layer) == signs)
            or (not signs and number == getattr(layer, "residual", None))
            for layer in self.layers
        )

    def _place(self, number: int, value: Value) -> None:
        """Give a value its places, as it is needed."""
        if value.real < 0 and self._is_read_as(number, signs=False):
            value.real = self._arena.take(real_bytes(value))
        self._place_signs(number, value)

    def _place_signs(self, number: int, value: Value) -> None:
        if not self._is_read_as(number, signs=True):
            return
        value.is_wide = self._has_tiles and all(
            isinstance(layer, Convolution) and _fills_tiles(layer)
            for layer in self.layers
            if layer.input == number and _takes_signs(layer)
        )
        value.signs = self._take_signs(sign_bytes(value), kind(value), value.is_wide)

    def _take_signs(self, size: int, kind: object, is_wide: bool) -> int:
        """A place for signs, whose borders hold what stands for no pixel."""
        place = self._arena.take(size, kind)
        if is_wide:
            self.zeros.append((place, size))
        return place

    def _end(self, number: int) -> None:
        """Give back the places of what layer ``number`` is the last to read."""
        for each in {*reads(self.layers[number - 1])}:
            value = self.values[each]
            if self._last_use[each] != number:
                continue
            if value.real >= 0 and value.real != self.values[number].real:
                self._arena.give(value.real, real_bytes(value))
            if value.signs >= 0:
                self._arena.give(value.signs, sign_bytes(value), kind(value))

    def _read_images(self) -> None:
        """Copy the images where a layer needs more than a real convolution, which reads them."""
        images = self.values[0]
        real = any(
            0 in reads(layer) and not (isinstance(layer, Convolution) and not layer.is_binary)
            for layer in self.layers
        )
        if not real:
            return
        images.real = self._arena.take(real_bytes(images))
        self._place_signs(0, images)
        self._spread(Value(*images.shape, images.pitch), images, images.real, images.plane, 1, 1, 0)
        self._sign(images)

    # Layers.

    def _spread(
        self, source: Value, to: Value, place: int, plane: int, size: int, stride: int, padding: int
    ) -> None:
        extra = (size - 1) // stride
        self._step(
            SPREAD,
            channels=source.channels,
            height=source.height,
            width=source.width,
            pitch=source.pitch,
            out_height=to.height + extra,
            out_pitch=to.pitch,
            size=size,
            stride=stride,
            padding=padding,
            input=source.real,
            input_plane=source.plane,
            output=place,
            output_plane=plane,
        )

    def _sign(self, value: Value, offset: Array | None = None) -> None:
        """Make the signs of a real value + offset, if they are needed."""
        if value.signs < 0:
            return
        self._step(
            SIGN,
            blocks=blocks(value.channels),
            positions=value.positions,
            input=value.real,
            input_plane=value.plane,
            threshold=self._threshold(value, offset),
            **self._next(value),
        )

    def _threshold(self, value: Value, offset: Array | None) -> Array:
        """What y is compared with: y + offset >= 0 where y >= -offset, rounded or not."""
        return -self._channels(np.zeros(value.channels) if offset is None else offset, value)

    def _channels(self, values: Array, value: Value) -> Array:
        """One number for each channel; raises ValueError where they are others."""
        if values.shape != (value.channels,) or not np.isfinite(values).all():
            raise ValueError("a layer has not one finite number for each channel")
        return np.ascontiguousarray(values, dtype=np.float32)

    def _prelu(self, prelu: Prelu | None, value: Value) -> dict[str, Array]:
        if prelu is None:
            return {}
        slope, shift = (self._channels(each, value) for each in (prelu.slope, prelu.shift))
        return {"leak": slope, "shift": shift}

    def _next(self, value: Value) -> dict[str, Any]:
        if value.signs < 0:
            return {}
        return {
            "next": value.signs + (value.pitch + 1) * value.sign_size,
            "next_plane": value.sign_plane,
            "next_is_wide": value.is_wide,
            "edges": packing.edges(value.height, value.width, value.pitch),
        }

    def _norm(self, norm: Norm, channels: int) -> dict[str, Any]:
        arrays = {"mean": norm.mean, "slope": norm.slope, "bias": norm.bias}
        if any(array.shape != (channels,) for array in arrays.values()):
            raise ValueError("a norm does not fit the channels that it is for")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("a norm is not finite")  # a sign would hide it
        floats = {n: np.ascontiguousarray(a, dtype=np.float32) for n, a in arrays.items()}
        return {"relu": norm.relu, **floats}

    def _convolution(self, number: int, layer: Convolution) -> Value:
        source = self.values[layer.input]
        count, channels, size, wide = layer.weight.shape
        if source.is_vector or channels != source.channels or size != wide or layer.stride < 1:
            raise ValueError("a convolution does not fit the value that it reads")
        height, width = (_window(n, layer) for n in (source.height, source.width))
        blocks(count)
        return (self._binary if layer.is_binary else self._real)(number, layer, height, width)

    def _real(self, number: int, layer: Convolution, height: int, width: int) -> Value:
        if layer.residual is not None or layer.prelu is not None:
            raise ValueError("a real convolution has a residual or a PReLU")
        source, extra = self.values[layer.input], (layer.weight.shape[2] - 1) // layer.stride
        count, channels, size, _ = layer.weight.shape
        value = a_map(count, height, width, width + extra)
        phases = min(size, layer.stride)
        plane = rounded_up(value.plane + extra * (value.pitch + 1), WIDEST)
        bytes_ = 4 * channels * phases**2 * plane
        place = self._arena.take(bytes_)
        self._spread(source, value, place, plane, size, layer.stride, layer.padding)
        value.real = self._arena.take(real_bytes(value))
        self._place(number, value)
        offsets = packing.real_offsets(channels, size, layer.stride, plane, value.pitch)
        self._step(
            REAL,
            blocks=blocks(count),
            steps=len(offsets),
            positions=value.positions,
            input=place,
            output=value.real,
            output_plane=value.plane,
            weights=packing.real_weights(layer.weight),
            start=self._channels(np.zeros(count) if layer.bias is None else layer.bias, value),
            offsets=offsets,
            **self._norm(layer.norm, count),
        )
        if self._is_only_pooled(number):
            self._joined = self.steps[-1], place, bytes_
        else:
            self._arena.give(place, bytes_)
        self._sign(value, layer.offset)
        return value

    def _is_only_pooled(self, number: int) -> bool:
        """Whether the next layer is a max-pooling, and the only one that reads a value."""
        readers = [layer for layer in self.layers if number in reads(layer)]
        return (
            len(readers) == 1
            and readers[0] is self.layers[number]
            and isinstance(readers[0], MaxPool)
        )

    def _binary(self, number: int, layer: Convolution, height: int, width: int) -> Value:
        source, size = self.values[layer.input], layer.weight.shape[2]
        count, channels = layer.weight.shape[:2]
        if (size, layer.padding) not in ((3, 1), (1, 0)) or channels * size**2 > 2**15 - 1:
            raise ValueError("a binary convolution is not 3x3 with padding 1, or 1x1 without")
        if layer.bias is not None:
            raise ValueError("a binary convolution has a bias")
        value = a_map(count, height, width, source.pitch if layer.stride == 1 else 0)
        residual = self._residual(number, layer, value)
        self._place(number, value)
        place, plane, give_back = self._phases(source, value, layer.stride)
        self._step(
            BINARY,
            blocks=blocks(count),
            positions=value.positions,
            input=place,
            input_plane=plane * layer.stride**2,
            input_is_wide=source.is_wide,
            residual=residual,
            output=value.real,
            output_plane=value.plane,
            threshold=self._threshold(value, layer.offset),
            **self._prelu(layer.prelu, value),
            **self._next(value),
            **self._norm(layer.norm, count),
            **_factors(source, layer, plane, value.pitch),
        )
        give_back()
        return value

    def _residual(self, number: int, layer: Convolution, value: Value) -> int:
        """The place of the residual, which becomes the value's where nobody else reads it."""
        if layer.residual is None:
            return -1
        residual = self.values[layer.residual]
        if (residual.shape, residual.pitch) != (value.shape, value.pitch):
            raise ValueError("a residual has another size than what it is added to")
        is_last = self._last_use[layer.residual] == number
        if is_last and self._is_read_as(number, signs=False):
            value.real = residual.real
        return residual.real

    def _phases(self, source: Value, value: Value, stride: int) -> tuple[int, int, Any]:
        """Where a binary convolution finds signs, their planes, and what gives the place back."""
        if stride == 1:
            return source.signs, source.sign_plane, lambda: None
        plane = rounded_up(value.plane + 2 * value.pitch + 3, WIDEST)
        count = blocks(source.channels)
        bytes_ = (count * stride**2 + 1) * plane * source.sign_size
        phases = ("phases", source.shape, stride, source.is_wide)
        place = self._take_signs(bytes_, phases, source.is_wide)
        self._step(
            PHASES,
            blocks=count,
            height=source.height,
            width=source.width,
            pitch=source.pitch,
            out_height=value.height + 2 // stride,
            out_pitch=value.pitch,
            stride=stride,
            input=source.signs,
            input_plane=source.sign_plane,
            input_is_wide=source.is_wide,
            output=place,
            output_plane=plane,
        )
        return place, plane, lambda: self._arena.give(place, bytes_, phases)

    def _max_pool(self, number: int, layer: MaxPool) -> Value:
        source = self._map(layer.input)
        if not layer.size > layer.padding * 2 - 1 >= -1 or layer.stride < 1:
            raise ValueError("a max-pooling has an impossible window")
        height, width = (_window(n, layer) for n in (source.height, source.width))
        value = a_map(source.channels, height, width)
        value.real = self._arena.take(real_bytes(value))
        self._place(number, value)
        self._moves(
            POOL, source, value, size=layer.size, stride=layer.stride, padding=layer.padding
        )
        self._sign(value, layer.offset)
        if self._joined:
            convolution, place, bytes_ = self._joined
            convolution.joined = 2 if value.signs >= 0 else 1
            self._arena.give(place, bytes_)  # which is read until the pooling is done
            self._joined = None
        return value

    def _avg_pool(self, number: int, layer: AvgPool) -> Value:
        source, reach = self._map(layer.input), layer.size - 1 if layer.ceil else 0
        if layer.size < 1:
            raise ValueError("an average pooling has an impossible window")
        height, width = ((side + reach) // layer.size for side in (source.height, source.width))
        value = a_map(source.channels, height, width)
        value.real = self._arena.take(real_bytes(value))
        self._place(number, value)
        self._moves(AVERAGE, source, value, size=layer.size)
        self._sign(value)
        return value

    def _skip(self, number: int, layer: Skip) -> Value:
        source = self._map(layer.input)
        height, width = (source.height + 1) // 2, (source.width + 1) // 2
        value = a_map(source.channels + 2 * layer.channels, height, width)
        value.real = self._arena.take(real_bytes(value))
        self._place(number, value)
        self._moves(SKIP, source, value, padding=layer.channels)
        self._sign(value)
        return value

    def _map(self, number: int) -> Value:
        if self.values[number].is_vector:
            raise ValueError("a layer of maps reads a vector")
        return self.values[number]

    def _moves(self, kind: int, source: Value, value: Value, **fields: int) -> None:
        self._step(
            kind,
            channels=source.channels,
            height=source.height,
            width=source.width,
            pitch=source.pitch,
            out_height=value.height,
            out_width=value.width,
            out_pitch=value.pitch,
            input=source.real,
            input_plane=source.plane,
            output=value.real,
            output_plane=value.plane,
            **fields,
        )

    def _mean(self, number: int, layer: Mean) -> Value:
        source = self._map(layer.input)
        value = self._vector(source.channels)
        self._moves(MEAN, source, value)
        return value

    def _flatten(self, number: int, layer: Flatten) -> Value:
        source = self._map(layer.input)
        value = self._vector(int(np.prod(source.shape)))
        self._moves(FLATTEN, source, value)
        return value

    def _affine(self, number: int, layer: Affine) -> Value:
        source = self.values[layer.input]
        if not source.is_vector:
            raise ValueError("a norm of vectors reads a map")
        value = self._vector(source.channels)
        norm = self._norm(layer.norm, source.channels)
        self._step(NORM, channels=source.channels, input=source.real, output=value.real, **norm)
        return value

    def _linear(self, number: int, layer: Linear) -> Value:
        source, (count, length) = self.values[layer.input], layer.weight.shape
        if not source.is_vector or length != source.channels or layer.bias.shape != (count,):
            raise ValueError("a linear layer does not fit the value that it reads")
        value = self._vector(count)
        self._step(
            LINEAR,
            channels=count,
            steps=rounded_up(length, LANES),
            input=source.real,
            output=value.real,
            weights=packing.rows(layer.weight, LANES),
            bias=np.ascontiguousarray(layer.bias, dtype=np.float32),
        )
        return value

    def _vector(self, length: int) -> Value:
        value = a_vector(length)
        value.real = self._arena.take(real_bytes(value))
        return value


_ADD: dict[type, Any] = {
    Convolution: Plan._convolution,
    MaxPool: Plan._max_pool,
    AvgPool: Plan._avg_pool,
    Skip: Plan._skip,
    Mean: Plan._mean,
    Flatten: Plan._flatten,
    Affine: Plan._affine,
    Linear: Plan._linear,
}


def _takes_signs(layer: Layer) -> bool:
    return isinstance(layer, Convolution) and layer.is_binary


def _fills_tiles(layer: Convolution) -> bool:
    """Whether the weights of a binary convolution fill tiles, and outputs come by two tiles."""
    count, channels = layer.weight.shape[:2]
    return channels % packing.WIDE == 0 and count % (2 * packing.SIDE) == 0


def _factors(source: Value, layer: Convolution, plane: int, pitch: int) -> dict[str, Any]:
    """The weights of a binary convolution, and where it finds signs, in the form of these."""
    channels, size, stride = *layer.weight.shape[1:3], layer.stride
    if source.is_wide:
        offsets = packing.wide_offsets(channels, size, stride, plane, pitch)
        return {
            "steps": len(offsets),
            "offsets": offsets,
            "weights": packing.wide_weights(layer.weight),
        }
    offsets = packing.binary_offsets(channels, size, stride, plane, pitch)
    return {
        "steps": len(offsets),
        "offsets": offsets,
        "weights": packing.binary_weights(layer.weight, len(offsets)),
        "base": packing.base(source.shape, pitch, size, stride, layer.padding),
    }


def _last_uses(layers: Sequence[Layer]) -> dict[int, int]:
    """The last layer, counted from 1, that reads each value."""
    return {each: n for n, layer in enumerate(layers, start=1) for each in reads(layer)}


def _window(side: int, layer: Convolution | MaxPool) -> int:
    size = layer.size if isinstance(layer, MaxPool) else layer.weight.shape[2]
    return (side + 2 * layer.padding - size) // layer.stride + 1
