"""DistributedDataParallel around a network, set up so that runs resume to the bit."""

import datetime
import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models import IMAGENET_ARCHS, BinaryNetwork


def _parallel(model: BinaryNetwork, device: torch.device, timeout: float) -> nn.Module:
    # Statistics are the same everywhere or, without sync_bn, the main process's count.
    options: dict[str, Any] = {"gradient_as_bucket_view": True, "static_graph": True}
    # A group of their own: batch norm's small sums need not queue behind the gradients.
    limit = datetime.timedelta(seconds=timeout)
    options["process_group"] = torch.distributed.new_group(timeout=limit)
    name = "broadcast_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:
        name = "forward_sync_buffers"  # its name from torch 2.13 on
    options[name] = False
    if device.type == "cuda":
        options["device_ids"] = [device]
    parallel = DistributedDataParallel(model, **options)
    _settle_buckets(parallel, device)
    return parallel


def _settle_buckets(parallel: DistributedDataParallel, device: torch.device) -> None:
    """Make steps of zeros, without a trace: DDP lays out its buckets anew after two, and with them
    changes the order in which the gradients of more than two processes add up. A run that goes on
    would differ from one never interrupted in its last bits."""
    was_training = parallel.training
    dtype = next(parallel.parameters()).dtype
    side = 64 if parallel.module.arch in IMAGENET_ARCHS else 32
    images = torch.zeros(2, 3, side, side, dtype=dtype, device=device)
    parallel.eval()  # leaves batch norm's statistics alone
    for _ in range(2):
        (0 * parallel(images)).sum().backward()
    parallel.train(was_training)
    parallel.zero_grad(set_to_none=True)
