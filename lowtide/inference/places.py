"""Where a result may be written: not over what it is made of, and not over a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..data.tree import is_image
from ..errors import InputError
from ..paths import located, read_json, refuse_unwritable
from ..training.config import RunConfig, read_yaml
from ..training.mistakes import MISTAKES
from ..training.owner import CHECKPOINT, CONFIG, LOG, SUMMARY
from ..training.predictions import PREDICTIONS
from ..training.split import SPLIT
from ..tuning.adapter_files import CONFIG as ADAPTER
from ..tuning.adapter_files import WEIGHTS

FILES = {ADAPTER, CHECKPOINT, CONFIG, LOG, MISTAKES, PREDICTIONS, SPLIT, SUMMARY, WEIGHTS}
"""What a run leaves in its folder."""
METHODS = "methods"
"""A key of every adapter of lowtide's, and of none of peft's."""


def refuse_replacing(output: Path, *reads: Path | None, folder: bool = False) -> None:
    """Refuse a place that cannot be written to, or where something would be lost.

    Args:
        output: The file or folder that a command will write.
        *reads: Files and run folders that it is made of; None where one is not given.
        folder: Whether it is a folder and not a file.

    Raises:
        InputError: It cannot be written, is what it is made of, or belongs to a run.
    """
    refuse_unwritable(output, folder=folder)
    if output.exists():
        refuse_sources(output, (s for read in reads if read is not None for s in _sources(read)))
    place = output if folder else output.parent
    ours = _holds_run(place) and (folder or output.name in FILES)
    if ours and (folder or output.exists()):
        raise InputError(f"{output} belongs to the run in {place}: give another name")


def refuse_sources(output: Path, sources: Iterable[Path]) -> None:
    """Refuse a file that a result is made of.

    Args:
        output: What a command will write.
        sources: What it reads.

    Raises:
        InputError: It is one of them, or an image in one of them.
    """
    for source in sources:
        same = output.exists() and source.exists() and output.samefile(source)
        if same or (is_image(output) and source.resolve() in output.resolve().parents):
            raise InputError(f"{output} is what the result is made of: give another name")


def made_of(options: Mapping[str, object]) -> Iterator[Path]:
    """List what a run was made of.

    Args:
        options: The run's, as its files have them.

    Yields:
        Its data, and the weights that it began with, where they are known.
    """
    for path in (options.get("data"), options.get("checkpoint")):
        with contextlib.suppress(InputError):  # a variable of another machine
            if path:
                yield located(str(path))


def _sources(read: Path) -> Iterable[Path]:
    """List a file, or what a run was made of."""
    if not (read / CONFIG).is_file():
        return [read]
    return made_of(RunConfig.from_dict(read_yaml(read / CONFIG)).to_dict())


def _holds_run(folder: Path) -> bool:
    if (folder / CONFIG).is_file():
        return True
    if not (folder / ADAPTER).is_file():
        return False
    content = read_json(folder / ADAPTER)
    return isinstance(content, dict) and METHODS in content
