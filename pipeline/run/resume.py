"""Whether a run can go on from a checkpoint."""

from typing import Any

from pipeline.run.config import Config, flatten, make_config

FREE_TO_CHANGE = (
    "run.", "log.", "checkpoint.", "data.path", "data.exclude", "data.workers",
    "data.download", "data.eval_batch_size", "data.loader", "train.device",
    "train.cuda_graph", "train.compile", "model.weights",
)  # fmt: skip


def differences(config: Config, state: dict[str, Any]) -> list[str]:
    """What a resumed run would do differently, as ``key: then -> now``."""
    then = flatten(make_config(state["config"]))
    return [
        f"{key}: {then[key]} -> {now}"
        for key, now in flatten(config).items()
        if then[key] != now and not key.startswith(FREE_TO_CHANGE)
    ]
