"""The machine code of the kernels, for an H100: it needs no card.

A kernel that streams maps must read and write them in vectors of 64 or 128 bits, keep its values in
registers, and spend few instructions on an element. The jobs here are as a training in fp16
launches them: numbers of rows and channels are multiples of 16, and the compiler knows it.
"""

import ast
from typing import NamedTuple

import pytest

from kernels import (
    ESTIMATORS,
    crop,
    norm_triton,
    packing,
    pool_triton,
    rprelu_triton,
    sign,
    weights,
)
from tests import ROOT
from tests.kernels.assembly import VECTOR, WIDTHS, parse
from tests.kernels.compilation import job
from tests.kernels.conftest import QUICK

triton = pytest.importorskip("triton")

MODULES = {
    module.__name__: module
    for module in (crop, norm_triton, packing, pool_triton, rprelu_triton, sign, weights)
}
NUMBERS = ("rows", "positions", "span", "n", "channels", "height", "width")
RESTE = ESTIMATORS["reste"].triton_factor
THREADS = 128  # of a program: four warps


class Limit(NamedTuple):
    """What the code of one kernel may be."""

    instructions: float  # for an element: in the main loop, else in the whole kernel
    read: int  # bytes of maps that are read for an element
    elements: int  # of a program
    narrow_loads: int = 0  # of less than 64 bits
    narrow_stores: int = 0
    local: int = 0  # accesses to memory in which spilled registers lie


# ------------------------------------------------------------------- the limits, to be brought up
# to date by whoever changes them on purpose: a higher one needs a reason.

TILE, SPAN_TILE = norm_triton.TILE, norm_triton.SPAN_TILE
NO_RESIDUAL = {"residual_ptr": None, "yb_ptr": None}
NORM, POOL, WEIGHTS = "kernels.norm_triton", "kernels.pool_triton", "kernels.weights"
RPRELU = "kernels.rprelu_triton"


def tile(elements, channels=64, **more):
    """A tile of so many elements; from 128 channels on it is as wide as those."""
    return {"BLOCK_C": channels, "BLOCK_M": elements // channels, **more}


def span(channels=64):
    return tile(SPAN_TILE, channels, num_warps=8)


WIDE = tile(rprelu_triton.SPAN_TILE, num_warps=8)
STEM = tile(pool_triton.TILE, RELU=True, xb_ptr="*fp16", index_ptr="*u8", top_ptr="*fp16")
# By kernel, and what is special about its launch.
LIMITS = {
    # Numbers of a channel are loaded and stored one by one.
    (f"{NORM}:_statistics_kernel", ""): (span(), Limit(7.7, 2, SPAN_TILE, 1, 7)),
    (f"{NORM}:_statistics_kernel", "wide"): (span(128), Limit(7.7, 2, SPAN_TILE, 1, 7)),
    (f"{NORM}:_forward_kernel", ""): (tile(TILE), Limit(18.7, 4, TILE)),
    (f"{NORM}:_forward_kernel", "plain"): (tile(TILE, **NO_RESIDUAL), Limit(9.6, 2, TILE)),
    # 128 threads load one of 128 channels each: mean, rstd, weight and bias.
    (f"{NORM}:_forward_kernel", "wide"): (tile(TILE, 128), Limit(19.1, 4, TILE, narrow_loads=4)),
    (f"{NORM}:_reduce_kernel", ""): (span(), Limit(27.7, 8, SPAN_TILE, 3, 5)),
    (f"{NORM}:_reduce_kernel", "wide"): (span(128), Limit(27.7, 8, SPAN_TILE, 3, 5)),
    (f"{NORM}:_backward_kernel", ""): (tile(TILE), Limit(21.0, 4, TILE)),
    (f"{NORM}:_backward_kernel", "wide"): (tile(TILE, 128), Limit(16.9, 4, TILE, narrow_loads=5)),
    # For an element of the pooled map, which is made from nine and whose gradient makes four.
    (f"{POOL}:_forward_kernel", ""): (STEM, Limit(128.9, 18, pool_triton.TILE)),
    (f"{POOL}:_backward_kernel", ""): (STEM, Limit(110.7, 8, pool_triton.TILE)),
    # It has slope, shift and offset of a channel beside those of the block above.
    (f"{RPRELU}:_forward_kernel", ""): (tile(TILE), Limit(23.7, 4, TILE)),
    (f"{RPRELU}:_reduce_kernel", ""): (WIDE, Limit(30.4, 8, rprelu_triton.SPAN_TILE, 3, 7)),
    ("kernels.sign:_forward_kernel", ""): ({}, Limit(7.3, 2, sign.BLOCK)),
    ("kernels.sign:_backward_kernel", ""): ({}, Limit(21.3, 4, sign.BLOCK, narrow_loads=3)),
    # A thread has the bits of a byte, and bytes of four places.
    ("kernels.packing:_pack_kernel", ""): ({}, Limit(7.1, 2, packing.BLOCK, narrow_stores=4)),
    ("kernels.packing:_unpack_kernel", ""): ({}, Limit(6.0, 0, packing.BLOCK, narrow_loads=4)),
    # Pixels come from anywhere, and mean and std are read for each.
    ("kernels.crop:_kernel", ""): ({}, Limit(70.7, 0, crop.BLOCK, narrow_loads=27)),
    # A table says how far a weight lies behind the first one, so that it holds for weights that are
    # made anew. Each has its code twice: whole chunks in vectors, and the last one of a layer under
    # a mask.
    (f"{WEIGHTS}:_forward_kernel", ""): ({}, Limit(42.8, 4, weights.BLOCK, 17, 11)),
    (f"{WEIGHTS}:_backward_kernel", ""): ({}, Limit(61.0, 6, weights.BLOCK, 20, 8)),
}
TRITON = "3.8"  # instructions and spills are counted with it, since each has its own assembler
# These see no map: sums of a few kilobytes, and the logits.
SMALL = {
    "kernels.norm_triton:_finish_kernel",
    "kernels.count:_kernel",
}

# -------------------------------------------------------------------

on_its_triton = pytest.mark.skipif(
    not triton.__version__.startswith(f"{TRITON}."), reason=f"counted with Triton {TRITON} only"
)
on_an_h100 = pytest.mark.parametrize("usages", [QUICK], indirect=True, ids=["fp16 on an H100"])


def gpu_jobs(types):
    maps = "z y yb residual dy dyb g dz x grad dx signs"
    known = {f"{name}_ptr": "*fp16" for name in maps.split()}
    vectors = "weight bias mean rstd means partial_g sums own_sums dscale params std partials "
    vectors += "scales dw running_mean running_var weights slope shift offset"
    known |= {f"{name}_ptr": "*fp32" for name in vectors.split()} | {"arrivals_ptr": "*i32"}
    known |= {
        "chunks_ptr": "*i64",
        "layers_ptr": "*i64",
        "index_ptr": "*i64",
        "batches_ptr": "*i64",
    }
    known |= {"images_ptr": "*u8", "packed_ptr": "*u8", "eps": "fp32", "momentum": "fp32"}
    known |= {"top_ptr": "*i64", "left_ptr": "*i64", "flip_ptr": "*i1", "scale_ptr": "*fp32"}
    known |= {"dsign_ptrs": ["*fp16"] * 16, "dscale_ptrs": ["*fp32"] * 16, "ALIGNED": True}
    known |= dict.fromkeys(NUMBERS, "i32")
    known |= {"RELU": True, "FACTOR": RESTE, "COUNTED": False, "TRAINING": True, "ALL_C": 64}
    known |= {"H": 32, "W": 32, "C": 3, "PADDING": crop.PADDING}
    jobs = []
    for (name, _), (special, limit) in LIMITS.items():
        module, kernel = name.split(":")
        function = getattr(MODULES[module], kernel)
        every = known | {"BLOCK": limit.elements} | special
        if module == "kernels.norm_triton":
            every |= {"scale_ptr": None, "packed_ptr": None}
            if kernel == "_statistics_kernel":
                every["sums_ptr"] = None
        kept = {*function.arg_names, "num_warps"}
        arguments = {key: value for key, value in every.items() if key in kept}
        options = {"archs": (90,), "divisible": NUMBERS, "read_code": True}
        jobs.append(job(function, **options, **arguments))
    return jobs


def instructions_per_element(code, limit):
    """In the main loop, whose passes the compiler may have unrolled; else in the whole kernel."""
    if code.loop_bytes:
        return code.loop_instructions / (code.loop_bytes / limit.read)
    return code.instructions / (limit.elements / THREADS)


def in_vectors(counts):
    """The bytes of all accesses of 64 bits and more."""
    return sum(n * width // 8 for n, width in zip(counts, WIDTHS, strict=True) if width >= VECTOR)


def narrow(counts):
    return sum(n for n, width in zip(counts, WIDTHS, strict=True) if width < VECTOR)


@pytest.fixture
def codes(usages):
    """The name, the code and the limit of each case."""
    assert [usage.kernel for usage in usages] == [kernel for kernel, _ in LIMITS]
    found = zip(LIMITS.items(), usages, strict=True)
    return [(" ".join(name), usage.code, limit) for (name, (_, limit)), usage in found]


@on_an_h100
def test_maps_move_in_vectors(codes):
    for name, code, limit in codes:
        assert narrow(code.loads) <= limit.narrow_loads, (name, code)
        assert narrow(code.stores) <= limit.narrow_stores, (name, code)
        assert in_vectors(code.loads) >= limit.read * limit.elements / THREADS, (name, code)


@on_an_h100
@on_its_triton  # 3.6 spills two registers of the stem; tests of the ops bound what any may spill
def test_values_stay_in_registers(codes):
    assert [(name, code) for name, code, limit in codes if code.local > limit.local] == []


@on_an_h100
@on_its_triton
def test_instructions_of_an_element(codes):
    counts = {name: (instructions_per_element(code, limit), limit) for name, code, limit in codes}
    assert {k: n for k, (n, limit) in counts.items() if n > limit.instructions} == {}


def test_every_kernel_has_a_limit():
    """All functions that Triton compiles for themselves: their names end with kernel."""
    found = {
        f"kernels.{path.stem}:{node.name}"
        for path in (ROOT / "kernels").glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }
    assert found == {kernel for kernel, _ in LIMITS} | SMALL


def test_the_code_is_read_as_it_stands():
    code = parse(
        """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.U8 R3, desc[UR4][R2.64] ;
.L_x_0:
        /*0020*/               @P1 LDG.E.EF.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   LDG.E R8, desc[UR4][R2.64] ;
        /*0040*/                   LDGSTS.E.BYPASS.128 [R9], desc[UR4][R2.64] ;
        /*0050*/                   STG.E.U16 desc[UR4][R2.64], R4 ;
        /*0060*/               @P0 BRA `(.L_x_0) ;
        /*0070*/                   STL.64 [R1], R4 ;
        /*0080*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*0090*/                   EXIT ;
.L_x_1:
        /*00a0*/                   BRA `(.L_x_1);
        /*00b0*/                   NOP;
"""
    )
    assert code.loads == [1, 0, 1, 0, 2] and code.stores == [0, 1, 0, 1, 0]
    assert code.local == 1 and code.instructions == 11
    assert (code.loop_instructions, code.loop_bytes) == (5, 32)
