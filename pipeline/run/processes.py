"""Several processes, started by torchrun, that train as one.

Alone, without torchrun, a process is rank 0 of 1 and every function here does nothing.
"""

import ctypes
import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.run.errors import UserError

Made = TypeVar("Made")


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


def share(rows: Tensor) -> Tensor:
    """This process's part of sums that ``gather`` gave. Where they are of another number of
    processes, the main process takes those of all."""
    if len(rows) == size():
        return rows[rank()].clone()
    total = rows.sum(0)
    return total if is_main() else torch.zeros_like(total)


def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Give every process the main one's ``tensors``, in place."""
    if size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def from_main(make: Callable[[], bytes]) -> bytes:
    """What ``make`` returns in the main process, in all processes; so is a ``UserError`` raised,
    as one that is shared.

    The other processes need not see the disk of the main one.
    """
    if size() == 1:
        return make()
    content, failed = b"", False
    if is_main():
        try:
            content = make()
        except UserError as error:
            content, failed = str(error).encode("utf-8", "surrogatepass"), True
    header = torch.tensor([len(content), failed])
    dist.broadcast(header, 0)
    length = int(header[0])
    data = torch.frombuffer(bytearray(content or max(1, length)), dtype=torch.uint8)
    dist.broadcast(data, 0)
    content = data.numpy().tobytes()[:length]
    if header[1]:
        raise UserError.shared(content.decode("utf-8", "surrogatepass"))
    return content


def alike(check: Callable[[], object]) -> None:
    """Let the main process do ``check``, which would find the same in all; so is a ``UserError``
    raised."""
    from_main(lambda: b"" if check() else b"")


def end_with_parent(number: int) -> None:
    """Let this process get the signal ``number`` when the one that started it dies (on Linux)."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1  # sys/prctl.h
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def main_first(make: Callable[[], Made]) -> Made:
    """What ``make`` returns, which the main process does, and writes its files, before the others
    do. Where it raises a ``UserError`` in the main process, all raise that."""
    made: list[Made] = []
    alike(lambda: made.append(make()))
    return made[0] if made else make()


def is_same_everywhere(value: object) -> bool:
    """Whether all processes gave a ``value`` with the same ``repr``; all get the same answer."""
    digest = hashlib.sha256(repr(value).encode()).digest()
    mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
    return bool((gather(mine) == mine).all())


def agree(values: Mapping[str, object]) -> None:
    """Raise a ``UserError`` in all processes that names the first of ``values`` which is not the
    same in all of them."""
    if is_same_everywhere(values):
        return
    for name, value in values.items():
        if not is_same_everywhere(value):
            alike(lambda: _disagree(name, value))  # noqa: B023


def _disagree(name: str, value: object) -> None:
    raise UserError(
        f"{name} is {value} in the main process and something else in another; start all "
        f"processes with {name}={value}"
    )
