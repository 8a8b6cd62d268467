"""Kernels on maps so large that their positions in memory need more than 32 bits.

Each map holds one image again and again, so that every image must come out like the first one, and
that one like a batch of its own: its statistics are those of the whole.
"""

import pytest
import torch

from kernels import (
    batch_statistics,
    binarize,
    norm_binarize,
    norm_pool_binarize,
    pack,
    running_statistics,
    unpack,
)
from tests.kernels.device import DEVICE

pytestmark = pytest.mark.gpu
HUGE = 2**31  # elements, of two bytes each
ROOM = 48 * 2**30  # bytes, for up to ten maps
IMAGE = (64, 56, 56)


@pytest.fixture(autouse=True)
def room():
    """Leave the memory to others afterwards; where there is too little of it, skip the test."""
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < ROOM:
        pytest.skip(f"needs {ROOM // 2**30} GiB of free memory on the GPU")
    yield
    torch.cuda.empty_cache()


def one_image(seed=0):
    """A batch of one image, (1, C, H, W) in fp16 and channels_last."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(-9, 10, (1, *IMAGE), generator=generator).half() + 0.25
    return image.to(DEVICE, memory_format=torch.channels_last)


def repeated(image):
    """The image so often that the last one begins beyond the limit."""
    count = HUGE // image.numel() + 2
    return image.expand(count, -1, -1, -1).contiguous(memory_format=torch.channels_last)


def leaves_of(z):
    """z, weight and bias; no y is so near to 0 that rounding would turn its sign."""
    return (
        z.requires_grad_(),
        torch.ones(IMAGE[0], device=DEVICE),
        -torch.ones(IMAGE[0], device=DEVICE),
    )


def params():
    return torch.tensor([1.5, 1.5, 0.1], device=DEVICE)


def buffers():
    zeros, ones = torch.zeros(IMAGE[0], device=DEVICE), torch.ones(IMAGE[0], device=DEVICE)
    return zeros, ones, torch.tensor(0, device=DEVICE)


def block(z):
    """y, sign(y) and dz of a block in training."""
    z, weight, bias = leaves_of(z)
    statistics = batch_statistics(z.detach(), *buffers())
    y, yb = norm_binarize(z, weight, bias, *statistics, params=params(), estimator="reste")
    (dz,) = torch.autograd.grad([y, yb], z, [z.detach(), z.detach()])
    return y.detach(), yb.detach(), dz


def stem(z):
    """The same of a stem, with statistics that are given."""
    z, weight, bias = leaves_of(z)
    statistics = running_statistics(*buffers()[:2])
    options = {"params": params(), "estimator": "reste", "training": False}
    x, xb = norm_pool_binarize(z, weight, bias, *statistics, **options)
    (dz,) = torch.autograd.grad([x, xb], z, [x.detach(), x.detach()])
    return x.detach(), xb.detach(), dz


def sign(z):
    """sign(z) and its gradient, and what is left of it in bits."""
    z = z.requires_grad_()
    zb = binarize(z, params())
    (dz,) = torch.autograd.grad(zb, z, z.detach())
    signs = unpack(pack(z), z.shape, z.stride(), z.dtype)
    return zb.detach(), dz, signs


@pytest.mark.parametrize("op", [block, stem, sign])
def test_every_image_of_a_huge_batch_comes_out_like_one(op):
    image = one_image()
    expected, found = op(image.clone()), op(repeated(image))
    for whole, alone in zip(found, expected, strict=True):
        assert whole.numel() > HUGE or op is stem
        assert torch.equal(whole[-1], whole[0]) and torch.equal(whole[len(whole) // 2], whole[0])
        torch.testing.assert_close(whole[:1], alone, rtol=1e-2, atol=1e-2)
