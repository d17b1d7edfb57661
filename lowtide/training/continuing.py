"""Check whether a run folder may be used, and write and restore the checkpoint between epochs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from torch.optim import Optimizer

from ..errors import InputError, shown
from ..paths import write_text
from ..planning.search import DECIDED
from ..tuning.adapter_files import CONFIG as ADAPTER
from ..tuning.adapter_files import WEIGHTS
from . import resume
from .config import RunConfig, read_yaml
from .decided import OPEN
from .kept import drop_others
from .owner import CHECKPOINT, CONFIG, LOG, SUMMARY
from .prepare import Run
from .split import Split
from .summary import scored

BEFORE: dict[str, object] = {"keep": "last"}
"""What a run did whose config is older than these options."""

MOVABLE = frozenset({"data", "checkpoint", "device", "workers"})
"""Options that a run may continue with otherwise: no result depends on them."""


def refuse_taken(folder: Path, continues: bool, overwrite: bool) -> None:
    """Refuse a folder with content, unless it is to be resumed or replaced."""
    if continues or overwrite:
        return
    if (folder / CONFIG).exists():
        raise InputError(
            f"{folder} already holds a run: lowtide train --resume {folder} continues it,"
            " --overwrite replaces it"
        )
    if taken := [name for name in (ADAPTER, WEIGHTS) if (folder / name).exists()]:
        raise InputError(f"{folder} already holds {taken[0]}; --overwrite replaces it")


def continued(config: RunConfig, folder: Path) -> RunConfig:
    """Refuse to resume a run with options that are not its own."""
    kept = RunConfig.from_dict({**BEFORE, **read_yaml(folder / CONFIG)})
    config = dataclasses.replace(
        config, **{name: getattr(kept, name) for name in OPEN if getattr(config, name) is None}
    )
    if config.memory_budget is not None:  # what it decided once stays so
        decided = {name: getattr(kept, name) for name in (*DECIDED, "memory_budget")}
        config = dataclasses.replace(config, **decided)
    was, wanted = kept.to_dict(), config.to_dict()
    other = [name for name in was if was[name] != wanted[name]]
    finished = (folder / SUMMARY).exists()
    if refused := [name for name in other if finished or name not in MOVABLE]:
        name = refused[0]
        state = "is finished and was run" if finished else "was begun"
        raise InputError(
            f"{folder} {state} with {name} {shown(was[name])}, not {shown(wanted[name])}: a run"
            f" goes on as it began; --output FOLDER begins another"
        )
    return config


def save(run: Run, optimizer: Optimizer) -> None:
    """Write the training checkpoint after an epoch, and that epoch's line of `log.jsonl`."""
    record = resume.TrainingRecord(
        history=tuple(run.history),
        measured_bytes=run.measured_bytes,
        data=run.dataset.fingerprint,
        processes=run.processes,
        **scored("start", run.targets, run.start_score),
        kept_epoch=run.kept_epoch,
    )
    averages = run.average.averages if run.average else ()
    scaler = run.accelerator.scaler
    resume.write(run.folder / CHECKPOINT, run.tuned, optimizer, scaler, record, averages)
    lines = (json.dumps(epoch.to_dict()) + "\n" for epoch in run.history)
    write_text(run.folder / LOG, "".join(lines))
    drop_others(run)


def restore(run: Run, optimizer: Optimizer) -> None:
    """Continue from the last finished epoch, or from the start if none was finished."""
    path = run.folder / CHECKPOINT
    if not path.is_file():
        return
    record = resume.read_header(path).record
    _refuse_changed(run, record.data)
    processes = record.processes or run.processes
    if processes != run.processes:
        raise InputError(
            f"{run.folder} was begun by {processes} processes, of"
            f" {run.config.batch_size * processes} images per update together, and not"
            f" {run.processes}: torchrun --nproc_per_node={processes} -m lowtide train --resume"
            f" {run.folder}"
        )
    averages = run.average.averages if run.average else ()
    resume.read(path, run.tuned, optimizer, run.accelerator.scaler, averages)
    run.history = list(record.history)
    run.measured_bytes = record.measured_bytes
    known = record.start_accuracy if record.start_score is None else record.start_score
    run.start_score = known
    run.kept_epoch = record.kept_epoch
    drop_others(run)


def _refuse_changed(run: Run, fingerprint: str) -> None:
    """Refuse to go on with other images than the first epochs had."""
    known = Split.read(run.folder) if run.main else None
    changes = known.differences(Split.of(run.dataset)) if known else []
    if changes or fingerprint != run.dataset.fingerprint:
        said = ": " + ", ".join(changes) if changes else ""
        raise InputError(f"{run.config.data} has changed since {run.folder} was started{said}")
