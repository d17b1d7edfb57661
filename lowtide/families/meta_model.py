"""A model's structure without its weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def meta_copy(model: nn.Module) -> nn.Module:
    """Copy a model's structure to the meta device without copying a weight.

    Args:
        model: Any model.

    Returns:
        A deep copy whose parameters and buffers have shapes only.
    """
    memo = computed(model)
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
    for b in model.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    return copy.deepcopy(model, memo)


def computed(model: nn.Module) -> dict[int, object]:
    """Copy what modules have computed with a gradient and kept, as LeViT keeps biases in `eval`.

    Args:
        model: Any model.

    Returns:
        A memo for `copy.deepcopy`, which refuses such tensors: copies that have no gradient.
    """
    held = [t for module in model.modules() for t in tree_leaves(vars(module))]
    return {id(t): t.detach().clone() for t in held if isinstance(t, Tensor) and not t.is_leaf}
