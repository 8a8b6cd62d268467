"""The memory that a training takes."""

import pytest
import torch

from models import build_model
from pipeline.run.config import load_config
from tests import ROOT
from tests.kernels.device import DEVICE
from tests.train.blank import BlankLoader
from tests.train.tiny import assemble, fit

GIB = 2**30
ROOM = 24  # GiB, as many cards have
STEPS = 6  # so many that a captured step is captured, and replayed


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", ["true", "false"])
def test_the_papers_batch_of_750_fits_into_24_gib(graphs, tmp_path):
    """ResNet-18 on ImageNet, with the room in which cuDNN works, and with an evaluation."""
    device = torch.device(DEVICE)
    if torch.cuda.get_device_properties(device).total_memory < ROOM * GIB:
        pytest.skip(f"this GPU has less than {ROOM} GiB")
    overrides = ["train.epochs=1", "train.precision=fp16", f"train.cuda_graph={graphs}"]
    config = load_config(ROOT / "configs/imagenet_resnet18.yaml", overrides)
    assert config.data.batch_size == 750
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    loader = BlankLoader(config, device, STEPS)
    model = build_model(*config.network)
    fit(assemble(config, model, (loader, loader), device, tmp_path), tmp_path)
    assert 5 * GIB < torch.cuda.max_memory_allocated() < ROOM * GIB
