"""The reference's functions on a CPU in C++ (native/training): each map is read and written once.

Every function here takes and gives what the one of its name in ``kernels.reference`` does, and
calls that for what the library cannot: float64, fp16, and all on a machine without a compiler.
Results depend neither on the number of threads nor on how the work was shared.
"""

import ctypes
import functools
import warnings
from collections.abc import Callable, Sequence
from ctypes import c_double, c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

import native
from kernels import reference
from kernels.estimators import ESTIMATORS, get_estimator
from native import build

P = ParamSpec("P")
R = TypeVar("R")

SOURCES = "blocks", "convolution", "rprelu", "tiles", "weight_gradient"
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}  # the dtypes of maps
# The arguments before the number of threads: p an address, f and d floats, i and n integers.
FUNCTIONS = {
    "deviations": "pniipp",
    "forward": "ppppppniipp",
    "reduce": "pppppppp" + "niipp",
    "apply": "ppppppdiniip",
    "prelu_forward": "ppppppppp" + "nipp",
    "prelu_reduce": "ppppppppppppp" + "nipp",
    "pool": "pppppniiiipppp",
    "unpool": "pppppppdiniiiip",
    "convolve": "ppniiiiipp",
    "weight_gradient": "ppniiiiip",
    "input_gradient": "ppniiiiip",
    "signs": "pnp",
    "weights": "ppfppnp",
}
RESULTS = {"signs": c_double, "convolve": c_int, "input_gradient": c_int}
TYPES = {"p": c_void_p, "f": c_float, "d": c_double, "i": c_int, "n": c_int64}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library, built at the first call; None, and one warning, where it cannot be built."""
    try:
        found = ctypes.CDLL(str(build.library(recipe())))
    except (build.NoLibrary, OSError) as error:
        warnings.warn(f"training is slower on this CPU: {error}", stacklevel=2)
        return None
    for function, arguments in FUNCTIONS.items():
        for dtype in NAMES.values():
            each = getattr(found, f"{function}_{dtype}")
            each.argtypes = [*(TYPES[letter] for letter in arguments), c_int]
            each.restype = RESULTS.get(function)
    return found


def recipe() -> build.Recipe:
    """What the library is made of."""
    return build.Recipe(
        folder=Path(native.__file__).parent / "training",
        sources=tuple((name, ()) for name in SOURCES),
        options=(
            *("-march=native", "-fopenmp", "-ffp-contract=fast"),
            *("-fno-math-errno", "-fno-trapping-math"),  # or some loops would not become vectors
        ),
        texts=(("estimators", _estimators()),),
    )


def _estimators() -> str:
    """C++ of every estimator's h, where it gives one: ``Estimator.native_factor``."""
    return '#include "elementary.h"\n\nusing namespace elementary;\n' + "".join(
        'extern "C" __attribute__((visibility("default")))\n'
        f"void factor_{each.name}(const float* params, const float* xs, float* hs, int count) {{\n"
        f"  const auto h = [params] {{{each.native_factor}  }}();\n"
        "  for (int i = 0; i < count; i++) hs[i] = h(xs[i]);\n}\n"
        for each in ESTIMATORS.values()
        if each.native_factor
    )


def takes(t: Tensor) -> bool:
    """Whether maps of the dtype and device of ``t`` are worked on by the library."""
    return t.device.type == "cpu" and t.dtype in NAMES and library() is not None


def is_watched() -> bool:
    """Whether somebody traces or counts torch's operators, among which the library's are none."""
    return torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None


def instead_of(plain: Callable[P, R], at: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The decorated function where the library takes argument number ``at``, else ``plain``."""

    def choose(fast: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(plain)
        def chosen(*args: P.args, **kwargs: P.kwargs) -> R:
            return (fast if takes(args[at]) else plain)(*args, **kwargs)  # type: ignore[arg-type]

        return chosen

    return choose


def _call(name: str, like: Tensor, *arguments: Any) -> Any:
    """Call a function for maps of the dtype of ``like``. Tensors are contiguous."""
    given = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    function = getattr(library(), f"{name}_{NAMES[like.dtype]}")
    return function(*given, torch.get_num_threads())


def _floats(*tensors: Tensor) -> list[Tensor]:
    """Vectors of channels as the library reads them."""
    return [t.detach().float().contiguous() for t in tensors]


def _factor(estimator: str) -> int | None:
    """The address of h of an estimator; None where it does not give it in C++."""
    if get_estimator(estimator).native_factor is None:
        return None
    return ctypes.cast(getattr(library(), f"factor_{estimator}"), c_void_p).value


@instead_of(reference.deviations, 0)
def deviations(z: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    mean, squares = z.new_empty(2, z.shape[1], dtype=torch.float32)
    _call("deviations", z, z, *z.shape, relu, mean, squares)
    return mean, squares


@instead_of(reference.norm_binarize, 0)
def norm_binarize(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    residual: Tensor | None,
    binarized: bool,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    vectors = _floats(weight, bias, mean, rstd)
    y, yb = torch.empty_like(z), torch.empty_like(z) if binarized else None
    _call("forward", z, z, residual, *vectors, *z.shape, relu, y, yb)
    return y, y.new_empty(0) if yb is None else yb


@instead_of(reference.norm_binarize_reduce, 3)
def norm_binarize_reduce(
    dy: Tensor | None,
    dyb: Tensor | None,
    y: Tensor | None,
    z: Tensor,
    mean: Tensor,
    rstd: Tensor,
    params: Tensor,
    estimator: str,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    dy, dyb = (t if t is None else t.to(z.dtype) for t in (dy, dyb))
    factor = None
    if dyb is not None and (factor := _factor(estimator)) is None:
        assert y is not None
        own = reference.binarize_backward(dyb, y, params, estimator)
        dy, dyb = own if dy is None else own.add_(dy), None
    g = dy if dyb is None else torch.empty_like(z)
    assert g is not None
    sums = mean.new_empty(2, len(mean), dtype=torch.float32)
    vectors = _floats(mean, rstd)
    _call("reduce", z, dy, dyb, y, z, *vectors, factor, *_floats(params), *z.shape, relu, g, sums)
    return g, sums


@instead_of(reference.norm_binarize_apply, 1)
def norm_binarize_apply(
    g: Tensor,
    z: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    sums: Tensor,
    count: Tensor | None,
    training: bool,
    relu: bool,
) -> Tensor:
    dz = torch.empty_like(z)
    vectors = _floats(weight, mean, rstd, sums)
    positions = len(z) if count is None else count.item()
    _call("apply", z, g.to(z.dtype), z, *vectors, positions, training, *z.shape, relu, dz)
    return dz


@instead_of(reference.norm_prelu_binarize, 0)
def norm_prelu_binarize(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    residual: Tensor,
    slope: Tensor,
    shift: Tensor,
    offset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    vectors = _floats(weight, bias, mean, rstd, slope, shift)
    offsets = None if offset is None else _floats(offset)[0]
    y, yb = torch.empty_like(z), None if offset is None else torch.empty_like(z)
    _call("prelu_forward", z, z, residual, *vectors, offsets, *z.shape, y, yb)
    return y, y.new_empty(0) if yb is None else yb


@instead_of(reference.norm_prelu_binarize_reduce, 2)
def norm_prelu_binarize_reduce(
    dy: Tensor | None,
    dyb: Tensor | None,
    z: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    slope: Tensor,
    shift: Tensor,
    offset: Tensor | None,
    params: Tensor,
    estimator: str,
) -> tuple[Tensor, Tensor]:
    factor = None if dyb is None else _factor(estimator)
    if dyb is not None and factor is None:
        maps, affine = (dy, dyb, z, residual), (weight, bias, mean, rstd)
        return reference.norm_prelu_binarize_reduce(
            *maps, *affine, slope, shift, offset, params, estimator
        )
    dy, dyb = (t if t is None else t.to(z.dtype) for t in (dy, dyb))
    vectors = _floats(weight, bias, mean, rstd, slope, shift)
    offsets = None if offset is None else _floats(offset)[0]
    g, sums = torch.empty_like(z), mean.new_empty(5, len(mean), dtype=torch.float32)
    learned = *vectors, offsets, factor, *_floats(params)
    _call("prelu_reduce", z, dy, dyb, z, residual, *learned, *z.shape, g, sums)
    return g, sums


def takes_weights(weight: Tensor, dtype: torch.dtype, estimator: str) -> bool:
    """Whether the library makes signs of ``dtype`` of weights like this one, and gradients."""
    entry = get_estimator(estimator)
    plain = entry.triton_surrogate is None and entry.native_factor is not None
    return plain and weight.dtype == torch.float32 and dtype in NAMES and takes(weight)


def binarize_weights(
    weights: Sequence[Tensor], params: Tensor, estimator: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As the reference's; the weights may also be channels_last. For ``takes_weights``."""
    sizes = [w.numel() for w in weights]
    signs = weights[0].new_empty(sum(sizes), dtype=dtype)
    parts = zip(weights, sizes, signs.split(sizes), strict=True)
    scales = [_call("signs", signs, w, n, part) for w, n, part in parts]
    return signs, weights[0].new_tensor(scales)


def binarize_weights_backward(
    dsigns: Sequence[Tensor],
    dscales: Sequence[Tensor],
    weights: Sequence[Tensor],
    params: Tensor,
    estimator: str,
) -> Tensor:
    """As the reference's; weights and gradients may also be channels_last. For
    ``takes_weights``."""
    sizes = [w.numel() for w in weights]
    dw, (p,) = weights[0].new_empty(sum(sizes)), _floats(params)
    slopes = torch.stack(list(dscales)).tolist()
    layers = zip(dsigns, slopes, weights, sizes, dw.split(sizes), strict=True)
    for dsign, slope, w, n, part in layers:
        _call("weights", dsign, dsign, w, slope / n, _factor(estimator), p, n, part)
    return dw


def pool(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    sign: bool,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``kernels.pool``'s x, xb, places and z there of a map in channels_last that ``takes``."""
    n, c, height, width = z.shape
    small = n, c, -(-height // 2), -(-width // 2)
    x = torch.empty(small, dtype=z.dtype, memory_format=torch.channels_last)
    top, xb, index = (torch.empty_like(x, dtype=t) for t in (z.dtype, z.dtype, torch.uint8))
    signs = xb if sign else None
    vectors = _floats(weight, bias, mean, rstd)
    _call("pool", z, z, *vectors, n, height, width, c, relu, x, signs, index, top)
    return x, xb if sign else z.new_empty(0), index, top


def unpool(
    g: Tensor,
    index: Tensor,
    z: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    sums: Tensor,
    count: Tensor | None,
    training: bool,
    relu: bool,
) -> Tensor:
    """dz, as ``norm_binarize_apply`` gives it, from the gradient g of the maxima."""
    dz = torch.empty_like(z)
    n, c, height, width = z.shape
    positions = n * height * width if count is None else count.item()
    vectors = _floats(weight, mean, rstd, sums)
    shape = n, height, width, c
    _call("unpool", z, g, index, z, *vectors, positions, training, *shape, relu, dz)
    return dz


def convolve(xb: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, Tensor] | None:
    """The 3x3 convolution with padding 1 of signs (N, C, H, W) with signs (O, C, 3, 3), and the
    former's bits, (N H W C / 8,) uint8. None where not all of them are +1 or -1.

    Both are channels_last and of one dtype that ``takes``, and C is a multiple of 8.
    """
    n, c, height, width = xb.shape
    size = n, len(weight), (height - 1) // stride + 1, (width - 1) // stride + 1
    z = torch.empty(size, dtype=xb.dtype, memory_format=torch.channels_last)
    bits = torch.empty(xb.numel() // 8, dtype=torch.uint8)
    shape = n, height, width, c, len(weight), stride
    return (z, bits) if _call("convolve", xb, xb, weight, *shape, bits, z) else None


def weight_gradient(
    bits: Tensor, dz: Tensor, shape: torch.Size, weight: Tensor, stride: int
) -> Tensor:
    """The gradient of ``convolve``'s weight, channels_last, from that of z, channels_last, and the
    bits and the shape of its signs."""
    n, c, height, width = shape
    dw = torch.empty_like(weight)
    _call("weight_gradient", dz, bits, dz, n, height, width, c, len(weight), stride, dw)
    return dw


def input_gradient(dz: Tensor, shape: torch.Size, weight: Tensor, stride: int) -> Tensor | None:
    """The gradient of ``convolve``'s signs, channels_last and of their ``shape``, from that of z
    and the signs of the weights, both channels_last. None where no tiles are multiplied."""
    n, c, height, width = shape
    dx = torch.empty(shape, dtype=dz.dtype, memory_format=torch.channels_last)
    sizes = n, height, width, c, len(weight), stride
    return dx if _call("input_gradient", dz, dz, weight, *sizes, dx) else None
