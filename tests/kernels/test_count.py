"""What a step counts: against plain Python, and the kernel against the reference."""

import math

import pytest
import torch

from kernels import count as op
from kernels import tally
from tests.kernels.compilation import job
from tests.kernels.device import DEVICE, DTYPES, TRITON

pytest.importorskip("triton")
BAD = [math.nan, math.inf, -math.inf]


@pytest.fixture(params=["reference", TRITON], autouse=True)
def way(request):
    """Every test runs twice: with the reference, and with the kernel."""
    return request.param


def counted(batches, classes, dtype=torch.float32):
    """sums and watch of batches of (logits, labels, loss), lists."""
    sums = torch.zeros(4, dtype=torch.float64, device=DEVICE)
    watch = torch.tensor([0, 0, 0, -1], device=DEVICE)
    for logits, labels, loss in batches:
        rows = torch.tensor(logits, dtype=dtype, device=DEVICE).reshape(-1, classes)
        target = torch.tensor(labels, dtype=torch.int64, device=DEVICE)
        tally(sums, rows, target, torch.tensor(loss, device=DEVICE), watch)
    return sums.tolist(), watch.tolist()


def oracle(batches):
    sums, row, most, first = [0.0] * 4, 0, 0, -1
    for done, (logits, labels, loss) in enumerate(batches):
        row = 0 if math.isfinite(loss) else row + 1
        most = max(most, row)
        if row:
            first = done if first < 0 else first
            continue
        for values, label in zip(logits, labels, strict=True):
            if label < 0:
                continue
            order = sorted(range(len(values)), key=lambda c: (-values[c], c))
            rank = order.index(label)
            for place, more in enumerate((0.0, rank < 1, rank < 5, 1)):
                sums[place] += more
        sums[0] += loss * sum(label >= 0 for label in labels)
    return sums, [len(batches), row, most, first]


def draw(images, classes, loss, seed=0):
    """Logits of few values, so that many are alike, and labels of which some do not count."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-3, 4, (images, classes), generator=generator).tolist()
    labels = torch.randint(-1, classes, (images,), generator=generator).tolist()
    return logits, labels, loss


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 5, 10, 1000])
def test_counts_as_plain_python(classes, dtype):
    sizes = (7, 1, 260) if classes < 100 else (7, 1, 9)  # several programs to the last one
    batches = [draw(n, classes, 0.5 + n, seed=n) for n in sizes]
    assert counted(batches, classes, dtype) == oracle(batches)


def test_steps_that_are_not_finite_are_watched_and_left_out():
    losses = [1.0, BAD[0], BAD[1], 2.0, BAD[2], 3.0]
    batches = [draw(6, 10, loss, seed=i) for i, loss in enumerate(losses)]
    sums, watch = counted(batches, 10)
    assert (sums, watch) == oracle(batches)
    assert watch == [6, 0, 2, 1]


def test_another_process_can_be_the_bad_one():
    sums, watch = torch.zeros(4, dtype=torch.float64), torch.tensor([4, 1, 1, 2])
    batch = torch.eye(3), torch.arange(3), torch.tensor(1.0)
    state = [t.to(DEVICE) for t in (sums, watch)]
    everywhere = torch.tensor(torch.nan, device=DEVICE)
    tally(state[0], *(t.to(DEVICE) for t in batch), state[1], everywhere)
    assert state[0].tolist() == [3, 3, 3, 3] and state[1].tolist() == [5, 2, 2, 2]
    tally(state[0], *(t.to(DEVICE) for t in batch), state[1], everywhere.fill_(3))
    assert state[1].tolist() == [6, 0, 2, 2]


def test_an_empty_batch():
    sums, watch = counted([([], [], math.nan)], 10)
    assert sums == [0, 0, 0, 0] and watch == [1, 1, 1, 0]


@pytest.mark.parametrize(
    "change",
    [
        {"sums": torch.zeros(4)},
        {"sums": torch.zeros(3).double()},
        {"logits": torch.zeros(3)},
        {"labels": torch.zeros(2, dtype=torch.int64)},
        {"labels": torch.zeros(3)},
        {"loss": torch.zeros(1)},
        {"watch": torch.zeros(4)},
    ],
)
def test_what_is_refused(change):
    arguments = {
        "sums": torch.zeros(4).double(),
        "logits": torch.zeros(3, 10),
        "labels": torch.zeros(3, dtype=torch.int64),
        "loss": torch.zeros(()),
    }
    arguments = {name: value.to(DEVICE) for name, value in arguments.items()}
    tally(**arguments)
    with pytest.raises(ValueError, match="must be"):
        tally(**arguments | {name: value.to(DEVICE) for name, value in change.items()})


def test_is_one_registered_op():
    state = torch.zeros(4).double(), torch.tensor([0, 0, 0, -1])
    batch = torch.randn(3, 10), torch.arange(3), torch.tensor(1.0)
    arguments = [tensor.to(DEVICE) for tensor in (*state, *batch)]
    torch.library.opcheck(op._tally, (*arguments, None))


def gpu_jobs(types):
    state = {"sums_ptr": "*fp64", "labels_ptr": "*i64", "rows": "i32", "classes": "i32", "TOP": 5}
    every = {**state, "loss_ptr": "*fp32", "watch_ptr": "*i64", "everywhere_ptr": "*fp32"}
    tiles = [{"BLOCK_M": 256, "BLOCK_C": 16}, {"BLOCK_M": 4, "BLOCK_C": 1024}]
    jobs = [job(op._kernel, **every, logits_ptr=t, **tile) for t in types for tile in tiles]
    # The watch is scalar code, whatever the logits are.
    for missing in ({"everywhere_ptr": None}, {"everywhere_ptr": None, "watch_ptr": None}):
        jobs.append(job(op._kernel, **every | missing, logits_ptr="*fp32", **tiles[0]))
    return jobs


def test_compiles_for_the_gpus_we_support(usages):
    assert [usage for usage in usages if usage.spilled] == []


@pytest.mark.gpu
def test_on_the_gpu_it_waits_for_nothing(way):
    batch = [t.cuda() for t in (torch.randn(64, 10), torch.arange(64) % 10, torch.tensor(1.0))]
    sums, watch = torch.zeros(4).double().cuda(), torch.tensor([0, 0, 0, -1]).cuda()
    tally(sums, *batch, watch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        tally(sums, *batch, watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.tolist() == [2, 0, 0, -1]
