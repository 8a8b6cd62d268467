"""IR-Net's balanced weights: each output channel with mean 0 and deviation 1, so that the signs of
a channel carry as much information as they can."""

from torch import Tensor

from kernels.transforms.transform import CHANNEL, Transform


def schedule(progress: float) -> tuple[()]:
    """There are no parameters."""
    return ()


def apply(w: Tensor, params: Tensor) -> Tensor:
    """(w - mean_c) / std_c, with the unbiased deviation."""
    centred = w - w.mean(CHANNEL, keepdim=True)
    return centred / centred.std(CHANNEL, keepdim=True)


TRANSFORM = Transform(
    name="irnet",
    source="Qin et al., IR-Net, CVPR 2020 (arXiv:1909.10788); its scale, a power of two for each "
    "channel, is left to batch norm",
    parameters=(),
    schedule=schedule,
    apply=apply,
)
