"""Config files: which YAML is taken, which is refused in one line and at once."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.run import plain_yaml
from pipeline.run.config import load_config
from pipeline.run.errors import UserError
from pipeline.run.plain_yaml import MOST_BYTES, MOST_DEPTH, MOST_NODES, Written

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def written(tmp_path, content):
    file = tmp_path / "some.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def flat(levels):
    return "a: " + "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("# nothing", {}),
        ("---\n...\n", {}),
        ("\ufefftrain:", {"train": None}),
        ("a: {b: 1}", {"a": {"b": "1"}}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": "1"}, "c": {"b": "1"}}),
        ("a: [~, null, '', 'null', NULL]", {"a": [None, None, "", "null", None]}),
        ("010: 'x'", {"010": "x"}),
        (flat(MOST_DEPTH - 1), None),
        ("a: [" + "x," * (MOST_NODES - 3) + "]", None),
        ("a: 1 #" + "x" * (MOST_BYTES - 6), {"a": "1"}),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_plain_files_are_taken(tmp_path, text, values):
    loaded = plain_yaml.load(written(tmp_path, text))
    assert values is None or loaded == values


def test_the_type_of_a_scalar_without_quotes_is_left_to_its_key(tmp_path):
    values = plain_yaml.load(written(tmp_path, "a: 010\nb: '010'\nc: no\nd: |\n  5\n"))
    assert [type(value) for value in values.values()] == [Written, str, Written, str]
    assert values == {"a": "010", "b": "010", "c": "no", "d": "5\n"}
    text = "{run: {name: 010}, optim: {lr: 1e-3}, data: {download: yes, path: ~}, train: , log: {}}"
    config = load_config(written(tmp_path, text))
    assert (config.run.name, config.optim.lr, config.data.download) == ("010", 0.001, True)
    assert config.data.path is None
    assert load_config(written(tmp_path, "")).run.name == "some"


@pytest.mark.parametrize("name", ["sync_bn", "cuda_graph"])
@pytest.mark.parametrize("value", ["auto", "true", "false", "'true'", "True"])
def test_booleans_are_words_where_a_choice_has_them(tmp_path, name, value):
    config = load_config(written(tmp_path, f"train: {{{name}: {value}}}"))
    assert getattr(config.train, name) == value.strip("'").lower()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("log: {eta: '5'}", "log.eta is '5'; it must be an integer of at least 0, without quotes"),
        ("seed: 1:30", "seed is '1:30'; it must be an integer between 0 and 4294967295, in plain "
         "digits"),
        ("optim: {momentum: '1'}",
         "optim.momentum is '1'; it must be a number between 0 and 1, without quotes"),
        ("train: {epochs: }", "train.epochs is null; it must be an integer of at least 1"),
        ("data: {path: [a]}", "data.path is a list; it must be a path, or null"),
        ("run: {name: '${oc.env:X}'}",
         "run.name is '${oc.env:X}'; write it out, ${...} is not filled in"),
        ("model: 3", "model is '3', but it is a section; write model: {key: value}"),
        ("model: {arhc: resnet20}", "model.arhc is no config key; did you mean model.arch?"),
        ("modle: {bits: 1w1a}", "modle is no config key; did you mean model.arch?"),
        ("optim.lr: 1", "optim.lr is no config key at this place; write optim: {lr: value}"),
    ],
)  # fmt: skip
def test_values_of_a_file_are_taken_by_the_type_of_their_key(tmp_path, text, line):
    with pytest.raises(UserError) as caught:
        load_config(written(tmp_path, text))
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 10_000, "line 1: nested deeper than 20 levels; write it flat"),
        ("a: " + "{a: " * 10_000, "line 1: nested deeper than 20 levels; write it flat"),
        ("- " * 10_000, "line 1: nested deeper than 20 levels; write it flat"),
        ("? " * 10_000, "line 1: nested deeper than 20 levels; write it flat"),
        (flat(MOST_DEPTH), "line 1: nested deeper than 20 levels; write it flat"),
        (f"a: &a {flat(12)[3:]}\nb: {'[' * 9}*a{']' * 9}", "line 2: nested deeper than 20 levels"),
        (BOMB, "line 4: more than 2000 values, aliases included; leave some out"),
        ("a: [" + "x," * 20_000 + "]", "line 1: more than 2000 values"),
        (
            "a: &a [*a]",
            "line 1: the alias *a names nothing that ends before it; write the value out",
        ),
        ("a: &a {b: *a}", "line 1: the alias *a names nothing that ends before it"),
        ("a: *b", "line 1: the alias *b names nothing that ends before it; write the value out"),
        ("a: &a {b: 1}\nc: {<<: *a}", "line 2: << would merge another mapping; write its keys out"),
        ("a: 1\nb: 2\na: 3", "line 3: the key a stands twice; keep one of them"),
        ("a: {b: 1, 'b': 2}", "line 1: the key b stands twice; keep one of them"),
        ("~: 1", "line 1: a key is empty or null; write key: value"),
        ("null: 1", "line 1: a key is empty or null; write key: value"),
        ("? \n: 1", "line 1: a key is empty or null; write key: value"),
        ("[a]: 1", "line 1: a key is no text; write key: value"),
        ("{a: 1}: 1", "line 1: a key is no text; write key: value"),
        ("a: !!str 1", "line 1: the tag !!str is not taken; remove it"),
        (
            "a: !!python/object/apply:os.system [x]",
            "line 1: the tag !!python/object/apply:os.system",
        ),
        ("a: ! 1", "line 1: the tag ! is not taken; remove it"),
        ("a: !b {}", "line 1: the tag !b is not taken; remove it"),
        ("a: 1\n---\nb: 2", "line 2: a second document begins; keep one in a file"),
        ("- a", "must hold keys and values, not a list; write key: value"),
        ("a", "must hold keys and values, not text; write key: value"),
        ("a: [", "line 1: not valid YAML (expected the node content"),
        ("a: b: c", "line 1: not valid YAML (mapping values are not allowed here); correct it"),
        ("a:\n\tb: 1", "line 2: not valid YAML"),
        ('a: "\\UFFFFFFFF"', "not valid YAML (an escape or a version is out of range); correct it"),
        (
            f"%YAML {'9' * 5000}.1\n---\na: 1",
            "not valid YAML (an escape or a version is out of range); correct it",
        ),
        (b"\0\1\2", "not valid YAML (unacceptable character #x0000"),
        (b"\x7fELF\x02\x01\xff", "is no text in UTF-8; take one of configs/*.yaml"),
        (b"a: \xff", "is no text in UTF-8; take one of configs/*.yaml"),
        ("a: 1".encode("utf-16"), "is no text in UTF-8; take one of configs/*.yaml"),
        (b"#" * (MOST_BYTES + 1), "larger than 65536 bytes; take one of configs/*.yaml"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_is_not_plain_is_refused_in_one_line_at_once(tmp_path, content, words):
    file = written(tmp_path, content)
    begin = time.process_time()
    with pytest.raises(UserError) as caught:
        load_config(file)
    assert time.process_time() - begin < 1
    message = str(caught.value)
    assert message.startswith(f"config {file}") and words in message
    assert message.isprintable() and len(message) < len(str(file)) + 200


@given(st.text() | st.text(":{}[]-?&*!|>'\"%@#, \nab1~<", max_size=40))
@example('"\\x')
@example("a: |999999999999999999999\n x")
@example("%TAG ! !\n---\n!a b")
def test_any_text_is_taken_or_refused(text):
    try:
        plain_yaml.parse(text)
    except ValueError as error:
        assert str(error).isprintable() and len(str(error)) < 300
