"""Mish: x tanh(softplus(x))."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

from ..codecs.base import Codec
from ..codecs.codebook import Codebook
from . import activation_derivatives as slopes
from .saved import Answer
from .unary import answer, case

TIGHT: dict[str, Codec] = {"mish": Codebook.of("mish")}
CALLS: dict[Callable[..., Any], Answer] = {F.mish: answer("mish", F.mish, slope=slopes.mish)}
CASES = {"mish": case(F.mish, slopes.mish)}
