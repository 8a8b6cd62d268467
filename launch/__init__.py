"""The commands: each file is what a person starts."""

import ctypes
import os
import sys

# How long torch's threads spin before they sleep; GNU OpenMP reads it when torch is imported. Those
# that sleep at once wake too late for the next small operator. Those that spin for long keep a core
# from the thread that all wait for, where another program or the loader has the other cores.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if sys.platform == "linux":
    # The tensors of a step come and go. glibc would give the memory of large ones back each time,
    # and ask for new, zeroed pages. musl has no mallopt.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_MMAP_THRESHOLD, 2**30)
