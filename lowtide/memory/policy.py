"""What a policy says: a codec for each op, chunks, and what is recomputed. Each has its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..codecs.affine import Affine
from ..codecs.base import Codec
from ..errors import UnknownName
from ..ops import NAMES

CHUNK = 5 << 18
"""Numbers of input run at once: eight images of 224 pixels."""
RESIDUAL = Affine(7, 64, stats=torch.bfloat16)
"""How the residual stream is kept: 7.5 bits a number."""


@dataclass(frozen=True)
class Policy:
    """What is kept for the backward pass, and how.

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

    @property
    def checkpointing(self) -> bool:
        """Whether only the inputs of blocks are kept, and the blocks recomputed in backward."""
        return self.block is not None and not self.codecs
