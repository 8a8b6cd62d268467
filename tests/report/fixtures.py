"""Runs on disk as a training leaves them, without training."""

import json
from pathlib import Path

import yaml

from pipeline.run.config import load_config, to_dict
from tests import ROOT


def epochs(count, **parameters):
    """Records of ``count`` epochs; a parameter has a value for each of them."""
    return [
        {
            "kind": "epoch",
            "epoch": epoch,
            "lr": 0.1 / (epoch + 1),
            **{name: values[epoch] for name, values in parameters.items()},
            **{f"{split}_loss": 2 / (epoch + 1) for split in ("train", "val")},
            **{f"{split}_top1": 10.0 * epoch for split in ("train", "val")},
            "images_per_second": 100.0 + epoch,
            "data_wait": 0.1 * epoch,
            "seconds": 2.0 + epoch,
        }
        for epoch in range(count)
    ]


def write_run(folder: Path, records: list, *overrides: str) -> Path:
    """A run of the quickstart's config with ``overrides`` that has these records."""
    words = [f"run.dir={folder.parent}", f"run.name={folder.name}", "optim.warmup_epochs=0"]
    config = load_config(ROOT / "configs/quickstart.yaml", [*words, *overrides])
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return folder
