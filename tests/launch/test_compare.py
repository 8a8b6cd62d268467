"""The command that compares runs, as a person starts it."""

import pytest

from launch import compare
from pipeline.report.figures import Costs
from pipeline.report.runs import read_run
from pipeline.run.errors import UserError
from pipeline.train.counting import count_config
from tests.report.fixtures import epochs, write_run


def test_two_runs_side_by_side(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, lr in (("a", "0.1"), ("b c", "0.3")):
        write_run(tmp_path / "runs" / name, epochs(3), f"optim.lr={lr}", "train.epochs=3")
    compare.main(["runs/a", "runs/b c", "gone"])
    out, err = capsys.readouterr()
    cost = Costs(count_config).of(read_run(tmp_path / "runs/a"))
    assert f"{cost[1] / 1e6:.4g}M" in out.splitlines()[-6] and "settings that differ" in out
    assert out.endswith("runs/compare/comparison.md\n")
    assert err == (
        "warning: left out: cannot read gone: No such file or directory; give a run's folder\n"
    )
    assert (tmp_path / "runs/compare/comparison.csv").exists()


def test_options(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "a", epochs(2), "train.epochs=2")
    words = [str(tmp_path / "a"), "--metric", "val_loss", "--out", f"{tmp_path}/out", "--watch=1"]
    compare.main(words)
    assert "val_loss  " in capsys.readouterr().out and (tmp_path / "out/comparison.md").exists()


def test_no_run_at_all_is_an_error():
    with pytest.raises(UserError, match=r"^RUN is missing; usage: "):
        compare.main([])
    assert compare.PARSER.parse(["--wandb", "team/project"]).runs == []
