"""Methods from outside the package: what installed packages offer, and a user's own file or module.

Nothing here reads a file of a run: what is imported is named on the command line, or installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path

from ..errors import InputError, UnknownName, shown
from .method import METHODS, Method, method_name

GROUP = "lowtide.methods"
"""Entry points of this group name modules that define a method each."""
PREFIX = "lowtide_import"
"""What stands before the name of a module that was given as a file."""
PACKAGE = __name__.partition(".")[0]


class MethodWarning(UserWarning):
    """A method of an installed package could not be imported."""


def import_methods(source: str) -> None:
    """Import a user's own methods: one file or module for each, under the name of which it runs.

    Args:
        source: A Python file, or the name of a module, which may lie in the current folder.

    Raises:
        InputError: It cannot be imported, or defines no method.
    """
    before = len(METHODS)
    try:
        module = _import_file(Path(source)) if source.endswith(".py") else _import_name(source)
    except InputError:
        raise
    except Exception as e:
        reason = (str(e).splitlines() or [""])[0]
        raise InputError(f"--import {source} fails: {type(e).__name__}: {reason}") from e
    known = any(f"{m.__module__}.".startswith(f"{module}.") for m in METHODS.values())
    if len(METHODS) == before and not known:
        raise InputError(f"--import {source}: it defines no class with @lowtide.method")


def _import_name(name: str) -> str:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # behind all else: nothing installed is hidden by it
    importlib.import_module(name)
    return name


def _import_file(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"--import {path}: no such file")
    name = f"{PREFIX}.{path.stem}"
    have = sys.modules.get(name)
    if have is not None and Path(str(have.__file__)).resolve() == path.resolve():
        return name
    if path.stem in METHODS:
        raise InputError(f"--import {path}: there is a method {path.stem} already; rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return name


def import_offered() -> None:
    """Import the methods that installed packages offer under the entry points of `GROUP`.

    Warns:
        MethodWarning: One fails; lowtide goes on without it.
    """
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as e:
            reason = (str(e).splitlines() or [""])[0]
            text = f"the method {point.name} of {point.value} fails: {type(e).__name__}: {reason}"
            warnings.warn(text, MethodWarning, stacklevel=2)


def source_of(cls: type[Method]) -> str | None:
    """Name the file or module that must be imported for a method to be known.

    Args:
        cls: The method.

    Returns:
        What `--import` takes, a file without its folder; None for lowtide's own.
    """
    top, _, _ = cls.__module__.partition(".")
    if top == PACKAGE:
        return None
    if top == PREFIX:
        return f"{method_name(cls)}.py"
    return cls.__module__


def refuse_missing(name: object, source: object) -> None:
    """Refuse a method that nobody has imported.

    Args:
        name: The method.
        source: What the files of a run say that it came from, if they do.

    Raises:
        InputError: It is from outside the package and not here.
        UnknownName: Nobody knows it.
    """
    if isinstance(name, str) and name in METHODS:
        return
    if isinstance(source, str) and isinstance(name, str):
        raise InputError(
            f"the method {shown(name)} is none of lowtide's and is not imported: it came from"
            f" {shown(source)}, which --import takes (or import it before, in Python)"
        )
    raise UnknownName("method", name, METHODS)
