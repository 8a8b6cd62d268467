"""Agreement with the official code itself: RESTE_OFFICIAL=/path/to/its/checkout pytest -k official.

Skipped without it. ``launch/bench/official.py`` stands in for it in every other test.
"""

import os
from pathlib import Path

import pytest
import torch

from launch.bench.official import load_official, set_official_o
from models import ARCHS, BITS, build_model
from tests.models.parity import compare, make_exact

CHECKOUT = os.environ.get("RESTE_OFFICIAL")
pytestmark = pytest.mark.skipif(not CHECKOUT, reason="needs RESTE_OFFICIAL, the official checkout")
FULL_PRECISION = "resnet20", "resnet18_cifar", "resnet18"  # the others fail
NETWORKS = [
    (arch, bits)
    for arch in ARCHS
    if not arch.endswith("_react")
    for bits in BITS
    if bits.startswith("1w") or (bits == "32w32a" and arch in FULL_PRECISION)
]


@pytest.mark.parametrize(("arch", "bits"), NETWORKS)
def test_equals_the_official_code(arch, bits):
    classes = 1000 if ARCHS[arch].dataset == "imagenet" else 10
    official = load_official(Path(CHECKOUT), arch, bits, classes).double()
    torch.manual_seed(0)
    ours = build_model(arch, bits, classes).double()
    make_exact(ours)
    ours.set_progress(0.7)
    o = ours.estimator_parameters()["o"]
    set_official_o(official, torch.tensor(o, dtype=torch.float64))
    size = ARCHS[arch].image_size  # its pooling window is fixed
    images = torch.randn(4, 3, size, size, dtype=torch.float64)
    errors = compare(ours, official, images, torch.arange(4))
    print(arch, bits, errors)
    assert max(errors.values()) < 1e-9, errors
