"""Views, copies and concatenations: nothing is kept, and results can be recomputed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FOLLOWED = (
    *(Tensor.contiguous, Tensor.float, torch.flatten, Tensor.flatten),
    *(torch.unflatten, Tensor.unflatten, Tensor.__getitem__, Tensor.view, Tensor.view_as),
    *(Tensor.reshape, torch.reshape, Tensor.reshape_as, torch.permute, Tensor.permute),
    *(torch.transpose, Tensor.transpose, torch.roll, Tensor.roll, F.pad),
    Tensor.mT.__get__,  # type: ignore[attr-defined]
)
FOLLOWED_TO_ATTENTION = (
    *(torch.cat, torch.stack, torch.unbind, Tensor.unbind, torch.chunk, Tensor.chunk),
    *(torch.split, Tensor.split, torch.movedim, Tensor.movedim),
    Tensor.T.__get__,  # type: ignore[attr-defined]
)
