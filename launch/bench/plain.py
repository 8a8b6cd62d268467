"""The steps of a packed network as operators of torch that every exporter and compiler knows."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.export.packed import Packed
from pipeline.export.program import Step


class PlainNetwork(nn.Module):
    """A network with real weights: (N, 3, H, W) -> logits (N, classes), in evaluation."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.steps = packed.steps
        for name, each in packed.tensors.items():  # buffers, which exporters know as weights
            self.register_buffer(name.replace(".", "_"), torch.from_numpy(each))

    def forward(self, images: Tensor) -> Tensor:
        values = [images]
        for step in self.steps:
            values.append(self._value(step, *(values[each] for each in step.inputs)))
        return values[-1]

    def _value(self, step: Step, x: Tensor, other: Tensor | None = None) -> Tensor:
        if step.op == "norm":
            return self._norm(step, x, other)
        if step.op == "conv":
            weight = self._tensor(step, "weight")
            bias = self._tensor(step, "bias") if step.has_bias else None
            return F.conv2d(x, weight, bias, stride=step["stride"], padding=step["padding"])
        if step.op == "prelu":
            slope, shift = self._tensor(step, "prelu").unbind()
            return F.prelu(x, slope) + shift.view(-1, 1, 1)
        if step.op == "avg_pool":
            return F.avg_pool2d(x, step["size"], ceil_mode=step["ceil"])
        if step.op == "linear":
            return F.linear(x, self._tensor(step, "weight"), self._tensor(step, "bias"))
        if step.op == "max_pool":
            return F.max_pool2d(x, step["size"], step["stride"], step["padding"])
        if step.op == "skip":
            beside = step["channels"]
            return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, beside, beside))
        return _PLAIN[step.op](x) if other is None else x + other

    def _tensor(self, step: Step, kind: str) -> Tensor:
        return self.get_buffer(f"{step.layer}.{kind}".replace(".", "_"))

    def _norm(self, step: Step, x: Tensor, residual: Tensor | None) -> Tensor:
        weight, bias, mean, var = self._tensor(step, "norm").unbind()
        u = x.relu() if step["relu"] else x
        y = F.batch_norm(u, mean, var, weight, bias, eps=step["eps"])
        return y if residual is None else y + residual


_PLAIN: dict[str, Any] = {
    "relu": F.relu,
    "mean": lambda x: x.mean((2, 3)),
    "flatten": lambda x: x.flatten(1),
}
