"""One module of the backbone with the edits of many adapters on it, each on its own rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..core.graft import Graft
from .edits import Edits


class Together(Graft):
    """The base once for all rows, and the edits by rows, those of one kind as batched products.

    Edits that differ only in their numbers are stacked, adapter by adapter where each has as many
    rows, else row by row: LoRA's products become one batched product per factor, a scale and shift
    one product and one sum. Nothing is kept: the stack is made of the adapters' tensors each time.
    """

    def __init__(self, base: nn.Module, rows: Sequence[tuple[Edits | None, int]]) -> None:
        """Sort the rows by kind of edit.

        Args:
            base: The backbone's module.
            rows: Edits of each adapter, none for rows that stay the base's, and how many rows.
        """
        super().__init__(base)
        self.sizes = [count for _, count in rows]
        kinds: dict[object, list[int]] = {}
        for i, (edits, _) in enumerate(rows):
            kinds.setdefault(edits.kind if edits else None, []).append(i)
        self.groups = [
            (members, _Group([rows[i][0] for i in members], [self.sizes[i] for i in members]))
            for members in kinds.values()
        ]

    def forward(self, x: Tensor, *args: object, **options: object) -> Tensor:
        """Run the base on all rows and each adapter's edits on its own.

        Args:
            x: `(rows * k, ...)`, k of them for each row, as windows of an image are.
            *args: What else the backbone tells the base.
            **options: The same by name.

        Returns:
            Same shape as the base's output.
        """
        k = x.shape[0] // sum(self.sizes)
        parts = x.split([n * k for n in self.sizes])
        given = [group.ahead(joined([parts[i] for i in at])) for at, group in self.groups]
        outputs = self._base([g[-1] for g in given], k, args, options)
        pieces: dict[int, Tensor] = {}
        for (at, group), inputs, y in zip(self.groups, given, outputs, strict=True):
            y = group.behind(inputs, y)
            pieces |= zip(at, y.split([self.sizes[i] * k for i in at]), strict=True)
        return joined([pieces[i] for i in range(len(pieces))])

    def _base(
        self, given: list[Tensor], k: int, args: tuple[object, ...], options: dict[str, object]
    ) -> list[Tensor]:
        """Run the base: once for all whose parameters are the backbone's own."""
        own = [i for i, (_, group) in enumerate(self.groups) if not group.thawed]
        outputs: dict[int, Tensor] = {}
        if own:
            y = self.base(joined([given[i] for i in own]), *args, **options)
            outputs |= zip(own, y.split([given[i].shape[0] for i in own]), strict=True)
        for i, (_, group) in enumerate(self.groups):
            if group.thawed:
                outputs[i] = group.base(self.base, given[i], args, options)
        return [outputs[i] for i in range(len(given))]


class _Group:
    """Rows whose edits differ in their numbers only."""

    def __init__(self, edits: Sequence[Edits | None], sizes: Sequence[int]) -> None:
        self.first = edits[0]
        self.thawed = bool(self.first and self.first.thawed)
        present = [e for e in edits if e is not None]
        even = all(n == sizes[0] for n in sizes)
        owners = (
            present if even else [e for e, n in zip(present, sizes, strict=False) for _ in range(n)]
        )
        self.owners = owners

    def ahead(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the inputs of each graft, outermost first, and last the base's."""
        if self.first is None:
            return (x,)
        if all(type(g).ahead is Graft.ahead for g in self.first.grafts):
            return (x,) * (len(self.first.grafts) + 1)
        return self._run("ahead", x)

    def behind(self, given: tuple[Tensor, ...], y: Tensor) -> Tensor:
        """Compute the output of the outermost graft."""
        if self.first is None or all(type(g).behind is Graft.behind for g in self.first.grafts):
            return y
        output: Tensor = self._run("behind", *given, y)
        return output

    def base(
        self, module: nn.Module, x: Tensor, args: tuple[object, ...], options: dict[str, object]
    ) -> Tensor:
        """Run the base with the adapters' own parameters."""
        if len(self.owners) == 1:
            y: Tensor = functional_call(module, self.owners[0].thawed, (x, *args), options)
            return y
        y = _each(
            lambda own, z: functional_call(module, own, (z, *args), options),
            [e.thawed for e in self.owners],
            [x],
        )
        return y.flatten(0, 1)

    def _run(self, half: str, *tensors: Tensor) -> Any:
        assert self.first is not None
        stack = self.first.stack
        if len(self.owners) == 1:
            return stack(half, *tensors)

        def one(own: dict[str, Tensor], *mine: Tensor) -> Any:
            return functional_call(stack, own, (half, *mine), tie_weights=False)

        y = _each(one, [e.tensors for e in self.owners], tensors)
        return tuple(t.flatten(0, 1) for t in y) if half == "ahead" else y.flatten(0, 1)


def _each(
    one: Callable[..., Any], states: Sequence[dict[str, Tensor]], tensors: Sequence[Tensor]
) -> Any:
    """Call with each adapter's numbers on its rows: as batched products, or in a graph in turn."""
    rows = [t.unflatten(0, (len(states), -1)) for t in tensors]
    if not torch.compiler.is_exporting():  # which would fix the batch's size in the graph
        return vmap(one)(_stacked(states), *rows)
    ys = [one(own, *mine) for own, *mine in zip(states, *rows, strict=True)]
    if isinstance(ys[0], tuple):
        return tuple(map(torch.stack, zip(*ys, strict=True)))
    return torch.stack(ys)


def _stacked(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def joined(pieces: Sequence[Tensor]) -> Tensor:
    """Concatenate along the rows; pieces that lie one after another in memory are not copied.

    Args:
        pieces: `(n, ...)` each.

    Returns:
        All rows.
    """
    first = pieces[0]
    if len(pieces) == 1:
        return first
    if torch.compiler.is_exporting():  # where they lie is not known yet
        return torch.cat(list(pieces))
    end = first.storage_offset()
    for piece in pieces:
        follows = (
            piece.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
            and piece.storage_offset() == end
            and piece.is_contiguous()
        )
        if not follows:
            return torch.cat(list(pieces))
        end += piece.numel()
    rows = sum(len(piece) for piece in pieces)
    return first.as_strided((rows, *first.shape[1:]), first.stride())
