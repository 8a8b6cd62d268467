"""Which settings load training batches fastest on this machine.

data.workers are tried first, then, on a GPU, data.hw_decoder_load with the fastest of them. Every
row's case names what it was measured with.
"""

import os
import re

import torch

from launch.bench.loaders import throughput
from launch.bench.results import Row
from pipeline.run.config import Config

LOADS = (0.55, 0.65, 0.75, 0.85)  # of the JPEG engines; 0.65 to 0.75 is the best of an A100


def sweep(config: Config, device: torch.device, rounds: int) -> list[Row]:
    """images/s of DALI, or of the loader that ``data.loader`` names, with each of the settings."""
    if config.data.loader == "auto":
        config = config.changed({"data.loader": "dali"})
    rows = [_row(config, {"data.workers": n}, device, rounds) for n in workers(config)]
    if device.type == "cuda" and config.data.loader == "dali":
        config = config.changed({"data.workers": int(_settings(rows)["data.workers"])})
        rows += [_row(config, {"data.hw_decoder_load": x}, device, rounds) for x in LOADS]
    return rows


def workers(config: Config) -> list[int]:
    """The config's, and a quarter, a half and all of the processors that this process may use."""
    cores = torch.get_num_threads()
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return sorted({config.data.workers, max(1, cores // 4), max(1, cores // 2), cores})


def overrides(rows: list[Row]) -> str:
    """The settings of the fastest of ``rows``, as overrides of a config."""
    return " ".join(f"{key}={value}" for key, value in _settings(rows).items())


def _row(config: Config, values: dict[str, object], device: torch.device, rounds: int) -> Row:
    load = values.get("data.hw_decoder_load")
    suffix = "" if load is None else f"/hw_decoder_load{load}"
    return throughput(config.changed(values), device, rounds, suffix)


def _settings(rows: list[Row]) -> dict[str, str]:
    """What the case of the fastest of ``rows``, by its median, says of the settings."""
    fastest = max(rows, key=lambda row: float(str(row["p50"])))
    found = re.findall(r"/(workers|hw_decoder_load)([0-9.]+)", str(fastest["case"]))
    return {f"data.{name}": value for name, value in found}
