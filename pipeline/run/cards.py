"""The GPUs of this machine: what keeps a training off them, each in one line with its remedy."""

import os
import re
import shlex
import sysconfig
from pathlib import Path

import torch

from kernels._triton import launcher_fault
from pipeline.run.console import logger
from pipeline.run.errors import UserError, first_line

OLDEST = (7, 5)  # the compute capability from which torch and Triton have kernels
FILLED = 0.1  # the share of a GPU's memory that others may hold without a word
VISIBLE = "CUDA_VISIBLE_DEVICES"
ON_THE_CPU = "set train.device=cpu"
ELSE = f"{ON_THE_CPU}, or "
DRIVER = "/proc/driver/nvidia"  # where there is one, on Linux


def why_none() -> str:
    """Why torch finds no CUDA device, with the remedy behind a semicolon; "" where it finds one."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"this torch was built without CUDA; {ON_THE_CPU}, or install a build for CUDA"
    if hidden := os.environ.get(VISIBLE):
        return (
            f"{VISIBLE}={shlex.quote(hidden)} names no GPU of this machine; {ON_THE_CPU}, or let "
            f"all be seen: unset {VISIBLE}"
        )
    if hidden is not None:
        return f"{VISIBLE} is empty, which hides every GPU; {ON_THE_CPU}, or: unset {VISIBLE}"
    return _why_the_driver_fails()


def _why_the_driver_fails() -> str:
    """What CUDA's own beginning says, in our words where it is the age of the driver."""
    try:
        torch.cuda.init()
    except RuntimeError as error:
        if old := re.search(r"driver.* too old.*?found version (\d+)", str(error), re.DOTALL):
            speaks = f"{int(old[1]) // 1000}.{int(old[1]) % 1000 // 10}"
            return (
                f"the NVIDIA driver is too old: it is for CUDA {speaks}, and this torch for CUDA "
                f"{torch.version.cuda}; {ON_THE_CPU}, or install a driver for CUDA "
                f"{torch.version.cuda} or newer, or a torch for CUDA {speaks}"
            )
        if "no NVIDIA driver" not in str(error):
            return f"CUDA cannot begin ({first_line(error)}); {ON_THE_CPU}, or mend the driver"
    return f"torch finds no CUDA device; {ON_THE_CPU}"


def take(local: int, processes: int) -> None:
    """Take the GPU of the process ``local``, from 0, among ``processes`` on this machine.

    Raises UserError where there are fewer GPUs than processes.
    """
    check_number(max(processes, local + 1))  # all of them say so
    try:
        torch.cuda.set_device(local)
    except RuntimeError as error:
        raise UserError.alone(_why_it_does_not_begin(local, error)) from None


def check_number(processes: int) -> None:
    """Raise UserError where this machine has fewer GPUs than ``processes``."""
    gpus, shown = torch.cuda.device_count(), os.environ.get(VISIBLE)
    if processes > gpus:
        seen = f" ({VISIBLE}={shlex.quote(shown)})" if shown else ""
        raise UserError(
            f"{processes} processes on this machine have {gpus} GPUs{seen}; start as many "
            f"processes as it has GPUs, or {ON_THE_CPU}"
        )


def current() -> torch.device:
    """The GPU that this process has taken, or the first one.

    Raises UserError where no training could begin on it.
    """
    index = 0
    try:
        index = torch.cuda.current_device()
        torch.cuda.mem_get_info(index)  # the first call that takes memory
    except RuntimeError as error:
        raise UserError(_why_it_does_not_begin(index, error)) from None
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST:
        raise UserError(
            f"GPU {index} ({torch.cuda.get_device_name(index)}) is of compute capability "
            f"{_dotted(capability)}, and there are kernels from {_dotted(OLDEST)} on; "
            f"{ON_THE_CPU}, or take a newer GPU"
        )
    _check_launcher()
    return torch.device("cuda", index)


def _why_it_does_not_begin(index: int, error: RuntimeError) -> str:
    if "out of memory" in str(error):
        return (
            f"GPU {index} has no memory left: other processes, which nvidia-smi lists, hold it; "
            f"{ON_THE_CPU}, end them, or name another GPU in {VISIBLE}"
        )
    reason = first_line(error)
    return f"GPU {index} cannot be used ({reason}); {ON_THE_CPU}, or see what nvidia-smi says"


def note(device: torch.device, choice: str) -> None:
    """Say what is odd about the GPUs of a run on ``device``, which ``train.device`` = ``choice``
    gave, and does not keep it from beginning."""
    if device.type != "cuda":
        if choice == "auto" and Path(DRIVER).exists() and (reason := why_none()):
            logger.warning("train.device=auto takes the CPU: %s", reason.replace(ELSE, "", 1))
        return
    gpus, shown = torch.cuda.device_count(), os.environ.get(VISIBLE, "")
    if len([name for name in shown.split(",") if name.strip() not in ("", "-1")]) > gpus:
        logger.warning("%s=%s names a GPU that is not there; %d are seen", VISIBLE, shown, gpus)
    if held := held_by_others(device):
        total = torch.cuda.mem_get_info(device)[1]
        logger.warning(
            "GPU %d: other processes hold %.1f of its %.1f GiB; nvidia-smi lists them",
            *(device.index, held / 2**30, total / 2**30),
        )


def held_by_others(device: torch.device) -> int:
    """The bytes of the GPU ``device`` that other processes hold, or 0 where that is little."""
    free, total = torch.cuda.mem_get_info(device)
    held = total - free - torch.cuda.memory_reserved(device)
    return held if held > FILLED * total else 0


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _check_launcher() -> None:
    """Raise UserError where Triton cannot build what launches its kernels."""
    fault, compiler = launcher_fault(), os.environ.get("CC")
    if fault is None:
        return
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if isinstance(fault, OSError) and compiler:
        what = f"CC={shlex.quote(compiler)} cannot be run"
        remedy = "name a C compiler in CC, or: unset CC"
    elif "C compiler" in str(fault):
        what = "there is no C compiler, with which Triton builds what launches its kernels"
        remedy = "install one: apt-get install gcc"
    elif not headers.exists():
        what = f"Triton needs Python's headers to launch its kernels, and there is no {headers}"
        remedy = "install them: apt-get install python3-dev"
    else:
        what = f"Triton cannot build what launches its kernels ({first_line(fault)})"
        remedy = "see what the compiler says above"
    raise UserError(f"{what}; {ON_THE_CPU}, or {remedy}")
