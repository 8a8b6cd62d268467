"""The configuration: what is taken, what is refused and how, and that docs/config.md is true."""

import pickle
import re

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import ESTIMATORS
from kernels.estimators import Option
from models import build_model
from pipeline.run.commands import shipped_configs
from pipeline.run.config import Config, flatten, keys, load_config, make_config, to_dict
from pipeline.run.config_keys import nearest, reference
from pipeline.run.errors import UserError
from pipeline.run.plain_yaml import Written
from tests import ROOT

CONFIGS = [*shipped_configs().values()]
INT64 = 2**63 - 1
SUCH_AS = "such as run.name=new"
A_NAME = f"it must be the plain name of a folder in run.dir, {SUCH_AS}"
BELOW = "it must be below train.epochs (1000)"


def refused(*overrides, values=()):
    """The one line that refuses a config."""
    with pytest.raises(UserError) as caught:
        make_config({} if values == () else values, overrides, name="x")
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.isprintable() and len(message) < 1500
    return message


def taken(override):
    key = override.partition("=")[0]
    return flatten(make_config({}, [override], name="x"))[key]


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
    "text", ["010", "1e5", "2024_11_25", "no", "a #2", "~", "true", "a=b", "é"]
)
def test_text_stands_as_it_is_written(text):
    assert taken(f"run.name={text}") == text
    assert taken(f"log.project={text}") == text


@pytest.mark.parametrize(
    "key", ["data.path", "data.exclude", "model.weights", "run.dir", "run.resume"]
)
def test_paths_stand_as_they_are_written_but_for_the_home(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for text in ("010", "a b/c #2", "/1e5", "\udcff", "a~"):
        assert taken(f"{key}={text}") == text
    assert taken(f"{key}=~/x") == "/home/me/x"
    assert taken(f"{key}=~") == "/home/me"


@pytest.mark.parametrize("key", ["data.path", "data.exclude", "model.weights"])
def test_null_unsets(key):
    section, name = key.split(".")
    config = make_config({section: {name: "x"}}, [f"{key}=null"], name="x")
    assert flatten(config)[key] is None
    assert make_config({"run": {"name": "y"}}, ["run.name=null"], name="x").run.name == "x"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.epochs=5", 5),
        ("train.epochs=+5", 5),
        (f"train.epochs={INT64}", INT64),
        ("data.workers=0", 0),
        ("optim.lr=0.1", 0.1),
        ("optim.lr=1e-3", 0.001),
        ("optim.lr=1E+1", 10.0),
        ("optim.lr=.5", 0.5),
        ("optim.lr=5.", 5.0),
        ("optim.lr=5", 5.0),
        ("estimator.o_end=2", 2.0),
        ("data.download=true", True),
        ("data.download=YES", True),
        ("data.download=on", True),
        ("data.augment=False", False),
        ("data.augment=no", False),
        ("data.augment=off", False),
        ("train.cuda_graph=True", "true"),
        ("train.sync_bn=auto", "auto"),
    ],
)
def test_numbers_booleans_and_words_are_taken_by_the_type_of_their_key(override, value):
    assert taken(override) == value and type(taken(override)) is type(value)


@pytest.mark.parametrize(
    "text",
    ["1:30", "1e400", "2**63", "???", "nan", "inf", "-inf", "0x10", "1_000", "", " 1", "1 ", "१२",
     "１２", "null", "abc", "1,5", "[1]", "1" * 5000, "1e" + "9" * 5000],
)  # fmt: skip
@pytest.mark.parametrize("key", ["optim.lr", "estimator.o_end", "train.epochs", "data.workers"])
def test_what_is_no_plain_number_is_refused(key, text):
    message = refused(f"{key}={text}")
    assert message.startswith(f"{key} is ") and f"; it must be {keys()[key].must}" in message
    assert text[:20] in message


@pytest.mark.parametrize("text", ["9223372036854775808", "-9223372036854775809", "9" * 100])
def test_integers_beyond_64_bits_are_refused(text):
    line = f"train.epochs is {text}; it must be an integer of at least 1, within 64 bits"
    assert refused(f"train.epochs={text}") == line.replace("9" * 100, "a huge integer")


@pytest.mark.parametrize(
    ("override", "rest"),
    [
        ("train.epochs=1e3", "'1e3'; it must be an integer of at least 1, in plain digits"),
        ("train.epochs=010", "'010'; it must be an integer of at least 1, in plain digits"),
        ("data.batch_size=0", "0; it must be an integer of at least 1"),
        ("data.batch_size=2.5", "'2.5'; it must be an integer of at least 1, in plain digits"),
        ("data.workers=1025", "1025; it must be an integer between 0 and 1024"),
        ("seed=4294967296", "4294967296; it must be an integer between 0 and 4294967295"),
        ("train.ema_decay=1", "1.0; it must be a number between 0 and 0.999999999"),
        ("optim.lr=1:30", "'1:30'; it must be a number between 0 and 1000000, as a plain decimal"),
        ("data.min_area=", "''; it must be a number between 1e-06 and 1, as a plain decimal"),
        ("estimator.o_end=0.5", "0.5; it must be a number between 1 and 1000000"),
        ("estimator.ede_t_min=0", "0.0; it must be a number between 1e-06 and 10"),
        ("estimator.swishsign_b=-5", "-5.0; it must be a number between 1e-06 and 1000000"),
        ("estimator.dsq_a=1", "1.0; it must be a number between 1e-06 and 0.999999"),
        ("data.download=maybe", "'maybe'; it must be true or false"),
        ("data.download=1", "'1'; it must be true or false"),
        (
            "model.bits=1w2a",
            "'1w2a'; choose one of 1w1a, 1w32a, 32w1a, 32w32a; did you mean 1w32a?",
        ),
        ("train.device=CUDA", "'CUDA'; choose one of auto, cpu, cuda; did you mean cuda?"),
        ("log.wandb=null", "null; it must be one of disabled, offline, online"),
        ("log.project=null", "null; it must be text of one line"),
        ("data.path=", "''; it must be a path, or null"),
        ("data.path=a\nb", "'a\\nb'; it must be a path, or null, without control characters"),
        ("data.path=${oc.env:X}", "'${oc.env:X}'; write it out, ${...} is not filled in"),
        ("optim.lr=${x}", "'${x}'; write it out, ${...} is not filled in"),
        (
            "run.name=a/b",
            "'a/b'; it must be the plain name of a folder in run.dir, such as run.name=new",
        ),
        (
            "run.name=..",
            "'..'; it must be the plain name of a folder in run.dir, such as run.name=new",
        ),
        (
            "run.name=" + "ö" * 128,
            "longer than 255 bytes; give a shorter name, such as run.name=new",
        ),
        (
            "optim.milestones=60,30",
            "'60,30'; it must be rising epochs such as 60,120, or null",
        ),
        ("optim.milestones=1,,2", "'1,,2'; it must be rising epochs such as 60,120, or null"),
        (
            "optim.schedule=step",
            "step, but optim.milestones is null; name the epochs at which the rate falls, such as "
            "optim.milestones=500",
        ),
        (
            "optim.warmup_epochs=1000",
            "1000; it must be below train.epochs (1000), such as optim.warmup_epochs=999",
        ),
        ("data.resize=100", "100; it must be at least data.size (224), such as data.resize=224"),
        ("model=3", "a section, no config key; did you mean model.arch?"),
        ("estimator=ste", "a section, no config key; did you mean estimator.name?"),
        ("foo=1", "no config key; docs/config.md lists all keys"),
        ("seed.x=1", "no config key; docs/config.md lists all keys"),
    ],
)
def test_a_mistake_is_one_line_with_the_key_and_the_remedy(override, rest):
    assert refused(override) == f"{override.partition('=')[0]} is {rest}"


@pytest.mark.parametrize(
    ("override", "what", "example"),
    [
        ("foo", "has no '='", "optim.lr=VALUE"),
        ("", "has no '='", "optim.lr=VALUE"),
        ("train.epochs", "has no '='", "train.epochs=VALUE"),
        ("a32", "has no '='", "model.bits=VALUE"),
        ("--optim.lr=0.1", "begins with a dash", "optim.lr=0.1"),
        ("--lr", "begins with a dash", "optim.lr=VALUE"),
        ("-b=64", "begins with a dash", "data.batch_size=64"),
        ("--seed=1\n", "begins with a dash", "seed=VALUE"),
    ],
)
def test_what_is_no_override_is_told_how_to_write_one(override, what, example):
    assert refused(override) == f"override {override!r} {what}; write key=value, such as {example}"


def test_names_are_held_against_the_registries():
    line = refused("model.arch=resnet21")
    assert line.startswith("model.arch is 'resnet21'; choose one of ")
    assert line.endswith("; did you mean resnet20?")
    line = refused("estimator.name=rest")
    assert line.startswith("estimator.name is 'rest'; choose one of ")
    assert line.endswith("; did you mean reste?")


def test_several_mistakes_are_told_at_once():
    assert refused("optim.learning_rate=1", "data.batch_size=0", "estimator.dsq_a=2") == (
        "optim.learning_rate is no config key; did you mean optim.lr?; also "
        "estimator.dsq_a is 2.0; it must be a number between 1e-06 and 0.999999; also "
        "data.batch_size is 0; it must be an integer of at least 1"
    )
    assert refused(*(f"x{n}=1" for n in range(9))).endswith("lists all keys; and more")


@pytest.mark.parametrize(
    ("word", "key"),
    [
        line.split()
        for line in """
        optim.learning_rate optim.lr
        train.lr            optim.lr
        --lr                optim.lr
        batch_size          data.batch_size
        b                   data.batch_size
        -bt                 data.eval_batch_size
        data.val_batch_size data.eval_batch_size
        data.num_classes    model.num_classes
        train.classes       model.num_classes
        optim.wd            optim.weight_decay
        train.weight_decay  optim.weight_decay
        optim.l2            optim.weight_decay
        optim.optimizer     optim.name
        optim.betas         optim.beta1
        bn_reestimation     train.reestimate_bn
        optim.scheduler     optim.schedule
        lr_steps            optim.milestones
        warm_up             optim.warmup_epochs
        train.amp           train.precision
        train.dtype         train.precision
        fp16                train.precision
        train.smoothing     train.label_smoothing
        train.ema           train.ema_decay
        train.max_epochs    train.epochs
        epochs              train.epochs
        gpus                train.device
        train.cuda_graphs   train.cuda_graph
        wandb               log.wandb
        log.wandb_project   log.project
        print_freq          log.every
        time_estimate       log.eta
        cal_ind             indicators.enabled
        a32                 model.bits
        model.bist          model.bits
        modle.bits          model.bits
        model.name          model.arch
        pretrained          model.weights
        o_end               estimator.o_end
        estimator.oend      estimator.o_end
        dataset             data.dataset
        data_path           data.path
        data.root           data.path
        data.num_workers    data.workers
        data.image_size     data.size
        data.augmentation   data.augment
        results_dir         run.dir
        save                run.name
        resume              run.resume
        checkpoint.interval checkpoint.every_epochs
        random_seed         seed
        train.seed          seed
        train.deterministic deterministic
        """.strip().splitlines()
    ],
)
def test_the_nearest_key_is_the_one_that_is_meant(word, key):
    assert nearest(word, keys().values()) == key


@pytest.mark.parametrize("word", ["foo", "zzz.qqq", "a", "", "optim.nesterov", "x" * 10**6, "\0"])
def test_no_key_is_suggested_for_what_means_none(word):
    assert nearest(word, keys().values()) is None


def lists(depth, width):
    inner = []
    for _ in range(depth):
        inner = [inner] * width
    return inner


CIRCLE = {}
CIRCLE["run"] = CIRCLE


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (3, "the config is 3; it must hold"),
        (None, "the config is null; it must hold"),
        ([], "the config is a list; it must hold"),
        ({"run": 3}, "run is 3, but it is a section; write run: {key: value}"),
        ({"estimator": "ste"}, "estimator is 'ste', but it is a section"),
        ({"optim": lists(100_000, 1)}, "optim is a list, but"),
        ({"run": {"name": lists(100, 2)}}, "run.name is a list; it must be text"),
        ({"estimator": {"o_end": lists(100, 2)}}, "estimator.o_end is a list; it must be a number"),
        (CIRCLE, "run.run is no config key"),
        ({"seed": {"a": 1}}, "seed is a mapping; it must be an integer"),
        ({1: 2}, "1 is no config key"),
        ({None: 2}, "None is no config key"),
        ({"optim": {(1, 2): 3}}, "optim.(1, 2) is no config key"),
        ({"estimator": {1: 2}}, "estimator.1 is no config key"),
        ({"x" * 10**7: 1}, "x... is no config key"),
        ({str(n): n for n in range(10**5)}, "more than 1000 keys"),
        ({"optim": {str(n): n for n in range(10**5)}}, "more than 1000 keys"),
        ({"optim.lr": 1}, "optim.lr is no config key at this place; write optim: {lr: value}"),
        ({"run": {"name": "a" * 10**7}}, "at most 4096 characters long"),
        ({"run": {"name": 1}}, "run.name is 1; it must be text"),
        ({"run": {"name": b"x"}}, "run.name is no plain value; it must be text"),
        ({"data": {"path": "\ud800"}}, "without lone surrogates"),
        ({"data": {"path": "a\0"}}, "without control characters"),
        ({"data": {"path": "${x}"}}, "write it out"),
        ({"data": {"augment": 1}}, "data.augment is 1; it must be true or false"),
        ({"data": {"augment": "true"}}, "it must be true or false, without quotes"),
        ({"train": {"epochs": True}}, "train.epochs is true; it must be an integer"),
        ({"train": {"epochs": 2.0}}, "train.epochs is 2.0; it must be an integer"),
        ({"train": {"epochs": "2"}}, "train.epochs is '2'; it must be an integer of at least 1, w"),
        ({"train": {"epochs": 2**63}}, "within 64 bits"),
        ({"train": {"epochs": 10**5000}}, "train.epochs is a huge integer"),
        ({"train": {"device": 1}}, "train.device is 1; it must be one of"),
        ({"optim": {"lr": True}}, "optim.lr is true; it must be a number"),
        ({"optim": {"lr": "0.1"}}, "optim.lr is '0.1'; it must be a number"),
        ({"optim": {"lr": "9" * 10**7}}, "optim.lr is '999"),
        ({"optim": {"lr": float("nan")}}, "optim.lr is nan"),
        ({"optim": {"lr": float("inf")}}, "optim.lr is inf"),
        ({"optim": {"lr": 10**400}}, "optim.lr is a huge integer"),
        ({"optim": {"lr": torch.ones(3)}}, "optim.lr is no plain value"),
        ({"estimator": {"o_end": float("nan")}}, "estimator.o_end is nan"),
        ({"estimator": {"o_end": True}}, "estimator.o_end is true"),
        ({"estimator": {"o_end": "3"}}, "estimator.o_end is '3'; it must be a number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_of_a_checkpoint_are_held_to_their_types(values, words):
    assert words in refused(values=values)


def test_typed_values_and_empty_sections_are_taken():
    config = make_config({"optim": {"lr": 1}, "train": None, "estimator": {"o_end": 2}}, name="x")
    assert config.optim.lr == 1.0 and type(config.optim.lr) is float
    assert type(config.estimator.o_end) is float
    assert make_config({"train": {"sync_bn": True}}, name="x").train.sync_bn == "true"


def test_overrides_win_and_dicts_round_trip():
    config = make_config({"optim": {"lr": 0.5}}, ["optim.lr=0.25", "data.path=/a b/c"], name="x")
    assert config.optim.lr == 0.25
    assert config.data.path == "/a b/c"
    assert make_config(to_dict(config)) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert flatten(config)["run.name"] == "x"


def test_a_config_is_changed_by_another_one():
    config = make_config({}, name="x")
    changed = config.changed({"data.batch_size": 8, "seed": 3, "estimator.o_end": 2.0})
    assert (changed.data.batch_size, changed.seed, changed.estimator.o_end) == (8, 3, 2.0)
    assert config.data.batch_size == 256
    with pytest.raises(UserError, match="data.batch_size is 0"):
        config.changed({"data.batch_size": 0})
    with pytest.raises(ValueError, match="frozen"):
        config.optim.lr = 0.5


@pytest.mark.parametrize("name", ESTIMATORS)
def test_options_reach_the_estimator(name):
    entry = ESTIMATORS[name]
    config = make_config({}, [f"estimator.name={name}"], name="x")
    assert config.estimator_options == {key: each.default for key, each in entry.options.items()}
    for key, each in entry.options.items():
        value = 1.5 * each.default
        overrides = [f"estimator.name={name}", f"estimator.{key}={value}"]
        config = make_config({}, overrides, name="x")
        model = build_model("resnet20", estimator=name, **config.estimator_options)
        model.set_progress(0.5)
        parameters = tuple(model.estimator_parameters().values())
        assert parameters == entry.schedule(0.5, **{key: value}) != entry.schedule(0.5)


def test_an_estimator_from_outside_brings_its_options(monkeypatch):
    assert "did you mean" not in refused("estimator.toy_slope=3")
    options = {"toy_slope": Option(2.0, 1, 4, "the slope of the toy")}
    toy = type(ESTIMATORS["ste"])(**{**vars(ESTIMATORS["ste"]), "name": "toy", "options": options})
    monkeypatch.setitem(ESTIMATORS, "toy", toy)
    config = make_config({}, ["estimator.name=toy"], name="x")
    assert config.estimator_options == {"toy_slope": 2.0}
    assert taken("estimator.toy_slope=3") == 3.0
    line = "estimator.toy_slope is 5.0; it must be a number between 1 and 4"
    assert refused("estimator.toy_slope=5") == line
    assert "toy: the slope of the toy" in reference(keys().values())


def test_the_reference_is_that_of_the_code():
    text = (ROOT / "docs/config.md").read_text()
    assert text == reference(keys().values()), "python -m pipeline.run.config > docs/config.md"
    assert list(flatten(make_config({}, name="x"))) == re.findall(r"^\| `(\S+)`", text, re.M)
    assert all(key.meaning and key.must for key in keys().values())


NAMES = st.text(max_size=20)
VALUES = {
    "run.name": NAMES,
    "data.path": NAMES | st.none(),
    "log.project": NAMES,
    "seed": st.integers(0, 2**32 - 1),
    "train.epochs": st.integers(1, INT64),
    "optim.lr": st.floats(0, 1e6),
    "estimator.o_end": st.floats(1, 1e6),
    "data.augment": st.booleans(),
    "model.bits": st.sampled_from(["1w1a", "1w32a", "32w1a", "32w32a"]),
}


@given(st.fixed_dictionaries({}, optional=VALUES))
def test_a_config_comes_back_from_a_dict_and_from_its_file(tmp_path_factory, values):
    try:
        config = make_config({}, name="x").changed(values)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        return
    assert make_config(to_dict(config)) == config
    file = tmp_path_factory.getbasetemp() / "config.yaml"
    file.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    assert load_config(file) == config


@pytest.mark.parametrize(
    "text", ["010", "1e5", "no", "null", "~", "a #2", "1:30", "\udcff", "=", "é"]
)
def test_names_that_yaml_would_guess_at_come_back_from_the_file(tmp_path, text):
    config = make_config({"run": {"name": text}, "data": {"path": "/" + text}})
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    assert load_config(file) == config


@settings(max_examples=300)
@given(
    st.text()
    | st.builds("{}={}".format, st.sampled_from(sorted(keys())), st.text())
    | st.builds("{}={}".format, st.text(), st.text("0123456789.e+-_:x")),
)
def test_an_override_is_taken_or_refused_in_one_line(override):
    try:
        assert isinstance(make_config({}, [override], name="x"), Config)
    except UserError as error:
        assert len(str(error).splitlines()) == 1


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text().map(Written),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["run", "name", "optim", "lr", "estimator", "o_end", "data"]), inner),
    max_leaves=10))  # fmt: skip
def test_any_dict_is_taken_or_refused_in_one_line(values):
    try:
        assert isinstance(make_config(values, name="x"), Config)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
