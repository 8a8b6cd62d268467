"""Exports as a person asks for them: of checkpoints and packed files, whole or not at all."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from launch import export as command
from models import build_model
from pipeline.export.packed_file import encode, read
from pipeline.export.predictor import open_predictor
from pipeline.export.shrink import shrink
from pipeline.export.targets import TARGETS
from pipeline.run.checkpoint import load
from pipeline.run.errors import Diverged, UserError
from pipeline.run.files import write_together
from pipeline.run.origin import commit
from tests import ROOT
from tests.export.networks import images_of, packed


def test_a_checkpoint_of_ours(checkpoint, tmp_path, capsys):
    out = tmp_path / "new/x.safetensors"
    command.main([str(checkpoint), "--to", "packed", str(out)])
    assert capsys.readouterr().out == f"{out}\n"
    found = read(out)
    assert (found.about.arch, found.about.bits, found.about.real) == ("resnet20", "1w1a", "float32")
    assert found.about.classes == ("dark", "light") and found.about.commit == commit()
    last = load(checkpoint)["last"]
    assert found.about.accuracy == {"top1": last["val_top1"], "top5": last["val_top5"]}
    images = images_of("resnet20").numpy()
    logits = [open_predictor(path, []).logits(images) for path in (checkpoint, out)]
    assert np.array_equal(*logits)
    again = tmp_path / "again.safetensors"
    command.main([str(out), "--to", "packed", str(again)])
    assert again.read_bytes() == out.read_bytes()


def test_an_official_checkpoint_and_a_place_beside_it(tmp_path, capsys):
    model = build_model("resnet20")
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "model": "resnet20_1w1a"}, tmp_path / "model_best.pt")
    command.main([str(tmp_path / "model_best.pt"), "--to", "packed"])
    assert capsys.readouterr().out == f"{tmp_path}/model_best.safetensors\n"
    found = open_predictor(tmp_path / "model_best.safetensors", [])
    assert found.about.classes is None and found.classes[0] == "airplane"


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = build_model("resnet20")
    torch.nn.init.constant_(model.linear.bias, torch.nan)
    torch.save({"state_dict": model.state_dict(), "model": "resnet20_1w1a"}, tmp_path / "x.pt")
    with pytest.raises(Diverged, match=r"linear.bias is not finite"):
        command.main([str(tmp_path / "x.pt"), "--to", "packed"])
    assert os.listdir(tmp_path) == ["x.pt"]


@pytest.mark.parametrize(
    ("real", "most"), [("classifier16", 3_221_500), ("float16", 2_858_500), ("int8", 2_176_500)]
)
def test_smaller_real_weights(real, most):
    small = shrink(packed("resnet18", classes=1000), real)
    assert len(encode(small)) <= most
    large = packed("resnet18", classes=1000)
    for layer in ("conv1", "layer2.0.downsample.0", "fc"):
        ours, theirs = small.weight(layer), large.weight(layer)
        is_kept = real == "classifier16" and layer != "fc"
        assert np.array_equal(ours, theirs) == is_kept
        step = abs(theirs).reshape(len(theirs), -1).max(1) / 254
        bound = step if real == "int8" else abs(theirs).max() / 2048
        assert (abs(ours - theirs).reshape(len(theirs), -1).max(1) <= bound * 1.01).all()
    assert small.tensors.keys() >= large.tensors.keys()
    assert np.array_equal(small.tensors["bn2.norm"], large.tensors["bn2.norm"])


def test_a_row_of_zeros_stays_zero_in_int8():
    tensors = {**packed().tensors}
    tensors["linear.weight"] = tensors["linear.weight"] * (np.arange(10) != 3)[:, None]
    found = shrink(packed().__class__(packed().about, packed().steps, tensors), "int8")
    assert not found.weight("linear")[3].any() and found.weight("linear")[4].any()


def test_what_is_small_stays_so_and_what_is_too_large_is_told():
    with pytest.raises(UserError, match="are int8 already; export the checkpoint that they come"):
        shrink(shrink(packed(), "int8"), "float16")
    huge = {**packed().tensors, "conv1.weight": packed().tensors["conv1.weight"] * 1e6}
    with pytest.raises(UserError, match="conv1.weight is too large for float16; export with --rea"):
        shrink(packed().__class__(packed().about, packed().steps, huge), "float16")


def test_smaller_weights_come_with_their_accuracy(checkpoint, data, tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    words = [str(checkpoint), "--to", "packed", str(out), "--real", "int8"]
    command.main([*words, f"data.path={data}"])
    assert "int8: top-1 " in (said := capsys.readouterr().err) and "instead of" in said
    found = read(out).about
    assert found.real == "int8" and found.accuracy.keys() == {"top1", "top5"}
    out.unlink()
    with pytest.raises(UserError, match=r"data\.path"):
        command.main([*words, f"data.path={tmp_path}/gone"])
    assert not out.exists()


def test_where_nothing_can_be_written_nothing_is_left(checkpoint, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    words = [str(checkpoint), "--to", "packed", str(tmp_path / "x.safetensors")]
    (tmp_path / "x.safetensors").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="cannot write .*: No space left.*; make room or name"):
            command.main(words)
    assert os.listdir(tmp_path) == ["x.safetensors"]
    assert (tmp_path / "x.safetensors").read_bytes() == b"old"
    with pytest.raises(UserError, match="cannot write .*; make room or name another place"):
        command.main([*words[:3], str(tmp_path / "x.safetensors/y")])


def limited(size, *words):
    """The command as a process that may write files of ``size`` bytes: its code and stderr."""
    code = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({size}, {size})); "
    code += "from launch import export; from launch.command import command; command(export.main)"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits")
def test_a_folder_that_does_not_fit_is_not_begun(checkpoint, tmp_path):
    packed_file, folder = tmp_path / "x.safetensors", tmp_path / "net"
    command.main([str(checkpoint), "--to", "packed", str(packed_file)])
    code, said = limited(20_000, packed_file, "--to", "hub", folder)  # the README would fit
    assert code == 2 and said.startswith(f"error: cannot write {folder}/model.safetensors: File to")
    assert said.count("\n") == 1 and os.listdir(tmp_path) == ["x.safetensors"]


def test_files_take_their_places_together(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(UserError, match="cannot write .*/b: Is a directory; make room or go"):
        write_together(tmp_path, {"a": b"1", "b": b"2", "c": b"3"}, "go")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"] and (tmp_path / "a").read_bytes() == b"old"
    write_together(tmp_path / "new", {"a": b"1", "c": b"3"}, "go")
    assert {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()} == {
        "a": b"1", "c": b"3",
    }  # fmt: skip


def test_a_network_is_not_written_over_itself(checkpoint):
    with pytest.raises(UserError, match="best.pt is the network itself; name another place behind"):
        command.main([str(checkpoint), "--to", "packed", str(checkpoint)])


@pytest.mark.parametrize("kind", [kind for kind, target in TARGETS.items() if target.packages])
def test_a_missing_package_is_a_line_with_the_command_that_installs_it(
    kind, checkpoint, tmp_path, monkeypatch
):
    for package in TARGETS[kind].packages:
        monkeypatch.setitem(sys.modules, package, None)
    module = TARGETS[kind].maker.partition(":")[0]
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(UserError, match=f"--to {kind} takes a package.*; .* -m pip install "):
        command.main([str(checkpoint), "--to", kind, str(tmp_path / "x")])
    assert not os.listdir(tmp_path)
