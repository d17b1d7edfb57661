"""Prepare a run: read data, plan memory, make and tune the model."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..data import Cache, Dataset, Preprocessing, Sample, loader, read, share
from ..families import classifiers, outputs
from ..planning.search import parse_bytes, search
from ..planning.simulate import Plan, plan, set_up_step, tune_on_meta
from ..planning.step import shares_statistics
from ..targets import KINDS, Targets
from ..targets.classify import draw_weights
from ..tuning.applying import apply
from ..tuning.backbone import create
from ..tuning.finite import refuse_infinite
from ..tuning.tuned import Tuned
from ..tuning.weights import Unfilled, leaves_frozen
from .callbacks import Callback
from .config import RunConfig
from .decided import refuse_blind
from .ema import WeightAverage
from .feature_cache import trained_part
from .feature_store import Features, FeatureTransform
from .start import accelerate
from .summary import Epoch

Load = Callable[..., Iterable[Any]]
MOST_WORKERS = 8
"""Most loading processes that are not asked for."""


@dataclass
class Run:
    """A run in progress.

    Attributes:
        config: What was asked for.
        folder: Where it leaves its files.
        dataset: What it learns from.
        preprocessing: How images become inputs.
        targets: What is learnt of an image.
        tuned: The model.
        accelerator: Devices, mixed precision, processes.
        planned: The plan of a step.
        probed: Whether the classifier is new and starts at a probe.
        start_score: That on the validation images before the first update, where it is asked.
        kept_epoch: Of keep best, the best epoch so far, 0 for the start; else None.
        history: One record per finished epoch.
        step_s: Wall time of each update, metered ones left out.
        measured_bytes: Measured peak; 0 until known.
        cache: Decoded images, kept between epochs.
        average: The running average of what trains, if one is kept.
        features: What stays the same for an image, if that is kept.
        callbacks: Told of updates and epochs by this process.
    """

    config: RunConfig
    folder: Path
    dataset: Dataset
    preprocessing: Preprocessing
    targets: Targets
    tuned: Tuned
    accelerator: Accelerator
    planned: Plan
    probed: bool
    start_score: float | None = None
    kept_epoch: int | None = None
    history: list[Epoch] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    measured_bytes: int = 0
    cache: Cache = field(default_factory=Cache)
    average: WeightAverage | None = None
    features: Features | None = None
    callbacks: Sequence[Callback] = ()

    @property
    def begins_trained(self) -> bool:
        """Whether the model before the first update is one to go back to."""
        return True

    @property
    def main(self) -> bool:
        """Whether this process writes the files."""
        return self.accelerator.is_main_process

    def averaged(self) -> AbstractContextManager[None]:
        """Put the averaged weights in place, for scoring and saving."""
        return self.average.average_parameters() if self.average else nullcontext()

    @property
    def processes(self) -> int:
        """How many processes share each update."""
        return self.accelerator.num_processes

    @property
    def workers(self) -> int:
        """Processes that load images; see `RunConfig.workers`."""
        if self.config.workers is not None:
            return self.config.workers
        if self.accelerator.device.type == "cpu" or self._stays_decoded():
            return 0
        return min(MOST_WORKERS, (os.cpu_count() or 1) - 1)

    def _stays_decoded(self) -> bool:
        """Whether the cache holds all images once they are decoded."""
        made, images = self.preprocessing, len(self.dataset.train) + len(self.dataset.val)
        fit = made.channels * math.prod(made.size) * images <= self.cache.limit_bytes
        return fit and made.transform(train=True, augment=self.config.augment).cacheable

    def batches(
        self,
        samples: tuple[Sample, ...],
        epoch: int = 0,
        training: bool = False,
        shared: bool = True,
    ) -> Iterator[tuple[Any, Tensor, int, int]]:
        """Load one pass over some samples.

        Args:
            samples: Which.
            epoch: Decides order and augmentation.
            training: Whether to shuffle and augment.
            shared: Whether the processes share the pass, or each has all of it.

        Yields:
            What the step is given, and the targets; how many images are this process's own (where
            it has none, there is one of another's, so that all run equally often); and all images.
        """
        config = self.config
        rank, processes = (self.accelerator.process_index, self.processes) if shared else (0, 1)
        drops = training and self._drops(len(samples))
        load = partial(loader, batch_size=config.batch_size, seed=config.seed, epoch=epoch)
        load = partial(load, shuffle=training, drop_last=drops, rank=rank, processes=processes)
        together = config.batch_size * processes
        for step, (images, targets) in enumerate(self._loaded(load, samples, training)):
            count = min(together, len(samples) - step * together)
            yield images, targets, share(count, rank, processes), count

    def _loaded(self, load: Load, samples: tuple[Sample, ...], training: bool) -> Iterable[Any]:
        """Say how one pass is loaded: by `load`, which knows batches, order and processes."""
        config = self.config
        if training:
            load = partial(load, weights=self._weights(samples), repeats=config.repeats)
        made = partial(self.preprocessing.transform, train=training, augment=config.augment)
        pixels = training and config.holds_pixels
        transform = made(distortion=config.distortion, pixels=pixels)
        if self.features:
            self.features.fill(samples, transform, config.batch_size, self.workers)
            return load(samples, FeatureTransform(), cache=self.features)
        return load(samples, transform, workers=self.workers, cache=self.cache)

    def _weights(self, samples: tuple[Sample, ...]) -> tuple[float, ...] | None:
        """Weigh images for a draw in which every class comes as often; None without one."""
        if self.config.balance != "sampler":
            return None
        return draw_weights([s.label for s in samples], len(self.targets.names))

    @property
    def notes(self) -> list[str]:
        """Warnings about the run before it starts, a sentence each."""
        lines = [*self.dataset.notes, *self.planned.notes]
        if self.config.epochs == 1 and (self.config.warmup_epochs or 0) >= 1:
            lines.append(
                "the learning rate rises from lr / 100 through the whole run, which is all warm-up;"
                " --warmup-epochs 0 starts at lr"
            )
        if skipped := self.dataset.skipped:
            lines.append(f"{len(skipped)} images cannot be read and are left out: {skipped[0]} ...")
        if self.processes > 1:
            lines.append(
                f"{self.processes} processes, {self.config.batch_size * self.processes} images per"
                " update"
            )
            if shares_statistics(self.tuned):
                lines.append("BatchNorm trains on the statistics of each process's images")
        elif "ACCELERATE_USE_CPU" in os.environ:  # where accelerate launch came by
            lines.append(
                "one process: on a CPU accelerate launch starts no more; torchrun"
                " --nproc_per_node=N -m lowtide does"
            )
        return lines

    @property
    def updates(self) -> int:
        """Updates of an epoch."""
        images, together = len(self.dataset.train), self.config.batch_size * self.processes
        return images // together + (images % together > 0 and not self._drops(images))

    def _drops(self, images: int) -> bool:
        """Whether the last batch is left out: one image has no statistics to be normalized by."""
        last = images % (self.config.batch_size * self.processes)
        return 0 < last < min(2 * self.processes, images) and shares_statistics(self.tuned)


def prepare(config: RunConfig, folder: Path, keep_features: Path | None = None) -> Run:
    """Read the data, plan the memory, make and tune the model.

    Args:
        config: What to do.
        folder: Where the run will leave its files.
        keep_features: Where features are kept for later runs.

    Returns:
        The run, nothing learnt and nothing written yet.
    """
    dataset = _read(config)
    targets = KINDS[config.task].of(
        dataset.classes,
        [s.label for s in dataset.train],
        loss=config.loss,
        balance=config.balance,
        smoothing=0.0 if config.mixes else config.smoothing,  # which is in the mixed targets
    )
    refuse_blind(config, validated=bool(dataset.val))
    accelerator = accelerate(config)
    classes = len(dataset.classes)
    config, backbone = _backbone(config, classes)
    planned = plan(
        backbone,
        config.method,
        step=config,
        num_classes=classes,
        part=trained_part if config.cache_features else None,
    )
    preprocessing = replace(
        Preprocessing.of(backbone).normalized(config.normalize), bits=dataset.bits
    )
    probed = config.head_init == "probe" and classes != _own_classes(backbone)
    tuned = apply(backbone, config.method, num_classes=classes, head_init=config.head_made)
    set_up_step(tuned, config).train()
    run = Run(config, folder, dataset, preprocessing, targets, tuned, accelerator, planned, probed)
    if config.cache_features:
        run.features = Features(tuned, preprocessing, folder, keep_features)
    return run


def _read(config: RunConfig) -> Dataset:
    """Read what a run learns from."""
    dataset = read(
        config.data,
        seed=config.seed,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        skip_bad_images=config.skip_bad_images,
        task=config.task,
        target=config.target,
    )
    if config.train_on_val:
        dataset = replace(dataset, train=dataset.train + dataset.val, val=())
    return dataset


def _own_classes(backbone: nn.Module) -> int | None:
    """Count the classes of the backbone's own classifier."""
    heads = classifiers(backbone)
    return outputs(backbone, heads) if heads else None


def _backbone(config: RunConfig, classes: int) -> tuple[RunConfig, nn.Module]:
    """Make the backbone for a step within the memory budget, packed as its file is read."""
    make = partial(create, config.model, image_size=config.image_size, drop_path=config.drop_path)
    torch.manual_seed(config.seed)
    file = Path(config.checkpoint) if config.checkpoint else None
    if file is None or (config.frozen_dtype == "fp32" and config.memory_budget is None):
        backbone = make(checkpoint=file, pretrained=config.pretrained)
        refuse_infinite(config.model, {} if file else backbone.state_dict())  # a file's: as read
        return _within_budget(config, backbone, classes), backbone
    with Unfilled():
        shape = make(pretrained=False)
    config = _within_budget(config, shape, classes)
    tuned = tune_on_meta(shape, config.method, num_classes=classes)
    dtype = config.frozen_dtype if leaves_frozen(tuned) else "fp32"
    torch.manual_seed(config.seed)
    return config, make(checkpoint=file, frozen_dtype=dtype)


def _within_budget(config: RunConfig, backbone: nn.Module, classes: int) -> RunConfig:
    """Replace a memory budget by the fastest settings that stay within it."""
    if config.memory_budget is None:
        return config
    choice = search(
        backbone,
        config.method,
        budget=parse_bytes(config.memory_budget),
        num_classes=classes,
        step=config,
    )[0]
    return replace(config, memory_budget=None, **choice.decided)
