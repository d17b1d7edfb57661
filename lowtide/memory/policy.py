"""What is kept for the backward pass: a codec for each op, chunks, and what is recomputed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from ..codecs.affine import Affine, Rounding
from ..codecs.base import Codec
from ..errors import UnknownName
from ..ops import NAMES, S2A, TIGHT

CHUNK = 5 << 18
"""Numbers of input run at once: eight images of 224 pixels."""
STREAM = Affine(8, 64, stats=torch.bfloat16)
"""How the residual stream is kept: 8.5 bits a number."""


@dataclass(frozen=True)
class Policy:
    """What is kept for the backward pass.

    Attributes:
        codecs: A codec for each op to answer, by name; ops without one are left to torch.
        chunk: Largest input, in numbers, that the model, and in it an MLP, is run on at once; what
            backward does not need exists for one chunk at a time. None runs them whole. An MLP,
            which is wider inside, takes half of it.
        recompute: How the input of an attention module is kept; in backward q, k and v are made of
            it again, or where a module does more than that, all of it is recomputed, and nothing
            inside is kept. The input follows from the norm before it, so in a block that holds an
            attention the norms up to there are kept so as well. None keeps what is inside.
        block: How the input of a block is kept that gradient checkpointing recomputes in backward;
            None keeps it as it is. A group of it should divide the channels: a class token in one
            group with the large numbers of a patch loses its own.
    """

    codecs: Mapping[str, Codec] = field(default_factory=dict)
    chunk: int | None = None
    recompute: Codec | None = None
    block: Codec | None = None

    def __post_init__(self) -> None:
        for name in self.codecs:
            if name not in NAMES:
                raise UnknownName("op", name, NAMES)

    @classmethod
    def exact(cls) -> Policy:
        """Leave everything to torch.

        Returns:
            The policy.
        """
        return cls()

    @classmethod
    def s2a(cls, rounding: Rounding = "nearest") -> Policy:
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
        return cls({name: codec(rounding) for name, codec in S2A.items()})

    @classmethod
    def tight(cls) -> Policy:
        """Keep the least that leaves the gradient close: what each op says of itself.

        Returns:
            The policy.
        """
        rows = Affine(6, 128, stats=torch.bfloat16)
        return cls(dict(TIGHT), chunk=CHUNK, recompute=rows, block=STREAM)

    @classmethod
    def blocks(cls) -> Policy:
        """Keep each block's input alone, in 8 bits, and recompute the block in backward.

        Within a block everything is left to torch, so that only the inputs are rounded; what torch
        keeps there exists for one block and one chunk of images at a time.

        Returns:
            The policy; it takes gradient checkpointing.
        """
        return cls(chunk=CHUNK, block=STREAM)

    @property
    def checkpointing(self) -> bool:
        """Whether it keeps nothing but the inputs of blocks, which are recomputed, then."""
        return self.block is not None and not self.codecs


POLICIES: dict[str, Callable[[], Policy]] = {
    "exact": Policy.exact,
    "s2a": Policy.s2a,
    "blocks": Policy.blocks,
    "tight": Policy.tight,
}
