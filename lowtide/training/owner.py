"""A run folder: the names of its files, whether it is finished, and its one owner at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import InputError, LowtideError
from ..paths import refuse_unwritable
from ..tuning.adapter_files import CONFIG as ADAPTER

CHECKPOINT, CONFIG, SUMMARY, LOG, LOCK = (
    "checkpoint.safetensors",
    "config.yaml",
    "summary.json",
    "log.jsonl",
    ".lock",
)


class Busy(LowtideError):
    """Another process writes to the folder."""


def free_folder(data: str, method: object) -> Path:
    """Find the next unused folder name under runs/.

    Args:
        data: What the run learns from.
        method: What trains.

    Returns:
        `runs/DATA-METHOD`, or that with a number.
    """
    stem = f"{Path(data).resolve().stem}-{type(method).__name__.lower()}"
    names = (stem, *(f"{stem}-{i}" for i in range(2, 10_000)))
    return next(Path("runs") / n for n in names if not (Path("runs") / n).exists())


def refuse_unfinished(folder: Path) -> None:
    """Refuse the folder of a run that has not ended.

    Args:
        folder: A run folder, or that of an adapter alone.

    Raises:
        InputError: The run has not ended.
    """
    begun, ended, going, adapter = (
        (folder / name).exists() for name in (CONFIG, SUMMARY, CHECKPOINT, ADAPTER)
    )
    if begun and not ended and (going or not adapter):
        raise InputError(f"{folder} is not finished: lowtide train --resume {folder} continues it")


def refuse_run(folder: Path) -> None:
    """Refuse a place for many runs that is itself the folder of one, or cannot be written to.

    Args:
        folder: Where the runs would go.

    Raises:
        InputError: It holds a run, or cannot be made.
    """
    refuse_unwritable(folder, folder=True)
    if (folder / CONFIG).exists():
        raise InputError(f"{folder} is the folder of one run: give another --output")


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Lock a run folder for the length of a block; of the processes of one run, the first does.

    The system takes the lock back from a process that ends, however it ends; the file stays. A
    folder that is still empty afterwards goes again, if it was made here.

    Args:
        folder: The run folder; made if missing.

    Yields:
        Nothing.

    Raises:
        InputError: The folder cannot be made or written to.
        Busy: It has an owner.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    refuse_unwritable(folder, folder=True)
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Busy(f"{folder} is being written to by another process, which goes on") from None
    except NotImplementedError:  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        if made and set(os.listdir(folder)) <= {LOCK}:
            (folder / LOCK).unlink()
            with contextlib.suppress(OSError):  # something else has come into it
                for path in made:
                    path.rmdir()
        lock.release()
