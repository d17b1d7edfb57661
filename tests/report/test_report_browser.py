"""The page in a real browser: nothing is refused or loaded, plots are drawn, tables sort."""

from __future__ import annotations

import re

import browsers
import numpy as np
import pytest
from reported import write_suite

from lowtide.report import Section, write_report

METHODS = [f"method {i}" for i in range(8)] + ["LoRA, rank 8, of all maps", "s2a"]
DATA = {"dtd": "natural", "svhn": "natural", "kitti": "structured"}
FIGURE = (
    "<svg xmlns='http://www.w3.org/2000/svg' width='90' height='60'>"
    "<script>document.title = 'run'</script><rect width='90' height='60'/></svg>"
)


@pytest.fixture(scope="module")
def chromium():
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page of ten methods on three data sets, one of which failed."""
    root = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    rows = {(m, d): [int(v) for v in rng.integers(40, 190, 2)] for d in DATA for m in METHODS}
    rows["failed", "dtd"] = [None]
    few = write_suite(root / "few", rows, DATA, lr=[1e-3, 1e-2])
    many = write_suite(root / "many", {(m, "cars"): [150] for m in METHODS[:2]}, classes=50)
    output = root / "report.html"
    write_report([few, many], output, title="Report", sections=[Section("features", FIGURE)])
    return output.as_uri()


@pytest.fixture
def opened(chromium, address):
    """Open the page; at the end nothing may have gone wrong on it."""
    pages = []

    def open_page(**options):
        context = chromium.new_context(**options)
        page = context.new_page()
        page.said, page.asked = [], []
        page.on("console", lambda m: page.said.append(m.text))
        page.on("pageerror", lambda e: page.said.append(str(e)))
        page.on("request", lambda r: page.asked.append(r.url))
        page.goto(address)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        assert page.said == []
        assert [url for url in page.asked if not url.startswith("data:")] == [address]
        page.context.close()


def test_it_loads_and_nothing_in_a_figure_runs(opened):
    page = opened()
    assert page.title() == "Report"
    image = page.locator(".image img")
    assert image.evaluate("i => i.complete && i.naturalWidth") == 90


def test_plots_are_seen(opened):
    page = opened()
    plots = page.locator(".plots .grid svg")
    # Three costs of the means and of each data set; two curves, one where nothing was validated.
    assert plots.count() == 3 + 3 * (3 + 2) + (3 + 1)
    for plot in plots.all():
        box = plot.bounding_box()
        assert box["width"] > 250 and box["height"] > 180
        marks = [m.bounding_box() for m in plot.locator(".mark").all()]
        assert marks and all(m["width"] > 4 and m["height"] > 4 for m in marks)
        for m in marks:
            assert box["x"] <= m["x"] <= box["x"] + box["width"] - m["width"]
            assert box["y"] <= m["y"] <= box["y"] + box["height"] - m["height"]
    bars = [b.bounding_box() for b in page.locator("svg.bar").all()]
    assert bars and all(b["width"] > 100 and b["height"] > 8 for b in bars)


BOXES = """
(texts) => texts.map(t => t.getBBox()).map(({x, y, width, height}) => ({x, y, width, height}))
"""


def test_labels_of_a_plot_do_not_overlap(opened):
    page = opened()
    for plot in page.locator(".plots .grid svg:has(.pareto)").all():
        boxes = plot.locator("text.label").evaluate_all(BOXES)
        assert len(boxes) >= 2
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                across = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
                down = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
                assert across <= 1 or down <= 2.5  # glyphs fill less than their line


def column(table, place):
    """What stands in a column, first cells included."""
    return table.locator(f"tbody tr > :nth-child({place})").all_inner_texts()


def numbers(texts):
    return [float(found[0]) for t in texts if (found := re.findall(r"^[\d.]+", t))]


def test_tables_sort_by_click_and_by_key(opened):
    page = opened()
    table = page.locator("#m0d0 .scroll table").first
    head = table.locator("thead th").nth(1)
    before = column(table, 2)
    assert head.get_attribute("aria-sort") == "none"
    assert numbers(before) == sorted(numbers(before), reverse=True)
    head.locator("button").click()
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    rising = column(table, 2)
    assert numbers(rising) == sorted(numbers(before)) != numbers(before)
    assert rising[-1] == "failed" == before[-1]
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert numbers(column(table, 2)) == numbers(before)
    name = table.locator("thead th").nth(0)
    name.locator("button").focus()
    page.keyboard.press("Enter")
    assert name.get_attribute("aria-sort") == "ascending"
    assert head.get_attribute("aria-sort") == "none"
    names = sorted(column(table, 1), key=str.lower)
    assert column(table, 1) == names
    page.keyboard.press("Enter")
    assert name.get_attribute("aria-sort") == "descending"
    assert column(table, 1) == names[::-1]


def test_a_method_can_be_picked_out(opened):
    page = opened()
    figure = page.locator("#m0d0 .plots")
    button = figure.locator(".legend button").nth(2)
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert button.inner_text() in figure.locator(".readout").inner_text()
    page.mouse.move(0, 0)
    page.wait_for_timeout(400)  # it fades
    shown = figure.locator("g.point").evaluate_all(
        "gs => gs.map(g => [g.dataset.m, getComputedStyle(g).opacity])"
    )
    chosen = button.get_attribute("data-m")
    assert {m for m, opacity in shown if opacity == "1"} == {chosen}
    assert {opacity for m, opacity in shown if m != chosen} == {"0.14"}
    button.click()
    assert button.get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize("width", [390, 820])
def test_a_phone_scrolls_down_only(opened, width):
    page = opened(viewport={"width": width, "height": 844})
    for summary in page.locator("summary").all()[:40]:
        summary.evaluate("s => s.parentElement.open = true")
    inside, seen = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert inside <= seen == width
    tables = page.locator(".scroll").evaluate_all(
        "ts => ts.map(t => [t.scrollWidth, t.clientWidth])"
    )
    assert all(visible <= width for _, visible in tables)
    if width == 390:
        assert any(whole > visible for whole, visible in tables)


LUMINANCE = """
(element) => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const svg = element instanceof SVGElement;
  let behind = element, colour = "rgba(0, 0, 0, 0)";
  while (colour === "rgba(0, 0, 0, 0)") {
    colour = getComputedStyle(behind).backgroundColor;
    behind = behind.parentElement;
  }
  const own = getComputedStyle(element);
  return [light(svg ? own.fill : own.color), light(colour)];
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_stand_out_from_what_is_behind(opened, scheme):
    page = opened(color_scheme=scheme)
    needed = {
        "body": 7, "header p": 4.5, "a": 4.5, "caption": 4.5, "thead th": 4.5, "tbody td.n": 7,
        ".readout": 4.5, ".legend button": 4.5, ".notes li": 4.5, "summary": 4.5,
        "svg text.axis": 4.5, "svg text:not([class])": 4.5, ".grid .mark": 3,
    }  # fmt: skip
    for selector, ratio in needed.items():
        found = page.locator(selector)
        assert found.count(), selector
        for element in found.all()[:12]:
            ink, behind = element.evaluate(LUMINANCE)
            assert behind < 0.03 if scheme == "dark" else behind > 0.7, selector
            high, low = max(ink, behind), min(ink, behind)
            assert (high + 0.05) / (low + 0.05) >= ratio, selector


def test_printed_it_is_whole_and_light(opened):
    page = opened(color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.emulate_media(media="print")
    assert page.locator("body").evaluate(LUMINANCE)[1] == 1
    assert not page.locator("nav").is_visible()
