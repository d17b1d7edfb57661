"""The public surface: sorted, complete, importable, documented."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import pytest

import lowtide


def test_names_are_sorted_and_complete() -> None:
    assert list(lowtide.__all__) == sorted(
        set(lowtide.__all__), key=lambda n: (not n.isupper(), n[0].islower(), n)
    ), "constants, then classes, then functions"
    public = {
        n
        for n, v in vars(lowtide).items()
        if not n.startswith("_") and not inspect.ismodule(v) and n != "annotations"
    }
    assert public == {n for n in lowtide.__all__ if not inspect.ismodule(getattr(lowtide, n))}


def documented(thing: object) -> bool:
    text = inspect.getdoc(thing) or ""
    if inspect.isclass(thing) and text == (inspect.getdoc(thing.__mro__[1]) or ""):
        return False
    first = text.partition("\n")[0]
    generated = text.startswith(f"{thing.__name__}(")  # what dataclass writes by itself
    return first.endswith((".", ":")) and len(first) > 10 and not generated


@pytest.mark.parametrize("name", lowtide.__all__)
def test_every_name_is_documented(name: str) -> None:
    thing = getattr(lowtide, name)
    if not callable(thing):
        assert isinstance(thing, dict | str)
        return
    assert documented(thing), f"{name} has no docstring of its own"
    for own, member in vars(thing).items() if inspect.isclass(thing) else ():
        if not own.startswith("_") and inspect.isfunction(member):
            assert documented(member), f"{name}.{own} has no docstring"


def test_the_version_is_the_package_s() -> None:
    assert lowtide.__version__ == version("lowtide")
