"""Signs as bits: against numpy's packbits, layouts, registration, and compilation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import pack, packing, reference, unpack
from tests.kernels.compilation import job
from tests.kernels.device import DEVICE, DTYPES, TRITON

pytest.importorskip("triton")
SIZES = [0, 1, 7, 8, 9, 31, 32, 33, 1023, 1025, packing.BLOCK + 1]
EDGES = [0.0, -0.0, 1e-7, -1e-7, math.inf, -math.inf, math.nan, -math.nan]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def values(size):
    """Every kind of sign, at changing places of a byte."""
    x = torch.randn(size, generator=torch.Generator().manual_seed(size))
    edges = torch.tensor(EDGES)[:size]
    x[: len(edges)] = edges
    return x.to(DEVICE)


def oracle(x):
    """By numpy, of a flat tensor."""
    return np.packbits(x.cpu().double().numpy() >= 0, bitorder="little")


def poison(monkeypatch):
    """What a launch allocates is full of threes: a place that no program writes shows."""
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: empty(*a, **k).fill_(3))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_reference_equals_packbits(dtype, size):
    x = values(size).to(dtype)
    packed = reference.pack(x)
    assert packed.dtype == torch.uint8 and np.array_equal(packed.cpu(), oracle(x))
    signs = reference.unpack(packed, size, dtype)
    assert signs.dtype == dtype and torch.equal(signs, torch.where(x >= 0, 1, -1).to(dtype))


@every_dtype
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.triton
def test_triton_equals_the_reference(dtype, size, monkeypatch):
    x = values(size).to(dtype)
    packed = reference.pack(x)
    signs = reference.unpack(packed, size, dtype)
    poison(monkeypatch)
    assert torch.equal(packing.launch_pack(x), packed)
    assert torch.equal(packing.launch_unpack(packed, size, dtype), signs)


def test_the_edges():
    packed = pack(torch.tensor(EDGES))
    assert packed.tolist() == [0b00010111]  # from the right: 0, -0 and what is above are +1
    assert unpack(packed, (8,)).tolist() == [1, 1, 1, -1, 1, -1, -1, -1]


@given(bits=st.lists(st.booleans(), max_size=70), dtype=st.sampled_from([*DTYPES, torch.float64]))
def test_every_pattern_comes_back(bits, dtype):
    signs = torch.tensor([1.0 if bit else -1.0 for bit in bits]).to(dtype)
    packed = pack(signs)
    assert len(packed) == math.ceil(len(bits) / 8)
    assert torch.equal(unpack(packed, signs.shape, dtype=dtype), signs)
    assert torch.equal(pack(unpack(packed, signs.shape, dtype=dtype)), packed)


def layouts():
    x = torch.randn(2, 3, 4, 5)
    return {
        "contiguous": x,
        "channels_last": x.to(memory_format=torch.channels_last),
        "channels_last_1x1": torch.randn(2, 3, 1, 1).to(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 2),
        "at_an_offset": torch.randn(5, 3, 4, 5)[2:],
        "sliced": torch.randn(2, 6, 4, 10)[:, ::2, :, ::2],
        "expanded": torch.randn(2, 1, 4, 5).expand(2, 3, 4, 5),
        "empty": torch.randn(0, 3, 4, 5),
        "scalar": torch.randn(()),
    }


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("way", ["reference", TRITON])
def test_every_layout_comes_back(layout, way):
    x = layouts()[layout].to(DEVICE)
    like = torch.empty_like(x)
    signs = unpack(pack(x), x.shape, like.stride(), x.dtype)
    assert signs.stride() == like.stride() and torch.equal(signs, reference.sign(x))
    flat = like.copy_(x).as_strided((x.numel(),), (1,))
    assert np.array_equal(pack(x).cpu(), oracle(flat))
    if like.is_contiguous():
        assert torch.equal(unpack(pack(x), x.shape), signs)


def test_neither_has_a_gradient():
    packed = pack(torch.randn(9, requires_grad=True))
    assert not packed.requires_grad and not unpack(packed, (9,)).requires_grad


@pytest.mark.triton
def test_triton_registration_passes_opcheck():
    x = torch.randn(2, 3, 4, 5, device=DEVICE).to(memory_format=torch.channels_last)
    torch.library.opcheck(packing._pack, (x,))
    torch.library.opcheck(packing._pack, (x.requires_grad_(),))
    packed = pack(x.detach())
    torch.library.opcheck(packing._unpack, (packed, x.shape, x.stride(), torch.float16))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_one_graph_takes_both(backend):
    torch._dynamo.reset()

    def there_and_back(x):
        return unpack(pack(x), x.shape, x.stride(), x.dtype) * 2, unpack(pack(x), x.shape)

    compiled = torch.compile(there_and_back, fullgraph=True, backend=backend)
    x = torch.randn(2, 3, 4, 5)
    for got, expected in zip(compiled(x), there_and_back(x), strict=True):
        assert torch.equal(got, expected) and got.stride() == expected.stride()


BYTES = torch.zeros(2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: pack(torch.ones(2, dtype=torch.int64)), "floating"),
        (lambda: unpack(BYTES, (8,)), r"\(1,\)"),
        (lambda: unpack(BYTES, (17,)), r"\(3,\)"),
        (lambda: unpack(BYTES.view(1, 2), (16,)), r"\(1, 2\)"),
        (lambda: unpack(BYTES.int(), (16,)), "int32"),
        (lambda: unpack(BYTES.repeat(2)[::2], (16,)), "contiguous"),
        (lambda: unpack(BYTES, (16,), (2,)), "gaps"),
        (lambda: unpack(BYTES, (4, 4), (4, 0)), "overlaps"),
        (lambda: unpack(BYTES, (16,), dtype=torch.int8), "int8"),
    ],
)
def test_bad_arguments_name_themselves(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def gpu_jobs(types):
    jobs = []
    for t in types:
        arguments = {"packed_ptr": "*u8", "n": "i32", "BLOCK": packing.BLOCK}
        jobs.append(job(packing._pack_kernel, x_ptr=t, **arguments))
        jobs.append(job(packing._unpack_kernel, y_ptr=t, **arguments))
    return jobs


def test_compiles_for_the_gpus_we_support(usages):
    assert [usage for usage in usages if usage.spilled] == []
