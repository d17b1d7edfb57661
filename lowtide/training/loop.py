"""Carry a run out: fit, evaluate, and leave a folder that says everything about it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from ..data import Sample
from ..errors import InputError, LowtideError, shown
from ..paths import write_text
from ..planning.meter import Meter
from ..planning.search import DECIDED
from ..planning.step import couples, make_optimizer, micro_batches, training_step
from ..tuning.adapter_files import CONFIG as ADAPTER
from ..tuning.adapter_files import WEIGHTS
from . import resume
from .config import RunConfig, read_yaml, write_yaml
from .ema import Average
from .environment import environment
from .owner import CHECKPOINT, LOG, owned
from .owner import CONFIG as CONFIG
from .owner import SUMMARY as SUMMARY
from .prepare import Run, prepare
from .probe import images_for_probe, start_at_probe
from .progress import Progress, note
from .schedule import make_schedule
from .split import Split
from .summary import (
    SCHEMA,
    Confused,
    DataSummary,
    Epoch,
    Planned,
    RunOptions,
    RunSummary,
    read_summary,
)

METERED_STEPS = 2

MOVABLE = frozenset({"data", "checkpoint", "device", "workers"})
"""Options that a run may continue with otherwise: no result depends on them."""


def train(
    config: RunConfig, folder: Path, *, continues: bool = False, overwrite: bool = False
) -> RunSummary:
    """Fine-tune a backbone and leave a run folder.

    The folder holds `config.yaml`, the adapter, `log.jsonl` and `summary.json`; until the run ends
    also `checkpoint.safetensors`, from which it can be continued.

    Args:
        config: What to do.
        folder: Where to leave the files.
        continues: Continue the run in `folder` from its last finished epoch; a finished run is left
            as it is.
        overwrite: Start anew over whatever run `folder` holds.

    Returns:
        The summary.

    Raises:
        InputError: The folder already holds a run, or one with other options.
    """
    with owned(folder):
        _refuse_taken(folder, continues, overwrite)
        if continues:
            config = _continued(config, folder)
            if (folder / SUMMARY).exists():
                summary = read_summary(folder / SUMMARY)
                note(f"{folder} is finished: nothing was trained")
                return summary
        return _run(config, folder, continues)


def _run(config: RunConfig, folder: Path, continues: bool) -> RunSummary:
    run = prepare(config, folder)
    config = run.config  # with what a memory budget decided
    for line in run.notes if run.main else ():
        note(line)
    optimizer = make_optimizer(
        run.tuned, config.opt, config.lr, config.weight_decay, config.update_in_backward
    )
    whole = run.features.model if run.features else run.tuned
    model, wrapped = run.accelerator.prepare(whole, optimizer)
    if run.probed and not (continues and (folder / CHECKPOINT).exists()):
        _probe(run, model)
    if config.ema:
        run.average = Average(run.tuned, config.ema)
    if continues:
        _restore(run, optimizer)
    elif run.main:
        # What says that there is a model goes first: the old one never answers for the new.
        for stale in (ADAPTER, WEIGHTS, SUMMARY, LOG, CHECKPOINT):
            (folder / stale).unlink(missing_ok=True)
    if run.main and not run.history:
        Split.of(run.dataset).write(folder)
    if run.main:
        write_text(folder / CONFIG, write_yaml(config.to_dict()))
    _fit(run, model, wrapped, optimizer)
    with run.averaged():
        return _finish(run, model)


def _probe(run: Run, model: Any) -> None:
    """Start the classifier at a probe, and say what that is worth."""
    order = np.random.default_rng(run.config.seed).permutation(len(run.dataset.train))
    some = [run.dataset.train[i] for i in order[: images_for_probe(run.tuned, len(order))]]
    batches = (batch[:2] for batch in run.batches(tuple(some), shared=False))
    if not some or not start_at_probe(run.tuned, model, batches, run.config.seed):
        if run.main:
            note("the classifier reads no vector per image, or there is one class: no probe")
        return
    run.start_accuracy = _accuracy(_confusion(run, model, run.dataset.val))
    if run.main:
        val = "" if run.start_accuracy is None else f", val accuracy {run.start_accuracy:.3f}"
        note(f"the classifier starts at a linear probe of {len(some)} images{val}")


def _refuse_taken(folder: Path, continues: bool, overwrite: bool) -> None:
    """Refuse a folder whose content was not said to be continued or replaced."""
    if continues or overwrite:
        return
    if (folder / CONFIG).exists():
        raise InputError(
            f"{folder} already holds a run; --resume {folder} continues it, --overwrite replaces it"
        )
    if taken := [name for name in (ADAPTER, WEIGHTS) if (folder / name).exists()]:
        raise InputError(f"{folder} already holds {taken[0]}; --overwrite replaces it")


def _continued(config: RunConfig, folder: Path) -> RunConfig:
    """Refuse to continue a run with options that are not its own."""
    kept = RunConfig.from_dict(read_yaml(folder / CONFIG))
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


def _fit(run: Run, model: Any, wrapped: Any, optimizer: Optimizer) -> None:
    config = run.config
    steps = run.updates
    schedule = make_schedule(optimizer, config, steps)
    meter = Meter(run.tuned, optimizer)
    if run.accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # an earlier run of this process has its own
    with Progress(config.epochs, steps, shown=run.main) as progress:
        for epoch in range(len(run.history), config.epochs):
            started = time.perf_counter()
            # Dropout and drop-path start from here, so that a resumed epoch repeats itself.
            torch.manual_seed(_seed(config.seed, epoch, run.accelerator.process_index))
            model.train()
            losses = []
            for step, batch in enumerate(run.batches(run.dataset.train, epoch, True)):
                schedule.step_update(epoch * steps + step)
                metered = epoch == 0 and step < METERED_STEPS
                losses.append(_update(run, model, wrapped, batch, meter if metered else None))
                if run.average:
                    run.average.update()
                if not math.isfinite(losses[-1]):
                    raise LowtideError(
                        f"the loss is {losses[-1]} at epoch {epoch + 1}, step {step + 1}: lower"
                        f" --lr ({config.lr:g}) or set --clip-grad 1; finished epochs are kept"
                    )
                progress.step(losses[-1])
            with run.averaged():
                validated = _accuracy(_confusion(run, model, run.dataset.val))
            run.history.append(
                Epoch(
                    epoch=epoch + 1,
                    train_loss=_over_processes(run, sum(losses) / len(losses), "mean"),
                    val_accuracy=validated,
                    seconds=round(time.perf_counter() - started, 2),
                )
            )
            progress.epoch(run.history[-1])
            if run.main:
                _save(run, optimizer)


def _update(
    run: Run,
    model: Any,
    wrapped: Any,
    batch: tuple[Tensor, Tensor, int, int],
    meter: Meter | None,
) -> float:
    """Run one update, timed or metered; give this process's share of the loss."""
    config, accelerator = run.config, run.accelerator
    images, labels, own, count = batch
    images, labels = images.to(accelerator.device), labels.to(accelerator.device)
    # Every process goes forward and back equally often, or they would wait for each other.
    fewest = count // run.processes // (2 if couples(run.tuned) and config.accumulate > 1 else 1)
    parts = max(1, min(config.accumulate, fewest))
    on_cpu = accelerator.device.type == "cpu"
    started = time.perf_counter()
    with meter if meter is not None and on_cpu else nullcontext():
        loss = training_step(
            model,
            wrapped,
            micro_batches(images, labels, parts),
            smoothing=config.smoothing,
            share=run.processes * own / count,
            backward=Tensor.backward if accelerator.scaler is None else accelerator.backward,
            before_update=lambda: _clip(run),
            in_backward=config.update_in_backward,
        )
    if meter is None:
        run.step_s.append(time.perf_counter() - started)
    elif on_cpu:
        run.measured_bytes = meter.peak.peak_bytes
    return loss.item()


def _over_processes(run: Run, number: float, how: str) -> float:
    """Add a number of every process up, or average it."""
    if run.processes == 1:
        return number
    mine = torch.tensor(number, dtype=torch.float64, device=run.accelerator.device)
    return float(run.accelerator.reduce(mine, how))


def _clip(run: Run) -> None:
    if run.config.clip_grad:
        trained = [p for p in run.tuned.parameters() if p.requires_grad]
        run.accelerator.clip_grad_norm_(trained, run.config.clip_grad)


def _confusion(run: Run, model: Any, samples: tuple[Sample, ...]) -> Tensor:
    """Count, over all processes, images by true class and predicted class `(K, K)`."""
    classes, device = len(run.dataset.classes), run.accelerator.device
    counts = torch.zeros(classes * classes, dtype=torch.int64)
    model.eval()
    with torch.no_grad():
        for images, labels, own, _ in run.batches(samples) if samples else ():
            predicted = model(images.to(device)).argmax(-1).cpu()
            pairs = labels[:own] * classes + predicted[:own]
            counts += pairs.bincount(minlength=classes * classes)
    if run.processes > 1:
        counts = run.accelerator.reduce(counts.to(device), "sum").cpu()
    return counts.view(classes, classes)


def _accuracy(confusion: Tensor) -> float | None:
    """Top-1 accuracy; None without samples."""
    images = int(confusion.sum())
    return int(confusion.trace()) / images if images else None


RECORDED = {"history": (list,), "measured_bytes": (int,), "data": (str,)}
"""What a checkpoint's record must hold; an earlier version did not say `processes`."""


def _save(run: Run, optimizer: Optimizer) -> None:
    history = [line.to_dict() for line in run.history]
    record = {
        "history": history,
        "measured_bytes": run.measured_bytes,
        "data": run.dataset.fingerprint,
        "processes": run.processes,
        "start_accuracy": run.start_accuracy,
    }
    averages = run.average.averages if run.average else ()
    scaler = run.accelerator.scaler
    resume.write(run.folder / CHECKPOINT, run.tuned, optimizer, scaler, record, averages)
    write_text(run.folder / LOG, "".join(json.dumps(line) + "\n" for line in history))


def _restore(run: Run, optimizer: Optimizer) -> None:
    """Continue from the last finished epoch, or from the start if none was finished."""
    path = run.folder / CHECKPOINT
    if not path.is_file():
        return
    record = resume.record_of(path, RECORDED)
    _refuse_changed(run, record["data"])
    processes = record.get("processes", run.processes)
    if processes != run.processes:
        raise InputError(
            f"{run.folder} was begun by {processes} processes, of"
            f" {run.config.batch_size * processes} images per update together, and not"
            f" {run.processes}: torchrun --nproc_per_node={processes} -m lowtide train --resume"
            f" {run.folder}"
        )
    averages = run.average.averages if run.average else ()
    resume.read(path, run.tuned, optimizer, run.accelerator.scaler, averages)
    try:
        lines = enumerate(record["history"])
        run.history = [Epoch.from_dict(line, f"history.{i}") for i, line in lines]
    except InputError as e:
        raise InputError(f"{path} is damaged: {e}") from e
    run.measured_bytes = record["measured_bytes"]
    run.start_accuracy = record.get("start_accuracy")


def _refuse_changed(run: Run, fingerprint: str) -> None:
    """Refuse to go on with other images than the first epochs had."""
    known = Split.read(run.folder) if run.main else None
    changes = known.differences(Split.of(run.dataset)) if known else []
    if changes or fingerprint != run.dataset.fingerprint:
        said = ": " + ", ".join(changes) if changes else ""
        raise InputError(f"{run.config.data} has changed since {run.folder} was started{said}")


def _finish(run: Run, model: Any) -> RunSummary:
    """Test the last epoch's model, save the adapter and the record, drop the checkpoint."""
    config = run.config
    confusion = _confusion(run, model, () if config.skip_test else run.dataset.test)
    if run.accelerator.device.type == "cuda":
        run.measured_bytes = torch.cuda.max_memory_allocated()
    trained, total = run.tuned.trainable_counts()
    summary = RunSummary(
        schema=SCHEMA,
        config=RunOptions.from_dict(config.to_dict()),
        data=DataSummary.from_dict(run.dataset.describe()),
        preprocessing=run.preprocessing.to_dict(),
        trainable_parameters=trained,
        total_parameters=total,
        planned=Planned.from_dict(run.planned.to_dict()),
        measured_peak_bytes=run.measured_bytes or None,
        step_seconds=median(run.step_s) if run.step_s else None,
        start_accuracy=run.start_accuracy,
        history=tuple(run.history),
        val_accuracy=run.history[-1].val_accuracy,
        test_accuracy=_accuracy(confusion),
        test_confusion=tuple(
            Confused(true, predicted, int(confusion[true, predicted]))
            for true, predicted in confusion.nonzero().tolist()
        ),
        environment=environment(run.accelerator.device, run.accelerator.num_processes),
    )
    if run.main:
        run.tuned.save_pretrained(
            run.folder,
            backbone={
                "name": config.model,
                "checkpoint": config.checkpoint,
                "pretrained": config.pretrained,
                "image_size": config.image_size,
                "seed": config.seed,
                "head_init": config.head_made,
            },
            preprocessing=run.preprocessing.to_dict(),
            augment=config.augment,
            classes=list(run.dataset.classes),
        )
        write_text(run.folder / SUMMARY, json.dumps(summary.to_dict(), indent=2) + "\n")
        (run.folder / CHECKPOINT).unlink(missing_ok=True)
    if run.features:
        run.features.drop()
    return summary


def _seed(seed: int, epoch: int, rank: int) -> int:
    key = f"{seed}/{epoch}" + (f"/{rank}" if rank else "")
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:7], "big")
