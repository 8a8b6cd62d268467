"""The table of a network's counts."""

import pytest

from pipeline.report.summary import short, table

LAYER = {
    "binary_parameters": 576, "real_parameters": 0, "bits": 576, "packed_bytes": 76, "bops": 20736,
    "binary_macs": 20736, "real_macs": 0, "ops": 324.0, "activation_bytes": 1152,
}  # fmt: skip
SUMMARY = {
    "network": "mine", "bits": "1w1a", "classes": 10, "image_size": 6, "precision": "fp32",
    "layers": [{"name": "a.long.name", **LAYER}, {"name": "", **LAYER}],
    "total": {**LAYER, "binary_parameters": 1152, "real_macs": 1234567, "ops": 1234891.0},
}  # fmt: skip


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "-"), (7, "7"), (999, "999"), (1000, "1k"), (137_793_536, "137.8M"), (1.676e9, "1.676G"),
     (324.5, "324.5")],
)  # fmt: skip
def test_numbers_in_four_digits(number, text):
    assert short(number) == text


def test_the_table():
    lines = table(SUMMARY).splitlines()
    assert lines[0] == "mine 1w1a, 10 classes, images of 6 x 6 pixels, fp32"
    assert lines[4].split() == ["a.long.name", "576", "576", "76", "20.74k", "-", "324", "1.152k"]
    assert lines[5].startswith("(between)    ") and lines[7].startswith("total        ")
    assert len({len(line) for line in lines[2:8]}) == 1
    assert "20,736 BOPs / 64 + 1,234,567 FLOPs = 1,234,891 OPs" in lines[10]
    assert "of which 100.0 % are binary" in lines[9]
