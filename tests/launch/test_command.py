"""The grammar of commands: the launcher, the parser, their help and their mistakes."""

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch import __main__ as launcher
from launch import (
    benchmark,
    compare,
    evaluate,
    export,
    predict,
    prepare,
    study,
    summary,
    sync,
    train,
)
from launch.command import Parser, command, find_config, whole
from pipeline.run.commands import command_line
from pipeline.run.errors import UserError
from tests import ROOT

# An interpreter that says where it stands and what it is given; -c asks whether it has torch.
STAND_IN = """#!/bin/sh
[ "$1" != -c ] || exit 0
printf '%s\\n' "$PWD" "$PYTHONPATH" "$@"
exit 3
"""
PARSERS = {
    "train": train.PARSER,
    "study": study.PARSER,
    "evaluate": evaluate.PARSER,
    "predict": predict.PARSER,
    "export": export.PARSER,
    "compare": compare.PARSER,
    "summary": summary.PARSER,
    "sync": sync.PARSER,
    **{f"prepare {name}": parser for name, parser in prepare.PARSERS.items()},
    **{f"benchmark {name}": parser for name, parser in benchmark.PARSERS.items()},
}
needs_sh = pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")


def start(path, *arguments, cwd, **variables):
    """Run a program in an environment that knows neither our interpreter nor our modules."""
    known = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "PYTHONPATH")}
    return subprocess.run(
        [path, *arguments], cwd=cwd, env={**known, **variables}, capture_output=True, text=True
    )


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def house(tmp_path):
    """A checkout whose path has a blank in it, with the launcher and a stand-in interpreter."""
    put(tmp_path / "our house/.venv/bin/python", STAND_IN)
    shutil.copy(ROOT / "reste", tmp_path / "our house")
    return tmp_path / "our house"


@needs_sh
def test_the_launcher_works_from_any_folder(house, tmp_path):
    def said(path, **variables):
        done = start(path, "train", "a b", "it's", cwd=tmp_path, **variables)
        assert (done.returncode, done.stderr) == (3, "")  # the command's own code
        return done.stdout.splitlines()

    expected = [str(tmp_path), str(house), "-P", "-m", "launch", "train", "a b", "it's"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/reste").symlink_to("../link")
    (tmp_path / "link").symlink_to("our house/reste")
    assert said(house / "reste") == said("our house/reste") == expected
    assert said(tmp_path / "link") == said("bin/reste") == expected
    assert said("reste", PATH=f"{tmp_path}/bin:{os.environ['PATH']}") == expected
    assert said(house / "reste", PYTHONPATH="/theirs")[1] == f"{house}:/theirs"


@needs_sh
def test_the_launcher_takes_the_right_interpreter(house, tmp_path):
    for name in ("python3", "my python"):
        put(tmp_path / "bin" / name, STAND_IN.replace("$PWD", name))
    path = f"{tmp_path}/bin:{os.environ['PATH']}"

    def interpreter(**variables):
        done = start(house / "reste", cwd=house, PATH=path, **variables)
        return done.stdout.partition("\n")[0]

    assert interpreter() == interpreter(PYTHON="") == str(house)  # that of .venv
    assert interpreter(PYTHON="my python") == interpreter(PYTHON="../bin/my python") == "my python"
    shutil.rmtree(house / ".venv")
    assert interpreter() == "python3"


@needs_sh
def test_without_an_environment_one_line_says_make_setup(house, tmp_path):
    shutil.rmtree(house / ".venv")
    for name in ("sh", "dirname", "readlink"):
        put(tmp_path / "bin" / name, f'#!{shutil.which("sh")}\nexec {shutil.which(name)} "$@"\n')
    for variables in ({}, {"PYTHON": "gone"}, {"PYTHON": "false"}):
        done = start(house / "reste", "train", cwd=house, PATH=str(tmp_path / "bin"), **variables)
        assert done.returncode == 2 and done.stdout == ""
        name = variables.get("PYTHON", "python3")
        assert done.stderr.startswith(f"error: {name} is no Python 3.11 with torch; make setup ")
        assert done.stderr.count("\n") == 1
    put(tmp_path / "bin/python3", "#!/bin/sh\nexit 1\n")  # an old one
    done = start(house / "reste", cwd=house, PATH=str(tmp_path / "bin"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK"])
def test_an_error_is_told_whatever_the_environment_holds(name, monkeypatch, capsys):
    numbers = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "job"}
    for each, value in {**numbers, name: "x"}.items():
        monkeypatch.setenv(each, value)

    def fail(_):
        raise UserError("something is wrong")

    with pytest.raises(SystemExit) as ended:
        command(fail)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: something is wrong\n"


@needs_sh
def test_the_launcher_for_real(tmp_path):
    """From a folder whose modules have the names of ours, through a link with a blank."""
    for name in ("launch.py", "models/__init__.py", "pipeline/__init__.py", "random.py"):
        put(tmp_path / name, "raise SystemExit('not ours')\n")
    (tmp_path / "a link").symlink_to(ROOT / "reste")
    alone = start("./a link", cwd=tmp_path, PYTHON=sys.executable)
    assert alone.returncode == 0 and alone.stderr == ""
    assert re.findall(r"^  (\w+) +\S.*\.$", alone.stdout, re.M) == [*launcher.COMMANDS]
    wrong = start("./a link", "train", "quikstart", cwd=tmp_path, PYTHON=sys.executable)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == (
        "error: config quikstart: there is no such file, nor is it a name in configs/; "
        "did you mean quickstart?\n"
    )


def test_help_does_not_import_torch():
    names = [f"launch.{name}" for name in ("__main__", *launcher.COMMANDS)]
    code = f"import os, sys, {', '.join(names)}\n"
    code += "print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
    known = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=known, capture_output=True, text=True
    )
    assert done.stdout == "False 1000\n", done.stderr


def outcome(monkeypatch, capsys, main, *arguments):
    """Exit code, stdout and stderr of a command."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as end:
        command(main)
    return end.value.code, *capsys.readouterr()


def test_commands_are_the_files_of_launch():
    files = {path.stem for path in (ROOT / "launch").glob("*.py")}
    assert set(launcher.COMMANDS) == files - {"__init__", "__main__", "command"}
    for name in launcher.COMMANDS:
        module = importlib.import_module(f"launch.{name}")
        assert launcher._summary(name) == module.__doc__.partition("\n")[0]


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_alone_it_lists_the_commands(arguments, monkeypatch, capsys):
    code, out, err = outcome(monkeypatch, capsys, launcher.main, *arguments)
    assert (code, err) == (0, "")
    for name in launcher.COMMANDS:
        assert f"\n  {name} " in out


@pytest.mark.parametrize("name", ["prepare", "benchmark"])
def test_a_word_that_leads_to_others_lists_them(name, monkeypatch, capsys):
    code, out, err = outcome(monkeypatch, capsys, launcher.main, name, "--help")
    assert (code, err) == (0, "")
    words = [words.split()[1] for words in PARSERS if words.startswith(f"{name} ")]
    assert re.findall(r"^  (\w+) +[A-Z].*\.$", out, re.M) == words


@pytest.mark.parametrize(("words", "parser"), PARSERS.items())
def test_help(words, parser, monkeypatch, capsys):
    code, out, err = outcome(monkeypatch, capsys, launcher.main, *words.split(), "--help")
    assert (code, err) == (0, "")
    usage, _, rest = out.partition("\n\n")
    assert usage.startswith(f"usage: {command_line(*words.split())}")
    assert rest.startswith(f"{parser.summary}\n") and parser.summary.endswith(".")
    for action in parser._actions:
        for word in (*action.option_strings[-1:], action.metavar):
            assert word is None or word == "--help" or word in usage, "usage leaves it out"
        assert action.help and "%" not in rest
    for line in rest.partition("\nexamples:\n")[2].splitlines():
        parser.parse(shlex.split(line.strip().removeprefix(parser.prog)))  # it is right


def test_every_command_is_tested():
    found = {f"{name} {word}" for name in ("prepare", "benchmark") for word in choices(name)}
    assert set(PARSERS) == {each for each in launcher.COMMANDS if not choices(each)} | found


def choices(name):
    """The words that may stand behind a command, and lead to others."""
    return {"prepare": prepare.PARSERS, "benchmark": benchmark.PARSERS}.get(name, ())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian quickstart", "there is no command RESTE trian; did you mean train?"),
        ("xyz", "there is no command RESTE xyz; usage: RESTE {train,evaluate,predict,"),
        ("--verbose", "there is no command RESTE --verbose; usage: RESTE {train,"),
        (
            "prepare",
            "a word is missing; usage: RESTE prepare {imagenet,tiny_imagenet,resize,shard,split,v",
        ),
        ("prepare verfy x", "there is no command RESTE prepare verfy; did you mean verify?"),
        ("benchmark loaders x", "no command RESTE benchmark loaders; did you mean loader?"),
        ("train", "CONFIG is missing; usage: RESTE train CONFIG [key=value ...] [--check[=N]]"),
        ("train --chekc", "--chekc is no option; did you mean --check?"),
        ("train quickstart --che", "--che is no option; did you mean --check?"),
        ("train quickstart --optim.lr=1", "--optim.lr is no option; a key of the config is set"),
        ("train quickstart -q", "-q is no option; usage: RESTE train CONFIG"),
        ("train quickstart --check=0", "--check: 0 is no whole number of at least 1; usage: "),
        ("train quickstart --check=x", "--check: x is no whole number of at least 1; usage: "),
        ("train quikstart", "is it a name in configs/; did you mean quickstart?"),
        ("study", "STUDY is missing; usage: RESTE study STUDY [key=value ...] [--jobs N]"),
        ("study estimator", "is it a name in configs/studies/; did you mean estimators?"),
        ("study estimators --jobs 0", "--jobs: 0 is no whole number between 1 and 64; usage: "),
        ("evaluate", "CHECKPOINT is missing; usage: RESTE evaluate CHECKPOINT [key=value ...]"),
        ("predict", "MODEL, IMAGE|FOLDER is missing; usage: RESTE predict MODEL IMAGE|FOLDER... ["),
        ("predict a.pt", "IMAGE|FOLDER is missing; usage: RESTE predict MODEL"),
        ("export a.pt", "--to is missing; usage: RESTE export MODEL --to KIND [OUT] ["),
        ("export a.pt --to onxx", "--to: invalid choice: 'onxx' (choose from "),
        ("export a.pt --to packed b c", "c is one word too many; usage: RESTE export MODEL"),
        ("compare", "RUN is missing; usage: RESTE compare RUN... [--metric NAME] [--out FOLDER] ["),
        ("compare a --watch=0", "--watch: 0 is no whole number of at least 1; usage: "),
        ("compare a --wand=x", "--wand is no option; did you mean --wandb?"),
        ("summary", "CONFIG|CHECKPOINT is missing; usage: RESTE summary CONFIG|CHECKPOINT [key"),
        ("summary quikstart", "is it a name in configs/; did you mean quickstart?"),
        ("summary quickstart --jsn", "--jsn is no option; did you mean --json?"),
        ("sync", "RUN is missing; usage: RESTE sync RUN... [--offline] [--best]"),
        ("sync a --ofline", "--ofline is no option; did you mean --offline?"),
        ("evaluate gone.pt --check", "--check is no option; "),
        ("prepare verify", "DATA is missing; usage: RESTE prepare verify DATA [--report FILE]"),
        ("prepare verify a b", "b is one word too many; usage: RESTE prepare verify"),
        ("prepare verify a --report", "--report: expected one argument; usage: "),
        ("prepare split a", "DST is missing; usage: RESTE prepare split SRC DST [--val PERCENT] ["),
        ("prepare split a b --val 0%", "--val: 0% is no percentage above 0 and below 100; usage: "),
        ("prepare split a b --val 100", "--val: 100 is no percentage above 0 and below 100"),
        ("prepare resize a b --quality 0", "--quality: 0 is no whole number between 1 and 100"),
        ("benchmark train cifar10_resnet20 --rounds=0", "--rounds: 0 is no whole number of at"),
        ("benchmark kernels imagenet_resnet18 --rounds=1", "--rounds is no option; "),
        ("benchmark scaling 8", "8 is one word too many; usage: RESTE benchmark scaling"),
    ],
)
def test_mistakes(words, message, monkeypatch, capsys):
    code, out, err = outcome(monkeypatch, capsys, launcher.main, *words.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message.replace("RESTE", command_line()) in err


def test_options_may_stand_anywhere():
    parser = train.PARSER
    for words in ("a --check b=1 c=2", "--check=1 a b=1 c=2", "a b=1 c=2 --check"):
        options = parser.parse(words.split())
        assert (options.config, options.overrides, options.check) == ("a", ["b=1", "c=2"], 1)
    options = parser.parse(["a", "--check=8", "--", "--b=1"])
    assert (options.overrides, options.check) == (["--b=1"], 8)
    assert parser.parse(["a"]).check == 0


def test_whole_numbers():
    parser = Parser("train", "", "About.", ())
    parser.add_argument("--n", type=whole(1, 10))
    assert [parser.parse(["--n", text]).n for text in ("1", "10")] == [1, 10]
    for text in ("0", "11", "1.0", "1e1", "²", "9" * 5000):
        with pytest.raises(UserError, match=r"^--n: .* is no whole number between 1 and 10; "):
            parser.parse(["--n", text])


def test_a_package_that_is_missing_is_one_line(monkeypatch, capsys):
    def main(_):
        importlib.import_module("no_such_package.part")

    code, _, err = outcome(monkeypatch, capsys, main)
    line = f"error: {sys.executable} has no no_such_package; make setup installs what is needed\n"
    assert (code, err) == (2, line)
    with pytest.raises(ModuleNotFoundError):  # a mistake of ours keeps its traceback
        command(lambda _: importlib.import_module("kernels.no_such_module"))


def test_a_name_cannot_break_the_line(monkeypatch, capsys):
    def main(_):
        raise UserError("a\nb\x1b[2J\udce9é.jpg is bad")

    code, _, err = outcome(monkeypatch, capsys, main)
    assert (code, err) == (2, "error: a\\nb\\x1b[2J\\udce9é.jpg is bad\n")


def test_find_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = ROOT / "configs/quickstart.yaml"
    assert find_config("quickstart") == named and find_config(str(named)) == named
    (tmp_path / "quickstart").mkdir()  # runs/ holds folders of these names
    assert find_config("quickstart") == named
    for text in ("quickstart.yaml", "configs/quickstart.yaml", f"{tmp_path}/quickstart.yml"):
        with pytest.raises(UserError, match=r"no such file, .*; did you mean quickstart\?$"):
            find_config(text)
    (tmp_path / "cifar10_resnet20").write_text("{}")
    assert find_config("cifar10_resnet20") == Path("cifar10_resnet20")  # a file wins
    with pytest.raises(UserError, match="; names are cifar100_resnet20, cifar10_resnet18, "):
        find_config("/")
    with pytest.raises(UserError, match="no such file"):
        find_config("x" * 5000)


def test_a_command_line_works_from_where_the_person_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert command_line().endswith("./reste")
    monkeypatch.chdir(tmp_path)
    *assignment, path, _, data = shlex.split(command_line("evaluate", "data.path=/it's a"))
    assert Path(path) == ROOT / "reste" and os.access(path, os.X_OK)
    assert data == "data.path=/it's a" and assignment in ([], [f"PYTHON={sys.executable}"])
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/my python")
    assert command_line("train") == f"PYTHON='/my python' {shlex.quote(path)} train"


SOURCES = [
    path
    for pattern in ("README.md", "docs/*.md", "configs/**/*.yaml", "Makefile", "launch/clusters/*")
    for path in ROOT.glob(pattern)
]
CODE = [
    path
    for room in ("native", "kernels", "models", "pipeline", "launch")
    for path in sorted((ROOT / room).rglob("*.py"))
]


def exists(words):
    """Whether a command begins with these words."""
    name, *rest = words
    return name in launcher.COMMANDS and (not choices(name) or not rest or rest[0] in choices(name))


@pytest.mark.parametrize("path", [*SOURCES, *CODE], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_are_named_exist(path):
    text = path.read_text(encoding="utf-8")
    for words in re.findall(r"\./reste((?: [a-z0-9_]+)+)", text):
        assert exists(words.split()), words
    for words in re.findall(r"-m launch\.(\w+(?: [a-z0-9_]+)*)", text):  # by torchrun
        assert exists(words.split()), words
    if path.suffix != ".md":
        assert "python -m launch" not in text and "$(PYTHON) -m launch" not in text


def test_commands_that_are_printed_exist():
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M)
    calls = 0
    for tree in (ast.parse(path.read_text(encoding="utf-8")) for path in CODE):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "command_line":
                words = [each.value for each in node.args if isinstance(each, ast.Constant)]
                assert not words or exists(words), words
                calls += bool(words)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for target in re.findall(r"\bmake ([a-z0-9]+-[a-z0-9-]+|setup)", node.value):
                    assert target in targets, target
    assert calls >= 3
