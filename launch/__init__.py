"""What a person starts."""

import ctypes
import os
import sys

# Loader threads share the cores with torch's, which by default spin while they wait. Read by OpenMP
# when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if sys.platform == "linux":
    # The tensors of a step come and go; glibc would give large ones back each time and ask for new,
    # zeroed pages. musl has no mallopt.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_MMAP_THRESHOLD, 2**30)
