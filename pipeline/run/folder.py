"""The folder of a run, and the files in it that every run begins with."""

from pathlib import Path

import yaml

from pipeline.run import processes, restart
from pipeline.run.config import Config, to_dict
from pipeline.run.console import logger, start_file
from pipeline.run.errors import UserError
from pipeline.run.files import open_file, write_atomically
from pipeline.run.recorder import Recorder
from pipeline.run.resume import Start

RECORDS = "metrics.jsonl"


def records_of(config: Config) -> int:
    """The length in bytes of the records that the run of ``config`` has."""
    try:
        return (config.run_folder / RECORDS).stat().st_size
    except OSError:
        return 0


def open_folder(
    config: Config, recorder: Recorder, start: Start | None, seen: int | None = None
) -> None:
    """Make the folder of the run of ``config`` with config.yaml and log.txt, and open ``recorder``.

    metrics.jsonl goes on where it was at ``start``; a new run takes over the records that ``start``
    has. Only the main process writes; the others wait until it has. Raises UserError where the
    folder cannot be written, while another process trains the same run, or if one did since
    ``seen`` was its ``records_of``.
    """
    processes.alike(lambda: _open(config, recorder, start, seen))


def _open(config: Config, recorder: Recorder, start: Start | None, seen: int | None) -> None:
    folder = config.run_folder
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        _open_records(config, recorder, start, seen)  # first: it locks the run
        start_file(folder / "log.txt")
    except OSError as error:
        raise UserError(
            f"run.dir: cannot write {error.filename or folder}: {error.strerror}; set run.dir to a "
            "folder that can"
        ) from None
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    write_atomically(folder / "config.yaml", text.encode())
    restart.begin(config)


def _open_records(
    config: Config, recorder: Recorder, start: Start | None, seen: int | None
) -> None:
    """Open ``recorder``. Where more than the records of some steps would be done again, those that
    there are stay in a file beside."""
    path = config.run_folder / RECORDS
    earlier = _earlier(start) if start and start.is_new else b""
    is_far_back = start is None or start.is_new or start.path.name == "best.pt"
    size = start.state["metrics_size"] if start and not start.is_new else len(earlier)
    is_longer = path.exists() and path.stat().st_size > size
    copy = _set_aside(path) if is_far_back and is_longer else None
    try:
        if earlier:
            write_atomically(path, earlier)
        recorder.open(config, size, None if earlier else seen)
    except BaseException:
        if copy:
            copy.unlink()
        raise


def _earlier(start: Start) -> bytes:
    """The records of the run that ``start`` was saved in, up to it."""
    size = start.state["metrics_size"]
    try:
        with open_file(start.path.parent.parent / RECORDS) as file:
            records = file.read(size)
    except OSError:
        return b""
    return records if len(records) == size and records.endswith(b"\n") else b""


def _set_aside(path: Path) -> Path:
    """Copy ``path`` to the first free of metrics_1.jsonl, metrics_2.jsonl, ..."""
    number = 1
    while (copy := path.with_name(f"{path.stem}_{number}{path.suffix}")).exists():
        number += 1
    write_atomically(copy, path.read_bytes())
    logger.info("the records of %s so far are kept in %s", path, copy)
    return copy
