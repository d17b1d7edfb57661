"""Run a training: fit, evaluate, and write the run folder."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import InputError, LowtideError
from ..planning.loss import Loss, of_outputs, of_pixels
from ..planning.meter import Meter
from ..planning.step import make_optimizer, micro_batches, shares_statistics, training_step
from ..targets import DENSE
from ..tuning.adapter_files import read_adapter
from .callbacks import Callback, Step, refuse_other_callbacks
from .config import RunConfig
from .continuing import continued, refuse_taken, restore, save
from .decided import Decided, decide, depth_trained
from .dense_run import prepare_dense
from .ema import WeightAverage
from .finish import finish
from .kept import keep_if_best, put_back, waited_enough
from .mixing import mix
from .owner import CHECKPOINT, owned
from .owner import CONFIG as CONFIG
from .owner import SUMMARY as SUMMARY
from .prepare import Run, prepare
from .probe import probed_maps, refuse_idle_rate
from .progress import Progress, note
from .schedule import make_schedule
from .scoring import score_of
from .starting_point import begin_folder, probe, score_start, soften
from .summary import Epoch, RunSummary, read_summary, scored
from .time_limit import TimeLimit
from .trackers import check_trackers
from .watch import Watch

METERED_STEPS = 2


def train(
    config: RunConfig,
    folder: Path,
    *,
    continues: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    log: Sequence[str] = (),
    time_limit: str | None = None,
    keep_features: Path | None = None,
) -> RunSummary:
    """Fine-tune a backbone and write a run folder.

    The folder holds `config.yaml`, the adapter, `log.jsonl` and `summary.json`; until the run ends
    also `checkpoint.safetensors`, from which it can be continued.

    Args:
        config: What to do.
        folder: Where to leave the files.
        continues: Continue the run in `folder` from its last finished epoch; a finished run is left
            as it is.
        overwrite: Start anew over whatever run `folder` holds.
        callbacks: Told of every update, every epoch and the end.
        log: Whom to tell the numbers while it lasts: csv, tensorboard, wandb, ...
        time_limit: Such as 2h: the run stops in time, and can be continued.
        keep_features: With `cache_features`, a folder where later runs on the same images find the
            features of the same frozen layers. It grows, and may be removed at any time.

    Returns:
        The summary.

    Raises:
        InputError: The folder already holds a run, or one with other options, or a finished one
            whose adapter is gone or damaged; features are to be kept, and none are made; or a
            callback is none.
    """
    refuse_other_callbacks(callbacks)
    log, limit = check_trackers(log), TimeLimit(str(folder), time_limit)
    with owned(folder):
        refuse_taken(folder, continues, overwrite)
        if continues:
            config = continued(config, folder)
            if (folder / SUMMARY).exists():
                summary = read_summary(folder / SUMMARY)
                read_adapter(folder)
                note(f"{folder} is finished: nothing was trained")
                return summary
        run = _prepared(config, folder, callbacks, keep_features)
        return _run(run, folder, continues, limit, log)


def _run(
    run: Run, folder: Path, continues: bool, limit: TimeLimit, log: Sequence[str]
) -> RunSummary:
    model = run.accelerator.prepare(_model(run))
    fresh = not (continues and (folder / CHECKPOINT).exists())
    run.probed = run.probed and fresh and probe(run, model)
    config = run.config = decide(  # with what a memory budget decided as well
        run.config,
        updates=run.updates,
        validated=bool(run.dataset.val),
        depth=depth_trained(run.tuned),
        returns=run.begins_trained,
    )
    optimizer = _optimizer(run)
    wrapped = run.accelerator.prepare(optimizer)
    if fresh:
        if run.main:
            begin_folder(run, folder, continues)
        score_start(run, model)
        soften(run)
    if config.ema:
        run.average = WeightAverage(run.tuned, config.ema)
    if not fresh:
        restore(run, optimizer)
        if run.main:
            begin_folder(run, folder, continues)
    watch = Watch(run, limit, log)
    try:
        _fit(run, model, wrapped, optimizer, watch)
    finally:
        watch.end()
    with run.averaged():
        summary = finish(run, model, put_back(run, model))
    for callback in run.callbacks:
        callback.on_end(summary)
    return summary


def _prepared(
    config: RunConfig, folder: Path, callbacks: Sequence[Callback], keep_features: Path | None
) -> Run:
    if keep_features is not None and not config.cache_features:
        raise InputError("keep_features keeps what cache_features makes: expected both")
    if config.task in DENSE:
        run: Run = prepare_dense(config, folder)
    else:
        run = prepare(config, folder, keep_features)
    refuse_idle_rate(run.tuned, config.head_lr_scale, config.model)
    run.callbacks = callbacks if run.main else ()
    for line in run.notes if run.main else ():
        note(line)
    return run


def _model(run: Run) -> nn.Module:
    """Give what runs: the model or what trains from its features, in what callbacks put around."""
    whole: nn.Module = run.features.model if run.features else run.tuned
    for callback in run.callbacks:
        whole = callback.around(whole)
    return whole


def _optimizer(run: Run) -> Optimizer:
    config = run.config
    made = Decided.of(config)
    maps = probed_maps(run.tuned) if run.begins_trained else []
    head = {p: config.head_lr_scale for m in maps for p in m.parameters()}
    return make_optimizer(
        run.tuned, config.opt, made.lr, config.weight_decay, config.update_in_backward, head
    )


def _fit(
    run: Run, model: nn.Module, wrapped: Optimizer, optimizer: Optimizer, watch: Watch
) -> None:
    config, made = run.config, Decided.of(run.config)
    steps = run.updates
    schedule = make_schedule(optimizer, config, steps)
    meter = Meter(run.tuned, optimizer)
    if run.accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # an earlier run of this process has its own
    with Progress(made.epochs, steps, run.main, run.targets.metric) as progress:
        for epoch in range(len(run.history), made.epochs):
            if waited_enough(run):
                break
            watch.begin_epoch()
            started = time.perf_counter()
            # Dropout and drop-path start from here, so that a resumed epoch repeats itself.
            torch.manual_seed(_seed(config.seed, epoch, run.accelerator.process_index))
            model.train()
            losses = []
            for step, batch in enumerate(run.batches(run.dataset.train, epoch, True)):
                schedule.step_update(epoch * steps + step)
                metered = epoch == 0 and step < METERED_STEPS
                seed = _seed(config.seed, epoch * steps + step, run.accelerator.process_index)
                batch = mix(config, *batch[:2], run.tuned.num_classes, seed) + batch[2:]
                losses.append(_update(run, model, wrapped, batch, meter if metered else None))
                if run.average:
                    run.average.update()
                _refuse_infinite(losses[-1], f"epoch {epoch + 1}, step {step + 1}", made.lr)
                progress.step(losses[-1], watch.step(optimizer, losses[-1], batch[-1]))
                for callback in run.callbacks:
                    callback.on_step(Step(epoch + 1, step + 1, steps, losses[-1]))
            _validate(run, model, sum(losses) / len(losses), started)
            progress.epoch(run.history[-1], watch.end_epoch())
            if run.main:
                save(run, optimizer)
            for callback in run.callbacks:
                callback.on_epoch(run.history[-1])


def _refuse_infinite(loss: float, where: str, lr: float) -> None:
    if not math.isfinite(loss):
        raise LowtideError(
            f"the loss is {loss} at {where}: lower --lr ({lr:g}) or set --clip-grad 1; finished"
            " epochs are kept"
        )


def _validate(run: Run, model: nn.Module, loss: float, started: float) -> None:
    """Score an epoch, record it, and keep it if it is the best."""
    with run.averaged():
        validated = score_of(run, model, run.dataset.val)
        run.history.append(
            Epoch(
                epoch=len(run.history) + 1,
                train_loss=_over_processes(run, loss, "mean"),
                **scored("val", run.targets, validated),
                seconds=round(time.perf_counter() - started, 2),
            )
        )
        keep_if_best(run)


def _update(
    run: Run,
    model: nn.Module,
    wrapped: Optimizer,
    batch: tuple[Tensor, Tensor, int, int],
    meter: Meter | None,
) -> float:
    """Run one update, timed or metered; give this process's share of the loss."""
    config, accelerator = run.config, run.accelerator
    images, targets, own, count = batch
    images = images.to(accelerator.device)
    targets = run.targets.encode(targets).to(accelerator.device)
    # Every process goes forward and back equally often, or they would wait for each other.
    fewest = (
        count
        // run.processes
        // (2 if shares_statistics(run.tuned) and config.accumulate > 1 else 1)
    )
    parts = max(1, min(config.accumulate, fewest))
    on_cpu = accelerator.device.type == "cpu"
    started = time.perf_counter()
    with meter if meter is not None and on_cpu else nullcontext():
        loss = training_step(
            model,
            wrapped,
            micro_batches(images, targets, parts),
            loss=_loss(run),
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


def _loss(run: Run) -> Loss:
    """The loss of the model on what a batch of the run holds."""
    loss = of_outputs(run.targets.loss)
    return of_pixels(loss, run.preprocessing.normalise) if run.config.holds_pixels else loss


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


def _seed(seed: int, epoch: int, rank: int) -> int:
    key = f"{seed}/{epoch}" + (f"/{rank}" if rank else "")
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:7], "big")
