"""configs/finetune.yaml: from a folder of classes to a trained network, as the lines say."""

import pytest
import torch
from torchvision.models import resnet18

from launch import train as train_command
from models import build_model
from pipeline.run.checkpoint import load
from pipeline.run.errors import UserError
from tests.data.fixtures import plain
from tests.test_remedies import obey

SMALL = ["data.size=32", "data.resize=36", "data.workers=0", "data.loader=torchvision",
         "train.epochs=1", "optim.warmup_epochs=0"]  # fmt: skip


def official():
    return {"model": "resnet18_1w1a", "state_dict": build_model("resnet18").state_dict()}


WEIGHTS = {"torchvision": lambda: resnet18().state_dict(), "official": official}


@pytest.fixture
def photos(tmp_path):
    """A folder of three classes with five images each, and nothing else."""
    for name in ("ant", "bee", "cow"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(5):
            plain(50 * number, 40, 48).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("origin", WEIGHTS)
def test_from_a_folder_to_a_trained_network(photos, tmp_path, origin, capsys):
    weights = tmp_path / "weights.pth"
    torch.save(WEIGHTS[origin](), weights)
    words = [
        "finetune",
        *SMALL,
        f"run.dir={tmp_path}/runs",
        f"model.weights={weights}",
    ]
    with pytest.raises(UserError, match="has no folder val/; .*; make such a tree: ") as caught:
        train_command.main([*words, f"data.path={photos}"])
    obey(str(caught.value))
    train_command.main([*words, f"data.path={photos}-split"])
    said = capsys.readouterr().err
    assert "data.batch_size: 64 -> 12, of 12 training images\n" in said
    assert f"started from {weights} with a new classifier: for other classes" in said
    state = load(tmp_path / "runs/finetune/checkpoints/best.pt")
    assert state["state_dict"]["fc.weight"].shape == (3, 512)
    assert state["classes"] == ("ant", "bee", "cow")
