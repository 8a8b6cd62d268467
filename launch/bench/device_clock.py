"""How long a GPU takes for what takes microseconds, without the time that the host takes.

A call is one or several phases, such as a forward and a backward pass, and its time is the sum of
theirs. Two events on the device stand around every phase. Before a phase that is cold the L2 cache
is filled with something else, outside of the events. There are three ways:

graph: several calls are captured as one CUDA graph, events and flushes included, and replayed.
queued: what cannot be captured is queued while a kernel spins, so that the host is ahead.
host: the host waits for the device within a call, or is slower than it all the same; its time
counts.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

WARMUP = 3  # calls before the first that counts: kernels are compiled, buffers appear
CALLS, TURNS = 10, 5  # calls in a graph, and how often it is replayed after a first time
FLUSH = 2**28  # bytes, several times the L2 cache of any card
# A kernel spins for so many cycles in every second that the host needs to queue the calls, which is
# at least twice as long at the clock of any card.
SPIN = 5e9


class Phase(NamedTuple):
    """A part of a call; ``is_cold``: it finds nothing that it reads in the L2 cache."""

    call: Callable[[], object]
    is_cold: bool = True


class Timed(NamedTuple):
    """Seconds of every call, (N,) float64, and the way in which they were taken."""

    seconds: Tensor
    way: str  # graph | queued | host


Laps = list[list[tuple[torch.cuda.Event, torch.cuda.Event]]]  # of every phase of every call


@contextlib.contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Inside, a GPU's work goes to a stream that can be captured.

    The default one cannot, and a backward pass works on the stream of its forward pass.
    """
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.synchronize(device)


def time_phases(phases: Sequence[Phase]) -> Timed:
    """The seconds of calls of ``phases`` on the current stream, which is not the default one."""
    for _ in range(WARMUP):
        _call(phases)
    torch.cuda.synchronize()
    if _waits(phases):
        return Timed(_in_turns(phases, 0)[0], "host")
    try:
        return Timed(_by_graph(phases), "graph")
    except RuntimeError as error:
        print(f"not captured but queued: {str(error).splitlines()[0]}")
    seconds, is_ahead = _in_turns(phases, int(SPIN * _host_seconds(phases)))
    return Timed(seconds, "queued" if is_ahead else "host")


def queue(phases: Sequence[Phase], *, external: bool) -> Laps:
    """Queue CALLS calls on the current stream; ``external``: into a graph that is captured."""
    cache = torch.empty(FLUSH, dtype=torch.int8, device="cuda")
    return [[_between_events(phase, cache, external) for phase in phases] for _ in range(CALLS)]


def _between_events(
    phase: Phase, cache: Tensor, external: bool
) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    if phase.is_cold:
        cache.zero_()
    start, end = (torch.cuda.Event(enable_timing=True, external=external) for _ in range(2))
    start.record()
    phase.call()
    end.record()
    return start, end


def _seconds(laps: Laps) -> Tensor:
    """The seconds of every call, (CALLS,), after the device has done them."""
    torch.cuda.synchronize()
    milliseconds = [sum(start.elapsed_time(end) for start, end in lap) for lap in laps]
    return torch.tensor(milliseconds, dtype=torch.float64) / 1e3


def _by_graph(phases: Sequence[Phase]) -> Tensor:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        laps = queue(phases, external=True)
    seconds = []
    for _ in range(1 + TURNS):
        graph.replay()
        seconds.append(_seconds(laps))
    return torch.cat(seconds[1:])


def _in_turns(phases: Sequence[Phase], cycles: int) -> tuple[Tensor, bool]:
    """The seconds of calls that are queued while a kernel spins for ``cycles``, and whether the
    host had queued the calls of every turn before the first of them began."""
    seconds, is_ahead = [], True
    for _ in range(1 + TURNS):
        torch.cuda._sleep(cycles)
        laps = queue(phases, external=False)
        is_ahead &= not laps[0][0][0].query()
        seconds.append(_seconds(laps))
    return torch.cat(seconds[1:]), is_ahead


def _host_seconds(phases: Sequence[Phase]) -> float:
    began = time.perf_counter()
    queue(phases, external=False)
    taken = time.perf_counter() - began
    torch.cuda.synchronize()
    return taken


def _waits(phases: Sequence[Phase]) -> bool:
    """Whether the host waits for the device within a call."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        _call(phases)
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def _call(phases: Sequence[Phase]) -> None:
    for phase in phases:
        phase.call()
