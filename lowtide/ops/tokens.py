"""Layers that treat every token by itself: recomputed in backward, some tokens at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..codecs.affine import Affine
from ..codecs.base import Codec, Reader, Residue
from ..core.alike import alike
from .again import Weights
from .bands import autocast_of
from .once import once
from .region import runs_twice
from .saved import keep
from .spare import spared, unpack

Run = Callable[[Tensor], Tensor]


class Kept(NamedTuple):
    """How an input is kept.

    Attributes:
        reader: Reads its codes.
        shape: Its shape `(..., C)`.
        dtype: Its dtype.
    """

    reader: Reader
    shape: torch.Size
    dtype: torch.dtype

    def pieces(
        self, packed: tuple[Tensor, ...], some: Iterable[slice]
    ) -> Iterator[tuple[slice, Tensor]]:
        """Unpack some tokens after others.

        Args:
            packed: The codes.
            some: Which tokens, one slice after the other.

        Yields:
            Which, and these `(n, C)`; of a codec that cannot read some alone, views of all.
        """
        width, whole = self.shape[-1], None
        for at in some:
            part = None
            if isinstance(self.reader, Affine) and not spared(packed):
                part = self.reader.part(packed, at.start * width, at.stop * width)
            if part is not None:
                shape = torch.Size((at.stop - at.start, width))
                yield at, self.reader.unpack(part, shape, self.dtype)
                continue
            if whole is None:
                whole = unpack(self.reader, packed, self.shape, self.dtype).flatten(0, -2)
            yield at, whole[at]


def in_pieces(
    run: Run, again: Run, sizes: list[int], codec: Codec, x: Tensor, *weights: Tensor
) -> Tensor:
    """Run layers; keep x alone, and run them once more in backward, some tokens at a time.

    What is kept is saved before anything is computed. Where the layers are the last to save
    something in a part that runs twice, its second run ends here, and they are computed no more
    often than if their insides were kept.

    Args:
        run: The layers, from `(n, C)` to `(n, K)`, every token by itself.
        again: The same for the gradient alone: the numbers that it gives are not read.
        sizes: How many tokens at a time.
        codec: How x is kept.
        x: `(..., C)`; it wants a gradient.
        *weights: All that the layers read besides.

    Returns:
        `(..., K)`.

    Saves:
        What the codec keeps of x, nothing of what is inside. In backward some tokens of everything
        exist, and the gradients of the weights are added up in place.
    """
    alias = _Keep.apply(codec, x)
    result: Tensor = _InPieces.apply(run, again, sizes, alias.grad_fn, alias, *weights)
    return result


def scaled(x: Tensor, scale: Tensor) -> Tensor | None:
    """Multiply what `in_pieces` gave by a frozen weight, so that a second run still ends before it.

    torch would save the weight, for which the second run would have to come here.

    Args:
        x: Any tensor.
        scale: Any tensor.

    Returns:
        Their product; None where x does not come of `in_pieces`, or the other is no frozen weight
        that keeps its shape.
    """
    if not runs_twice():  # nothing is given by in_pieces
        return None
    keeper = getattr(x.grad_fn, "keeper", None)
    root = scale._base if scale._is_view() else scale
    if keeper is None or not isinstance(root, nn.Parameter) or scale.requires_grad:
        return None
    if torch.broadcast_shapes(x.shape, scale.shape) != x.shape or scale.dtype != x.dtype:
        return None
    result: Tensor = _Scaled.apply(x, scale, keeper)
    return result


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, keeper: Any) -> Tensor:
        ctx.scale, ctx.keeper, ctx.held = scale, keeper, Weights((scale,))
        return x * scale

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        ctx.held.check()
        # The second run comes first: it has one map less beside it.
        ctx.keeper.codes = ctx.keeper.saved_tensors
        return dy * ctx.scale, None, None


class _Keep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codec: Codec, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            reader, packed = keep(codec, Residue(x.view_as(x)))  # carries no note
        ctx.save_for_backward(*packed)
        ctx.kept, ctx.codes = Kept(reader, x.shape, x.dtype), None
        return x.detach()  # counts the same versions

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor]:
        return None, dy


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: Run, again: Run, sizes: list[int], keeper: Any, x: Tensor, *weights: Tensor
    ) -> Tensor:
        ctx.again, ctx.sizes, ctx.keeper, ctx.weights = again, sizes, keeper, weights
        ctx.held, ctx.cast = Weights(weights), autocast_of(x)
        tokens, result = x.flatten(0, -2), x
        with torch.autocast(*ctx.cast):
            for at in _slices(sizes):
                piece = run(tokens[at])
                if at.start == 0:
                    result = piece.new_empty((*x.shape[:-1], piece.shape[-1]))
                result.view(len(tokens), -1)[at] = piece
                del piece  # before the next one is made
        return result

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        ctx.held.check()
        kept, packed = ctx.keeper.kept, ctx.keeper.codes or ctx.keeper.saved_tensors
        ctx.keeper.codes = None
        wanted = [w for w in ctx.weights if w.requires_grad]
        sums = [torch.zeros_like(w) for w in wanted]
        dx = dy.new_empty((kept.shape[:-1].numel(), kept.shape[-1]), dtype=kept.dtype)
        given = dy.flatten(0, -2)
        for at, x in kept.pieces(packed, _slices(ctx.sizes)):
            part = x.detach().requires_grad_()
            with torch.enable_grad(), torch.autocast(*ctx.cast):
                y = ctx.again(part)
            found = torch.autograd.grad(y, [part, *wanted], given[at].to(y.dtype))
            dx[at] = found[0]
            for total, more in zip(sums, found[1:], strict=True):
                total += more
            del x, part, y, found
        each = iter(sums)
        of_weights = (next(each) if w.requires_grad else None for w in ctx.weights)
        return None, None, None, None, dx.view(kept.shape), *of_weights


def _slices(sizes: Iterable[int]) -> Iterator[slice]:
    first = 0
    for size in alike(sizes, int):
        yield slice(first, first + size)
        first += size
