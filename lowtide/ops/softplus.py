"""Softplus and log-sigmoid, whose slopes are sigmoids."""

from __future__ import annotations

import torch.nn.functional as F

from ..codecs.base import Codec
from ..codecs.codebook import Codebook
from . import activation_derivatives as slopes
from .formula import written
from .saved import Call, Calls, Codecs, Result
from .unary import activate, answer, case

SLOWEST, FASTEST = 0.25, 64.0
"""Beta of a softplus whose slope settles, and rises over several steps, where edges are looked for.
"""


def _softplus(codecs: Codecs, call: Call) -> Result:
    x, beta = call.argument(0, "input"), call.argument(1, "beta", 1.0)
    if not SLOWEST <= beta <= FASTEST or call.argument(2, "threshold", 20.0) != 20:
        return NotImplemented
    slope = slopes.faster(slopes.softplus, beta)
    return activate("softplus", codecs, lambda x: F.softplus(x, beta), x, slope)


TIGHT: dict[str, Codec] = {name: Codebook.of("softplus") for name in ("softplus", "log_sigmoid")}
CALLS: Calls = {
    F.softplus: written(_softplus),
    F.logsigmoid: answer("log_sigmoid", F.logsigmoid, slope=slopes.log_sigmoid),
}
CASES = {
    "softplus": case(F.softplus, slopes.softplus),
    "softplus_fast": case(lambda x: F.softplus(x, 3.0), slopes.faster(slopes.softplus, 3.0)),
    "log_sigmoid": case(F.logsigmoid, slopes.log_sigmoid),
}
