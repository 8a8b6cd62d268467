"""The runs of a wandb project, read through wandb's public API."""

import contextlib
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.report.runs import Record, Run, flat, shown
from pipeline.run.config import Config
from pipeline.run.errors import first_line
from pipeline.run.sweep import identity_in
from pipeline.run.wandb_run import PATIENCE

EPOCH = "epoch/"  # what the names of an epoch's figures begin with there


def wandb_ids(folders: Iterable[Path]) -> set[str]:
    """How wandb calls the runs in ``folders`` that it has, too."""
    found = set()
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):
            if identity := identity_in(folder):
                found.add(identity)
    return found


def runs_of_project(project: str, known: Container[str] = ()) -> tuple[list[Run], list[str]]:
    """The runs of ``project``, "entity/project", but for those that are ``known`` by their ids, and
    a line for each that is left out.

    Without wandb, a network, a key or such a project there is no run, and one line says why.
    """
    runs, left_out = [], []
    try:
        import wandb

        for found in wandb.Api(timeout=PATIENCE).runs(project):
            if found.id in known:
                continue
            run = Run(shown(f"{found.name} ({found.id})"), _epochs(found), flat(_settings(found)))
            if run.epochs:
                runs.append(run)
            else:
                left_out.append(f"left out: {run.name} in wandb holds no epochs of a training")
    except ImportError:
        left_out.append(f"left out: {project}: wandb is not installed; make setup installs it")
    except Exception as error:  # wandb raises what it likes
        left_out.append(f"left out: {project} in wandb: {first_line(error)}")
    return runs, left_out


def _settings(run: Any) -> dict[str, Any]:
    """The config of ``run`` without what wandb holds beside it, such as the machine."""
    items = run.config.items()
    return {key: v for key, v in items if isinstance(v, Mapping) or key in Config.model_fields}


def _epochs(run: Any) -> list[Record]:
    rows = run.scan_history()
    return [_record(row) for row in rows if row.get(f"{EPOCH}epoch") is not None]


def _record(row: Mapping[str, Any]) -> Record:
    values = {n.removeprefix(EPOCH): v for n, v in row.items() if n.startswith(EPOCH)}
    return {"kind": "epoch", **{name: v for name, v in values.items() if v is not None}}
