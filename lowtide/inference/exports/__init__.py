"""A run for other programs: one file per format, found by walking this folder.

Each says `SUFFIX`, how a file of it ends (nothing for a folder), and `write`, which writes it and
gives what its user must know. One that can hold several runs of a backbone has `write_tasks`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from ...errors import InputError, UnknownName
from ..evaluate import Trained
from ..places import refuse_replacing

_FILES = {
    m.name: importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
}
FORMATS: dict[str, ModuleType] = {n: m for n, m in sorted(_FILES.items()) if hasattr(m, "write")}
"""Every format by name."""


def place(form: str, output: Path, *reads: Path | None) -> Path:
    """Check where an export is to go.

    Args:
        form: The format.
        output: The file or folder.
        *reads: Files and run folders that it is made of; None where one is not given.

    Returns:
        The same.

    Raises:
        UnknownName: There is no such format.
        InputError: The name does not end as the format's files do, cannot be written to, or is
            that of something that would be lost.
    """
    if form not in FORMATS:
        raise UnknownName("format", form, FORMATS)
    suffix = FORMATS[form].SUFFIX
    if suffix and output.suffix != suffix:
        raise InputError(f"{output} must end in {suffix}")
    refuse_replacing(output, *reads, folder=not suffix)
    return output


def export(trained: Trained, form: str, output: Path) -> list[str]:
    """Write a run for other programs; it answers there as `lowtide predict` does.

    Args:
        trained: The run; not to be used again.
        form: The format.
        output: The file, or for peft the folder.

    Returns:
        What its user must know, a line each.
    """
    place(form, output).parent.mkdir(parents=True, exist_ok=True)
    return FORMATS[form].write(trained, output)


def export_tasks(
    runs: Mapping[str, Path], checkpoint: Path | None, form: str, output: Path
) -> list[str]:
    """Write several runs of one backbone as one file.

    Args:
        runs: Folders by name.
        checkpoint: Where the backbone's weights are now, if not where they were.
        form: The format.
        output: The file.

    Returns:
        What its user must know, a line each.

    Raises:
        InputError: The format holds one run.
    """
    place(form, output)
    able = [name for name, file in FORMATS.items() if hasattr(file, "write_tasks")]
    if form not in able:
        raise InputError(f"{form} holds one run; several fit {' or '.join(able)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = FORMATS[form].write_tasks(runs, checkpoint, output)
    return lines
