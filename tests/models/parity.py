"""Agreement of two networks in float64, under conditions in which rounding cannot flip a sign."""

import torch
from torch import Tensor, nn

from launch.bench.official import make_exact

__all__ = ["compare", "make_exact"]


def compare(ours: nn.Module, other: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Largest relative differences of logits (training, evaluation), gradients and buffers."""
    other.load_state_dict(ours.state_dict())
    errors = {}
    logits = [_train_step(model, images, labels) for model in (ours, other)]
    errors["training logits"] = _relative(*logits)
    errors["gradients"] = _gradient_error(ours, other)
    errors["buffers"] = max(
        _relative(a, other.state_dict()[k]) for k, a in ours.state_dict().items() if "running" in k
    )
    with torch.no_grad():
        errors["evaluation logits"] = _relative(ours.eval()(images), other.eval()(images))
    return errors


def _train_step(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    model.train().zero_grad()
    logits = model(images)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    return logits.detach()


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-300))


def _gradient_error(ours: nn.Module, other: nn.Module) -> float:
    # A gradient that is 0 mathematically (bn2's bias) is judged against the largest one.
    pairs = dict(other.named_parameters())
    norms = {k: float(p.grad.norm()) for k, p in pairs.items() if p.grad is not None}
    assert norms.keys() == dict(ours.named_parameters()).keys()
    floor = 1e-6 * max(norms.values())
    return max(
        float((p.grad - pairs[k].grad).norm()) / max(norms[k], floor)  # type: ignore[operator]
        for k, p in ours.named_parameters()
    )
