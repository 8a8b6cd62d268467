"""The versions of what a training stands on, which are not the same in every image."""

import functools
import platform
import re
from importlib.metadata import distributions

# What people call a package, and the names under which it is installed.
PACKAGES = {
    "torch": r"torch",
    "triton": r"(pytorch-)?triton",
    "DALI": r"nvidia-dali-cuda\d+",
    "apex": r"apex",
}


@functools.cache
def versions() -> str:
    """One line, such as "Python 3.12.3, torch 2.14.1, triton 3.8.0, DALI 2.4.0, no apex".

    Nothing is imported for it: it tells what is installed, not whether it works.
    """
    installed = {each.name or "": each for each in reversed([*distributions()])}
    words = [f"Python {platform.python_version()}"]
    for name, pattern in PACKAGES.items():
        found = [
            each for each in installed if re.fullmatch(pattern, each.lower().replace("_", "-"))
        ]
        words.append(f"{name} {installed[found[-1]].version}" if found else f"no {name}")
    return ", ".join(words)
