"""A checkpoint to export: that of a training which has seen a few images."""

from launch import train
from tests.data.fixtures import cifar_tree


def trained(folder):
    """The best checkpoint of a training in ``folder`` on images of two classes, dark and light,
    which lie in ``folder``/data."""
    cifar_tree(folder / "data")
    (folder / "tiny.yaml").write_text(
        "{data: {batch_size: 20, eval_batch_size: 12}, train: {epochs: 2}, log: {eta: 0}}"
    )
    words = [f"data.path={folder}/data", f"run.dir={folder}/runs"]
    train.main([str(folder / "tiny.yaml"), *words])
    return folder / "runs/tiny/checkpoints/best.pt"
