"""A comparison as one page for a browser, by plotly: curves to hover over, zoom and switch off.

The page holds all that it needs, plotly's script (5 MB) included, and forbids the browser to load
anything else.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

from pipeline.report.comparison import Comparison, Rows
from pipeline.report.curves import Curve, Points, curves
from pipeline.report.overlay import title

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';
 style-src 'unsafe-inline'; img-src data: blob:; form-action 'none'; base-uri 'none'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #24292f; padding: 0 1em }}
body {{ margin: 2em auto; max-width: 1200px }}
h1 {{ font-size: 1.4em }} h2 {{ font-size: 1.1em; margin-top: 2em }}
div.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: .25em .8em; text-align: right; white-space: nowrap }}
tr {{ border-bottom: 1px solid #e4e8ec }}
th:first-child, td:first-child {{ text-align: left }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>Hover over a curve to read it, drag to zoom, double-click to see everything again. A click on a
name switches its curves off and on, a double-click shows them alone.</p>
{chart}
{sections}
</body>
</html>
"""
# Without the button that uploads a chart, and without the logo, a link.
OPTIONS = {"showSendToCloud": False, "displaylogo": False, "responsive": True}
ID = "curves"  # of the chart in the page
PANEL = 380  # pixels of height


def page(comparison: Comparison) -> bytes:
    """The page, HTML in UTF-8. Raises ImportError where plotly is not installed."""
    text = PAGE.format(
        title=escape(f"Comparison of {len(comparison.runs)} runs"),
        chart=_chart(comparison),
        sections="\n".join(_sections(comparison)),
    )
    return text.encode()


def _chart(comparison: Comparison) -> str:
    from plotly.io import to_html

    metrics = comparison.metrics
    figure = {
        "data": [
            _trace(curve, curve.points[metric], number)
            for curve in curves(comparison)
            for number, metric in enumerate(metrics, 1)
        ],
        "layout": _layout(metrics),
    }
    # Validating takes longer than all the rest; the test in a browser does it.
    return str(
        to_html(figure, OPTIONS, full_html=False, include_plotlyjs=True, div_id=ID, validate=False)
    )


def _layout(metrics: Sequence[str]) -> dict[str, Any]:
    """Panels below each other over one axis of epochs, with the names beside the first."""
    count = len(metrics)
    panels = {
        f"yaxis{number}": {
            "title": {"text": title(metric)},
            "domain": [1 - (number - 0.08) / count, 1 - (number - 1) / count],
            "zeroline": False,
        }
        for number, metric in enumerate(metrics, 1)
    }
    return panels | {
        "xaxis": {"title": {"text": "epochs done"}, "anchor": f"y{count}", "zeroline": False},
        "height": PANEL * count,
        "hovermode": "closest",
        "margin": {"l": 70, "r": 20, "t": 30, "b": 50},
    }


def _trace(curve: Curve, points: Points, panel: int) -> dict[str, Any]:
    """A curve in the panel of that number, from 1; its name stands beside the first."""
    name = escape(curve.label)
    return {
        "yaxis": f"y{panel}",
        "showlegend": panel == 1,
        "type": "scatter",
        "mode": "lines" if len(points.done) > 1 else "markers",
        "x": points.done,
        "y": points.values,
        "name": name,
        "legendgroup": name,
        "line": {"color": curve.colour, "dash": curve.dash, "width": 1 if curve.is_thin else 2},
        "opacity": 0.6 if curve.is_thin else 1,
        "hovertemplate": "%{fullData.name}<br>%{x} epochs: %{y:.5g}<extra></extra>",
    }


def _sections(comparison: Comparison) -> list[str]:
    found = ["<h2>Results</h2>", _table(comparison.results)]
    if comparison.settings:
        found += ["<h2>Settings that differ</h2>", _table(comparison.settings)]
    if comparison.left_out:
        lines = "".join(f"<li>{escape(line)}</li>" for line in comparison.left_out)
        found += ["<h2>Left out</h2>", f"<ul>{lines}</ul>"]
    return found


def _table(rows: Rows) -> str:
    head, *others = rows
    text = _row(head, "th") + "".join(_row(row, "td") for row in others)
    return f'<div class="wide"><table>{text}</table></div>'


def _row(cells: list[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
