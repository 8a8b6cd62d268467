"""The README and the pages of docs/: what they name exists, and what they print runs."""

import io
import re
import subprocess
import sys
import tokenize

import pytest
import torch

from models import build_model
from pipeline.run.config import keys
from tests import ROOT

README = (ROOT / "README.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
}
ROOMS = "configs|docs|kernels|launch|models|pipeline|tests"
each_page = pytest.mark.parametrize("page", PAGES)


def cells():
    """Every cell of the README's tables, but for those of their heads and rules."""
    for table in re.findall(r"(?:^\|.*\n)+", README, re.M):
        for row in table.splitlines()[2:]:
            yield from (cell.strip() for cell in row.strip("|").split("|"))


def test_the_readme_is_read_in_one_sitting():
    assert len(README.splitlines()) <= 150


def test_a_cell_holds_one_figure():
    code_and_links = re.compile(r"`[^`]*`|\([^)]*\)")
    figure = re.compile(r"(?<![\w-])\d[\d.,]*+(?! px| images)")  # ResNet-18 is a name
    assert len(figure.findall("94.0 and 94.6 % at 48 px")) == 2
    assert [cell for cell in cells() if len(figure.findall(code_and_links.sub("", cell))) > 1] == []


@each_page
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)|(?:src|srcset)=\"([^\"]+)\"", PAGES[page])
    relative = [a or b for a, b in links if "://" not in (a or b)]
    folder = (ROOT / page).parent
    assert [link for link in relative if not (folder / link).exists()] == []


@each_page
def test_files_that_are_named_exist(page):
    text = re.sub(r"https?://\S+", "", PAGES[page])
    named = re.findall(rf"(?<![\w/<.])(?:{ROOMS})/[\w/.*<>-]*", text)
    paths = {name.rstrip(".") for name in named if "<" not in name}  # results/train_<gpu>.csv
    assert [path for path in paths if not [*ROOT.glob(path)]] == []


@each_page
def test_make_targets_that_are_named_exist(page):
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    code = re.findall(r"`([^`\n]+)`|^    (.*)", PAGES[page], re.M)
    words = [re.findall(r"\bmake((?: [a-z0-9-]+)+)(?![\w=])", a or b) for a, b in code]
    named = {target for found in sum(words, []) for target in found.split()}
    assert named <= targets


@each_page
def test_commands_and_configs_that_are_named_exist(page):
    named = re.findall(r"\./reste (\w+)(?: ([a-z]+_?\w*))?", PAGES[page])
    named += re.findall(r"-m launch\.(\w+)(?: configs/(\w+)\.yaml)?", PAGES[page])
    for command, config in named:
        assert (ROOT / f"launch/{command}.py").exists() or (ROOT / f"launch/{command}").is_dir()
        if command == "train" and config:
            assert (ROOT / f"configs/{config}.yaml").exists()


def words_of(path):
    """The strings and comments of a source file, without what an f-string fills in."""
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", None)}
    with tokenize.open(path) as file:
        tokens = [t.string for t in tokenize.generate_tokens(file.readline) if t.type in kinds]
    return "\n".join(re.sub(r"\{[^}]*\}", "{}", t) if t[0] == "f" else t for t in tokens)


@each_page
def test_keys_that_are_named_exist(page):
    assert unknown_keys(PAGES[page]) == set()


def unknown_keys(text):
    known = set(keys()) | {"log.txt", "model.safetensors", "model.xml"}
    sections = "|".join({key.partition(".")[0] for key in known if "." in key})
    named = re.findall(rf"(?<![\w./<-])((?:{sections})\.[a-z_]*[a-z])\b(?![(/._])", text)
    return set(named) - known


def test_keys_that_do_not_exist_are_found():
    assert unknown_keys("set optim.rate=1, or `train.epoch`, not data.path") == {
        "optim.rate", "train.epoch",
    }  # fmt: skip


@pytest.mark.parametrize("room", ["native", "kernels", "models", "pipeline", "launch"])
def test_sources_name_what_exists(room):
    """Errors, help, docstrings and comments: config keys, and files of the checkout."""
    for path in (ROOT / room).rglob("*.py"):
        words = words_of(path)
        assert unknown_keys(words) == set(), path
        named = re.findall(rf"(?<![\w/<.])(?:{ROOMS})/[\w/.*-]+(?![\w/.*<-])", words)
        files = {name.rstrip(".") for name in named if not name.endswith("_")}
        assert [name for name in files if not [*ROOT.glob(name)]] == [], path


def test_the_network_of_ones_own_runs():
    code = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(code) == 1
    gradient = "\nassert net.conv.weight.grad.isfinite().all() and net.conv.weight.grad.any()\n"
    done = subprocess.run(
        [sys.executable, "-c", code[0] + gradient], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_is_as_large_as_the_readme_says():
    model = build_model("resnet18", num_classes=1000)
    binary = sum(conv.weight.numel() for conv in model.binary_convs().values())
    share = binary / sum(weights.numel() for weights in model.parameters())
    assert f"hold {100 * share:.0f} % of the weights" in README
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    megabytes = file.tell() / 1e6
    assert f"{megabytes:.0f} MB each, {2 * megabytes:.0f} MB in all" in " ".join(README.split())
