"""Every tree of docs/data.md is built and read, and every image of it is used."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest

from lowtide.data import read
from lowtide.data.formats.corruptions import corruptions_in, severities_in

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
if not PAGE.is_file():
    pytest.skip("runs in a checkout only", allow_module_level=True)
TREES = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def build(tree: str, paint) -> tuple[list[list[str]], set[Path]]:
    """Write the files of a tree; give its commands and its images."""
    commands, images = [], set()
    for line in tree.splitlines():
        if line.startswith("$ lowtide "):
            commands.append(shlex.split(line)[2:])
            continue
        name, _, content = (part.strip() for part in re.split("(  +)", line + "   ", maxsplit=1))
        root = paint() / name
        if content:
            root.parent.mkdir(parents=True, exist_ok=True)
            root.write_text("\n".join(part.strip() for part in content.split("|")) + "\n")
        else:
            paint(name)
            images.add(root)
    return commands, images


def option(command: list[str], name: str) -> str | None:
    return command[command.index(name) + 1] if name in command else None


def test_the_page_has_a_tree_for_every_format_of_files():
    assert len(TREES) == 13
    assert sum(tree.count("$ lowtide") for tree in TREES) == 19


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.splitlines()[0][10:])
def test_a_documented_tree_is_read(tree, paint):
    commands, images = build(tree, paint)
    used: set[Path] = set()
    classes: tuple[str, ...] = ("n01440764", "n01443537")
    for command in commands:
        source = paint() / command[command.index("--data") + 1]
        if corruptions_in(source):
            sources = list(severities_in(source).values())
        else:
            sources = [source]
        for path in sources:
            task, target = (option(command, name) for name in ("--task", "--target"))
            known = classes if command[0] == "eval" else None
            data = read(path, classes=known, task=task or "classify", target=target)
            used |= {sample.path for sample in itertools.chain(data.train, data.val, data.test)}
            if command[0] == "train":
                classes = data.classes
                assert data.train and len(classes) >= (1 if task == "regress" else 2)
    assert {path.resolve() for path in used} == images
