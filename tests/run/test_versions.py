"""The line about what is installed."""

import platform
import sys

import pytest

from pipeline.run.versions import versions

PYTHON = f"Python {platform.python_version()}"


@pytest.fixture(autouse=True)
def forgotten():
    """What other tests found is forgotten, and what these find."""
    versions.cache_clear()
    yield
    versions.cache_clear()


@pytest.mark.parametrize(
    ("installed", "line"),
    [
        ({}, "no torch, no triton, no DALI, no apex"),
        (
            {"torch": "2.14.0a0+0123abc.nv26.9", "triton": "3.8.0", "apex": "0.1",
             "nvidia_dali_cuda130": "2.4.0", "torchvision": "0.29", "nvidia_dali_tf": "1"},
            "torch 2.14.0a0+0123abc.nv26.9, triton 3.8.0, DALI 2.4.0, apex 0.1",
        ),
        (
            {"pytorch_triton": "3.7.1", "nvidia-dali-cuda120": "1.50", "reapex": "2"},
            "no torch, triton 3.7.1, DALI 1.50, no apex",
        ),
    ],
)  # fmt: skip
def test_what_is_installed_is_told_in_one_line(installed, line, tmp_path, monkeypatch):
    for name, version in installed.items():
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    (tmp_path / "broken-1.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert versions() == f"{PYTHON}, {line}"


def test_the_first_of_two_counts_as_it_does_for_imports(tmp_path, monkeypatch):
    for place in ("first", "second"):
        folder = tmp_path / place / f"torch-{len(place)}.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Name: torch\nVersion: {len(place)}.0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second")])
    assert versions().startswith(f"{PYTHON}, torch 5.0, ")
