"""What lowtide needs, and libraries that only some commands need, installed with an extra."""

from __future__ import annotations

import functools
import importlib
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from types import ModuleType

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .errors import InputError

OURS = "lowtide"
Needs = tuple[Requirement, ...]


def extra(module: str, name: str) -> ModuleType:
    """Import a library that an extra installs.

    Args:
        module: What to import: the library's, or one of lowtide's that uses all of the extra.
        name: The extra, as in `pip install "lowtide[NAME]"`.

    Returns:
        The module.

    Raises:
        InputError: It is not installed, or in a version that lowtide does not run with.
    """
    library = module.partition(".")[0]
    if unfit := _unfit(library, name):
        raise InputError(f'this command or option needs {unfit}: pip install "lowtide[{name}]"')
    try:
        return importlib.import_module(module)
    except ImportError as e:
        lacking = e.name.partition(".")[0] if e.name and library == OURS else library
        raise InputError(
            f'this command or option needs {lacking}: pip install "lowtide[{name}]"'
        ) from e


@functools.cache
def _unfit(library: str, name: str) -> str:
    """Say which library of an extra is there in another version than is needed."""
    for needed in optional().get(name, ()):
        own = installed(needed.name)
        meant = library in {OURS, canonicalize_name(needed.name).replace("-", "_")}
        if meant and own is not None and not needed.specifier.contains(own, prereleases=True):
            return f"{needed.name}{needed.specifier}, and {own} is installed"
    return ""


def installed(package: str) -> str | None:
    """Find the version of a package.

    Args:
        package: Its name on PyPI.

    Returns:
        The version; none if it is not installed.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def required() -> Needs:
    """List what lowtide needs.

    Returns:
        Libraries and their versions.
    """
    return _declared()[0]


def optional() -> dict[str, Needs]:
    """List what each extra adds.

    Returns:
        Libraries and their versions by the extra's name, without what developers need.
    """
    return {name: libraries for name, libraries in _declared()[1].items() if name != "dev"}


def _declared() -> tuple[Needs, dict[str, Needs]]:
    """What lowtide needs, and what each of its extras adds."""
    file = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(file.read_text()).get("project", {}) if file.is_file() else {}
    # In a checkout the metadata is as old as the last `pip install`, and may not be there.
    if project.get("name") == OURS:
        extras = project["optional-dependencies"].items()
        return _read(project["dependencies"]), {name: _read(lines) for name, lines in extras}
    with suppress(PackageNotFoundError):
        declared, names = _read(requires(OURS) or ()), metadata(OURS).get_all("Provides-Extra", [])
        needed = tuple(r for r in declared if _asked(r, ""))
        others = [r for r in declared if r not in needed]
        return needed, {name: tuple(r for r in others if _asked(r, name)) for name in names}
    return (), {}


def _asked(requirement: Requirement, name: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": name})


def _read(lines: Iterable[str]) -> Needs:
    return tuple(map(Requirement, lines))
