"""What every test needs before the first kernel is imported."""

import os

# Threads of OpenMP that wait for each other must not spin: on a machine that has other work, too,
# a spinning thread takes the core that the awaited one needs, and tests took up to 40 times as
# long. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import pytest
import torch
from hypothesis import settings

# device_count asks NVML: unlike is_available, it leaves CUDA uninitialised.
GPU = torch.cuda.device_count() > 0
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated

torch.set_num_threads(min(4, torch.get_num_threads()))  # more of them only wait: tensors are small
settings.register_profile("house", deadline=None)  # a first call compiles
settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
