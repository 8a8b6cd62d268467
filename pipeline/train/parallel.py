"""DistributedDataParallel around a network, set up so that runs resume to the bit."""

import datetime
import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models import ARCHS, BinaryNetwork


def parallelize(model: BinaryNetwork, device: torch.device, timeout: float) -> nn.Module:
    """``model`` as one that sums its gradients over all processes while the backward pass goes on.

    ``timeout`` in seconds bounds the wait for another process. The weights are binarized stage by
    stage from now on, so that the gradients of the last stages are there early.
    """
    model.binarize_by_stage = True
    # Batch norm's statistics need no broadcast: they are the same everywhere or, without sync_bn,
    # those of the main process count.
    options: dict[str, Any] = {"gradient_as_bucket_view": True, "static_graph": True}
    # Gradients have a group of their own: batch norm's small sums need not queue behind them.
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
    """Make two backward passes of zeros, which leave no trace.

    DDP lays out its buckets anew after two passes, and with them the order in which the gradients
    of more than two processes add up: a run that goes on would differ in its last bits from one
    that was never interrupted.
    """
    was_training = parallel.training
    dtype = next(parallel.parameters()).dtype
    side = min(ARCHS[parallel.module.arch].image_size, 64)
    images = torch.zeros(2, 3, side, side, dtype=dtype, device=device)
    parallel.eval()  # leaves batch norm's statistics alone
    for _ in range(2):
        (0 * parallel(images)).sum().backward()
    parallel.train(was_training)
    parallel.zero_grad(set_to_none=True)
