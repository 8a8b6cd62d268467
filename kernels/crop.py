"""One pass makes a batch of images that lie in memory: choose, crop, flip, normalise and cast."""

from collections.abc import Sequence

import torch

from kernels import reference
from kernels._triton import is_watched, jit, tl, triton, uses_triton

BLOCK = 1024
PADDING = 4  # black pixels on every side of an image before it is cropped

Crop = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def crop_flip_normalize(
    images: torch.Tensor,
    index: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    dtype: torch.dtype,
    crop: Crop | None = None,
) -> torch.Tensor:
    """The chosen images as a normalised batch, cropped and mirrored if ``crop`` is given.

        y[b, c, i, j] = (p / 255 - mean[c]) / std[c]

    where p is the pixel images[index[b], top[b] + i - PADDING, left[b] + j' - PADDING, c], or 0
    (black) outside of the image, and j' is W - 1 - j where flip[b], else j.

    Args:
        images: (N, H, W, C) uint8, contiguous: all images of the data set.
        index: (B,) int64 in 0..N - 1, which a CUDA device does not check.
        mean, std: (C,) fp32, for pixels on the scale 0..1.
        dtype: the dtype of y, floating point.
        crop: (top, left, flip), each (B,), of int64, int64 and bool; top and left lie in
            0..2 PADDING. None leaves the images as they are.

    Returns:
        (B, C, H, W) of ``dtype``, channels_last. It is computed in fp32, and to the same bits on
        every device.

    Raises:
        ValueError: a tensor has another shape, dtype or device, images is not contiguous, or dtype
            is not floating point.

    Has no gradient. CUDA tensors run in Triton, CPU tensors and y in float64 in
    ``kernels.reference``.
    """
    _check_images(images, dtype)
    batch, channels = (index.numel(),), images.shape[3:]
    _check("index", index, batch, torch.int64, images.device)
    _check("mean", mean, channels, torch.float32, images.device)
    _check("std", std, channels, torch.float32, images.device)
    if crop is not None:
        for name, draw in zip(("top", "left", "flip"), crop, strict=True):
            kind = torch.bool if name == "flip" else torch.int64
            _check(name, draw, batch, kind, images.device)
    make = _crop_flip_normalize if is_watched() else _make
    return make(images, index, mean, std, dtype, list(crop or ()))


def _check_images(images: torch.Tensor, dtype: torch.dtype) -> None:
    if images.dim() != 4 or images.dtype != torch.uint8 or not images.is_contiguous():
        raise ValueError(
            "images must be contiguous uint8 of shape (N, H, W, C), "
            f"not {images.dtype} of shape {tuple(images.shape)} and stride {images.stride()}"
        )
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type, not {dtype}")


def _check(
    name: str, t: torch.Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> None:
    if (t.shape, t.dtype, t.device) != (shape, dtype, device):
        raise ValueError(
            f"{name} must be {dtype} of shape {tuple(shape)} on {device}, where images is, "
            f"not {t.dtype} of shape {tuple(t.shape)} on {t.device}"
        )


@torch.no_grad()
def _make(
    images: torch.Tensor,
    index: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    dtype: torch.dtype,
    crop: Sequence[torch.Tensor],
) -> torch.Tensor:
    if uses_triton(images) and dtype != torch.float64:
        return launch(images, index, mean, std, dtype, crop)
    return reference.crop_flip_normalize(images, index, mean, std, dtype, crop, PADDING)


_crop_flip_normalize = torch.library.custom_op("reste::crop_flip_normalize", _make, mutates_args=())


@_crop_flip_normalize.register_fake
def _(
    images: torch.Tensor,
    index: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    dtype: torch.dtype,
    crop: Sequence[torch.Tensor],
) -> torch.Tensor:
    return images.new_empty(index.shape[0], *images.shape[1:], dtype=dtype).permute(0, 3, 1, 2)


def launch(
    images: torch.Tensor,
    index: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    dtype: torch.dtype,
    crop: Sequence[torch.Tensor],
) -> torch.Tensor:
    """Run the kernel; ``dtype`` is fp32, bf16 or fp16."""
    y = images.new_empty(index.shape[0], *images.shape[1:], dtype=dtype)
    if y.numel():
        height, width, channels = y.shape[1:]
        grid = (len(y), triton.cdiv(height * width * channels, BLOCK))
        draws = [t.contiguous() for t in (index, mean, std, *crop)]
        pointers = (images, y, *draws, *(() if crop else (None, None, None)))
        _kernel[grid](*pointers, H=height, W=width, C=channels, PADDING=PADDING, BLOCK=BLOCK)
    return y.permute(0, 3, 1, 2)


@jit
def _kernel(  # type: ignore[no-untyped-def]
    images_ptr,
    y_ptr,
    index_ptr,
    mean_ptr,
    std_ptr,
    top_ptr,
    left_ptr,
    flip_ptr,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    PADDING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < H * W * C
    row, column, channel = at // (W * C), at // C % W, at % C
    seen = inside
    if top_ptr is not None:
        column = tl.where(tl.load(flip_ptr + b), W - 1 - column, column)
        row += tl.load(top_ptr + b).to(tl.int32) - PADDING
        column += tl.load(left_ptr + b).to(tl.int32) - PADDING
        seen = inside & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    image = images_ptr + tl.load(index_ptr + b) * (H * W * C)
    pixel = tl.load(image + (row * W + column) * C + channel, mask=seen, other=0).to(tl.float32)
    # This division is correctly rounded; Triton's / is a few units off in the last place.
    scaled = tl.div_rn(pixel, 255.0) - tl.load(mean_ptr + channel)
    y = tl.div_rn(scaled, tl.load(std_ptr + channel))
    tl.store(y_ptr + b * (H * W * C) + at, y.to(y_ptr.dtype.element_ty), mask=inside)
