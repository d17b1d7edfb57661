"""One training step under the meter: on tensors without storage, or on noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from timm.optim.kron import Kron
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ..core.alike import watching_three
from ..core.normalise import Normalise
from ..errors import InputError
from ..families import image_shape
from ..targets import Targets
from ..tuning.tuned import Tuned
from .cost_model import Work, WorkMeter
from .loss import of_logits, of_pixels
from .materials import materialise
from .meter import RealLayouts
from .step import (
    StepConfig,
    make_optimizer,
    micro_batches,
    shares_statistics,
    training_step,
)
from .trial import Trial

UNKNOWN = (DynamicOutputShapeException, DataDependentOutputException, UnsupportedOperatorException)
"""What a tensor without numbers says to an operation whose result's shape depends on them."""
MICRO_STATISTICS = (
    "BatchNorm trains here: each micro-batch is normalized by its own statistics, so accumulate > 1"
    " does not train what the whole batch would"
)

SINGLE = (
    "a micro-batch of one image gives a BatchNorm that trains one value per channel, which has no"
    " variance: expected two images in each micro-batch (batch_size at least twice accumulate), or"
    " larger images"
)
ONE_EACH = (
    "a GroupNorm of {groups} groups is given one number a group, which has no variance: expected"
    " more channels (decoder_channels in a dense task) or larger images"
)
SelectPart = Callable[[Tuned], tuple[nn.Module, Sequence[int]]]
"""From a tuned model to the part of it that a step runs, and the shape of one input of it."""


@dataclass(frozen=True)
class Plan:
    """The parameters, peak memory and work of one configuration.

    Attributes:
        trainable_parameters: Parameters that train, the classifier included.
        total_parameters: All parameters, grafts and side networks included.
        peak_bytes: Largest sum of live tensor bytes in a training step.
        parts: The same bytes by what they are: weights, saved (for backward), temporaries,
            gradients, optimiser.
        work: What the step computes.
        notes: What else to know of the step, one sentence each.
    """

    trainable_parameters: int
    total_parameters: int
    peak_bytes: int
    parts: dict[str, int]
    work: Work
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give the plan as plain data.

        Returns:
            Every attribute by name.
        """
        return {**asdict(self), "notes": list(self.notes)}


def simulate_step(
    tuned: Tuned, step: StepConfig, part: SelectPart | None = None, trial: Trial | None = None
) -> Plan:
    """Watch a training step on tensors without storage.

    The optimiser's state is born in an update before it. Of the micro-batches two run: the second
    finds the gradients of the first, and any other would find the same.

    Args:
        tuned: What `tune_on_meta` and `set_up_step` gave; it is used up.
        step: Its options; a running average is counted with the optimiser.
        part: Which part of the model the step runs, and on what; by default all of it on images.
        trial: What the step is taken on; by default images and their classes.

    Returns:
        The plan.

    Raises:
        InputError: A micro-batch of one image has no statistics.
    """
    with FakeTensorMode(), RealLayouts():
        materialise(tuned)
        tuned.train()
        return _watched(tuned, *_asked(tuned, step, part, trial), step, watching_three)


def rehearse_step(
    tuned: Tuned, step: StepConfig, part: SelectPart | None = None, trial: Trial | None = None
) -> Plan:
    """Watch a training step that really runs, on noise, where what is computed depends on numbers.

    Args:
        tuned: A tuned model with weights, `set_up_step` applied; it is used up.
        step: Its options; a running average is counted with the optimiser.
        part: Which part of the model the step runs, and on what; by default all of it on images.
        trial: What the step is taken on; by default images and their classes.

    Returns:
        The plan.
    """
    note = (
        "the step ran on the CPU, since the model or the optimiser chooses by its numbers what it"
        " computes"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tuned.train()
        planned = _watched(tuned, *_asked(tuned, step, part, trial), step, nullcontext)
    return replace(planned, notes=(*planned.notes, note))


def _asked(
    tuned: Tuned, step: StepConfig, part: SelectPart | None, trial: Trial | None
) -> tuple[nn.Module, Trial]:
    """Find what the step runs, and on what."""
    if trial is not None:
        return tuned, trial
    model, shape = (part or _whole)(tuned)
    targets = step.blank_targets(tuned.num_classes)
    examples = partial(_labelled, step, targets, tuned.num_classes, shape)
    loss = of_logits(targets.loss)
    if step.holds_pixels:
        loss = of_pixels(loss, Normalise(*[(0.5,) * shape[0]] * 2))
    return model, Trial(examples, loss, "")


def _watched(
    tuned: Tuned,
    model: nn.Module,
    trial: Trial,
    step: StepConfig,
    loops: Callable[[WorkMeter], AbstractContextManager[object]],
) -> Plan:
    """Take a step under the meter; a batch is as large as its largest micro-batches say."""
    batch, accumulate = step.batch_size, step.accumulate
    if batch // accumulate == 1:
        _refuse_single(model, trial)
    opt = make_optimizer(tuned, step.opt, in_backward=step.update_in_backward)
    meter, passes = WorkMeter(tuned, opt), []
    with meter, loops(meter):
        _first_update(tuned, opt, step.update_in_backward)
        if step.ema:
            for p in tuned.parameters():
                if p.requires_grad:
                    opt.state[p]["average"] = p.detach().clone()
            _first_update(tuned, opt, step.update_in_backward)  # the meter looks for state then
        batches = [*_micro_batches(trial, batch, accumulate)][:2]
        before = meter.work
        training_step(
            model,
            opt,
            batches,
            loss=trial.loss,
            amp=step.amp,
            before_update=lambda: passes.append(meter.work),
            in_backward=step.update_in_backward,
        )
    update = meter.work - passes[0]
    work = (passes[0] - before) * (batch / sum(len(images) for images, _ in batches)) + update
    shared = accumulate > 1 and shares_statistics(model)
    notes = (*tuned.notes, *([trial.said] * bool(trial.said)), *([MICRO_STATISTICS] * shared))
    peak = meter.peak
    return Plan(*tuned.trainable_counts(), peak.peak_bytes, peak.parts, work, notes)


def _micro_batches(trial: Trial, batch: int, parts: int) -> Iterator[tuple[Any, Any]]:
    """Make a batch and cut it."""
    images, targets = trial.examples(batch)
    if isinstance(images, Tensor) and isinstance(targets, Tensor):
        yield from micro_batches(images, targets, parts)
        return
    for i in range(parts):
        rows = slice(*(-(-batch * k // parts) for k in (i, i + 1)))
        yield images[rows], None if targets is None else targets[rows]


def _labelled(
    step: StepConfig, targets: Targets, classes: int, shape: Sequence[int], count: int
) -> tuple[Tensor, Tensor]:
    """Images, or their pixels, and targets: shares of the classes where images are mixed."""
    mixed = torch.rand(count, classes) if step.mixes else targets.batch(count)
    if step.holds_pixels:
        return torch.zeros(count, *shape, dtype=torch.uint8), mixed
    return torch.rand(count, *shape), mixed


def _whole(tuned: Tuned) -> tuple[nn.Module, Sequence[int]]:
    return tuned, image_shape(tuned.backbone)


def _refuse_single(model: nn.Module, trial: Trial) -> None:
    """Refuse micro-batches of one image where a norm would take statistics of one value."""

    def look(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        numbers = given[0].numel()
        if isinstance(norm, nn.GroupNorm):
            if numbers == norm.num_groups:
                raise InputError(ONE_EACH.format(groups=norm.num_groups))
        elif norm.training and numbers == given[0].shape[1]:
            raise InputError(SINGLE)

    kinds = (_BatchNorm, nn.GroupNorm)
    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, kinds)]
    try:
        with torch.no_grad():
            if hooks:
                images, targets = trial.examples(1)
                trial.loss(model, images, targets)
    finally:
        for hook in hooks:
            hook.remove()


def _first_update(model: nn.Module, optimizer: Optimizer, in_backward: bool) -> None:
    """Let the optimiser's state be born, of all parameters at once or of one after the other."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for some in [[p] for p in trained] if in_backward else [trained]:
        for p in some:
            p.grad = torch.zeros_like(p)
        if isinstance(optimizer, Kron):
            raise _unfollowed(optimizer, "it compiles itself")  # which torch 2.8 does in silence
        try:
            optimizer.step()
        except (torch.OutOfMemoryError, *UNKNOWN):
            raise
        except RuntimeError as e:  # torch's way to say that a graph is not there, or may not be
            raise _unfollowed(optimizer, str(e).partition("\n")[0]) from e
        optimizer.zero_grad()


def _unfollowed(optimizer: Optimizer, why: str) -> InputError:
    return InputError(
        f"the update of {type(optimizer).__name__} is none that a meter can follow: expected"
        f" another opt, such as adamw ({why})"
    )
