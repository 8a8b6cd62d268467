"""predict, as a person starts it."""

import csv
import io
import json
import shutil

import pytest
import torch
from PIL import Image

from launch import evaluate, predict
from launch import export as export_command
from pipeline.export.predictor import open_predictor
from pipeline.report.predictions import in_csv, judgement, table
from pipeline.run import threads
from pipeline.run.errors import UserError


@pytest.fixture(scope="module")
def packed_file(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "x.safetensors"
    export_command.main([str(checkpoint), "--to", "packed", str(out)])
    return out


def run(capsys, *words):
    capsys.readouterr()
    code = 0
    try:
        predict.main([str(word) for word in words])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    return code, out, err


def test_all_formats_say_the_same_and_are_as_right_as_evaluation(
    checkpoint, packed_file, data, capsys
):
    code, out, _ = run(capsys, checkpoint, data / "test", "--json")
    found = json.loads(out)
    assert code == 0 and run(capsys, packed_file, data / "test", "--json")[1] == out
    evaluate.main([str(checkpoint), f"data.path={data}", "train.precision=fp32"])
    measured = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == {"images": measured["images"], "top1": measured["top1"]}
    assert set(found["classes"]) == {"dark", "light"}
    assert sum(count for *_, count in found["confusion"]) == measured["images"]
    for each in found["images"]:
        assert sum(top["probability"] for top in each["top"]) == pytest.approx(100)
        assert each["label"] in each["image"]


def test_a_table_for_people(checkpoint, data, capsys):
    code, out, _ = run(capsys, checkpoint, data / "test")
    lines = out.splitlines()
    assert code == 0 and lines[0].split() == ["image", "class", "%", "2.", "%"]
    assert len([line for line in lines if line.startswith(str(data))]) == 12
    assert "is \\ taken for  dark  light" in lines and lines[-1].endswith("% of 12 images")


def test_bad_images_are_named_and_the_others_done(packed_file, data, tmp_path, capsys):
    (tmp_path / "none.png").write_bytes(b"x")
    Image.new("L", (1, 1)).save(tmp_path / "dot.png")
    code, out, err = run(capsys, packed_file, tmp_path, data / "test/dark/0.png", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 1 and "none.png is left out: not an image of a known format" in err
    assert [row["image"] for row in rows] == [f"{tmp_path}/dot.png", f"{data}/test/dark/0.png"]
    assert all({row["class1"], row["class2"]} == {"dark", "light"} for row in rows)
    found = json.loads(run(capsys, packed_file, tmp_path, "--json")[1])
    assert found["bad"] == [
        {"image": f"{tmp_path}/none.png", "reason": "not an image of a known format"}
    ]
    assert "accuracy" not in found


def test_folders_that_are_no_classes_are_told(packed_file, data, tmp_path, capsys):
    tree = shutil.copytree(data / "test", tmp_path / "tree")
    (tree / "light").rename(tree / "pale")
    code, out, err = run(capsys, packed_file, tree, "--json")
    assert code == 0 and json.loads(out)["accuracy"]["images"] == 6
    assert "6 of 12 images are not judged: their folders (pale) are no classes of the netw" in err
    assert "(dark, light)" in err and "judged" not in run(capsys, packed_file, data / "test")[2]


def test_cores_that_others_keep_busy_are_left_to_them(packed_file, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "cores", lambda: 4)
    monkeypatch.setattr(threads, "affinity", lambda: {0, 1, 2, 3})
    before = torch.get_num_threads()
    try:
        for busy, overrides, left in ((3.1, [], 1), (0.2, [], 4), (3.1, ["train.threads=2"], 2)):
            monkeypatch.setattr(threads, "load", lambda busy=busy: busy)
            open_predictor(packed_file, overrides)
            assert torch.get_num_threads() == left
    finally:
        torch.set_num_threads(before)


def test_mistakes_are_one_line(checkpoint, packed_file, data, tmp_path):
    with pytest.raises(UserError, match="is an export; .*reste predict .*safetensors FOLDER judg"):
        evaluate.main([str(packed_file), f"data.path={data}"])
    (tmp_path / "model.pt").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="is no checkpoint, or a damaged one; take another"):
        predict.main([str(tmp_path / "model.pt"), str(data)])
    with pytest.raises(UserError, match="no such file; name an image"):
        predict.main([str(checkpoint), "gone.png"])
    with pytest.raises(UserError, match="no images are named; usage: "):
        predict.main([str(checkpoint), "model.bits=1w1a"])


def test_many_classes_show_the_pairs_that_are_confused():
    confusion = {(f"c{i:02}", f"c{i:02}"): 5 for i in range(20)} | {("c03", "c04"): 2}
    accuracy, pairs, line = judgement(confusion)
    assert accuracy.splitlines()[4].split() == ["c03", "7", "5", "71.43"]
    assert pairs.splitlines()[1].split() == ["c03", "c04", "2"]
    assert line == "top-1 98.04 % of 102 images"


def test_nothing_predicted():
    assert table([], {}) == "" and in_csv([]) == "image,label,class1,probability1"
