"""What a training says of an epoch: for metrics.jsonl, and in a line for people."""

import time
from typing import Any

from pipeline.run.console import clock
from pipeline.train.metrics import METRICS, of_training
from pipeline.train.state import TrainState

Figures = dict[str, float]  # of each metric by its name


def epoch_record(
    state: TrainState,
    rate: float,
    trained: Figures,
    validated: Figures,
    images_per_second: float,
    seconds: float,
) -> dict[str, Any]:
    """What the epoch of ``state`` was like, at the learning rate ``rate``; its evaluation took
    ``seconds``. The indicators start anew."""
    record = {
        "kind": "epoch",
        "epoch": state.epoch,
        "lr": rate,
        **state.model.estimator_parameters(),
        **{f"train_{name}": value for name, value in of_training(trained).items()},
        **{f"val_{name}": validated[name] for name in METRICS},
        "images_per_second": images_per_second,
        "data_wait": state.waited / max(state.seconds, 1e-9),
        "seconds": state.seconds + seconds,
    }
    if state.indicators:
        record["indicators"] = state.indicators.record()
    return record


def summary_of(record: dict[str, Any]) -> str:
    """An epoch's record in one line for people."""
    parts = []
    for split in ("train", "val"):
        known = [metric for metric in METRICS.values() if f"{split}_{metric.name}" in record]
        values = [f"{m.name} {m.digits(record[f'{split}_{m.name}'])}" for m in known]
        parts.append(f"{split} {' '.join(values)}")
    rate = f"{record['images_per_second']:.0f} images/s"
    return "  ".join([*parts, rate, clock(record["seconds"])])


def time_left(seconds: float) -> str:
    """What to say of a training that goes on for so many ``seconds``."""
    finish = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds))
    return f"about {clock(seconds)} left, finished at {finish}"
