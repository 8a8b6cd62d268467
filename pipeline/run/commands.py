"""Commands as a person types them. Nothing here imports torch."""

import os
import shlex
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the checkout


def command_line(*words: str) -> str:
    """One line for a shell that runs a command, such as ``command_line("evaluate", path)``.

    It works from where the person stands: ``./reste ...`` in the checkout, elsewhere with the path
    to it. An interpreter that ``reste`` would not find by itself stands before it.
    """
    launcher = "./reste" if os.path.samefile(os.curdir, ROOT) else str(ROOT / "reste")
    interpreter = "" if _is_found() else f"PYTHON={shlex.quote(sys.executable)} "
    return interpreter + shlex.join([launcher, *words])


def shipped_configs(folder: str = "configs") -> dict[str, Path]:
    """The YAML files in this ``folder`` of the checkout by their names, but for that of a sweep,
    which is no config."""
    files = sorted((ROOT / folder).glob("*.yaml"))
    return {path.stem: path for path in files if path.stem != "sweep"}


def _is_found() -> bool:
    """Whether ``reste`` takes this interpreter without being told."""
    environment = ROOT / ".venv"
    if os.access(environment / "bin/python", os.X_OK):
        return os.path.samefile(sys.prefix, environment)
    found = shutil.which("python3")
    return found is not None and os.path.dirname(found) == os.path.dirname(sys.executable)
