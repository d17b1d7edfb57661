"""What the site has beside the files of docs/: pages that lie elsewhere, and a gallery.

mkdocs calls this (`hooks` in mkdocs.yml); `make site` builds the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "readme.md",
    "lowtide/zoo/MODEL_CARD.md": "model-card.md",
}
"""Pages that docs/ links to and does not hold, by where they are on the site."""
FIGURE = re.compile(r"!\[([^\]]+)\]\((figures/[^)]+)\)")
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    for path, page in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, "gallery.md", content=gallery()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links between the repository's files lead to the site's pages."""
    own = {there: path for path, there in ELSEWHERE.items()}
    source = ROOT / own.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def moved(found: re.Match[str]) -> str:
        target = (source.parent / found[1]).resolve()
        if not target.is_relative_to(ROOT):
            return found[1]
        path = target.relative_to(ROOT).as_posix()
        return ELSEWHERE.get(path, path.removeprefix("docs/"))

    return LINK.sub(moved, markdown)


def gallery() -> str:
    """Every figure of every page, under what it shows, with the page that says how it was made."""
    parts = ["# Gallery", "The figures of these pages, which say how each was measured and drawn."]
    for path in sorted((ROOT / "docs").glob("*.md")):
        text = path.read_text()
        if not (figures := FIGURE.findall(text)):
            continue
        title = re.search(r"^# (.+)$", text, re.MULTILINE)
        parts.append(f"## [{title[1] if title else path.stem}]({path.name})")
        drawn = [
            f"<figure markdown>\n![{a}]({f})\n<figcaption>{a}</figcaption>\n</figure>"
            for a, f in figures
        ]
        parts += ['<div class="gallery" markdown>', *drawn, "</div>"]
    return "\n\n".join(parts) + "\n"
