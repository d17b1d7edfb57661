"""Links between the pages lead to a file, and to a heading in it; no network is asked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

import lowtide

ROOT = Path(__file__).parents[1]
if not (ROOT / "docs").is_dir():
    pytest.skip("runs in a checkout only", allow_module_level=True)
BESIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "lowtide/zoo/MODEL_CARD.md")
PAGES = sorted([
    *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.[mi][dp]*")),
    *BESIDE,
])  # fmt: skip
READER = MarkdownIt("commonmark", {"html": True}).enable("table")


def tokens(path: Path) -> list[Token]:
    """What a page is made of, of a notebook its cells of text."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return READER.parse(text)


def targets(path: Path) -> list[str]:
    """Where the links and images of a page lead."""
    inline = [child for token in tokens(path) for child in token.children or ()]
    found = [child.attrs.get("href", child.attrs.get("src")) for child in inline]
    html = [t.content for t in (*tokens(path), *inline) if t.type.startswith("html_")]
    found += re.findall(r'(?:src|href)="([^"]+)"', "\n".join(html))
    return [str(target) for target in found if target]


def anchors(path: Path) -> set[str]:
    """Names of a page's headings, as GitHub and mkdocs both make them; `#` is left out."""
    parts = tokens(path)
    titles = [b.content for a, b in zip(parts, parts[1:], strict=False) if a.type == "heading_open"]
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "") for title in titles]
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", t.lower()).strip()) for t in plain}


def broken(path: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    wrong = []
    for target in targets(path):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        if not there.is_relative_to(ROOT) or not there.exists():
            wrong.append(target)
        elif anchor and there.suffix == ".md" and anchor not in anchors(there):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert not broken(ROOT / page)


def test_a_broken_link_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "b.md").write_text("# One `two`, three\n")
    (tmp_path / "a.md").write_text(
        "[x](b.md#one-two-three) [x](b.md#one) [x](c.md) `[x](d.md)` [x](../e.md)\n\n"
        '| a |\n|---|\n| ![x](f.svg) |\n\n<img src="g.svg">\n\n```\n[x](h.md)\n```\n'
    )
    assert broken(tmp_path / "a.md") == ["b.md#one", "c.md", "../e.md", "f.svg", "g.svg"]


def test_the_reference_has_every_public_name() -> None:
    named = re.findall(r"^::: lowtide\.(\w+)$", (ROOT / "docs/reference.md").read_text(), re.M)
    described = {n for n in lowtide.__all__ if not isinstance(getattr(lowtide, n), dict | str)}
    assert len(named) == len(set(named)) and set(named) == described


def test_every_figure_is_on_a_page() -> None:
    shown = {
        (path.parent / target).resolve()
        for path in map(ROOT.__truediv__, PAGES)
        for target in targets(path)
    }
    assert not [f.name for f in (ROOT / "docs/figures").iterdir() if f.resolve() not in shown]
