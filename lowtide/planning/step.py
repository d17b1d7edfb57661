"""One training step, what is decided of it, and its optimiser: the same for plan and run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import torch
from timm.optim import SGDW, Adafactor, AdafactorBigVision, Lion, NAdamW, create_optimizer_v2
from torch import Tensor, nn, optim
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from ..errors import InputError
from ..memory.frozen_dtype import FrozenDtype
from ..memory.policies import policy_of
from ..targets import Balance, Targets, blank, refuse_unknown
from ..values import Count, Share, Within, read_fields
from .loss import CROSS_ENTROPY, Loss
from .statistics import shares_statistics as shares_statistics

BY_PARAMETER: tuple[type[Optimizer], ...] = (
    *(optim.SGD, optim.Adam, optim.AdamW, optim.Adamax, optim.NAdam, optim.RAdam),
    *(optim.Adagrad, optim.Adadelta, optim.RMSprop),
    *(Adafactor, AdafactorBigVision, Lion, NAdamW, SGDW),
)
"""Optimisers whose update of a parameter reads nothing of another one, nor counts their steps."""

Amp = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """What decides the memory and the work of a training step, beside the model and what trains.

    A run, a plan, a search and a suite share it: a field here is an option of each of them. By
    itself it is a step of a loop of one's own, whose images are floats; a run may hold bytes.

    Attributes:
        batch_size: Images per update; where BatchNorm trains, a single image left over is left out.
        policy: What is kept for backward: exact, tight (lowtide's best), codes (tight, but nothing
            is recomputed; for GPUs), blocks (each block's input in 7 bits; takes checkpointing) or
            s2a (the paper's).
        chunk: Most numbers of an input that is run at once, where every image is known to be
            treated alone; 0 runs batches whole. By default the policy's own.
        checkpointing: Recompute each block in backward instead of keeping its activations.
        recomputed_blocks: How many blocks, from the first, checkpointing takes; by default all.
        accumulate: Micro-batches a batch is cut into.
        amp: Mixed precision: no, bf16 or fp16.
        frozen_dtype: What frozen weights are kept in: fp32, bf16, int8, nf4 or int4; what trains is
            in fp32.
        opt: timm's name of the optimiser.
        update_in_backward: Update each parameter as soon as its gradient is there, and drop the
            gradient, so that no two are held; for optimisers that treat each parameter alone.
        mixup: The a of the Beta(a, a) that mixup's shares are drawn from; 0 mixes no images.
        cutmix: The same for CutMix, which puts a rectangle of one image into another; with both on,
            each batch gets one of the two.
        ema: Decay of a running average of what trains, which is what is scored and saved; 0: none.
        task: What is learnt of an image: classify (one class), multilabel (any number of labels),
            regress (a number), segment (a class of each pixel), detect (boxes) or instances.
        loss: What is minimised: cross_entropy for classify, bce for multilabel, mse or smooth_l1
            for regress; by default the first of the task.
        balance: What is done for rare classes: none, weights (in the loss, by inverse frequency) or
            sampler (images are drawn so that every class comes equally often).
    """

    batch_size: Count = 32
    policy: str = "exact"
    chunk: Annotated[int, Within(0, 2**40)] | None = None
    checkpointing: bool = False
    recomputed_blocks: Count | None = None
    accumulate: Count = 1
    amp: Amp = "no"
    frozen_dtype: FrozenDtype = "fp32"
    opt: str = "adamw"
    update_in_backward: bool = False
    mixup: Annotated[float, Within(0, 100)] = 0.0
    cutmix: Annotated[float, Within(0, 100)] = 0.0
    ema: Share = 0.0
    task: str = "classify"
    loss: str | None = None
    balance: Balance = "none"

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in read_fields(type(self), given).items():
            object.__setattr__(self, name, value)
        policy = policy_of(self.policy)
        refuse_unknown(self.task, self.loss, self.balance)
        if self.mixes and self.task != "classify":
            raise InputError(f"mixup and cutmix mix classes, and task {self.task} has none")
        if policy.checkpointing:
            object.__setattr__(self, "checkpointing", True)
        if self.recomputed_blocks is not None and not self.checkpointing:
            raise InputError("recomputed_blocks is for checkpointing: give --checkpointing as well")
        if self.accumulate > self.batch_size:
            raise InputError(
                f"a batch of {self.batch_size} cannot be cut into {self.accumulate} micro-batches"
            )
        if self.update_in_backward:
            self._check_early()

    def _check_early(self) -> None:
        """Refuse to update in backward where the update needs all gradients, or several of each."""
        if self.accumulate > 1 or self.amp == "fp16":
            other = "amp fp16" if self.accumulate == 1 else f"accumulate {self.accumulate}"
            raise InputError(
                f"update_in_backward drops each gradient at once, and {other} needs them together"
            )

    def blank_targets(self, outputs: int) -> Targets:
        """Make targets that a step of these options may have.

        Args:
            outputs: What the model gives for an image, in numbers.

        Returns:
            Targets of no images.
        """
        return blank(self.task, outputs, loss=self.loss, balance=self.balance)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, so that targets are shares of classes."""
        return bool(self.mixup or self.cutmix)

    @property
    def holds_pixels(self) -> bool:
        """Whether the step is given images as uint8, and holds floats in its forward alone."""
        return False

    @property
    def micro_batch(self) -> int:
        """Most images in one forward pass."""
        return -(-self.batch_size // self.accumulate)


def make_optimizer(
    model: nn.Module,
    name: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    in_backward: bool = False,
    scaled: Mapping[nn.Parameter, float] | None = None,
) -> Optimizer:
    """Make timm's optimiser over what trains; parameters of one dimension never decay.

    Differs:
        timm asks whether a parameter has one axis. Here a vector is a vector in any layout, such as
        the `(C, 1, 1)` of a scale over feature maps or a row `(1, C)`; and the weight of a linear
        map or a convolution decays even where it has a single row.

    Args:
        model: Its parameters that require a gradient are optimised.
        name: Any optimiser timm knows.
        lr: Learning rate.
        weight_decay: Decay of matrices and kernels.
        in_backward: Whether it will update each parameter by itself, in backward.
        scaled: Parameters with a learning rate of their own, and what timm's schedule multiplies
            the others' by there.

    Returns:
        The optimiser; AdamW in its fused form, which needs no temporaries of the size of the state.

    Raises:
        InputError: timm has no such optimiser, or it is not known to treat each parameter alone.
    """
    fused: Any = {"fused": True} if name in {"adam", "adamw", "sgd"} else {}
    kernels = _decayed(model) if weight_decay else set()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in (p for p in model.parameters() if p.requires_grad):
        key = ((scaled or {}).get(p, 1.0), weight_decay if p in kernels else 0.0)
        groups.setdefault(key, []).append(p)
    made_of = [
        {"params": groups[key], "weight_decay": key[1], "lr_scale": key[0]}
        for key in sorted(groups)
    ]
    try:
        made = create_optimizer_v2(made_of, opt=name, lr=lr, **fused)
    except (ValueError, AssertionError, ImportError) as e:
        raise InputError(f"timm makes no optimiser {name!r} here: {e}") from e
    if in_backward and type(made) not in BY_PARAMETER:
        raise InputError(
            f"update_in_backward is for optimisers known to treat each parameter alone, such as"
            f" adamw, sgd, lion and adafactor; {name} is not"
        )
    return made


def _decayed(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that decay: weights of linear maps, and what has two axes longer than one."""
    maps = (nn.Linear, nn.modules.conv._ConvNd)
    return {
        p
        for module in model.modules()
        for name, p in module.named_parameters(recurse=False)
        if (name == "weight" and isinstance(module, maps)) or sum(n > 1 for n in p.shape) > 1
    }


def autocast(device: torch.device, amp: Amp) -> contextlib.AbstractContextManager[object]:
    """Enter mixed precision, or nothing.

    Args:
        device: Where the step runs.
        amp: `no`, `bf16` or `fp16`.

    Returns:
        A context for the forward pass.
    """
    if amp == "no":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if amp == "bf16" else torch.float16)


def micro_batches(images: Tensor, labels: Tensor, parts: int) -> list[tuple[Tensor, Tensor]]:
    """Cut a batch into parts that differ by one image at most, the larger ones first.

    Args:
        images: `(B, 3, H, W)`.
        labels: `(B,)`, or shares of the classes `(B, K)`.
        parts: How many, B at most.

    Returns:
        Images and labels of each.
    """
    return list(zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True))


def training_step(
    model: nn.Module,
    optimizer: Optimizer,
    batch: Sequence[tuple[Any, Any]],
    *,
    loss: Loss | None = None,
    amp: Amp = "no",
    share: float = 1.0,
    backward: Callable[[Tensor], object] = Tensor.backward,
    before_update: Callable[[], object] = lambda: None,
    in_backward: bool = False,
) -> Tensor:
    """Run forward and backward over the micro-batches of one batch, then update.

    The gradient is that of the mean loss over the whole batch, whatever the micro-batches' sizes.

    Args:
        model: Images to outputs, or whatever `loss` takes.
        optimizer: Updates it.
        batch: Images `(B, 3, H, W)` and targets, such as labels `(B,)` or shares `(B, K)`, of each
            micro-batch, or whatever `loss` takes.
        loss: The mean loss of a micro-batch; by default the cross-entropy of the logits.
        amp: Mixed precision of the forward pass.
        share: What the mean loss counts: among processes whose gradients are averaged, their number
            times this one's part of the images.
        backward: Replaces `loss.backward()`, for loss scaling.
        before_update: Called between the last backward and the update, for clipping.
        in_backward: Update each parameter as soon as its gradient is there.

    Returns:
        The mean loss times `share`, detached.
    """
    total = sum(len(images) for images, _ in batch)
    device = next(t.device for t in tree_leaves(batch) if isinstance(t, Tensor))
    mean = torch.zeros((), device=device)
    updates = _updates_in_backward(optimizer) if in_backward else contextlib.nullcontext()
    for images, targets in batch:
        with autocast(device, amp):
            value = (loss or CROSS_ENTROPY)(model, images, targets)
        part = value * (share * len(images) / total)
        mean += part.detach()
        with updates:
            backward(part)
    before_update()
    if not in_backward:
        optimizer.step()
        optimizer.zero_grad()
    return mean


@contextlib.contextmanager
def _updates_in_backward(optimizer: Optimizer) -> Iterator[None]:
    """Update each parameter when all of its gradient is there; it is the only one that has one."""

    def update(parameter: Tensor) -> None:
        optimizer.step()
        parameter.grad = None

    trained = (p for group in optimizer.param_groups for p in group["params"])
    with contextlib.ExitStack() as hooks:
        for p in trained:
            hooks.enter_context(p.register_post_accumulate_grad_hook(update))
        yield
