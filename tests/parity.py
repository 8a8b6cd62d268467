"""Agreement of two networks in float64, under conditions in which rounding cannot flip a sign."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def make_exact(model: nn.Module, seed: int = 0) -> None:
    """Weights whose mean |w| is 1/32 exactly, and batch norms away from their initial ties."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.copy_(_dyadic(module.weight))
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.2, generator=generator)


def _dyadic(weight: Tensor) -> Tensor:
    count = weight.numel()
    steps = (weight.abs() / weight.abs().mean() * 256).round().clamp(min=8).flatten()
    missing = int(256 * count - steps.sum())
    each, rest = divmod(abs(missing), count)
    change = torch.full_like(steps, each)
    change[steps.argsort(descending=True)[:rest]] += 1
    steps = steps + change.copysign(torch.tensor(float(missing)))
    assert (steps > 0).all() and steps.mean() == 256
    return (steps / 2**13).view_as(weight).copysign(weight)


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
