"""S2A's compressed softmax, GELU and ReLU."""

from __future__ import annotations

from ...codecs.affine import Rounding
from ...ops import S2A
from ..policy import Policy


def policy(rounding: Rounding = "nearest") -> Policy:
    """Quantise as S2A does, to the letter (Jin et al. 2025, section 3.2).

    Softmax: 4 bits between minimum and maximum of each attention row. GELU: the input clipped
    to [-2, 2], 4 bits between its minimum and maximum, slope s(1.702 x) + 0.22 sin(1.5 x);
    SiLU by substitution. ReLU: 1 bit. Nothing else. A fused attention is taken apart, so that
    its softmax is kept as the paper keeps it.

    The paper leaves open, chosen here: the forward is exact (GELU the model's own, by erf where
    it is; only its slope is the sine's); the gradient of V is computed from the 4-bit P, as P
    is kept once; a softmax has a minimum and step per row, a GELU per tensor. A maximum has
    the last code also where `floor` would leave it just short.

    Args:
        rounding: To the nearest code, or `floor` as the paper's bracket is drawn.

    Returns:
        The policy.
    """
    return Policy({name: codec(rounding) for name, codec in S2A.items()})
