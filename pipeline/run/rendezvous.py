"""How the processes that torchrun started find each other, and what they say when one is lost."""

import contextlib
import datetime
import glob
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from pipeline.run import cards
from pipeline.run.console import logger
from pipeline.run.environment import ALONE, number, processes_here, world_size
from pipeline.run.errors import UserError
from pipeline.run.processes import end_with_parent, rank, size

PATIENCE = 10.0  # seconds that a process which failed gives the others to say that they did
TOGETHER = 2.0  # seconds within which processes find the same mistake

RENAMED = {  # settings of NCCL's flight recorder; torch warns of the old ones in every process
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "TORCH_FR_BUFFER_SIZE",
    "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "TORCH_FR_DUMP_TEMP_FILE",
}
_COMMUNICATION = re.compile("gloo|nccl|c10d|TCPStore|ProcessGroup", re.IGNORECASE)


class _Group:
    """What this process knows of the others besides torch's process group."""

    store: Store | None = None
    traces = ""  # NCCL leaves its flight recorder in files whose names begin so


def start(device: str, timeout: float, folder: Path) -> None:
    """Join the processes that torchrun started; ``timeout`` in seconds bounds every wait for one.

    ``device``: "cuda" takes NCCL, and the GPU of the local rank; "cpu" takes gloo. ``folder`` is
    where NCCL leaves its flight recorder when a collective times out.
    """
    size = world_size()
    if size == 1:
        return
    needed = ["RANK", "MASTER_ADDR", "MASTER_PORT", *(["LOCAL_RANK"] if device == "cuda" else [])]
    if missing := [name for name in needed if not os.environ.get(name)]:
        raise UserError(
            f"WORLD_SIZE={size} says that this is one of {size} processes, but "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set; start them with "
            f"torchrun, or train in one process after: unset {ALONE}"
        )
    on_this_machine = processes_here()
    if device == "cuda":
        local = number("LOCAL_RANK", 0, size - 1)
        cards.take(local, on_this_machine)
        _Group.traces = _record_flights(folder)
        # DDP's sums and batch norm's are under way at once; they run in the order of their calls.
        os.environ.setdefault("NCCL_LAUNCH_ORDER_IMPLICIT", "1")
    end_with_parent(signal.SIGTERM)  # torchrun would leave its processes behind
    rank, limit = number("RANK", 0, size - 1), datetime.timedelta(seconds=timeout)
    store = _open_store(rank, one_node=on_this_machine == size)
    store.set_timeout(limit)
    _Group.store = PrefixStore(_meet(store, rank, size, timeout), store)
    # Host values travel over gloo, so that they do not wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=_Group.store, rank=rank, world_size=size, timeout=limit)


def _record_flights(folder: Path) -> str:
    """Let NCCL write its last collectives to a file when one of them times out.

    It also ends the process then, from C++, with a line that names the collective.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old, new in RENAMED.items():
        if value := os.environ.pop(old, None):
            os.environ.setdefault(new, value)
            if os.environ.get("RANK", "0") == "0":
                logger.warning("%s has a new name: set %s", old, new)
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")  # collectives
    return os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(folder.absolute() / "nccl_rank"))


def _open_store(rank: int, *, one_node: bool) -> Store:
    """The key-value store where the processes find each other: torchrun's, or the main one's own.

    On one node nothing of ours listens to other machines.
    """
    host, port = os.environ["MASTER_ADDR"], number("MASTER_PORT", 1, 65535)
    if one_node and sys.platform == "linux":
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    is_ours = not _is_torchruns_store()
    if is_ours and one_node:
        host = "127.0.0.1"
    try:
        if rank or not is_ours:
            return TCPStore(host, port, wait_for_workers=False)
        listener = socket.create_server(("127.0.0.1" if one_node else "", port)).detach()
        return TCPStore(
            host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener
        )
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"MASTER_ADDR={host} MASTER_PORT={port} cannot be used: {str(error).splitlines()[0]}; "
            "name a machine and a free port of it that all processes reach"
        ) from None


def _is_torchruns_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _meet(store: Store, rank: int, size: int, timeout: float) -> str:
    """A name that only the processes of this start know.

    torchrun may keep its store when it starts processes again, and on several nodes each counts
    restarts for itself. A new process must not find what a dead one wrote there. So each brings a
    random name, and the main one answers the newest until all have come.
    """
    mine = secrets.token_hex(8)
    if rank:
        store.set(f"here/{rank}", mine)
        try:
            name = store.get(f"answer/{mine}").decode()
        except RuntimeError:
            raise UserError.alone(
                f"the main process did not answer within {timeout:g} s; see whether it started"
            ) from None
        store.set(f"came/{name}/{rank}", "")
        return name
    absent, deadline = set(range(1, size)), time.monotonic() + timeout
    while absent:
        for other in [r for r in absent if store.check([f"here/{r}"])]:
            store.set(f"answer/{store.get(f'here/{other}').decode()}", mine)
            if store.check([f"came/{mine}/{other}"]):
                absent.remove(other)
        if time.monotonic() > deadline:
            raise UserError.alone(
                f"rank {min(absent)} of {size} did not come within {timeout:g} s; see whether its "
                f"process started and can reach this machine, or set train.timeout={2 * timeout:g}"
            )
        time.sleep(0.02)
    return mine


def stop() -> None:
    """Leave the other processes in good order; for one that is lost, nobody waits for long."""
    if dist.is_initialized():
        leaving = threading.Thread(target=_leave, daemon=True)
        leaving.start()
        leaving.join(PATIENCE)
        _Group.store = None


def _leave() -> None:
    with contextlib.suppress(RuntimeError):  # the others may have gone before
        dist.destroy_process_group()


def explain(error: BaseException) -> str | None:
    """Tell the other processes that this one ends with ``error``.

    If it ends because it cannot reach them, the result says which of them are at fault and why;
    None stands for an error of its own. It takes a bounded time, whatever state the others are in.
    """
    if not dist.is_initialized() or _Group.store is None:
        return None
    is_own = not (isinstance(error, RuntimeError) and _COMMUNICATION.search(str(error)))
    reason = str(error).encode("utf-8", "backslashreplace").decode() if is_own else ""
    ends: dict[int, str] = {}
    arguments = rank(), size(), f"{type(error).__name__}: {reason}" if is_own else "", ends
    asking = threading.Thread(target=_exchange, args=(_Group.store, *arguments), daemon=True)
    asking.start()
    asking.join(1.0 if is_own else PATIENCE + 1)
    return None if is_own else _blame(error, ends)


def ends_alike(error: BaseException) -> bool:
    """Tell the other processes that this one ends with ``error``; whether all of them end so, with
    the same words and within ``TOGETHER`` seconds."""
    if not dist.is_initialized() or _Group.store is None:
        return False
    ends: dict[int, str] = {}
    arguments = _Group.store, rank(), size(), f"{type(error).__name__}: {error}", ends, TOGETHER
    asking = threading.Thread(target=_exchange, args=arguments, daemon=True)
    asking.start()
    asking.join(2 * TOGETHER + 1)
    return len(ends) == size() and len(set(ends.values())) == 1


def _exchange(
    store: Store,
    rank: int,
    size: int,
    own: str,
    ends: dict[int, str],
    patience: float | None = None,
) -> None:
    """Leave ``own`` in the store; wait for the ``ends`` of the others, if it is empty or for
    ``patience`` seconds."""
    if patience is None:
        patience = 0 if own else PATIENCE
    with contextlib.suppress(RuntimeError):  # the store may have gone with the main process
        store.set(f"end/{rank}", own)
        store.check([f"end/{rank}"])  # an answer, where set may not wait for one
        ends[rank] = own
        deadline = time.monotonic() + patience
        while len(ends) < size and time.monotonic() < deadline:
            for other in set(range(size)) - set(ends):
                if store.check([f"end/{other}"]):
                    ends[other] = store.get(f"end/{other}").decode()
            time.sleep(0.05)
        if own and len(ends) == size:  # the store lives until all have read it
            store.add("ends_read", 1)
            deadline = time.monotonic() + patience
            while store.add("ends_read", 0) < size and time.monotonic() < deadline:
                time.sleep(0.02)


def _blame(error: BaseException, ends: dict[int, str]) -> str:
    reason = " ".join(str(error).splitlines()[0].split()) if str(error) else repr(error)
    faults = [f"rank {other} ended with {text}" for other, text in sorted(ends.items()) if text]
    if rank() not in ends:  # nor does the store
        host = "torchrun" if _is_torchruns_store() else "rank 0"
        faults = [f"{host} does not answer, it hangs or is lost"]
    if not faults:
        silent = sorted(set(range(size())) - set(ends))
        faults = [f"rank {other} does not answer, it hangs or is lost" for other in silent]
    faults = faults or ["the connection broke"]
    found = _Group.traces and glob.glob(f"{glob.escape(_Group.traces)}*")
    traces = f"; NCCL's last collectives: {_Group.traces}*" if found else ""
    return f"{'; '.join(faults)} ({reason}){traces}"
