"""The folder in Hugging Face's layout: written and read without a network."""

import json
import socket
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

from launch import export as command
from launch import predict
from pipeline.export.hub import config, files, load_network
from pipeline.export.output import Options
from pipeline.export.targets import TARGETS
from pipeline.run.errors import UserError
from tests.export.networks import about, images_of, network, packed


@pytest.fixture
def offline(monkeypatch):
    """Whatever opens a connection fails."""

    def refuse(*_, **__):
        raise AssertionError("something is sent")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def folder(checkpoint, tmp_path, offline):
    command.main([str(checkpoint), "--to", "hub", str(tmp_path / "net")])
    return tmp_path / "net"


def test_round_trip(folder, checkpoint, data, capsys):
    found = []
    for model in (checkpoint, folder):
        capsys.readouterr()
        predict.main([str(model), str(data / "test"), "--csv"])
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]
    images = images_of("resnet20")
    assert load_network(folder)(images).shape == (2, 2)


def test_the_network_comes_back_to_the_bit(tmp_path):
    for name, content in files(packed(), Options()).items():
        (tmp_path / name).write_bytes(content)
    images = images_of("resnet20")
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path)(images), network()(images))


def test_the_config_has_the_keys_of_timm(folder):
    found = json.loads((folder / "config.json").read_text())
    assert found["architecture"] == "resnet20" and found["num_features"] == 64
    assert found["label_names"] == ["dark", "light"] and found["num_classes"] == 2
    expected = {"input_size": [3, 32, 32], "mean": [0.485, 0.456, 0.406], "crop_pct": 1.0,
                "std": [0.229, 0.224, 0.225], "interpolation": "bilinear"}  # fmt: skip
    assert found["pretrained_cfg"] == expected
    assert (found["bits"], found["estimator"], found["format_version"]) == ("1w1a", "reste", 1)
    assert config(packed())["label_names"] is None and about().classes is None


def test_the_readme_says_what_it_is(folder):
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["pipeline_tag"] == "image-classification" and front["license"] == "mit"
    (result,) = front["model-index"][0]["results"]
    assert {each["name"] for each in result["metrics"]} == {"top1", "top5"}
    size = (folder / "model.safetensors").stat().st_size
    assert f"{size:,} bytes (1,077,320 in float32)" in text and "1,069,184 OPs" in text
    assert "    train.epochs=2\n" in text and "data.path" not in text
    assert "arxiv.org/abs/2308.06689" in text


def test_a_curve_comes_along(checkpoint, tmp_path):
    picture = checkpoint.parents[1] / "plots/training.png"
    picture.parent.mkdir(exist_ok=True)
    picture.write_bytes(b"png")
    command.main([str(checkpoint), "--to", "hub", str(tmp_path)])
    assert (tmp_path / "curve.png").read_bytes() == b"png"
    assert "](curve.png)" in (tmp_path / "README.md").read_text()


def test_what_is_no_folder_of_ours_is_one_line(folder, tmp_path):
    (folder / "model.safetensors").write_bytes(b"x" * 50)
    with pytest.raises(UserError, match="is damaged, or no packed network.*; export it again"):
        load_network(folder)
    with pytest.raises(UserError, match="; give a packed file"):
        load_network(tmp_path)


def test_a_folder_must_be_named(checkpoint):
    with pytest.raises(UserError, match="--to hub takes a folder behind it, such as --to hub best"):
        command.main([str(checkpoint), "--to", "hub"])
    with pytest.raises(UserError, match="--push sends a folder; write --to hub FOLDER with it"):
        command.main([str(checkpoint), "--to", "packed", "--push", "user/x"])


def test_a_folder_of_other_files_stays_as_it_is(folder, checkpoint, tmp_path):
    command.main([str(checkpoint), "--to", "hub", str(folder)])  # its own is written anew
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("mine")
    with pytest.raises(UserError, match="mine holds other files; name a new or an empty folder"):
        command.main([str(checkpoint), "--to", "hub", str(tmp_path / "mine")])
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["mine"]


def hub_that(monkeypatch, upload):
    """A stand-in for huggingface_hub; returns what it is called with."""
    calls = []

    class HfApi:
        def create_repo(self, repo, exist_ok):
            calls.append(repo)
            return f"https://hub/{repo}"

        def upload_folder(self, repo_id, folder_path):
            calls.append(sorted(path.name for path in folder_path.iterdir()))
            upload()

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=HfApi))
    monkeypatch.delitem(sys.modules, "pipeline.export.push", raising=False)
    return calls


def test_push_sends_the_folder_and_nothing_else(checkpoint, tmp_path, monkeypatch, capsys, offline):
    calls = hub_that(monkeypatch, lambda: None)
    words = [str(checkpoint), "--to", "hub", str(tmp_path / "net")]
    command.main(words)
    assert calls == []
    capsys.readouterr()
    command.main([*words, "--push", "user/net"])
    assert calls[0] == "user/net" and {"README.md", "model.safetensors"} < {*calls[1]}
    assert capsys.readouterr().out == "https://hub/user/net\n"


def test_a_hub_that_refuses_is_one_line(checkpoint, tmp_path, monkeypatch):
    def refuse():
        raise RuntimeError("401 Unauthorized\nmore")

    hub_that(monkeypatch, refuse)
    with pytest.raises(UserError, match="^--push user/net: 401 Unauthorized; log in with hf auth"):
        command.main([str(checkpoint), "--to", "hub", str(tmp_path / "net"), "--push", "user/net"])
    assert (tmp_path / "net/model.safetensors").exists()


def test_a_missing_package_is_told(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "pipeline.export.push", raising=False)
    with pytest.raises(UserError, match="--push takes a package.* -m pip install huggingface_hub"):
        command.main([str(checkpoint), "--to", "hub", str(tmp_path), "--push", "user/net"])


def test_every_kind_is_offered():
    assert tuple(TARGETS) == command.KINDS
