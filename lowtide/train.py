"""A run: read, tune, fit, evaluate, and leave a folder that says everything about it."""

from __future__ import annotations

import hashlib
import json
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim import Optimizer

from . import resume
from .average import Average
from .backbone import create
from .checkpoint import write_text
from .compress import POLICIES
from .config import RunConfig, write_yaml
from .data import Cache, Dataset, Preprocessing, Sample, loader, read
from .environment import environment
from .errors import InputError, LowtideError
from .features import Features, FromFeatures, Kept
from .memory import Meter
from .plan import arrange, plan
from .progress import Progress
from .schedule import make_schedule
from .search import free, parse_bytes, search
from .step import make_optimizer, training_step
from .tune import Tuned, apply

CHECKPOINT, CONFIG, SUMMARY, LOG, FEATURES = (
    "checkpoint.safetensors",
    "config.yaml",
    "summary.json",
    "log.jsonl",
    "features.f32",
)
METERED_STEPS = 2


@dataclass
class Run:
    """A run in progress.

    Attributes:
        config: What was asked for.
        folder: Where it leaves its files.
        dataset: What it learns from.
        preprocessing: How images become inputs.
        tuned: The model.
        accelerator: Devices, mixed precision, processes.
        planned: The plan, as plain data.
        history: One record per finished epoch.
        step_s: Wall time of each update, metered ones left out.
        measured_bytes: Measured peak; 0 until known.
        cache: Decoded images, kept between epochs.
        average: The running average of what trains, if one is kept.
        features: What stays the same for an image, if that is kept.
    """

    config: RunConfig
    folder: Path
    dataset: Dataset
    preprocessing: Preprocessing
    tuned: Tuned
    accelerator: Accelerator
    planned: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    measured_bytes: int = 0
    cache: Cache = field(default_factory=Cache)
    average: Average | None = None
    features: Features | None = None

    @property
    def main(self) -> bool:
        """Whether this process writes the files."""
        return self.accelerator.is_main_process

    def averaged(self) -> AbstractContextManager[None]:
        """Enter the state that is scored and saved."""
        return self.average.in_place() if self.average else nullcontext()

    def batches(self, samples: tuple[Sample, ...], epoch: int = 0, training: bool = False) -> Any:
        """Load one pass over some samples, this process's share of it.

        Args:
            samples: Which.
            epoch: Decides order and augmentation.
            training: Whether to shuffle and augment.

        Returns:
            An iterable of images and labels.
        """
        config = self.config
        load = partial(loader, samples, batch_size=config.batch_size, seed=config.seed, epoch=epoch)
        if training and len(samples) % config.batch_size == 1 and self._normalizes_batches():
            load = partial(load, drop_last=True)  # one image has no statistics
        transform = self.preprocessing.transform(train=training, augment=config.augment)
        if self.features:
            whole = load(transform, shuffle=False, drop_last=False, workers=config.workers)
            self.features.fill(self.tuned, samples, whole)
            return load(Kept(), shuffle=training, cache=self.features)
        made = load(transform, shuffle=training, workers=config.workers, cache=self.cache)
        several = self.accelerator.num_processes > 1
        return self.accelerator.prepare_data_loader(made) if several else made

    def _normalizes_batches(self) -> bool:
        norms = nn.modules.batchnorm._BatchNorm
        return any(isinstance(m, norms) and m.training for m in self.tuned.modules())


def train(
    config: RunConfig, folder: Path, *, continues: bool = False, overwrite: bool = False
) -> dict[str, Any]:
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
        InputError: The folder already holds a run.
    """
    if not (continues or overwrite) and (folder / CONFIG).exists():
        raise InputError(
            f"{folder} already holds a run; --resume {folder} continues it, --overwrite replaces it"
        )
    if continues and (folder / SUMMARY).exists():
        return json.loads((folder / SUMMARY).read_text())
    run = prepare(config, folder)
    config = run.config  # with what a memory budget decided
    optimizer = make_optimizer(run.tuned, config.opt, config.lr, config.weight_decay)
    whole = FromFeatures(run.tuned, run.features.shapes) if run.features else run.tuned
    model, wrapped = run.accelerator.prepare(whole, optimizer)
    if config.ema:
        run.average = Average(run.tuned, config.ema)
    if continues:
        _restore(run, optimizer)
    elif run.main:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in (CHECKPOINT, SUMMARY, LOG):
            (folder / stale).unlink(missing_ok=True)
        write_text(folder / CONFIG, write_yaml(config.to_dict()))
    _fit(run, model, wrapped, optimizer)
    with run.averaged():
        return _finish(run, model)


def prepare(config: RunConfig, folder: Path) -> Run:
    """Read the data, plan the memory, make and tune the model.

    Args:
        config: What to do.
        folder: Where the run will leave its files.

    Returns:
        The run, nothing learnt and nothing written yet.

    Raises:
        InputError: Features are to be kept by several processes.
    """
    dataset = read(
        config.data,
        seed=config.seed,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        skip_bad_images=config.skip_bad_images,
    )
    if config.train_on_val:
        dataset = replace(dataset, train=dataset.train + dataset.val, val=())
    AcceleratorState._reset_state()  # or a second run in one process would be held to the first's
    accelerator = Accelerator(mixed_precision=config.amp, cpu=config.device == "cpu")
    torch.manual_seed(config.seed)
    backbone = create(
        config.model,
        checkpoint=Path(config.checkpoint) if config.checkpoint else None,
        pretrained=config.pretrained,
        image_size=config.image_size,
        drop_path=config.drop_path,
    )
    classes = len(dataset.classes)
    config = _within_budget(config, backbone, classes)
    policy = POLICIES[config.policy]()
    planned = plan(
        backbone,
        config.method,
        num_classes=classes,
        batch_size=config.batch_size,
        policy=policy,
        checkpointing=config.checkpointing,
        accumulate=config.accumulate,
        amp=config.amp,
        optimizer=config.opt,
        frozen_dtype=config.frozen_dtype,
        ema=config.ema,
    )
    preprocessing = Preprocessing.of(backbone).normalized(config.normalize)
    tuned = apply(backbone, config.method, num_classes=classes)
    arrange(tuned, policy, config.checkpointing, config.frozen_dtype)
    run = Run(config, folder, dataset, preprocessing, tuned, accelerator, planned.to_dict())
    if config.cache_features:
        if accelerator.num_processes > 1:
            raise InputError("cache_features works in one process")
        run.features = Features(tuned, folder / FEATURES)
    return run


def _within_budget(config: RunConfig, backbone: nn.Module, classes: int) -> RunConfig:
    """Replace a memory budget by the fastest settings that stay within it."""
    if config.memory_budget is None:
        return config
    choice = search(
        backbone,
        config.method,
        budget=parse_bytes(config.memory_budget),
        num_classes=classes,
        batch_size=config.batch_size,
        amp=config.amp,
        optimizer=config.opt,
        ema=config.ema,
        **free(config.policy, config.checkpointing, config.frozen_dtype, config.accumulate),
    )[0]
    return replace(
        config, memory_budget=None, accumulate=choice.accumulate, **asdict(choice.setting)
    )


def _fit(run: Run, model: Any, wrapped: Any, optimizer: Optimizer) -> None:
    config = run.config
    share = config.batch_size * run.accelerator.num_processes
    steps = -(-len(run.dataset.train) // share)
    schedule = make_schedule(optimizer, config, steps)
    meter = Meter(run.tuned, optimizer)
    if run.accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # an earlier run of this process has its own
    with Progress(config.epochs, steps, shown=run.main) as progress:
        for epoch in range(len(run.history), config.epochs):
            started = time.perf_counter()
            # Dropout and drop-path start from here, so that a resumed epoch repeats itself.
            torch.manual_seed(_seed(config.seed, epoch))
            model.train()
            losses = []
            for step, (images, labels) in enumerate(run.batches(run.dataset.train, epoch, True)):
                schedule.step_update(epoch * steps + step)
                metered = epoch == 0 and step < METERED_STEPS
                losses.append(
                    _update(run, model, wrapped, images, labels, meter if metered else None)
                )
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
            run.history.append({
                "epoch": epoch + 1,
                "train_loss": sum(losses) / len(losses),
                "val_accuracy": validated,
                "seconds": round(time.perf_counter() - started, 2),
            })
            progress.epoch(run.history[-1])
            if run.main:
                _save(run, optimizer)


def _update(
    run: Run, model: Any, wrapped: Any, images: Tensor, labels: Tensor, meter: Meter | None
) -> float:
    """Run one update, timed or metered; give the loss."""
    config, accelerator = run.config, run.accelerator
    images, labels = images.to(accelerator.device), labels.to(accelerator.device)
    parts = config.accumulate
    on_cpu = accelerator.device.type == "cpu"
    started = time.perf_counter()
    with meter if meter is not None and on_cpu else nullcontext():
        loss = training_step(
            model,
            wrapped,
            list(zip(images.chunk(parts), labels.chunk(parts), strict=True)),
            smoothing=config.smoothing,
            backward=Tensor.backward if accelerator.scaler is None else accelerator.backward,
            before_update=lambda: _clip(run),
        )
    if meter is None:
        run.step_s.append(time.perf_counter() - started)
    elif on_cpu:
        run.measured_bytes = meter.peak.peak_bytes
    return loss.item()


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
        for images, labels in run.batches(samples) if samples else ():
            predicted = model(images.to(device)).argmax(-1)
            pairs = run.accelerator.gather_for_metrics(labels.to(device) * classes + predicted)
            counts += pairs.cpu().bincount(minlength=classes * classes)
    return counts.view(classes, classes)


def _accuracy(confusion: Tensor) -> float | None:
    """Top-1 accuracy; None without samples."""
    images = int(confusion.sum())
    return int(confusion.trace()) / images if images else None


def _save(run: Run, optimizer: Optimizer) -> None:
    record = {
        "history": run.history,
        "measured_bytes": run.measured_bytes,
        "data": run.dataset.fingerprint,
    }
    averages = run.average.averages if run.average else ()
    scaler = run.accelerator.scaler
    resume.write(run.folder / CHECKPOINT, run.tuned, optimizer, scaler, record, averages)
    write_text(run.folder / LOG, "".join(json.dumps(line) + "\n" for line in run.history))


def _restore(run: Run, optimizer: Optimizer) -> None:
    """Continue from the last finished epoch, or from the start if none was finished."""
    path = run.folder / CHECKPOINT
    if not path.is_file():
        return
    record = resume.record_of(path)
    if record["data"] != run.dataset.fingerprint:
        raise InputError(f"{run.config.data} has changed since {run.folder} was started")
    averages = run.average.averages if run.average else ()
    resume.read(path, run.tuned, optimizer, run.accelerator.scaler, averages)
    run.history, run.measured_bytes = record["history"], record["measured_bytes"]


def _finish(run: Run, model: Any) -> dict[str, Any]:
    """Test the last epoch's model, save the adapter and the record, drop the checkpoint."""
    config = run.config
    confusion = _confusion(run, model, () if config.skip_test else run.dataset.test)
    if run.accelerator.device.type == "cuda":
        run.measured_bytes = torch.cuda.max_memory_allocated()
    trained, total = run.tuned.trainable_counts()
    summary = {
        "config": config.to_dict(),
        "data": run.dataset.describe(),
        "preprocessing": run.preprocessing.to_dict(),
        "trainable_parameters": trained,
        "total_parameters": total,
        "planned": run.planned,
        "measured_peak_bytes": run.measured_bytes or None,
        "step_seconds": median(run.step_s) if run.step_s else None,
        "history": run.history,
        "val_accuracy": run.history[-1]["val_accuracy"],
        "test_accuracy": _accuracy(confusion),
        "test_confusion": [
            [true, predicted, int(confusion[true, predicted])]
            for true, predicted in confusion.nonzero().tolist()
        ],
        "environment": environment(run.accelerator.device, run.accelerator.num_processes),
    }
    if run.main:
        run.tuned.save_pretrained(
            run.folder,
            backbone={
                "name": config.model,
                "checkpoint": config.checkpoint,
                "pretrained": config.pretrained,
                "image_size": config.image_size,
                "seed": config.seed,
            },
            preprocessing=run.preprocessing.to_dict(),
            augment=config.augment,
            classes=list(run.dataset.classes),
        )
        write_text(run.folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
        (run.folder / CHECKPOINT).unlink(missing_ok=True)
    if run.features:
        run.features.drop()
    return summary


def _seed(seed: int, epoch: int) -> int:
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
