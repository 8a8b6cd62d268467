"""Whether and from where a run goes on: decided here, before anything is built."""

import io
from pathlib import Path
from typing import Any

from pipeline.run import checkpoint, processes
from pipeline.run.config import Config, flatten, make_config
from pipeline.run.console import logger
from pipeline.run.errors import UserError

FREE_TO_CHANGE = (
    "run.", "log.", "checkpoint.", "data.path", "data.exclude", "data.workers",
    "data.download", "data.eval_batch_size", "data.loader", "train.device",
    "train.cuda_graph", "train.compile", "model.weights",
)  # fmt: skip
REMEDY = "set run.name to start another run"


def state_to_resume(
    config: Config, store: checkpoint.CheckpointStore, *, again: bool
) -> dict[str, Any] | None:
    """The state that the run of ``config`` goes on from, or None where it begins.

    What the main process finds in ``store``, or as ``run.resume`` says, holds for all processes;
    the others need not see its disk. ``again``: the run in the folder is our own, which torchrun
    restarted. Raises UserError where the run cannot go on, with the reason and the remedy.
    """
    content = processes.from_main(lambda: _find(config, store, again=again))
    return checkpoint.load(io.BytesIO(content)) if content else None


def _find(config: Config, store: checkpoint.CheckpointStore, *, again: bool) -> bytes:
    """The checkpoint file to go on from, or nothing for a new run."""
    folder, resume = config.run_folder, config.run.resume
    exists = (folder / "config.yaml").exists() or bool(store.files())
    if exists and not again and resume != "auto":
        what = "" if resume == "none" else " starts a new run"
        raise UserError(f"run.resume={resume}{what}, but {folder} holds a run already; {REMEDY}")
    if resume not in ("auto", "none") and not store.files():
        check_config(checkpoint.load(Path(resume)), config, Path(resume))
        return Path(resume).read_bytes()
    damaged = []
    for path, state in store.newest():
        if isinstance(state, dict):
            check_config(state, config, path)
            return path.read_bytes()
        damaged.append(path)
        logger.warning("%s; going on from the one before", str(state).rpartition(";")[0])
    if damaged:
        raise UserError(f"every checkpoint in {store.folder} is damaged; {REMEDY}")
    return b""


def check_config(state: dict[str, Any], config: Config, path: Path) -> None:
    """Raise UserError unless the checkpoint ``state``, read from ``path``, is ours and of the same
    training as ``config``."""
    if state.get("format") != checkpoint.FORMAT:
        raise UserError(
            f"checkpoint {path} cannot be resumed from, it holds a network only, or is of another "
            f"version; set model.weights={path} to start from its weights"
        )
    if changed := differences(config, state):
        raise UserError(
            f"{path} is of another training ({', '.join(changed)}); take these back, or {REMEDY}"
        )


def differences(config: Config, state: dict[str, Any]) -> list[str]:
    """What a resumed run would do differently, as ``key: then -> now``."""
    then = flatten(make_config(state["config"]))
    return [
        f"{key}: {then[key]} -> {now}"
        for key, now in flatten(config).items()
        if then[key] != now
        and not key.startswith(FREE_TO_CHANGE)
        and (key, now) != ("train.precision", "auto")
    ]


def check_data(state: dict[str, Any], data: dict[str, str], config: Config) -> None:
    """Raise UserError if the data are not those that the run began with.

    ``data`` holds the fingerprint of each split. Leaving out more images, bad ones for instance, is
    allowed between two epochs.
    """
    changed = [split for split, fingerprint in data.items() if state["data"][split] != fingerprint]
    if not changed:
        return
    what = f"the {' and '.join(changed)} images are not those that this run began with"
    where = f"data.path={config.data.path} (data.exclude={config.data.exclude}): {what}"
    if config.data.exclude == state["config"]["data"].get("exclude"):
        raise UserError(f"{where}; bring them back, or {REMEDY}")
    if state["batch"]:
        raise UserError(
            f"{where}, and it is in the middle of an epoch; go on from the end of one with "
            "run.name=... run.resume=.../epoch_....pt"
        )
    logger.warning("%s; going on with what data.exclude leaves", where)
