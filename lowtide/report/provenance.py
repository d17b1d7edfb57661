"""The origin of every number."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ..data.formats import named
from ..errors import InputError
from ..training.summary import RunSummary
from .cells import Cell, Column, Table, number, text
from .repeat import repeat
from .rows import Entry


def provenance_table(entries: Sequence[Entry]) -> Table:
    """Tabulate the origin of every number.

    Args:
        entries: All that is reported.

    Returns:
        One row per finished row, with the command that repeats it.
    """
    words = ("method", "backbone", "data")
    columns = [Column(w, False) for w in words]
    columns += [Column("seed"), Column("learning rate"), Column("test score, %")]
    columns += [Column("command", False, code=True)]
    more = ["rates tried: validation score, %", "lowtide, commit", "torch, timm, Python"]
    more += ["device", "finished", "data fingerprint", "pre-processing", "folder"]
    columns += [Column(w, False) for w in more]
    rows = []
    for e in entries:
        for run, folder in zip(e.result.runs, e.result.folders, strict=True):
            config, env = run.config, run.environment
            versions = ", ".join(filter(None, (env.torch, env.timm, env.python)))
            threads = "?" if env.threads is None else env.threads
            device = f"{env.device_name or 'unknown'}, {threads} threads"
            rows.append((
                *(Cell(t, t) for t in (e.label, e.model, e.data)),
                number(config.seed, "d"),
                number(config.lr, "g"),
                number(run.tested, ".2f", 1e-2),
                text(command(run)),
                text(tried(e)),
                text(f"{env.lowtide or 'unknown'}, {env.commit or 'no commit'}"),
                text(versions),
                text(device),
                text(env.finished or ""),
                text(run.data.fingerprint[:12], run.data.fingerprint),
                text(preprocessing(run)),
                text(str(folder)),
            ))
    return Table("Every finished row", tuple(columns), tuple(rows))


def tried(entry: Entry) -> str:
    """Write the learning rates that were tried.

    Args:
        entry: A method on a data set.

    Returns:
        Each with its validation accuracy in percent; empty where there was no choice.
    """
    return ", ".join(f"{lr:g}: {100 * a:.1f}" for lr, a in entry.result.searched.items())


def preprocessing(run: RunSummary) -> str:
    """Describe how images were pre-processed.

    Args:
        run: A finished row.

    Returns:
        Its pre-processing in one line.
    """
    return ", ".join(
        f"{name} {' '.join(map(str, v)) if isinstance(v, list) else v}"
        for name, v in run.preprocessing.items()
    )


def command(run: RunSummary) -> str:
    """Write the command that repeats a row.

    Args:
        run: A finished row.

    Returns:
        The command, behind a change to the folder it was given in where its paths are relative;
        where this version does not know its options, why there is none.
    """
    try:
        command = repeat(run.config.to_dict(), run.environment.processes)
    except InputError as e:
        return f"made by another version: {e}"
    paths = (run.config.data, run.config.extra.get("checkpoint"))
    if run.environment.folder is None or not any(path and _relative(path) for path in paths):
        return command
    return f"cd {shlex.quote(run.environment.folder)} && {command}"


def _relative(path: str) -> bool:
    """Tell whether a path means another file in another folder."""
    return not (path.startswith(("/", "~", "$")) or named(path) or Path(path).is_absolute())
