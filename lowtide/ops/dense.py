"""Functions of dense predictions: cross entropy, log softmax, sampling a grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.affine import Affine
from ..codecs.base import Codec
from .from_inputs import Places, smooth, smooth_case
from .linear import POOLED
from .saved import Call, Calls, Needs


def _is_dense(call: Call) -> bool:
    # One prediction per image is few bytes.
    x = call.argument(0, "input")
    return isinstance(x, Tensor) and (x.ndim > 2 or x.numel() > POOLED)


def _nothing(needs: Needs) -> Sequence[bool]:
    return (False,)


def _sampled(needs: Needs) -> Sequence[bool]:
    return needs[1], True


def _takes_indices(call: Call) -> bool:
    target = call.argument(1, "target")
    return _is_dense(call) and isinstance(target, Tensor) and not target.requires_grad


GRID: Places = ((0, "input"), (1, "grid"))
_EIGHT = Affine(8, 64, stats=torch.bfloat16)
TIGHT: dict[str, Codec] = dict.fromkeys(
    ("cross_entropy", "log_softmax", "nll_loss", "grid_sample"), _EIGHT
)
_LOG_SOFTMAX = smooth("log_softmax", holds=_is_dense)
CALLS: Calls = {
    F.cross_entropy: smooth("cross_entropy", holds=_takes_indices),
    **dict.fromkeys((F.log_softmax, torch.log_softmax, Tensor.log_softmax), _LOG_SOFTMAX),
    # Of the log-probabilities the places of the targets are read alone.
    F.nll_loss: smooth("nll_loss", reads=_nothing, holds=_is_dense),
    # A place that is rounded lies elsewhere.
    F.grid_sample: smooth("grid_sample", GRID, _sampled, exact=(1,)),
}
_LABELS = torch.arange(2 * 4 * 3).remainder(5).view(2, 4, 3)


def _sample(x: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(x, grid, align_corners=False)


CASES = {
    "cross_entropy": smooth_case(
        lambda x: F.cross_entropy(x, _LABELS, ignore_index=3, label_smoothing=0.1), (2, 5, 4, 3)
    ),
    "log_softmax": smooth_case(lambda x: F.log_softmax(x, 1), (2, 5, 4, 3)),
    "nll_loss": smooth_case(lambda x: F.nll_loss(x, _LABELS), (2, 5, 4, 3), reads=_nothing),
    "grid_sample": smooth_case(_sample, (2, 3, 5, 4), (2, 4, 3, 2), reads=_sampled),
}
