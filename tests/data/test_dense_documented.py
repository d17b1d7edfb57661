"""Every tree of docs/data-dense.md is built and read, and every image of it is used."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import trees

from lowtide.cli import main
from lowtide.data.dense import formats, read
from lowtide.data.dense.faults import FAULTS

pytest.importorskip("pycocotools.mask")
PAGE = Path(__file__).parents[2] / "docs" / "data-dense.md"
if not PAGE.is_file():
    pytest.skip("runs in a checkout only", allow_module_level=True)
TREES = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
MASKS = {"masks", "annotations", "gtFine"}


def build(tree: str, paint) -> tuple[list[str], set[Path]]:
    """Write the files of a tree; give its sources and its images."""
    sources, images = [], set()
    for line in tree.splitlines():
        if line.startswith("$ lowtide "):
            sources.append(shlex.split(line)[-1])
            continue
        name, _, content = (part.strip() for part in re.split("(  +)", line + "   ", maxsplit=1))
        if content:
            lines = [part.strip() for part in content.split(" | ")]
            trees.text(paint() / name, "\n".join(lines) + "\n")
        elif MASKS & set(Path(name).parts) or "_mask." in name:
            trees.mask(paint() / name, np.ones((16, 20)))
        else:
            paint(name)
            images.add(paint() / name)
    return sources, images


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.splitlines()[2][:30])
def test_a_documented_tree_is_read(tree, paint, capsys, monkeypatch):
    sources, images = build(tree, paint)
    monkeypatch.chdir(paint())
    used = set()
    for source in sources:
        found = read(source)
        used |= {image.path for split in found.splits.values() for image in split.images}
        assert main(["data", "check", source]) == 0
        assert "faults: none" in capsys.readouterr().out
    assert used == images


def test_the_page_names_every_format_and_recipe(paint):
    read_as = set()
    for number, tree in enumerate(TREES):
        sources, _ = build(
            tree, lambda *names, n=number: paint(*(f"{n}/{x}" for x in names)) / str(n)
        )
        read_as.add(read(paint() / str(number) / sources[0]).format)
    assert len(read_as) == len(formats.FORMATS)
    page = " ".join(PAGE.read_text().split())
    assert all(treatment in page for treatment in set(FAULTS.values()) - {"clipped"})
