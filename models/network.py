"""What all networks share: their binary weights and their estimator's schedule."""

import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from kernels import Estimator, get_estimator, get_transform
from models.layers import (
    Binarize,
    BinaryConv2d,
    NormBinarize,
    WeightTransform,
    binarize_convs,
)


class BinaryNetwork(nn.Module):
    """The base of every network: its name, its bits, its estimator and its schedule.

    Each call of the network first makes its binary weights, so a subclass writes only its layers
    and a ``forward`` of layers. Its ``__init__`` ends with ``set_progress(0)``.
    """

    def __init__(self, arch: str, bits: str, estimator: str, **options: float) -> None:
        super().__init__()
        self.arch, self.bits, self.estimator, self.options = arch, bits, estimator, options
        self.progress = 0.0
        self.binarize_by_stage = False  # so that the gradients of the last stages are there early

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Make the binary weights, then call the layers: see ``forward``.

        This is no forward pre-hook, because torch.compile leaves hooks of a whole network outside
        of its graph.
        """
        self.binarize_weights()
        return super().__call__(*arguments, **options)

    def binarize_weights(self) -> None:
        """Make the binary weights of all layers, at once or stage by stage.

        At once, it is one launch for all layers, and their gradients come together at the end of
        the backward pass. By stage, the gradients of the last stages, which hold most weights, are
        there while the first stages are still at work, and DistributedDataParallel sums them
        meanwhile. For that the weights of a stage are made only when the stage begins: autograd
        always continues with the latest operation that it can, and would leave what was made first
        for last.
        """
        convs = self.binary_convs()
        if not self.binarize_by_stage:
            return binarize_convs([*convs.values()]) if convs else None
        for _, names in itertools.groupby(convs, lambda name: name.partition(".")[0]):
            stage = [convs[name] for name in names]
            for conv in stage:
                conv.together, conv.binarized = stage, None

    def binary_convs(self) -> dict[str, BinaryConv2d]:
        """The binary convolutions by name, from the input to the output."""
        return {n: m for n, m in self.named_modules() if isinstance(m, BinaryConv2d)}

    def transform_weights(self, transform: str) -> None:
        """Take the signs of ``transform`` of the weights, a name of ``kernels.TRANSFORMS``."""
        for conv in self.binary_convs().values():
            conv.transform = WeightTransform(transform).to(conv.weight)
        self.set_progress(self.progress)

    def estimator_parameters(self, *, weights: bool = True) -> dict[str, float]:
        """The present parameters of the estimator by name, for ``weights`` or for activations."""
        entry = self._estimator(weights)
        schedule = entry.schedule if weights else entry.activation_schedule or entry.schedule
        options = self.options if entry.name == self.estimator else {}
        return dict(zip(entry.parameters, schedule(self.progress, **options), strict=True))

    def _estimator(self, weights: bool) -> Estimator:
        own = get_estimator(self.estimator)
        return own if weights else own.of_activations

    def set_progress(self, progress: float) -> None:
        """Move the schedules of estimator and transform to ``progress`` = epoch / epochs in [0, 1].

        Their params are refilled in place, so that nothing recompiles or synchronises and a
        captured CUDA graph sees the new values.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress is {progress}; it must lie in [0, 1]")
        self.progress = progress
        signs = [module for module in self.modules() if isinstance(module, Binarize)]
        for weights in (True, False):
            kind = weights, self._estimator(weights).name
            params = [sign.params for sign in signs if (sign.weights, sign.estimator) == kind]
            _refill(params, [*self.estimator_parameters(weights=weights).values()])
        transforms = [module for module in self.modules() if isinstance(module, WeightTransform)]
        for each in transforms[:1]:  # all of them are the same
            values = get_transform(each.name).schedule(progress)
            _refill([other.params for other in transforms], values)

    def reset_head_binarization(self, block: nn.Module) -> None:
        """Drop the sign after the last ``block``, because the classifier reads the real stream."""
        cast(NormBinarize, block.bn2).binarize = nn.Identity()


def _refill(params: Sequence[Tensor], values: Sequence[float]) -> None:
    """Fill ``values`` into each of ``params``, without waiting for the device."""
    if params and values:
        now = torch.tensor(values, dtype=params[0].dtype)
        now = now.to(params[0].device, non_blocking=True)
        torch._foreach_copy_([*params], [now] * len(params))
