"""Small files, small functions, public names that say what they are."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from test_floors import MODULES, PACKAGE

FILE, FUNCTION = 300, 40
"""Lines: of a file, all of them; of a function, those beside its docstring."""

ANYTHING = 11
"""Uses of `Any` in 1,000 lines of code: what is only passed on or compared is an `object`."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def lines_of(function: Function) -> int:
    """Lines from `def` to the last, without the docstring."""
    first, last = function.body[0], function.end_lineno or 0
    docstring = ast.get_docstring(function) is not None
    documented = (first.end_lineno or 0) - first.lineno + 1 if docstring else 0
    return last - function.lineno + 1 - documented


def long_functions(module: str) -> set[str]:
    """Functions of a module, methods and inner ones too, that are too long."""
    found = (node for node in ast.walk(MODULES[module]) if isinstance(node, Function))
    return {f"{module}.{node.name}" for node in found if lines_of(node) > FUNCTION}


def public(body: list[ast.stmt], inside: str = "") -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Public classes, functions and methods."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield inside + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{inside}{node.name}.")


def decorated(node: Function, names: set[str]) -> bool:
    return any(
        (isinstance(d, ast.Name) and d.id in names)
        or (isinstance(d, ast.Attribute) and d.attr in names)
        for d in node.decorator_list
    )


def unsaid(module: str) -> list[str]:
    """What public names of a module leave out: a docstring, or the type of something."""
    said = []
    for name, node in public(MODULES[module].body):
        documented = ast.get_docstring(node) is not None
        if isinstance(node, ast.ClassDef):
            said += [] if documented else [f"{name} has no docstring"]
            continue
        if not documented and not decorated(node, {"overload", "setter"}):
            said.append(f"{name} has no docstring")
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        given = given["." in name and not decorated(node, {"staticmethod"}) :]
        bare = [argument.arg for argument in given if argument.annotation is None]
        said += [f"{name} has no type for {', '.join(bare)}"] if bare else []
        said += [f"{name} has no type for its result"] if node.returns is None else []
    return said


def anything(module: str) -> int:
    """Count the uses of `Any`, also by another name or through `typing`."""
    tree = MODULES[module]
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    found = [a.asname or a.name for node in imports for a in node.names if a.name == "Any"]
    known = {"Any", *found}
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.value, "id", None) in known:
            known |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    names = (getattr(node, "id", getattr(node, "attr", None)) for node in ast.walk(tree))
    return sum(name in known for name in names)


def test_files_are_short() -> None:
    paths = {m: PACKAGE.joinpath(*m.split(".")).with_suffix(".py") for m in MODULES}
    assert not {m for m, path in paths.items() if len(path.read_text().splitlines()) > FILE}


def test_functions_are_short() -> None:
    assert not {name for module in MODULES for name in long_functions(module)}


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_documented_and_annotated(module: str) -> None:
    assert not unsaid(module)


def test_few_values_are_of_any_type() -> None:
    lines = sum(len(ast.unparse(tree).splitlines()) for tree in MODULES.values())
    assert sum(map(anything, MODULES)) * 1000 <= ANYTHING * lines
    assert not {module for module in MODULES if module.startswith("codecs.") and anything(module)}


def test_the_readers_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too long, undocumented or untyped is seen; a docstring does not count as lines."""
    body = "\n".join("    x" for _ in range(FUNCTION))
    words = "\n".join("    word" for _ in range(FUNCTION))
    text = f'def long(x):\n{body}\ndef told(x: int) -> int:\n    """Say.\n{words}\n    """\n    x\n'
    monkeypatch.setitem(MODULES, "mutant", ast.parse(text))
    assert long_functions("mutant") == {"mutant.long"}
    assert unsaid("mutant") == [
        "long has no docstring",
        "long has no type for x",
        "long has no type for its result",
    ]
    text = "import typing\nfrom typing import Any as A\nB = A\ndef f(x: A, y: B) -> typing.Any: x"
    monkeypatch.setitem(MODULES, "mutant", ast.parse(text))
    assert anything("mutant") == 5
