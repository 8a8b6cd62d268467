"""The weights in checkpoints of other people: what is plainly meant is read, and it is said."""

import collections
import json
import re

import numpy as np
import pytest
import safetensors.torch
import torch

from launch import evaluate as evaluate_command
from models import build_model
from pipeline.run.checkpoint import FORMAT, load
from pipeline.run.config import load_config
from pipeline.run.console import logger
from pipeline.run.errors import Diverged, UserError
from pipeline.run.weights import classes_of, identify, network_weights
from pipeline.train.network import load_weights, make_network
from pipeline.train.scoring import values_of
from tests import ROOT
from tests.data.fixtures import cifar_tree


@pytest.fixture(autouse=True)
def _console(monkeypatch, caplog):
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level("INFO", "reste")


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def same(a, b):
    b = dict(b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def official(arch, name, prefix=""):
    model = build_model(arch)
    weights = {prefix + key: value for key, value in model.state_dict().items()}
    return model, {"epoch": 3, "model": name, "state_dict": weights, "best_prec1": 50.0,
                   "parameters": list(model.parameters())}  # fmt: skip


@pytest.mark.parametrize("is_new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("arch", "name", "bits"),
    [
        ("resnet20", "resnet20_1w1a", "1w1a"),
        ("resnet20_bireal", "resnet20_bireal_1w1a", "1w1a"),
        ("resnet18_cifar", "resnet18_1w1a", "1w1a"),
        ("resnet18", "resnet18_1w1a", "1w1a"),
        ("vgg_small", "vgg_small", "32w32a"),
        ("resnet20_bireal", "resnet20_bireal_32w1a", "32w1a"),
    ],
)
def test_official_checkpoints(tmp_path, arch, name, bits, prefix, is_new):
    model, content = official(arch, name, prefix)
    path = tmp_path / "checkpoint.pth.tar"
    loaded = load(saved(path, content, _use_new_zipfile_serialization=is_new))
    assert identify(loaded) == (arch, bits)
    other = build_model(arch)
    assert load_weights(other, loaded, path) == []
    assert same(model.state_dict(), other.state_dict())


def renamed(weights, change):
    return {change(key): value for key, value in weights.items()}


FOREIGN = {
    "bare": dict,
    "model": lambda w: {"model": w, "epoch": 3},
    "model_state_dict": lambda w: {"epoch": 3, "model_state_dict": w},
    "state_dict": lambda w: {"state_dict": w},
    "net": lambda w: {"net": w, "acc": 91.2},
    "network": lambda w: {"network": w},
    "ema": lambda w: {"model": {k: torch.zeros_like(v) for k, v in w.items()}, "ema": w},
    "ema in an object": lambda w: {"ema": {"module": w, "decay": 0.999}},
    "nested": lambda w: {"model": {"state_dict": w}},
    "ordered": lambda w: {"state_dict": collections.OrderedDict(w)},
    "beside a name": lambda w: {"model": "mine", "net": w},
    "DataParallel": lambda w: renamed(w, "module.{}".format),
    "torch.compile": lambda w: renamed(w, "_orig_mod.{}".format),
    "DDP of compiled": lambda w: {"model": renamed(w, "module._orig_mod.{}".format)},
    "compiled DDP": lambda w: renamed(w, "_orig_mod.module.{}".format),
    "twice": lambda w: renamed(w, "module.module.{}".format),
    "compiled stages": lambda w: renamed(w, lambda k: k.replace("layer1.", "layer1._orig_mod.")),
    "wrapped blocks": lambda w: renamed(w, lambda k: k.replace("layer2.0.", "layer2.0.module.")),
    "lightning": lambda w: {"state_dict": renamed(w, "model.{}".format), "global_step": 7},
    "lightning, wrapped": lambda w: {"state_dict": renamed(w, "model._orig_mod.{}".format)},
    "averaged": lambda w: {"n_averaged": torch.tensor(5), **renamed(w, "module.{}".format)},
    "without counts": lambda w: {k: v for k, v in w.items() if "num_batches" not in k},
    "NumPy in its metadata": lambda w: {"model": w, "best": np.float64(91.5), "at": np.int64(3)},
    "double precision": lambda w: {k: v.double() if v.is_floating_point() else v
                                   for k, v in w.items()},
    "parameters": lambda w: {k: torch.nn.Parameter(v, requires_grad=v.is_floating_point())
                             for k, v in w.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_plainly_meant_is_read_and_said(tmp_path, caplog, name):
    model, other = build_model("resnet20"), build_model("resnet20")
    path = saved(tmp_path / "foreign.pt", FOREIGN[name](model.state_dict()))
    state = load(path)
    assert load_weights(other, state, path) == []
    assert same(model.state_dict(), other.state_dict())
    assert classes_of(state) == 10
    (line,) = caplog.messages
    assert "foreign.pt: took the weights " in line and line.isprintable() and len(line) < 400


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("DDP of compiled", "took the weights under 'model', by their names without what wraps"),
        ("model", "took the weights under 'model'; left out: 'epoch'"),
        ("ema", "took the weights under 'ema'; left out: 'model'"),
        ("averaged", "took the weights that it holds, by their names .*; left out: 'n_averaged'"),
    ],
)
def test_what_was_taken(tmp_path, caplog, name, words):
    model = build_model("resnet20")
    path = saved(tmp_path / "foreign.pt", FOREIGN[name](model.state_dict()))
    load_weights(model, load(path), path)
    assert re.search(words, caplog.text)


def test_names_that_would_become_one_stay_as_they_are():
    state = {"conv.weight": torch.ones(1), "module.conv.weight": torch.zeros(1)}
    assert network_weights(state).keys() == state.keys()


def test_names_in_our_own_checkpoints_are_never_changed(caplog):
    """A network of one's own may well have a layer called module."""
    state = {"format": FORMAT, "state_dict": {"module.weight": torch.ones(1)}, "ema": None}
    assert network_weights(state) == state["state_dict"]
    averaged = {**state, "ema": {"module.weight": torch.zeros(1)}}
    assert network_weights(averaged) == averaged["ema"]
    reestimated = {**averaged, "reestimated": {"module.running_mean": torch.ones(1)}}
    assert network_weights(reestimated) == averaged["ema"] | reestimated["reestimated"]


def test_safetensors(tmp_path, caplog):
    model, other = build_model("resnet20"), build_model("resnet20")
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({f"module.{k}": v for k, v in model.state_dict().items()}, path)
    assert load_weights(other, load(path), path) == []
    assert same(model.state_dict(), other.state_dict())
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"x", whole[:9] + b"?" + whole[10:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="no checkpoint, or a damaged one"):
            load(path)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int64, torch.uint8, torch.bool, torch.int16, torch.int32]
)
def test_other_kinds_of_numbers_are_refused_not_cast(tmp_path, dtype):
    model = build_model("resnet20")
    weights = model.state_dict() | {"conv1.weight": torch.ones(16, 3, 3, 3).to(dtype)}
    path = saved(tmp_path / "c.pt", weights)
    for tuning in (False, True):
        with pytest.raises(UserError, match=f"conv1.weight is of {dtype}, not of floating-point"):
            load_weights(model, load(path), path, tuning=tuning)


def test_a_count_that_is_none_is_refused(tmp_path):
    model = build_model("resnet20")
    weights = model.state_dict() | {"bn1.num_batches_tracked": torch.tensor(1.5)}
    with pytest.raises(UserError, match="bn1.num_batches_tracked is of torch.float32, not of"):
        load_weights(model, {"state_dict": weights}, tmp_path / "c.pt")


def test_fine_tuning_and_wrong_networks(tmp_path):
    _, content = official("resnet20", "resnet20_1w1a")
    path = tmp_path / "c.pt"
    other = build_model("resnet20", num_classes=7)
    with pytest.raises(UserError, match="num_classes"):
        load_weights(other, content, path)
    assert load_weights(other, content, path, tuning=True) == ["linear.weight", "linear.bias"]
    assert torch.equal(other.conv1.weight, content["state_dict"]["conv1.weight"])
    for arch in ("vgg_small", "resnet18", "resnet18_cifar"):
        with pytest.raises(UserError, match=arch):
            load_weights(build_model(arch), content, path, tuning=True)


@pytest.mark.parametrize(("file", "network"), [("resnet18", "resnet34"), ("resnet34", "resnet18")])
def test_a_part_of_another_network_is_not_taken(tmp_path, file, network):
    content = {"state_dict": build_model(file).state_dict()}
    with pytest.raises(UserError, match=f"is not of a {network} 1w1a"):
        load_weights(build_model(network), content, tmp_path / "c.pt", tuning=True)


@pytest.fixture
def float_resnet18(tmp_path):
    """torchvision's: our names and shapes, without the batch norm before the classifier."""
    models = pytest.importorskip("torchvision.models")
    return saved(tmp_path / "resnet18-f37072fd.pth", models.resnet18().state_dict())


def test_torchvisions_resnet18_computes_something_else(float_resnet18):
    model = build_model("resnet18", "32w32a", 1000)
    words = "lacks bn2.bias and 3 more of a resnet18 32w32a, .*; train from it: model.weights="
    with pytest.raises(UserError, match=words):
        load_weights(model, load(float_resnet18), float_resnet18)
    arguments = [str(float_resnet18), "model.arch=resnet18", "model.bits=32w32a"]
    with pytest.raises(UserError, match="train from it"):
        evaluate_command.main([*arguments, "train.device=cpu"])


@pytest.mark.parametrize("classes", [10, 1000])
def test_torchvisions_resnet18_to_start_from(float_resnet18, caplog, classes):
    overrides = [f"model.num_classes={classes}", f"model.weights={float_resnet18}"]
    model = make_network(load_config(ROOT / "configs/imagenet_resnet18.yaml", overrides))
    taken, own = load(float_resnet18), model.state_dict()
    fresh = {key for key in own if key not in taken or own[key].shape != taken[key].shape}
    assert all(torch.equal(own[key], taken[key]) for key in own if key not in fresh)
    head = {f"bn2.{part}" for part in ("weight", "bias", "running_mean", "running_var")}
    assert fresh - {"bn2.num_batches_tracked"} == head | (
        {"fc.weight", "fc.bias"} if classes == 10 else set()
    )
    assert "took the weights that it holds" in caplog.text
    assert f"started from {float_resnet18}" in caplog.text
    assert "; new too: bn2.weight, bn2.bias" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["layer1.0.conv1.weight", "bn1.running_var", "linear.bias"])
def test_weights_that_are_not_finite(tmp_path, key, value):
    model = build_model("resnet20", num_classes=2)
    model.state_dict()[key].view(-1)[-1] = value
    path = saved(tmp_path / "c.pt", {"state_dict": model.state_dict(), "model": "resnet20_1w1a"})
    with pytest.raises(Diverged, match=f"c.pt: {key} is not finite; "):
        evaluate_command.main([str(path), "train.device=cpu"])
    overrides = ["model.num_classes=2", f"model.weights={path}"]
    with pytest.raises(UserError, match=rf"model.weights=.*: {key} is not finite; "):
        make_network(load_config(ROOT / "configs/cifar10_resnet20.yaml", overrides))


def test_too_large_for_our_numbers(tmp_path):
    """A weight of 1e300 is finite in its file and infinite in fp32."""
    model = build_model("resnet20")
    weights = model.state_dict() | {"linear.bias": torch.full((10,), 1e300, dtype=torch.float64)}
    path = saved(tmp_path / "c.pt", {"state_dict": weights, "model": "resnet20_1w1a"})
    with pytest.raises(Diverged, match="linear.bias is not finite"):
        evaluate_command.main([str(path), "train.device=cpu"])


@pytest.mark.parametrize("is_bad", [False, True])
def test_the_json_of_an_evaluation_stays_json(tmp_path, capsys, is_bad):
    """A negative variance is finite, and what it makes of an image is not."""
    model = build_model("resnet20", num_classes=2)
    if is_bad:
        model.bn1.running_var.fill_(-1)
    path = saved(tmp_path / "c.pt", {"state_dict": model.state_dict(), "model": "resnet20_1w1a"})
    data = cifar_tree(tmp_path / "data")
    arguments = [str(path), f"data.path={data}", "train.device=cpu"]
    if is_bad:
        with pytest.raises(Diverged, match="c.pt: loss is not finite; "):
            evaluate_command.main(arguments)
    else:
        evaluate_command.main(arguments)
    last = capsys.readouterr().out.splitlines()[-1]
    result = json.loads(last, parse_constant=pytest.fail)
    assert (result["loss"] is None) == is_bad and {"top1", "top5", "images"} < result.keys()


def test_the_number_of_classes_comes_from_the_weights(tmp_path):
    weights = build_model("resnet20", num_classes=7).state_dict()
    config = {"model": {"arch": "resnet20", "num_classes": 10**9}}
    state = {"format": FORMAT - 1, "state_dict": weights, "config": config}
    assert values_of(state)["model"] == {"arch": "resnet20", "num_classes": 7}
    assert values_of(weights) == {"model": {"num_classes": 7}}
    assert values_of({"state_dict": {"fc.weight": torch.tensor(1.0)}}) == {"model": {}}


@pytest.mark.parametrize("classes", [10**9, 8])
def test_a_classifier_that_the_file_does_not_hold(tmp_path, classes):
    """It is refused before a network of its size is built."""
    weights = build_model("resnet20", num_classes=7).state_dict()
    path = saved(tmp_path / "c.pt", {"state_dict": weights, "model": "resnet20_1w1a"})
    with pytest.raises(UserError, match=f"no classifier of {classes} classes; .*num_classes=7"):
        evaluate_command.main([str(path), f"model.num_classes={classes}", "train.device=cpu"])
    unnamed = {key.replace("linear", "head"): value for key, value in weights.items()}
    config = {"model": {"num_classes": classes}, "train": {"device": "cpu"}}
    torch.save({"format": FORMAT - 1, "state_dict": unnamed, "config": config}, path)
    with pytest.raises(UserError, match=f"no classifier of {classes} classes; take another"):
        evaluate_command.main([str(path)])


@pytest.mark.parametrize("name", ["", "resnet20_1w", "resnet20_1wx", "x" * 1000, "resnet18_\n", 3])
def test_names_of_networks_are_not_believed(tmp_path, name):
    path = saved(tmp_path / "c.pt", {"state_dict": {"w": torch.ones(10)}, "model": name})
    with pytest.raises(UserError) as caught:
        evaluate_command.main([str(path), "train.device=cpu"])
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300
