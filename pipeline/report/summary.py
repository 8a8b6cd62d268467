"""The table of what a network holds and costs, layer by layer."""

from collections.abc import Mapping
from typing import Any

from pipeline.report.tables import aligned

HEADS = ("layer", "parameters", "bits", "packed B", "binary MACs", "real MACs", "OPs", "kept B")
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def table(summary: Mapping[str, Any]) -> str:
    """``summary``, as ``pipeline.train.counting`` makes it, in lines for people.

    A count is rounded to four digits in its row, and stands in full below the table.
    """
    layers, total = summary["layers"], summary["total"]
    rows = [HEADS, *(_row(layer["name"] or "(between)", layer) for layer in layers)]
    rows.append(_row("total", total))
    lines = aligned(rows).splitlines()
    rule = "-" * len(lines[0])
    return "\n".join([_title(summary), "", lines[0], rule, *lines[1:-1], rule, lines[-1], "",
                      *_sentences(total)])  # fmt: skip


def _title(summary: Mapping[str, Any]) -> str:
    return (
        "{network} {bits}, {classes} classes, images of {image_size} x {image_size} pixels, "
        "{precision}"
    ).format_map(summary)


def _row(name: str, count: Mapping[str, Any]) -> tuple[str, ...]:
    parameters = count["binary_parameters"] + count["real_parameters"]
    keys = ("bits", "packed_bytes", "binary_macs", "real_macs", "ops", "activation_bytes")
    return (name, short(parameters), *(short(count[key]) for key in keys))


def short(number: float) -> str:
    """``number`` in four digits and with a decimal prefix, such as 137.8M; "-" for 0."""
    if not number:
        return "-"
    size, prefix = next((unit for unit in UNITS if number >= unit[0]), (1.0, ""))
    return f"{number / size:.4g}{prefix}"


def _sentences(total: Mapping[str, Any]) -> list[str]:
    parameters = total["binary_parameters"] + total["real_parameters"]
    share = 100 * total["binary_parameters"] / max(parameters, 1)
    return [
        f"parameters  {parameters:,}, of which {share:.1f} % are binary: "
        f"{total['bits'] / 1e6:.4f} Mbit; packed {total['packed_bytes'] / 2**20:.2f} MiB",
        f"an image    {total['bops']:,} BOPs / 64 + {total['real_macs']:,} FLOPs = "
        f"{total['ops']:,.0f} OPs",
        f"training    keeps {total['activation_bytes'] / 2**20:.2f} MiB of activations per image",
        "docs/counting.md says how it is counted.",
    ]
