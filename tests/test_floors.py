"""Imports go down only, at module scope only, and no room imports its neighbour."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lowtide
from lowtide.families import FAMILIES

PACKAGE = Path(lowtide.__file__).parent
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "interrupt", "versions", "paths", "extras", "values", "yaml_text"),
    ("zoo", "kernels"),
    ("core",),
    ("codecs",),
    ("ops",),
    ("memory",),
    ("methods", "families"),
    ("tuning",),
    ("targets",),
    ("multi_adapter",),
    ("planning",),
    ("data", "presets"),
    ("dense",),
    ("training",),
    ("evolution",),
    ("inference", "integrations"),
    ("serving",),
    ("bench", "inspect", "report"),
    ("commands",),
    ("cli",),
)
"""Every room of the house, from the ground up; a new one is given its floor here.

A room imports what is below it and, on its own floor, what stands to its left.
"""
APART = {"methods", "families"}
"""Rooms that do not know each other."""
ROOMS = [room for floor in FLOORS for room in floor]
FLOOR = {room: height for height, floor in enumerate(FLOORS) for room in floor}
DOORS = {"__init__", "__main__"}
"""The public surface and the entry point see everything; nothing sees them."""


def modules() -> dict[str, ast.Module]:
    """Every module of the package by dotted name, packages as `name.__init__`."""
    return {
        ".".join(p.relative_to(PACKAGE).with_suffix("").parts): ast.parse(p.read_text())
        for p in sorted(PACKAGE.rglob("*.py"))
    }


MODULES = modules()


def resolve(module: str, node: ast.ImportFrom) -> Iterator[str]:
    """What a relative import names, from the package's root."""
    parents = module.split(".")[: -node.level]
    base = ".".join([*parents, *((node.module or "").split("."))]).strip(".")
    for alias in node.names:
        full = f"{base}.{alias.name}".strip(".")
        yield next((m for m in (full, f"{full}.__init__") if m in MODULES), base)


def imports(module: str) -> set[str]:
    """The package's own modules that a module imports."""
    found: set[str] = set()
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ImportFrom) and node.level:
            for name in resolve(module, node):
                found.add(name if name in MODULES else f"{name}.__init__".lstrip("."))
    return found


def room(module: str) -> str:
    return module.split(".")[0]


def outside(module: str) -> set[str]:
    """Top names of the other packages that a module imports."""
    found = set()
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found


PACKAGES = sorted({m.split(".")[0] for m in MODULES if "." in m})


def test_few_names_stand_beside_the_packages() -> None:
    assert len({m for m in MODULES if "." not in m}) <= 10


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_it_imports(package: str) -> None:
    said = (ast.get_docstring(MODULES[f"{package}.__init__"]) or "").split("\n\n")[-1]
    used = {room(other) for m in MODULES if room(m) == package for other in imports(m)}
    names = [name for name in ROOMS if name in used - {package}]
    told = ", ".join(names) if names else "nothing of lowtide"
    assert " ".join(said.split()) == f"Imports {told}."


def test_every_room_has_a_floor() -> None:
    assert len(ROOMS) == len(set(ROOMS))
    assert {room(m) for m in MODULES} - DOORS == set(ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    if room(module) in DOORS:
        return
    for other in imports(module):
        here, there = room(module), room(other)
        assert there not in DOORS, f"{module} imports the public surface"
        if there == here:
            continue
        assert FLOOR[there] <= FLOOR[here], f"{module} imports up: {other}"
        if FLOOR[there] == FLOOR[here]:
            assert here not in APART, f"{module} imports its neighbour {other}"
            assert ROOMS.index(there) < ROOMS.index(here), f"{module} imports {other} to its right"


@pytest.mark.parametrize("module", MODULES)
def test_imports_stand_at_module_scope(module: str) -> None:
    tree = MODULES[module]
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert id(node) in top, f"{module}:{node.lineno} defers an import"
    assert "lowtide" not in outside(module), f"{module} names the package; import relatively"


@pytest.mark.parametrize("module", MODULES)
def test_future_annotations_come_first(module: str) -> None:
    body = [n for n in MODULES[module].body if not isinstance(n, ast.Expr)]
    assert (
        not body
        or (isinstance(body[0], ast.ImportFrom) and body[0].module == "__future__")
        or (module == "__init__" and all(isinstance(n, ast.ImportFrom | ast.Assign) for n in body))
    )


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {m: imports(m) - {m} for m in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(MODULES) <= set(order)


METHOD_FILES = [m for m in MODULES if m.startswith("methods.") and m != "methods.__init__"]


@pytest.mark.parametrize("module", METHOD_FILES)
def test_a_method_knows_no_family_no_timm_and_no_other_method(module: str) -> None:
    assert "timm" not in outside(module) and "torchvision" not in outside(module)
    assert not [m for m in imports(module) if m.startswith(("methods", "families"))]
    tree = MODULES[module]
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and isinstance(node.body[0], ast.Expr)
    }
    named = re.compile(rf"\b({'|'.join(FAMILIES)}|vision_?transformer|deit)\b", re.IGNORECASE)
    for node in ast.walk(tree):
        words = [getattr(node, a, None) for a in ("id", "attr", "name", "arg")]
        if isinstance(node, ast.Constant) and id(node) not in documents:
            words.append(node.value)
        assert not [w for w in words if isinstance(w, str) and named.search(w)], (
            f"{module}:{getattr(node, 'lineno', 0)} names a family"
        )


@pytest.mark.parametrize("module", ["core.site", "core.graft", "errors"])
def test_the_words_know_no_backbone(module: str) -> None:
    assert "timm" not in outside(module)


def test_the_readers_can_fail() -> None:
    """A deferred import and an upward one are seen."""
    tree = ast.parse("def f():\n    from .cli import main\n    import os")
    MODULES["methods.mutant"] = tree
    try:
        with pytest.raises(AssertionError, match="defers"):
            test_imports_stand_at_module_scope("methods.mutant")
        MODULES["methods.mutant"] = ast.parse("from ..cli import main")
        with pytest.raises(AssertionError, match="imports up"):
            test_imports_go_down("methods.mutant")
        MODULES["methods.mutant"] = ast.parse("from ..families import FAMILIES")
        with pytest.raises(AssertionError, match="neighbour"):
            test_imports_go_down("methods.mutant")
    finally:
        del MODULES["methods.mutant"]
