"""A network that is added from outside, and what every network inherits."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kernels import ESTIMATORS
from models import ARCHS, Arch, BinaryNetwork, build_model, register
from models.layers import Binarize, BinaryConv2d, NormBinarize, binarization, conv3x3, global_pool


class Toy(BinaryNetwork):
    def __init__(self, arch, bits, num_classes, estimator, **options):
        super().__init__(arch, bits, estimator, **options)
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.bn0 = NormBinarize(8, binarization(bits, estimator))
        self.conv1 = conv3x3(8, 8, bits=bits, estimator=estimator)
        self.bn1 = NormBinarize(8, binarization(bits, estimator))
        self.conv2 = conv3x3(8, 8, bits=bits, estimator=estimator)
        self.bn2 = NormBinarize(8)
        self.fc = nn.Linear(8, num_classes)
        self.set_progress(0)

    def forward(self, images):
        x, xb = self.bn0(self.stem(images))
        x, xb = self.bn1(*self.conv1(xb), residual=x)
        x, _ = self.bn2(*self.conv2(xb), residual=x)
        return self.fc(global_pool(x))


@pytest.fixture
def toy():
    register(Arch("toy", Toy, 32, "cifar10"))
    yield
    del ARCHS["toy"]


def gradients(model, images, forward=None):
    model.zero_grad()
    (forward or model)(images).square().mean().backward()
    return [p.grad.clone() for p in model.parameters()]


def test_sizes_and_data_sets():
    assert {(arch.image_size, arch.dataset) for arch in ARCHS.values()} == {
        (32, "cifar10"),
        (224, "imagenet"),
    }
    assert all(name == arch.name for name, arch in ARCHS.items())


@pytest.mark.parametrize("bits", ["1w1a", "1w32a", "32w32a"])
def test_one_from_outside_trains(toy, bits):
    model = build_model("toy", bits, o_end=2.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = [p.clone() for p in model.parameters()]
    assert all(grad.isfinite().all() for grad in gradients(model, torch.randn(4, 3, 8, 8)))
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with pytest.raises(ValueError, match="'toy' exists"):
        register(Arch("toy", Toy, 32, "cifar10"))


def test_after_removal_it_is_unknown():
    with pytest.raises(ValueError, match="'toy' is unknown"):
        build_model("toy")


@pytest.mark.parametrize("by_stage", [False, True])
def test_a_copy_binarizes_its_own_weights(by_stage):
    torch.manual_seed(0)
    model = Toy("toy", "1w1a", 10, "reste")
    model.binarize_by_stage = by_stage
    images = torch.randn(4, 3, 8, 8)
    gradients(model, images)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.conv1.weight.neg_()
        expected = Toy("toy", "1w1a", 10, "reste")
        expected.load_state_dict(twin.state_dict())
    for ours, theirs in zip(gradients(twin, images), gradients(expected, images), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert model.conv1.binarized is None and model.conv1.weight.grad is not None
    assert not torch.equal(model.conv1.weight, twin.conv1.weight)


def test_a_forward_that_fails_leaves_no_old_weights_behind():
    model = Toy("toy", "1w1a", 10, "reste")
    model.binarize_by_stage = True
    images = torch.randn(2, 3, 8, 8)
    hook = model.bn0.register_forward_hook(lambda *_: 1 / 0)
    model.conv1.binarized = model.conv1.weight.detach(), torch.tensor(1.0)  # of a broken stage
    with pytest.raises(ZeroDivisionError):
        model(images)
    hook.remove()
    found = gradients(model, images)
    model.binarize_by_stage = False
    for ours, theirs in zip(found, gradients(model, images), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.fixture
def one_process(tmp_path):
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("by_stage", [False, True])
def test_distributed_data_parallel_calls_it_too(one_process, by_stage):
    torch.manual_seed(0)
    model = Toy("toy", "1w1a", 10, "reste")
    images = torch.randn(4, 3, 8, 8)
    expected = gradients(model, images)
    model.binarize_by_stage = by_stage
    parallel = DistributedDataParallel(model)
    for ours, theirs in zip(gradients(model, images, parallel), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_layers_work_outside_of_a_network(estimator):
    """Before any schedule is set, they begin as a training does: no gradient is NaN."""
    torch.manual_seed(0)
    conv, norm = BinaryConv2d(4, 4, estimator=estimator), NormBinarize(4, Binarize(estimator))
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    y, yb = norm(*conv(x))
    (y + yb).square().sum().backward()
    gradients = [x.grad, conv.weight.grad, norm.weight.grad]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert conv.weight.grad.abs().sum() > 0
