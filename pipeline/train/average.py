"""The exponential moving average of a network's weights."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class MovingAverage:
    """``module`` is a copy of ``model`` whose parameters are an exponential moving average.

    The first update takes the model's parameters over, each later one moves the average by
    1 - ``decay`` towards them; buffers are the model's, and with them statistics of batch norm that
    are not of these weights: see reestimation.py. (torch's AveragedModel reads its counter on the
    host in every update.)
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model)
        self.decay, self.started = decay, False

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step into account; waits for nothing."""
        averaged: list[Tensor] = list(self.module.parameters())
        current: list[Tensor] = list(model.parameters())
        if self.started:
            torch._foreach_lerp_(averaged, current, 1 - self.decay)
        else:
            torch._foreach_copy_(averaged, current)
            self.started = True
        copy_buffers(self.module, model)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from an average that was begun earlier."""
        self.module.load_state_dict(state)
        self.started = True


def copy_buffers(target: nn.Module, source: nn.Module) -> None:
    """Copy the buffers of ``source`` to those of ``target``, in few launches."""
    for mine, theirs in zip(_by_kind(target), _by_kind(source), strict=True):
        torch._foreach_copy_(mine, theirs)


def _by_kind(model: nn.Module) -> Iterable[list[Tensor]]:
    """The floating and the other buffers apart: a list of one kind is copied in one launch."""
    buffers = [buffer for buffer in model.buffers() if buffer.numel()]
    floating = [buffer for buffer in buffers if buffer.is_floating_point()]
    return floating, [buffer for buffer in buffers if not buffer.is_floating_point()]
