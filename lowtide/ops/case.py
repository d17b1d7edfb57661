"""An op beside torch's own function, as an example that the tests of the ops run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .saved import Needs, Op

Shape = tuple[int, ...]


def _nothing(needs: Needs) -> tuple[()]:
    return ()


def _no_bytes(needs: Needs) -> int:
    return 0


@dataclass(frozen=True)
class Case:
    """An op with arguments, and the residues and bytes it keeps of them.

    Each of the functions is given which arguments want a gradient.

    Attributes:
        op: The op.
        shapes: Shapes of its tensors; None for one that is not given.
        plain: The call a model makes of these tensors: torch's own function. With the op's codecs
            it is answered by the op.
        kept: Shapes of the residues.
        options: Options of the op; tensors among them are copied for every call.
        beside: Bytes kept besides, of float32 arguments.
        as_is: Places of the arguments that are kept as they are.
        made: Whether the op makes its residues; otherwise they are arguments.
        linear: Whether the gradients are linear in the residues, so that the error of a gradient is
            bounded by the codec's.
    """

    op: Op
    shapes: tuple[Shape | None, ...]
    plain: Callable[..., Tensor]
    kept: Callable[[Needs], Sequence[Shape]] = _nothing
    options: Mapping[str, object] = field(default_factory=dict)
    beside: Callable[[Needs], int] = _no_bytes
    as_is: Callable[[Needs], Sequence[int]] = _nothing
    made: bool = False
    linear: bool = False
