"""What processes leave for those that torchrun starts in their place."""

import pytest

from pipeline.run import restart
from pipeline.run.config import load_config
from pipeline.run.errors import Diverged, Interrupted, UserError
from tests import ROOT

ENDS = [Diverged("loss is nan"), Interrupted(15, "interrupted; saved")]


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    config = load_config(ROOT / "configs/quickstart.yaml", [f"run.dir={tmp_path}", "run.name=run"])
    config.run_folder.mkdir()
    return config


def test_a_crash_is_gone_on_from(config, monkeypatch):
    assert not restart.is_restart(config)
    restart.begin(config)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restart.is_restart(config)


@pytest.mark.parametrize("end", ENDS)
def test_an_end_for_good_is_one(end, config, monkeypatch):
    restart.note(config, end)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(type(end)):
        restart.is_restart(config)


@pytest.mark.parametrize("end", ENDS)
def test_a_new_job_by_the_same_name_is_another(end, config, monkeypatch):
    """As on Kubernetes, where torchrun is process 1 of a pod that has its old name again."""
    restart.note(config, end)
    assert not restart.is_restart(config)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # before it began
    assert not restart.is_restart(config)


@pytest.mark.parametrize("count", ["x", "-1", "1.0", "99999999999"])
def test_a_count_that_is_none_is_named_with_what_helps(count, config, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
    with pytest.raises(UserError, match=f"TORCHELASTIC_RESTART_COUNT={count} is no whole") as error:
        restart.is_restart(config)
    for name in str(error.value).rpartition("unset ")[2].split():
        monkeypatch.delenv(name, raising=False)
    assert not restart.is_restart(config)


def test_without_torchrun_its_count_is_not_looked_at(config, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "x")
    assert not restart.is_restart(config)
