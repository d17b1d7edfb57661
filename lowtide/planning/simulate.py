"""What a run will need, before it runs: one training step on tensors that have no storage.

No formula is kept true by hand. The model is built, tuned and compressed as for a real run, on
shapes alone, and the meter watches a step; so a plan equals the real run on the same device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ..core.graft import Method
from ..errors import InputError
from ..families import image_shape, meta_copy
from ..memory.compress import compress
from ..memory.policy import POLICIES
from ..targets import Targets
from ..tuning.backbone import create
from ..tuning.tuned import Tuned, apply, set_frozen_dtype
from ..versions import on_meta
from .cost_model import Work, WorkMeter
from .meter import RealLayouts
from .step import StepConfig, make_optimizer, micro_batches, shares_statistics, training_step

MICRO_STATISTICS = (
    "BatchNorm trains here: each micro-batch is normalized by its own statistics, so accumulate > 1"
    " does not train what the whole batch would"
)

SelectPart = Callable[[Tuned], tuple[nn.Module, Sequence[int]]]
"""From a tuned model to the part of it that a step runs, and the shape of one input of it."""


@dataclass(frozen=True)
class Plan:
    """What one configuration trains and needs.

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


def plan(
    model: str | nn.Module,
    *methods: Method,
    step: StepConfig = StepConfig(),
    num_classes: int | None = None,
    image_size: int | None = None,
    part: SelectPart | None = None,
) -> Plan:
    """Measure a training step that never runs.

    Args:
        model: A timm name, or a backbone, which is not changed.
        *methods: What would train.
        step: Batch, policy and everything else that decides a step's memory.
        num_classes: Classes of the classifier; by default the backbone's.
        image_size: Side of the square input, for a model given by name.
        part: Which part of the model the step runs, and on what; by default all of it on images.

    Returns:
        The plan. Bytes are those PyTorch allocates for tensors: no CUDA context, no workspace of a
        library, no rounding by the allocator. Under autocast a CPU's own low-precision kernels may
        keep a few percent more.
    """
    tuned = tune_on_meta(model, *methods, num_classes=num_classes, image_size=image_size)
    return simulate_step(set_up_step(tuned, step), step, part)


def tune_on_meta(
    model: str | nn.Module,
    *methods: Method,
    num_classes: int | None = None,
    image_size: int | None = None,
) -> Tuned:
    """Tune a backbone that has shapes and no weights.

    Args:
        model: A timm name, or a backbone, which is not changed.
        *methods: What would train.
        num_classes: Classes of the classifier; by default the backbone's.
        image_size: Side of the square input, for a model given by name.

    Returns:
        The tuned model, on the meta device.
    """
    with on_meta():
        if isinstance(model, str):
            backbone = create(model, pretrained=False, image_size=image_size)
        else:
            backbone = meta_copy(model)
        return apply(backbone, *methods, num_classes=num_classes)


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
    policy = POLICIES[step.policy]()
    if step.chunk is not None:
        policy = replace(policy, chunk=step.chunk or None)
    compress(tuned, policy)
    return tuned


def simulate_step(tuned: Tuned, step: StepConfig, part: SelectPart | None = None) -> Plan:
    """Watch a training step on tensors without storage.

    The optimiser's state is born in an update before it. Of the micro-batches two run: the second
    finds the gradients of the first, and any other would find the same.

    Args:
        tuned: What `tune_on_meta` and `set_up_step` gave; it is used up.
        step: Its options; a running average is counted with the optimiser.
        part: Which part of the model the step runs, and on what; by default all of it on images.

    Returns:
        The plan.

    Raises:
        InputError: A micro-batch of one image has no statistics.
    """
    batch, accumulate = step.batch_size, step.accumulate
    with FakeTensorMode(), RealLayouts():
        _materialise(tuned)
        tuned.train()
        model, shape = (part or _whole)(tuned)
        if batch // accumulate == 1:
            _refuse_single(model, shape)
        opt = make_optimizer(tuned, step.opt, in_backward=step.update_in_backward)
        meter, passes = WorkMeter(tuned, opt), []
        with meter:
            _first_update(tuned, opt, step.update_in_backward)
            if step.ema:
                for p in tuned.parameters():
                    if p.requires_grad:
                        opt.state[p]["average"] = p.detach().clone()
                _first_update(
                    tuned, opt, step.update_in_backward
                )  # after which the meter looks for state
            targets = step.blank_targets(tuned.num_classes)
            inputs, labels = torch.empty(batch, *shape), _labels(step, targets, tuned.num_classes)
            batches = micro_batches(inputs, labels, accumulate)[:2]
            before = meter.work
            training_step(
                model,
                opt,
                batches,
                amp=step.amp,
                loss=targets.loss,
                before_update=lambda: passes.append(meter.work),
                in_backward=step.update_in_backward,
            )
    update = meter.work - passes[0]
    work = (passes[0] - before) * (batch / sum(len(rows) for _, rows in batches)) + update
    notes = (
        *tuned.notes,
        *([MICRO_STATISTICS] if accumulate > 1 and shares_statistics(model) else []),
    )
    peak = meter.peak
    return Plan(*tuned.trainable_counts(), peak.peak_bytes, peak.parts, work, notes)


def _labels(step: StepConfig, targets: Targets, classes: int) -> Tensor:
    """Targets of a batch, or shares of the classes where images are mixed."""
    if step.mixes:
        return torch.empty(step.batch_size, classes)
    return targets.batch(step.batch_size)


def _whole(tuned: Tuned) -> tuple[nn.Module, Sequence[int]]:
    return tuned, image_shape(tuned.backbone)


def _refuse_single(model: nn.Module, shape: Sequence[int]) -> None:
    """Refuse micro-batches of one image where a norm would take statistics of one value."""

    def look(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        if norm.training and given[0].numel() == given[0].shape[1]:
            raise InputError(
                "a micro-batch of one image gives a BatchNorm that trains one value per channel,"
                " which has no variance: expected two images in each micro-batch (batch_size at"
                " least twice accumulate), or larger images"
            )

    hooks = [
        m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, _BatchNorm)
    ]
    try:
        with torch.no_grad():
            if hooks:
                model(torch.empty(1, *shape))
    finally:
        for hook in hooks:
            hook.remove()


def _first_update(model: nn.Module, optimizer: Optimizer, in_backward: bool) -> None:
    """Let the optimiser's state be born, of all parameters at once or of one after the other."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for some in [[p] for p in trained] if in_backward else [trained]:
        for p in some:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad()


def _materialise(model: nn.Module) -> None:
    """Give every parameter and buffer a CPU tensor of the current (fake) mode; ties stay ties."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                empty = torch.empty(p.shape, dtype=p.dtype)
                module._parameters[name] = made.setdefault(
                    id(p), nn.Parameter(empty, p.requires_grad)
                )
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = made.setdefault(id(b), torch.empty(b.shape, dtype=b.dtype))
