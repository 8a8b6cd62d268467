"""Several processes, started by torchrun, that train as one.

Alone, without torchrun, a process is rank 0 of 1 and every function here does nothing.
"""

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from pipeline.errors import UserError

AGREE_EVERY = 8  # steps between two looks at what the other processes were asked


def start(device: str, timeout: float) -> None:
    """Join the processes that torchrun started; ``timeout`` in seconds bounds every wait for one.

    ``device``: "cuda" takes NCCL, and the GPU of the local rank; "cpu" takes gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    if device == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UserError(
                f"local rank {local} has no GPU, there are {torch.cuda.device_count()}; start as "
                "many processes per node as it has GPUs, or set train.device=cpu"
            )
        torch.cuda.set_device(local)
    # Host values travel over gloo, so that they do not wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    store, rank, size = next(rendezvous("env://"))
    # torchrun keeps its store when it starts the processes again: without a name of its own, a new
    # process may find the address of a dead one there, and wait for it.
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        backend,
        store=PrefixStore(f"restart{restarts}", store),
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=timeout),
    )


def stop() -> None:
    """Leave the others, in good order."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process among all, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    largest(0)


def largest(value: int) -> int:
    """The largest ``value`` of all processes; waits for them, not for the GPU."""
    if size() == 1:
        return value
    everyone = torch.tensor(value)
    dist.all_reduce(everyone, dist.ReduceOp.MAX)
    return int(everyone)


def sum_(tensor: Tensor) -> Tensor:
    """``tensor`` summed over all processes, in place."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather(tensor: Tensor) -> Tensor:
    """The tensors of all processes, (size, *shape)."""
    if size() == 1:
        return tensor[None].clone()
    everyone = [torch.empty_like(tensor) for _ in range(size())]
    dist.all_gather(everyone, tensor)
    return torch.stack(everyone)


def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Give every process the main one's ``tensors``, in place."""
    if size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Let the main process go through this block, and write its files, before the others."""
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()
