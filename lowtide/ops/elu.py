"""ELU, CELU and SELU: one slope above zero, an exponential below."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..codecs.base import Codec
from ..codecs.codebook import Codebook
from . import activation_derivatives as slopes
from .saved import Call, Calls, Codecs, Result
from .unary import activate, answer, case, overwritten

SLOWEST = 4.0
"""Alpha of a CELU whose slope settles where edges are looked for."""


def _elu(codecs: Codecs, call: Call) -> Result:
    if call.argument(1, "alpha", 1.0) != 1:
        return NotImplemented
    x = call.argument(0, "input")
    y = activate("elu", codecs, F.elu, x, slopes.elu)
    return overwritten(x, y, call.argument(2, "inplace", False))


def _celu(codecs: Codecs, call: Call) -> Result:
    x, alpha = call.argument(0, "input"), call.argument(1, "alpha", 1.0)
    if not 0 < alpha <= SLOWEST:
        return NotImplemented
    slope = slopes.faster(slopes.elu, 1 / alpha)
    y = activate("elu", codecs, lambda x: F.celu(x, alpha), x, slope)
    return overwritten(x, y, call.argument(2, "inplace", False))


TIGHT: dict[str, Codec] = {"elu": Codebook.of("elu"), "selu": Codebook.of("selu")}
CALLS: Calls = {
    F.elu: _elu,
    F.celu: _celu,
    torch.celu: _celu,
    F.selu: answer("selu", F.selu, slope=slopes.selu),
    torch.selu: answer("selu", F.selu, slope=slopes.selu),
}
CASES = {
    "elu": case(F.elu, slopes.elu),
    "celu": case(lambda x: F.celu(x, 0.5), slopes.faster(slopes.elu, 2.0)),
    "selu": case(F.selu, slopes.selu),
}
