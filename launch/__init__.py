"""What a person starts."""

import ctypes
import os
import sys

# How long torch's threads spin before they sleep, read by GNU OpenMP when torch is imported. Asleep
# at once they wake too late for the next small operator (a third slower); spinning for long, they
# take the cores from the loader's threads.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if sys.platform == "linux":
    # The tensors of a step come and go; glibc would give large ones back each time and ask for new,
    # zeroed pages. musl has no mallopt.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_MMAP_THRESHOLD, 2**30)
