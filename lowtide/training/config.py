"""What a run is: one frozen dataclass, the same on the command line, in YAML and in Python."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from ..core.method import Method
from ..data import Augment, Distortion, Pixels, refuse_policy
from ..dense.options import TaskConfig, refuse_beside
from ..errors import InputError, UnknownName, shown
from ..families import HeadInit
from ..methods.lora import LoRA
from ..paths import read_text
from ..planning.search import parse_bytes
from ..targets import DENSE
from ..tuning.adapter_files import construct, describe
from ..values import MANY, Count, Device, Seed, Share, Side, Within, options
from ..yaml_text import parse_yaml

HeadStart = Literal["probe", "trunc_normal", "zero", "own"]
"""How a run's classifier starts: what needs no image (`lowtide.families.HeadInit`), or a probe."""

Keep = Literal["last", "best", "auto"]

LearningRate = Annotated[float, Within(0, 1e30, above=True)]

PER_CORE = 8
"""Most loading processes for each core of this machine."""


@dataclass(frozen=True)
class RunConfig(TaskConfig):
    """Everything that decides a run's result: its training step, and what is around it.

    Attributes:
        model: timm's name of the backbone.
        data: Folder of images, list of `path label`, or CSV.
        method: What trains; by default LoRA on every linear map of the blocks.
        checkpoint: Safetensors file with the backbone's weights, instead of timm's own.
        pretrained: Take timm's own weights where no file is given.
        image_size: Side of the square input; by default that of the weights.
        epochs: Passes over the training images; by default as many as give a small set enough
            updates.
        memory_budget: Most bytes of a step, such as 640MiB; policy, checkpointing, accumulate and
            frozen_dtype are then chosen to be fast within it, save those that are given.
        lr: Peak learning rate; by default the method's own, which is for AdamW.
        head_lr_scale: What the learning rate of the map that gives the logits is multiplied by.
        min_lr: Learning rate at the end of the cosine.
        weight_decay: Decay of matrices and kernels; biases and norms never decay.
        warmup_epochs: Epochs of linear warm-up before the cosine; part of `epochs`. By default a
            number of updates, a tenth of the run at most.
        cooldown_epochs: Epochs at `min_lr` after the cosine; part of `epochs`.
        smoothing: Label smoothing.
        target: Columns of a table that hold what is learnt, with commas between, for tasks
            multilabel and regress; by default label or a like name, or all that are left.
        clip_grad: Largest gradient norm; 0 does not clip.
        drop_path: Stochastic depth rate of the backbone.
        head_init: How a new classifier starts: probe (logistic regression on the features of the
            training images), trunc_normal (weights of deviation 0.02, biases at zero), zero (every
            class as likely), or own (as the backbone's library has it). With as many classes as the
            backbone was trained for, its own classifier stays.
        augment: none (squash to the input), flip, or crop (random resized crop and flip).
        auto_augment: timm's text of a policy of random distortions, such as rand-m9-mstd0.5-inc1;
            with augment crop.
        color_jitter: Most that brightness, contrast and saturation are changed by; with augment
            crop.
        random_erasing: Probability of filling a rectangle of an image with noise; with augment
            crop.
        repeats: How often each image of a batch is in it, each time augmented anew.
        normalize: Mean and deviation of pixels: that of the weights (checkpoint), imagenet's, or
            inception's (0.5 each).
        cache_features: Run the part of the backbone that no training changes once per image, and
            train from its features; for linear, mlp_head, partial, lst, unipt and dtl.
        seed: Decides splits, order, initialisation, augmentation and dropout.
        keep: Which model is tested and saved: that of the last epoch; of the best one on the
            validation images, where the start counts as an epoch; or auto, the last or a point
            between the start and it (w = w_0 + a (w_T - w_0)) that is better by more than one
            standard error. By default auto where there are validation images; with patience, and
            for dense tasks, whose decoder starts at random, best.
        patience: End the run after so many epochs without a better one; for keep best.
        val_fraction: Share of the images to validate on, where the data declare none.
        test_fraction: Share of the images to test on, where the data declare no split at all.
        train_on_val: Learn from the validation images too, once the options are chosen.
        skip_test: Leave the test images alone, while options are being chosen.
        skip_bad_images: Leave unreadable images out instead of stopping.
        workers: Processes that load images; by default none on a CPU or where the resized images
            fit into memory, and else one less than the cores, 8 at most.
        device: Where to compute; auto takes an accelerator where there is one.
        preset: The recipe the options were taken from, for the record; see `lowtide presets`.
    """

    model: str
    data: str
    method: Method = LoRA(all_linear=True)
    checkpoint: str | None = None
    pretrained: bool = True
    image_size: Side | None = None
    epochs: Count | None = None
    memory_budget: str | None = None
    lr: LearningRate | None = None
    head_lr_scale: Annotated[float, Within(0, 1e3)] = 1.0
    min_lr: Annotated[float, Within(0, 1e30)] = 0.0
    weight_decay: Annotated[float, Within(0, 1e3)] = 1e-4
    warmup_epochs: Annotated[float, Within(0, 1e6)] | None = None
    cooldown_epochs: Annotated[int, Within(0, 1_000_000)] = 0
    smoothing: Share = 0.0
    target: str | None = None
    clip_grad: Annotated[float, Within(1e-6, 1e6, zero=True)] = 0.0
    drop_path: Share = 0.0
    head_init: HeadStart = "probe"
    augment: Augment = "none"
    auto_augment: str | None = None
    color_jitter: Annotated[float, Within(0, 1)] = 0.0
    random_erasing: Annotated[float, Within(0, 1)] = 0.0
    repeats: Annotated[int, Within(1, 64)] = 1
    normalize: Pixels = "checkpoint"
    cache_features: bool = False
    seed: Seed = 0
    keep: Keep | None = None
    patience: Count | None = None
    val_fraction: Share = 0.1
    test_fraction: Share = 0.2
    train_on_val: bool = False
    skip_test: bool = False
    skip_bad_images: bool = False
    workers: Annotated[int, Within(0, 4096)] | None = None
    device: Device = "auto"
    preset: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):
            raise InputError(
                f"method must be a Method of lowtide, such as LoRA(), not {shown(self.method)}"
            )
        super().__post_init__()
        self._check_augmentation()
        if self.update_in_backward and self.clip_grad:
            raise InputError(
                "update_in_backward drops each gradient at once, and clip_grad needs the norm of"
                " all of them"
            )
        if self.target is not None and self.task == "classify":
            raise InputError("target names columns for multilabel and regress, not for classify")
        refuse_beside(self)
        if self.memory_budget is not None:
            parse_bytes(self.memory_budget)
        if self.patience is not None and self.keep not in (None, "best"):
            raise InputError(
                f"patience waits for a better epoch, and keep {self.keep} takes none: keep best"
                " does"
            )
        if self.keep == "auto" and self.task in DENSE:
            raise InputError(
                f"keep auto weighs the end of a run against its start, and the decoder of task"
                f" {self.task} starts at random: expected keep best or last"
            )
        self._check_schedule()

    @property
    def holds_pixels(self) -> bool:
        """Whether the step is given images as uint8, and holds floats in its forward alone."""
        floats = self.cache_features or self.random_erasing  # which come of floats, or change them
        return super().holds_pixels and not floats

    def _check_augmentation(self) -> None:
        """Refuse what would do nothing, or not what it says."""
        if self.cache_features and (self.augment != "none" or self.mixes):
            raise InputError(
                f"cache_features needs augment none, not {self.augment}, and no mixup: a feature is"
                " computed once"
            )
        if self.distortion.any and self.augment != "crop":
            raise InputError(
                "auto_augment, color_jitter and random_erasing are parts of timm's transform: give"
                f" --augment crop as well, not {self.augment}"
            )
        if self.auto_augment is not None:
            refuse_policy(self.auto_augment)
            if self.color_jitter:
                raise InputError("timm leaves color_jitter out beside auto_augment: give only one")
        if self.repeats > 1 and self.augment == "none":
            raise InputError("repeats shows each image augmented anew: give --augment as well")

    @property
    def distortion(self) -> Distortion:
        """The augmentation of training images beside cropping."""
        return Distortion(self.auto_augment, self.color_jitter, self.random_erasing)

    def _check_schedule(self) -> None:
        """Refuse parts of the schedule that do not fit into the run."""
        epochs, warmup = self.epochs or MANY, self.warmup_epochs or 0.0
        if not (warmup < epochs or (epochs == 1 and warmup <= 1)):
            raise InputError(
                f"warmup_epochs must be at least 0 and below epochs ({epochs}), not {warmup}"
            )
        peak = self.method.learning_rate if self.lr is None else self.lr
        if self.min_lr > peak:
            raise InputError(f"min_lr must be between 0 and lr ({peak}), not {self.min_lr}")
        if self.cooldown_epochs and self.cooldown_epochs >= epochs - warmup:
            raise InputError(
                f"cooldown_epochs must be at least 0 and leave a part of epochs ({epochs})"
                f" after warmup_epochs ({warmup}), not {self.cooldown_epochs}"
            )

    def refuse_crowd(self) -> None:
        """Refuse more loading processes than this machine can hold.

        Raises:
            InputError: There are more than `PER_CORE` for each core.
        """
        most = PER_CORE * (os.cpu_count() or 1)
        if (self.workers or 0) > most:
            raise InputError(
                f"workers must be a whole number from 0 to {most} on this machine of"
                f" {os.cpu_count()} cores, not {self.workers}"
            )

    @property
    def head_made(self) -> HeadInit:
        """How a new classifier is initialised, before any image is seen."""
        return "zero" if self.head_init == "probe" else self.head_init

    def to_dict(self) -> dict[str, Any]:
        """Give the config as plain data.

        Returns:
            What `from_dict` and YAML take.
        """
        plain = {f.name: getattr(self, f.name) for f in options(type(self))}
        return {**plain, "method": describe(self.method)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Read plain data.

        Args:
            values: Options by name; `method` has a name and options of its own.

        Returns:
            The config.

        Raises:
            UnknownName: There is no such option.
            InputError: An option is missing or does not fit.
        """
        known = [f.name for f in options(cls)]
        for name in values:
            if name not in known:
                raise UnknownName("option", name, known)
        for name in ("model", "data"):
            if values.get(name) is None:
                raise InputError(f"--{name} is required")
        if "method" not in values:
            return cls(**values)
        method = values["method"]
        named = {"name": method} if isinstance(method, str) else method
        return cls(**{**values, "method": construct(named)})


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a config file as data; no tag in it can make anything but plain values.

    Args:
        path: A YAML (or JSON) file.

    Returns:
        Its mapping.

    Raises:
        InputError: There is no such file, or it holds no mapping.
    """
    if not path.is_file():
        raise InputError(f"no config file {path}")
    values = parse_yaml(read_text(path), str(path))
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no options")
    return values


def write_yaml(values: Mapping[str, object]) -> str:
    """Write options as YAML.

    Args:
        values: Plain data.

    Returns:
        The text.
    """
    return yaml.safe_dump(dict(values), sort_keys=False)
