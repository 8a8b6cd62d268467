"""The networks by name."""

from collections.abc import Callable

from kernels import get_estimator
from models import resnet, resnet_cifar, vgg
from models.layers import BITS
from models.network import BinaryNetwork

__all__ = ["ARCHS", "BITS", "IMAGENET_ARCHS", "BinaryNetwork", "build_model"]

Builders = dict[str, Callable[..., BinaryNetwork]]

CIFAR_ARCHS: Builders = {
    "resnet20": resnet_cifar.resnet20,
    "resnet20_bireal": resnet_cifar.resnet20_bireal,
    "resnet18_cifar": resnet_cifar.resnet18_cifar,
    "vgg_small": vgg.vgg_small,
}
IMAGENET_ARCHS: Builders = {"resnet18": resnet.resnet18, "resnet34": resnet.resnet34}
ARCHS = CIFAR_ARCHS | IMAGENET_ARCHS


def build_model(
    arch: str,
    bits: str = "1w1a",
    num_classes: int = 10,
    estimator: str = "reste",
    **options: float,
) -> BinaryNetwork:
    """A freshly initialised network, from (N, 3, H, W) images to (N, num_classes) logits.

    Args:
        arch: a key of ``ARCHS``, that is of ``CIFAR_ARCHS`` (32x32 images) or
            ``IMAGENET_ARCHS`` (a stem that divides the resolution by 4).
        bits: 1w1a (binary weights and activations), 1w32a (binary weights) or 32w32a.
        estimator: a key of ``kernels.ESTIMATORS``, for weights and activations alike.
        options: the estimator's own, such as ``o_end=3.0`` for reste.

    Raises:
        ValueError: an unknown arch, bits, estimator or option, or fewer than two classes.

    Keys of the ``state_dict`` are those of the official networks (github.com/DravenALG/ReSTE).
    """
    if arch not in ARCHS:
        raise ValueError(f"arch {arch!r} is unknown; choose one of {', '.join(ARCHS)}")
    if bits not in BITS:
        raise ValueError(f"bits {bits!r} is unknown; choose one of {', '.join(BITS)}")
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; a classifier needs at least 2")
    known = get_estimator(estimator).options
    for option in options:
        if option not in known:
            raise ValueError(
                f"{option!r} is no option of {estimator}; it has {', '.join(known) or 'none'}"
            )
    return ARCHS[arch](arch, bits, num_classes, estimator, **options)
