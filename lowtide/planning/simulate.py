"""Plan a run's memory by one training step on tensors that have no storage.

No formula is kept true by hand. The model is built, tuned and compressed as for a real run, on
shapes alone, and the meter watches a step; so a plan equals the real run on the same device.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..core.method import Method
from ..core.wrapped import refuse_no_module
from ..errors import InputError, shown
from ..families import meta_copy
from ..memory.compress import compress
from ..memory.policies import policy_of
from ..tuning.adapter_config import Head
from ..tuning.applying import apply
from ..tuning.backbone import create
from ..tuning.tuned import Tuned, set_frozen_dtype
from ..values import Count, read
from ..versions import on_meta
from .loss import Loss
from .materials import real_copy
from .step import StepConfig
from .trial import Examples, Trial, trial_of
from .watch import UNKNOWN, SelectPart, rehearse_step
from .watch import Plan as Plan
from .watch import simulate_step as simulate_step


def plan(
    model: str | nn.Module,
    *methods: Method,
    step: StepConfig = StepConfig(),
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    part: SelectPart | None = None,
    backbone: str | None = None,
    head: Head = "train",
    boxes: int | None = None,
    examples: Examples | None = None,
    loss: Loss | None = None,
) -> Plan:
    """Measure a training step that never runs, or a detector's on images of noise.

    A model whose backbone is a part is planned with its own loss: a detector's on images with
    boxes, a segmenter's on pixels, where its library says which it is; else with `examples` and
    `loss`. What reads its own numbers to decide what to compute, as a detector that looks into the
    boxes it found, cannot be simulated. One such step is run on this machine's CPU with the model's
    weights, or with random ones where it has none, and the plan's notes say so.

    Args:
        model: A timm name, or a model, which is not changed. What `apply` gave is planned as it is,
            without methods.
        *methods: What would train.
        step: Batch, policy and everything else that decides a step's memory.
        num_classes: Classes of the classifier; by default the backbone's.
        image_size: Side of the square input, for a model given by name; height and width, for one
            whose backbone is a part. By default what the model is made for.
        part: Which part of the model the step runs, and on what; by default all of it on images.
        backbone: Path of the part that is the backbone; see `apply`.
        head: Whether what is not the backbone trains; see `apply`.
        boxes: Objects in each image, for a detector. By default as many as an R-CNN looks into at
            most, so that no image takes more; 8 for others, which look everywhere anyway.
        examples: From a number of images to that many images and their targets.
        loss: From the tuned model, images and targets to the mean loss.

    Returns:
        The plan. Bytes are those PyTorch allocates for tensors: no CUDA context, no workspace of a
        library, no rounding by the allocator. Under autocast a CPU's own low-precision kernels may
        keep a few percent more.

    Raises:
        InputError: Nothing tells what the loss of the model is, or options do not go together.
    """
    _refuse_unfit(model, step)
    boxes = read("boxes", Count | None, boxes)
    trial = _given(examples, loss)
    named = isinstance(model, str)
    asked: Any = {"num_classes": num_classes, "backbone": backbone, "head": head}
    side = _side(model, image_size) if named else None
    tuned = tune_on_meta(model, *methods, image_size=side, **asked)
    if image_size is not None and tuned.backbone_path is None and not named:
        raise InputError(
            f"{type(tuned.model).__name__} takes the images it was built for: image_size is for a"
            " model given by name, or one whose backbone is a part"
        )
    if trial is None and tuned.backbone_path is not None and part is None:
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        trial = trial_of(tuned.model, tuned.backbone, size, boxes)
    if trial is None or not trial.looks:
        try:
            return simulate_step(set_up_step(tuned, step), step, part, trial)
        except UNKNOWN:
            pass
    real = create(model, pretrained=False, image_size=side) if isinstance(model, str) else model
    real = real_copy(real)
    if not isinstance(real, Tuned):
        real = apply(real, *methods, **asked)
    return rehearse_step(set_up_step(real, step), step, part, trial)


def plan_on_shapes(tuned: Tuned, step: StepConfig) -> Plan:
    """Measure a training step that never runs, and must not.

    Args:
        tuned: A tuned classifier on the meta device; it is used up.
        step: Its options.

    Returns:
        The plan.

    Raises:
        InputError: What the step computes depends on numbers.
    """
    try:
        return simulate_step(set_up_step(tuned, step), step)
    except UNKNOWN as reason:
        raise InputError(
            f"a search plans steps on shapes alone, and the optimiser {step.opt}, or the model,"
            " chooses by numbers what it computes: give the settings in place of a budget"
        ) from reason


def _refuse_unfit(model: object, step: object) -> None:
    """Refuse what is no model, or no step."""
    if not isinstance(model, str):
        refuse_no_module("plan", model)
    if not isinstance(step, StepConfig):
        raise InputError(f"step is a StepConfig(batch_size=...), not {shown(step)}")


def _given(examples: Examples | None, loss: Loss | None) -> Trial | None:
    """Find what was given to plan on: both or neither."""
    if examples is None and loss is None:
        return None
    if examples is None or loss is None:
        raise InputError("examples= and loss= go together: a batch and what is made of it")
    if not (callable(examples) and callable(loss)):
        raise InputError("examples= and loss= are functions: of a number of images, of a model")
    return Trial(examples, loss, "planned on the examples and the loss that were given")


def _side(name: object, size: int | tuple[int, int] | None) -> int | None:
    if isinstance(size, tuple):
        raise InputError(f"{name} takes square images: expected one side, not {size}")
    return size


def tune_on_meta(
    model: str | nn.Module,
    *methods: Method,
    num_classes: int | None = None,
    image_size: int | None = None,
    backbone: str | None = None,
    head: Head = "train",
) -> Tuned:
    """Tune a backbone that has shapes and no weights.

    Args:
        model: A timm name, or a model, which is not changed.
        *methods: What would train.
        num_classes: Classes of the classifier; by default the backbone's.
        image_size: Side of the square input, for a model given by name.
        backbone: Path of the part that is the backbone; see `apply`.
        head: Whether what is not the backbone trains; see `apply`.

    Returns:
        The tuned model, on the meta device.

    Raises:
        InputError: The model is tuned already, and is to be tuned otherwise.
    """
    with on_meta():
        if isinstance(model, Tuned) and not methods:
            return _copied(model, num_classes, backbone, head)
        if isinstance(model, str):
            made = create(model, pretrained=False, image_size=image_size)
        else:
            made = meta_copy(model)
        return apply(made, *methods, num_classes=num_classes, backbone=backbone, head=head)


def _copied(tuned: Tuned, *options: object) -> Tuned:
    """Copy a tuned model without its numbers, where nothing else is asked of it."""
    if options != (None, None, "train"):
        raise InputError(
            "the model is tuned already: num_classes, backbone and head were for lowtide.apply"
        )
    copied = meta_copy(tuned)
    assert isinstance(copied, Tuned)
    return copied


def set_up_step(tuned: Tuned, step: StepConfig) -> Tuned:
    """Put in place what decides the memory of a step; the plan and the run both do it here.

    Args:
        tuned: A tuned model; changed in place.
        step: Says it.

    Returns:
        The same object.
    """
    if step.frozen_dtype != "fp32":
        set_frozen_dtype(tuned, step.frozen_dtype)
    tuned.checkpointing = step.recomputed_blocks or step.checkpointing
    compress(tuned, policy_of(step.policy, step.chunk))
    return tuned
