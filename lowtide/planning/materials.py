"""Weights for a model that is planned: without numbers, or random ones."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ..families.meta_model import computed


def materialise(model: nn.Module) -> None:
    """Give every parameter and buffer a CPU tensor of the current (fake) mode; ties stay ties.

    Args:
        model: A model on the meta device; changed in place.
    """
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


def real_copy(model: nn.Module) -> nn.Module:
    """Copy a model with its weights to the CPU; one without weights is given random ones.

    Args:
        model: The model, or its structure on the meta device.

    Returns:
        The copy.
    """
    copied = copy.deepcopy(model, computed(model))
    if not any(p.is_meta for p in copied.parameters()):
        return copied.cpu()
    materialise(copied)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for module in copied.modules():
            _draw(module)
    return copied


def _draw(module: nn.Module) -> None:
    """Start a module as PyTorch does, and what it knows nothing of near 0 or, of a norm, at 1."""
    for name, value in (*module._parameters.items(), *module._buffers.items()):
        if value is not None and value.is_floating_point():
            ones = name in ("weight", "running_var") and value.ndim == 1
            value.fill_(1) if ones else value.normal_(0, 0.02)
        elif value is not None:
            value.zero_()
    reset: Any = getattr(module, "reset_parameters", None)
    if reset is not None:
        reset()
