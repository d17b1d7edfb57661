"""One training step, and the optimiser it uses: the same for the plan and for the run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim import Optimizer

from .errors import InputError

Amp = Literal["no", "bf16", "fp16"]


def make_optimizer(
    model: nn.Module, name: str = "adamw", lr: float = 1e-3, weight_decay: float = 0.0
) -> Optimizer:
    """Make timm's optimiser over what trains; parameters of one dimension never decay.

    Args:
        model: Its parameters that require a gradient are optimised.
        name: Any optimiser timm knows.
        lr: Learning rate.
        weight_decay: Decay of matrices and kernels.

    Returns:
        The optimiser; AdamW in its fused form, which needs no temporaries of the size of the state.

    Raises:
        InputError: timm has no such optimiser.
    """
    fused: Any = {"fused": True} if name in {"adam", "adamw", "sgd"} else {}
    try:
        return create_optimizer_v2(model, opt=name, lr=lr, weight_decay=weight_decay, **fused)
    except (ValueError, AssertionError) as e:
        raise InputError(f"unknown optimiser {name!r}: {e}") from e


def autocast(device: torch.device | str, amp: Amp) -> contextlib.AbstractContextManager[object]:
    """Enter mixed precision, or nothing.

    Args:
        device: Where the step runs.
        amp: `no`, `bf16` or `fp16`.

    Returns:
        A context for the forward pass.
    """
    if amp == "no":
        return contextlib.nullcontext()
    dtype = torch.bfloat16 if amp == "bf16" else torch.float16
    return torch.autocast(torch.device(device).type, dtype)


def training_step(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    parts: int = 1,
    amp: Amp = "no",
) -> None:
    """Run forward and backward over the micro-batches of one step, then update.

    Args:
        model: Images to logits.
        optimizer: Updates it.
        batches: Images `(B, 3, H, W)` and labels `(B,)` of each micro-batch.
        parts: How many micro-batches there are.
        amp: Mixed precision of the forward pass.
    """
    for images, labels in batches:
        with autocast(images.device, amp):
            loss = F.cross_entropy(model(images), labels)
        (loss / parts if parts > 1 else loss).backward()
    optimizer.step()
    optimizer.zero_grad()
