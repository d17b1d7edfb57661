"""Mish: x tanh(softplus(x))."""

from __future__ import annotations

import torch.nn.functional as F

from ..codecs.base import Codec
from ..codecs.codebook import Codebook
from . import activation_derivatives as slopes
from .saved import Calls
from .unary import answer, case

TIGHT: dict[str, Codec] = {"mish": Codebook.of("mish")}
CALLS: Calls = {F.mish: answer("mish", F.mish, slope=slopes.mish)}
CASES = {"mish": case(F.mish, slopes.mish)}
