"""The configuration: what is refused, and that the README's table is the dataclasses'."""

import pytest

from kernels import ESTIMATORS
from models import build_model
from pipeline.run.config import flatten, load_config, make_config, table, to_dict
from pipeline.run.errors import UserError
from tests import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_loads_and_has_its_header(path):
    config = load_config(path)
    assert config.run.name == path.stem
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert "make" in header[0] or "./reste train" in header[0]


def test_published_recipes():
    names = {path.stem for path in CONFIGS}
    assert {"cifar10_resnet20_1w32a", "imagenet_resnet34_1w32a", "quickstart"} <= names
    r18 = load_config(ROOT / "configs/imagenet_resnet18.yaml")
    assert (r18.train.epochs, r18.data.batch_size, r18.optim.warmup_epochs) == (250, 750, 0)
    c18 = load_config(ROOT / "configs/cifar10_resnet18.yaml")
    assert (c18.train.epochs, c18.data.batch_size, c18.optim.warmup_epochs) == (2000, 96, 5)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.bist=1w1a", ["model.bist", "model.bits"]),
        ("modle.bits=1w1a", ["modle"]),
        ("model.bits=2w2a", ["model.bits", "1w32a"]),
        ("model.arch=foo", ["model.arch", "resnet20"]),
        ("estimator.name=foo", ["estimator.name", "reste"]),
        ("estimator.o_end=0.5", ["estimator.o_end", "1"]),
        ("estimator.o_end=nan", ["estimator.o_end"]),
        ("estimator.ede_t_min=0", ["estimator.ede_t_min", "10"]),
        ("estimator.swishsign_b=-5", ["estimator.swishsign_b"]),
        ("estimator.dsq_a=1", ["estimator.dsq_a"]),
        ("estimator.fda_w=0", ["estimator.fda_w"]),
        ("data.batch_size=0", ["data.batch_size"]),
        ("data.batch_size=abc", ["data.batch_size", "abc"]),
        ("data.batch_size=2.5", ["data.batch_size"]),
        ("train.epochs=[1", ["train.epochs"]),
        ("optim.warmup_epochs=1000", ["optim.warmup_epochs"]),
        ("run.name=a/b", ["run.name"]),
        ("foo", ["foo", "key=value"]),
        ("model=3", ["model"]),
    ],
)
def test_bad_values_name_their_key_in_one_line(override, words):
    with pytest.raises(UserError) as caught:
        make_config({}, [override], name="x")
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("text", ["model: [", "- a", "model: {arhc: resnet20}"])
def test_bad_files(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError):
        load_config(path)
    with pytest.raises(UserError, match="none.yaml"):
        load_config(tmp_path / "none.yaml")


def test_overrides_win_and_dicts_round_trip():
    config = make_config({"optim": {"lr": 0.5}}, ["optim.lr=0.25", "data.path=/a b/c"], name="x")
    assert config.optim.lr == 0.25
    assert config.data.path == "/a b/c"
    assert make_config(to_dict(config)) == config
    assert flatten(config)["run.name"] == "x"


@pytest.mark.parametrize("name", ESTIMATORS)
def test_options_reach_the_estimator(name):
    entry = ESTIMATORS[name]
    config = make_config({}, [f"estimator.name={name}"], name="x")
    assert config.estimator_options == entry.options
    for option, default in entry.options.items():
        changed = f"estimator.{option}={1.5 * default}"
        config = make_config({}, [f"estimator.name={name}", changed], name="x")
        model = build_model("resnet20", estimator=name, **config.estimator_options)
        model.set_progress(0.5)
        parameters = tuple(model.estimator_parameters().values())
        assert parameters == entry.schedule(0.5, **{option: 1.5 * default}) != entry.schedule(0.5)


def test_the_readme_holds_the_table():
    assert table() in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["sync_bn", "cuda_graph", "compile"])
@pytest.mark.parametrize("value", ["auto", "true", "false", "'true'"])
def test_booleans_are_words_where_a_choice_has_them(tmp_path, name, value):
    file = tmp_path / "file.yaml"
    file.write_text(f"train: {{{name}: {value}}}")
    for config in (load_config(file), load_config(CONFIGS[0], [f"train.{name}={value}"])):
        assert getattr(config.train, name) == value.strip("'")
