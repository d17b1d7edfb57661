"""A run in progress, and how it is prepared: data read, memory planned, model made and tuned."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from .average import Average
from .backbone import create
from .config import RunConfig
from .data import Cache, Dataset, Preprocessing, Sample, loader, read
from .errors import InputError
from .features import Features, Kept, entrance
from .plan import arrange, plan
from .policy import POLICIES
from .search import free, parse_bytes, search
from .tune import Tuned, apply

FEATURES = "features.f32"


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
            self.features.fill(samples, whole)
            return load(Kept(), shuffle=training, cache=self.features)
        made = load(transform, shuffle=training, workers=config.workers, cache=self.cache)
        several = self.accelerator.num_processes > 1
        return self.accelerator.prepare_data_loader(made) if several else made

    def _normalizes_batches(self) -> bool:
        norms = nn.modules.batchnorm._BatchNorm
        return any(isinstance(m, norms) and m.training for m in self.tuned.modules())


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
        entrance=entrance if config.cache_features else None,
    )
    preprocessing = replace(
        Preprocessing.of(backbone).normalized(config.normalize), bits=dataset.bits
    )
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
