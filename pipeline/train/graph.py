"""CUDA graphs: a step is captured once, and from then on one call replays its many launches.

A captured step is a function without arguments that reads and writes the same tensors every time;
whatever changes from call to call (batch, learning rate, the estimator's parameters) it has to read
from them. Called directly it does the same, which is how everything runs on a CPU.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from kernels._triton import HAS_TRITON
from pipeline.run import processes
from pipeline.run.config import Config
from pipeline.run.console import logger
from pipeline.run.errors import UserError
from pipeline.train.memory import is_shortage

# Calls before the capture: cuDNN chooses algorithms, Triton compiles, buffers appear. With several
# processes DistributedDataParallel also times some of its first steps, which a capture forbids.
WARMUP, WARMUP_TOGETHER = 3, 12
Step = Callable[[], object]


def obstacle(config: Config, device: torch.device) -> str | None:
    """Why a training step of ``config`` cannot be captured, or None."""
    if device.type != "cuda":
        return "there is no CUDA device in use"
    if not HAS_TRITON:
        return "Triton cannot be imported"
    if processes.size() > 1 and "cuda:nccl" not in torch.distributed.get_backend_config():
        return "the processes of one GPU talk over the host"
    if config.optim.impl != "torch_fused":
        return f"optim.impl={config.optim.impl} reads the learning rate on the host"
    if config.train.precision == "fp64":
        return "train.precision=fp64 waits for the device to look for NaN"
    return None


def make_graphs(config: Config, device: torch.device) -> "Graphs | None":
    """An object that captures steps, or None where steps run eagerly, as ``train.cuda_graph`` says.

    On a GPU a line says why where it cannot. Raises UserError for ``true`` then.
    """
    choice = config.train.cuda_graph
    reason = obstacle(config, device)
    if choice == "true" and reason:
        raise UserError(f"train.cuda_graph=true, but {reason}; set train.cuda_graph=auto")
    if choice == "auto" and reason and device.type == "cuda":
        logger.info("no step is a CUDA graph: %s", reason)
    return None if choice == "false" or reason else Graphs(device)


class Graphs:
    """Captures steps on one stream into one pool of memory.

    The pool can be shared because nothing in it outlives a replay and replays never overlap.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.warmup = WARMUP_TOGETHER if processes.size() > 1 else WARMUP

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """Inside, what a captured step uses is built on the stream on which it will be captured.

        DistributedDataParallel needs this: its gradients are accumulated on the stream that they
        were first made ready on, and a capture sees only its own.
        """
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream().wait_stream(self.stream)

    def warm_up(self, step: Step) -> None:
        """Run ``step`` on the stream on which it will be captured."""
        with self.building():
            step()

    def record(self, step: Step) -> Step:
        """Capture ``step`` without running it; the result runs it each time it is called."""
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        try:
            # Only this thread's calls count: DALI's threads go on allocating and waiting meanwhile.
            with torch.cuda.graph(
                graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
            ):
                step()
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # a capture that fails leaves its own behind
            if is_shortage(error):
                raise
            reason = str(error).splitlines()[0]
            raise UserError(
                f"the step cannot be captured ({reason}); set train.cuda_graph=false"
            ) from error
        return graph.replay


class Captured:
    """Each call takes one step: eagerly for ``graphs.warmup`` times, then by replaying a graph.

    ``tensors`` gives the tensors that the step works on and that outlive it.
    """

    def __init__(self, graphs: Graphs, step: Step, tensors: Callable[[], Iterable[Tensor]]) -> None:
        self.graphs, self.step, self.tensors = graphs, step, tensors
        self.reset()

    def reset(self) -> None:
        """Forget the graph: the next calls warm up and capture again."""
        self.calls, self.addresses = 0, [0]
        self.replay: Step | None = None

    def __call__(self) -> None:
        """Take one step."""
        self.calls += 1
        if self.calls <= self.graphs.warmup:
            self.graphs.warm_up(self.step)
            return
        if self.replay is None:
            self.replay = self.graphs.record(self.step)
            self.addresses = self._addresses()
        self.replay()

    def check(self) -> None:
        """Assert that no tensor was replaced, so that the graph works on those that others see."""
        replaced = self.replay is not None and self.addresses != self._addresses()
        assert not replaced, "a tensor was replaced since the step was captured: call reset"

    def _addresses(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self.tensors()]
