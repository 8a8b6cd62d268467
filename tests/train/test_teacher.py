"""The network that a training learns from: found, and held against the classes of the data."""

import pytest
import torch
from torchvision import models

from launch import train as train_command
from models import build_model
from pipeline.run.config import load_config
from pipeline.run.errors import UserError
from pipeline.train import teacher as module
from pipeline.train.teacher import make_teacher, stand_in
from tests.train.test_trainer import lines
from tests.train.tiny import CONFIG

WNIDS = tuple(f"n{number:08}" for number in range(1000))
LETTERS = tuple("abcdefghij")
SMALL = "{data: {batch_size: 20, eval_batch_size: 12}, train: {epochs: 2}, log: {eta: 0}}"


def teacher_of(name, *words, classes=LETTERS):
    config = load_config(CONFIG, [f"distill.teacher={name}", "data.dataset=cifar10", *words])
    return make_teacher(config, classes)


def refused(*arguments, **options):
    with pytest.raises(UserError) as caught:
        teacher_of(*arguments, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.fixture
def squeezenet(tmp_path, monkeypatch):
    """A network of torchvision's with weights as from the net, and a file with them."""
    network = models.squeezenet1_1()

    def get_model(name, weights, **options):
        built = models.get_model_builder(name)(**options)
        if weights == "DEFAULT" and name == "squeezenet1_1":
            built.load_state_dict(network.state_dict())
        return built

    monkeypatch.setattr(module.torchvision, "get_model", get_model)
    torch.save(network.state_dict(), tmp_path / "squeezenet1_1-b8a52dc0.pth")
    return network


def says(network):
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    with torch.no_grad():
        return network.eval()(images)


def test_nobody():
    assert make_teacher(load_config(CONFIG), LETTERS) is None


def test_torchvisions_by_its_name(squeezenet, caplog):
    caplog.set_level("INFO", "reste")
    found = teacher_of("squeezenet1_1", classes=WNIDS)
    assert torch.equal(says(found), says(squeezenet)) and not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert caplog.messages == ["distill.teacher=squeezenet1_1: the training learns its outputs"]
    teacher_of("squeezenet1_1", classes=tuple(map(str, range(1000))))
    assert "squeezenet1_1 names no classes: its 1000 outputs are taken as 0, 1, 2" in caplog.text


def test_a_file_says_for_itself_what_to_set(squeezenet, tmp_path):
    """The remedy takes the network's name from that of torchvision's file."""
    file = tmp_path / "squeezenet1_1-b8a52dc0.pth"
    said = refused(file, classes=WNIDS)
    teacher, weights = said.rpartition("give both: ")[2].split()
    assert (
        teacher == "distill.teacher=squeezenet1_1" and weights == f"distill.teacher_weights={file}"
    )
    found = teacher_of(teacher.partition("=")[2], weights, classes=WNIDS)
    assert torch.equal(says(found), says(squeezenet))
    assert "is not of torchvision's alexnet; name its network" in refused("alexnet", weights)


def test_a_stand_in_costs_the_same_and_fetches_nothing(monkeypatch, tmp_path):
    """It has the teacher's parameters but for the classifier's, which has the outputs asked for."""
    file = tmp_path / "seven.pt"
    state = build_model("resnet20", "32w32a", num_classes=7).state_dict()
    torch.save({"model": "resnet20", "state_dict": state}, file)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    for name, expected in (
        ("squeezenet1_1", models.squeezenet1_1(num_classes=10)),
        (str(file), build_model("resnet20", "32w32a")),
    ):
        config = load_config(CONFIG, [f"distill.teacher={name}", "data.dataset=cifar10"])
        shapes = [each.shape for each in stand_in(config).parameters()]
        assert shapes == [each.shape for each in expected.parameters()]
        assert says(stand_in(config)).shape == (2, 10)
    config = load_config(CONFIG, ["distill.teacher=alexnet", "data.dataset=cifar10"])
    with pytest.raises(UserError, match="does not take images of 32 pixels"):
        stand_in(config)


def test_other_classes_are_one_line(squeezenet):
    said = refused("squeezenet1_1")
    assert "its network has 1000 classes, the data have 10 (a, b, c and 7 more); train one" in said


def test_what_cannot_be_fetched(monkeypatch):
    def get_model(name, weights):
        raise OSError("no route to host")

    monkeypatch.setattr(module.torchvision, "get_model", get_model)
    assert "cannot be fetched (no route to host); check the network" in refused("resnet34")


def test_images_that_the_network_does_not_take(squeezenet):
    said = refused("alexnet")
    assert "does not take images of 32 pixels (" in said and said.endswith("=resnet34")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet3", "'resnet3', which is neither a file nor a network of torchvision's; give"),
        (
            "bare.pt",
            "does not say of which network it is; .*=resnet34 distill.teacher_weights=.*bare.pt$",
        ),
        ("nan.pt", "nan.pt: linear.weight is not finite; take an earlier one"),
        ("seven.pt", "its network has 7 classes, the data have 10"),
    ],
)
def test_what_is_no_teacher(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    weights = build_model("resnet20").state_dict()
    torch.save(weights, "bare.pt")
    nan = {**weights, "linear.weight": weights["linear.weight"] * float("nan")}
    torch.save({"model": "resnet20_1w1a", "state_dict": nan}, "nan.pt")
    seven = build_model("resnet20", num_classes=7).state_dict()
    torch.save({"model": "resnet20_1w1a", "state_dict": seven}, "seven.pt")
    with pytest.raises(UserError, match=words):
        teacher_of(name)


def test_our_own_teaches_as_it_evaluates(cifar, tmp_path):
    """From two runs: the first one is the teacher of the second, and names its classes."""
    (tmp_path / "small.yaml").write_text(SMALL)
    words = [str(tmp_path / "small.yaml"), f"data.path={cifar}", f"run.dir={tmp_path}/runs"]
    train_command.main([*words, "run.name=first", "model.bits=32w32a"])
    file = tmp_path / "runs/first/checkpoints/best.pt"
    train_command.main([*words, "run.name=second", f"distill.teacher={file}"])
    assert lines(tmp_path / "runs/second")[-1]["train_loss"] > 0
    found = teacher_of(file, classes=("light", "dark"))  # in another order: matched by name
    torch.testing.assert_close(
        says(found).flip(1), says(teacher_of(file, classes=("dark", "light")))
    )
    assert "only the data have c); train one on these" in refused(file, classes=("light", "c"))
    with pytest.raises(UserError, match="distill.teacher: .* -> None.*go on in a new run: "):
        train_command.main([*words, "run.name=second", "train.epochs=3"])
