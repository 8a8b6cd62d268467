"""The page of a comparison, in a real browser."""

import base64
import re

import pytest

from pipeline.report.comparison import Comparison
from pipeline.report.figures import figures
from pipeline.report.groups import grouped
from pipeline.report.page import page
from pipeline.report.runs import Run
from tests.report.chromium import PROGRAM, Chromium
from tests.report.fixtures import epochs

pytest.importorskip("plotly")
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"
AREA = "document.querySelector('#curves .nsewdrag').getBoundingClientRect().toJSON()"


def comparison(*runs, left_out=()):
    known = {run.name: figures(run, "val_top1") for run in runs}
    return Comparison("val_top1", grouped(runs), known, left_out)


def run(name, done=5, **config):
    return Run(name, epochs(done), {"lr": "0.1", "estimator.name": "reste", **config})


SEVERAL = comparison(run("a1"), run("a2", 3, seed="2"), run("größer b", 4, lr="1"),
                     left_out=["left out: c"])  # fmt: skip


def test_nothing_in_the_page_comes_from_elsewhere():
    text = page(SEVERAL).decode()
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert "://" not in outside and not re.search(
        r"<(link|iframe|img|script)[^>]* (src|href)=", text
    )
    assert "default-src 'none'" in outside and "left out: c" in outside


def test_names_are_text():
    text = page(comparison(run(HOSTILE), run("b", lr="1"), left_out=[HOSTILE])).decode()
    assert "<script>document.title" not in text and "<img" not in text


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if PROGRAM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    browser = Chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def shown(browser, tmp_path):
    """A function that shows a comparison in the browser."""

    def show(what):
        (tmp_path / "a page ü.html").write_bytes(page(what))
        browser.events.clear()
        browser.open(tmp_path / "a page ü.html")
        browser.wait("document.querySelectorAll('#curves .scatterlayer .trace').length > 0")
        return browser

    return show


def visible(browser):
    """The names of the curves that are drawn, once for each panel."""
    return browser.value("curves._fullData.filter(t => t.visible === true).map(t => t.name)")


def legend(browser, name):
    """The middle of a name in the legend."""
    boxes = browser.value(
        "[...document.querySelectorAll('#curves .legend .traces')].map(e => {"
        "const r = e.querySelector('.legendtoggle').getBoundingClientRect();"
        "return [e.textContent, r.x + r.width / 2, r.y + r.height / 2]})"
    )
    return next((x, y) for text, x, y in boxes if text == name)


def test_the_curves_are_drawn_and_nothing_is_asked_for(shown):
    browser = shown(SEVERAL)
    names = ["a* (mean of 2)", "a1", "a2", "größer b"]
    assert sorted(visible(browser)) == sorted(2 * names)
    assert browser.value("document.querySelectorAll('#curves .legend .traces').length") == 4
    urls = browser.requests()
    assert len(urls) == 1 and urls[0].startswith("file:")
    assert browser.value("performance.getEntriesByType('resource').length") == 0
    assert browser.complaints() == []
    assert "Comparison of 3 runs" in browser.value("document.body.innerText")
    titles = browser.value(
        "[...document.querySelectorAll('.modebar-btn')].map(e => e.dataset.title)"
    )
    assert titles and not any(re.search("loud|hare|link", title) for title in titles)


def test_a_curve_tells_its_values_where_the_mouse_is(shown):
    browser = shown(comparison(run("größer %{y} b")))
    box = browser.value(AREA)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2  # the third of five epochs
    browser.mouse("mouseMoved", x, y - 5)
    browser.mouse("mouseMoved", x, y)
    browser.wait("document.querySelectorAll('#curves .hoverlayer .hovertext').length > 0")
    text = browser.value("document.querySelector('#curves .hoverlayer').textContent")
    assert "größer %{y} b" in text and "3 epochs: 20" in text


def test_a_click_on_a_name_switches_its_curves(shown):
    browser = shown(SEVERAL)
    before = visible(browser)
    browser.click(*legend(browser, "a2"))
    browser.wait("curves._fullData.filter(t => t.visible === true).length == 6")
    assert sorted(visible(browser)) == sorted(name for name in before if name != "a2")
    browser.wait("document.querySelectorAll('#curves .scatterlayer .trace').length == 6")
    browser.click(*legend(browser, "a2"))
    browser.wait("curves._fullData.filter(t => t.visible === true).length == 8")


def test_a_drag_zooms(shown):
    browser = shown(SEVERAL)
    box = browser.value(AREA)
    full = browser.value("curves._fullLayout.xaxis.range")
    left, right = (box["x"] + share * box["width"] for share in (0.25, 0.5))
    browser.drag((left, box["y"] + 20), (right, box["y"] + box["height"] - 20))
    browser.wait(f"curves._fullLayout.xaxis.range[1] < {full[1]} - 0.5")
    low, high = browser.value("curves._fullLayout.xaxis.range")
    width = full[1] - full[0]
    assert low == pytest.approx(full[0] + 0.25 * width, abs=0.02 * width)
    assert high == pytest.approx(full[0] + 0.5 * width, abs=0.02 * width)
    axes = browser.value("curves._fullData.map(t => t.xaxis)")
    assert set(axes) == {"x"}  # both panels zoom together


@pytest.mark.slow
def test_any_comparison_is_shown(shown):
    empty = Run("not begun", [], {"lr": "7"})
    odd = Run(
        "odd", [{"kind": "epoch", "epoch": 0, "val_top1": 5.0}, {"kind": "epoch", "epoch": 1}]
    )
    browser = shown(comparison(run(HOSTILE), run("one epoch", 1, lr="1"), empty, odd))
    assert browser.value("document.title") == "Comparison of 4 runs"
    assert HOSTILE in browser.value("document.querySelector('#curves .legend').textContent")
    assert browser.complaints() == [] and len(browser.requests()) == 1
    content = base64.b64decode(browser.call("Page.captureScreenshot")["data"])
    assert content.startswith(b"\x89PNG")
