"""The folder of a run, and the files in it that every run begins with."""

import yaml

from pipeline.run import processes, restart
from pipeline.run.config import Config, to_dict
from pipeline.run.console import start_file
from pipeline.run.errors import UserError
from pipeline.run.files import write_atomically
from pipeline.run.recorder import Recorder


def open_folder(config: Config, recorder: Recorder, metrics_size: int) -> None:
    """Make the folder of the run of ``config`` with config.yaml and log.txt, and open ``recorder``.

    metrics.jsonl is cut to ``metrics_size`` bytes. Only the main process writes; the others wait
    until it has. Raises UserError where the folder cannot be written, or while another process
    trains the same run.
    """
    with processes.main_first():
        if processes.is_main():
            _open(config, recorder, metrics_size)


def _open(config: Config, recorder: Recorder, metrics_size: int) -> None:
    folder = config.run_folder
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        recorder.open(config, metrics_size)  # first: it locks the run
        start_file(folder / "log.txt")
    except OSError as error:
        raise UserError(
            f"run.dir: cannot write {error.filename or folder}: {error.strerror}; set run.dir to a "
            "folder that can"
        ) from None
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    write_atomically(folder / "config.yaml", text.encode())
    restart.begin(config)
