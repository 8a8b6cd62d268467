"""The CSV files and plots in docs/results."""

import csv
import datetime
from collections.abc import Iterable, Sequence
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


def row(case: str, provider: str, mode: str, metric: str, unit: str, values: Tensor) -> Row:
    """A row with the 20th, 50th and 80th percentile of ``values``, (N,) float64."""
    p20, p50, p80 = values.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    digits = ".4f" if unit == "1" else ".1f"
    entries = (case, provider, mode, metric, unit, *(format(p, digits) for p in (p20, p50, p80)))
    return dict(zip(COLUMNS[6:], entries, strict=True))


def write(bench: str, rows: list[Row], device: torch.device, commit: str) -> None:
    """Print ``rows`` and append them to the device's CSV.

    ``commit``: what ``origin.commit()`` gave before anything was measured.
    """
    common: Row = {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "gpu": device_name(device),
        "torch": torch.__version__,
        "triton": triton.__version__ if HAS_TRITON else "",
        "bench": bench,
    }
    append(results_file(bench, device), COLUMNS, ({**common, **each} for each in rows))
    if bench == "kernels":
        return  # they were printed one by one
    print("case  provider  mode  metric  unit  p20  p50  p80")
    for each in rows:
        print("  ".join(str(each[name]) for name in COLUMNS[6:]))


def append(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Append ``rows`` to the CSV at ``path``, which gets a line of ``columns`` if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def device_name(device: torch.device) -> str:
    """The device's name, as the CSV has it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def results_file(bench: str, device: torch.device) -> Path:
    """The CSV of a device."""
    return RESULTS / f"{bench}_{device_name(device).replace(' ', '-')}.csv"


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of that size in inches, or None, with a warning, where matplotlib
    is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no plot: matplotlib is not installed")
        return None
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Write a figure to ``path``, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
