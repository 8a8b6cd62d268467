"""Timings, and the CSV files in docs/results that they go to."""

import csv
import datetime
import itertools
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels._triton import HAS_TRITON, triton
from pipeline.run.console import logger

RESULTS = Path("docs/results")
COLUMNS = (
    *("date", "commit", "gpu", "torch", "triton", "bench", "case", "provider"),
    *("mode", "metric", "unit", "p20", "p50", "p80"),
)
Row = dict[str, object]


def take_turns(
    providers: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, Tensor]:
    """Seconds of each call, after two that are not timed.

    They take turns, so that a change of the machine's load meets all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in providers}
    for turn, (name, call) in itertools.product(range(-2, rounds), providers.items()):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn >= 0:
            times[name].append(time.perf_counter() - began)
    return {name: torch.tensor(seconds, dtype=torch.float64) for name, seconds in times.items()}


def row(case: str, provider: str, mode: str, metric: str, unit: str, values: Tensor) -> Row:
    """The 20th, 50th and 80th percentile of ``values``, (N,) float64."""
    p20, p50, p80 = values.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    digits = ".4f" if unit == "1" else ".1f"
    entries = (case, provider, mode, metric, unit, *(format(p, digits) for p in (p20, p50, p80)))
    return dict(zip(COLUMNS[6:], entries, strict=True))


def write(bench: str, rows: list[Row], device: torch.device) -> None:
    """Print ``rows`` and append them to the device's CSV."""
    common: Row = {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "gpu": device_name(device),
        "torch": torch.__version__,
        "triton": triton.__version__ if HAS_TRITON else "",
        "bench": bench,
    }
    path = results_file(bench, device)
    RESULTS.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerows({**common, **each} for each in rows)
    if bench == "kernels":
        return  # was printed while it ran
    print("case  provider  mode  metric  unit  p20  p50  p80")
    for each in rows:
        print("  ".join(str(each[name]) for name in COLUMNS[6:]))


def device_name(device: torch.device) -> str:
    """As the CSV has it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def results_file(bench: str, device: torch.device) -> Path:
    """The device's CSV."""
    return RESULTS / f"{bench}_{device_name(device).replace(' ', '-')}.csv"


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches; None, and a warning, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no plot: matplotlib is not installed")
        return None
    return Figure(figsize=(width, height), layout="constrained")


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
