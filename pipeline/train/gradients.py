"""The gradients of a batch, made at once or in parts that take less memory.

In parts they are those of the whole batch, but for batch norm, whose statistics are then of a part.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.run.config import Config
from pipeline.train.loss import Lesson, Loss
from pipeline.train.precision import autocast


def add_gradients(
    network: nn.Module, batch: Lesson, scaler: torch.amp.GradScaler, config: Config, loss_of: Loss
) -> tuple[Tensor, Tensor]:
    """Add the gradients of the loss of ``batch``, scaled, to those of ``network``.

    Takes ``train.grad_accumulation`` parts of the batch one after the other; processes sum their
    gradients with the last one. Returns logits (N, C), in the order of the batch, and the loss,
    0-dim.
    """
    parts = config.train.grad_accumulation
    if parts == 1:
        return _add(network, batch, scaler, config, loss_of)
    found = []
    for done, part in enumerate(parts_of(batch, parts), 1):
        with _summing(network, now=done == parts):
            found.append(_add(network, part, scaler, config, loss_of))
    logits, losses = zip(*found, strict=True)
    return torch.stack(logits, 1).flatten(0, 1), torch.stack(losses).mean()


def parts_of(batch: Lesson, parts: int) -> Iterator[Lesson]:
    """The ``parts`` of ``batch``, of which each takes every so many-th image.

    So, of several processes, they are taken together the same images as in a single one, and batch
    norm sees the same statistics.
    """
    if parts == 1:
        yield batch
        return
    for first in range(parts):
        images, *others = (each[first::parts] for each in batch)
        yield type(batch)(images.contiguous(memory_format=torch.channels_last), *others)


def _summing(network: nn.Module, *, now: bool) -> contextlib.AbstractContextManager[None]:
    """Within this context the backward pass of DistributedDataParallel sums, or leaves it."""
    if isinstance(network, DistributedDataParallel) and not now:
        return network.no_sync()
    return contextlib.nullcontext()


def _add(
    network: nn.Module, batch: Lesson, scaler: torch.amp.GradScaler, config: Config, loss_of: Loss
) -> tuple[Tensor, Tensor]:
    parts = config.train.grad_accumulation
    with autocast(config, batch.images.device):
        logits = network(batch.images)
    loss = loss_of(logits, batch)
    scaled: Tensor = scaler.scale(loss if parts == 1 else loss / parts)
    scaled.backward()
    return logits.detach(), loss.detach()
