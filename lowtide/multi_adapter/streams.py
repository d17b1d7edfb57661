"""Feature maps on their way through the backbone, each shared by adapters that agree so far."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.graft import find
from ..core.side import Block
from ..families import Context
from ..tuning.side_execution import STEM, Between, StagedModel, along
from .edits import in_place, replaced
from .regions import FINISH, HEAD, Regions
from .rider import Rider
from .together import Together, joined


@dataclass
class Stream:
    """A feature map that several adapters share.

    Attributes:
        x: The map, one row per image.
        riders: The adapters, in order.
        size: Height and width of the images.
    """

    x: Tensor
    riders: tuple[Rider, ...]
    size: tuple[int, int]


class _Asked(Exception):
    """A side network has come to where it runs the block; it is asked again with the answer."""

    def __init__(
        self, x: Tensor, tokens: tuple[Tensor, ...], between: Mapping[str, Between]
    ) -> None:
        super().__init__()
        self.x, self.tokens, self.between = x, tokens, between

    @classmethod
    def block(cls, x: Tensor, *tokens: Tensor, **between: Between) -> Any:
        raise cls(x, tokens, between)


@dataclass
class _Run:
    """Rows an element is to be run on.

    Attributes:
        riders: Whose they are; several only where none of them changes the element.
        x: Its input.
        size: Height and width of the images.
        tokens: Extra tokens, at most one tensor.
        between: What runs between its halves, by name.
        y: What it gave.
    """

    riders: tuple[Rider, ...]
    x: Tensor
    size: tuple[int, int]
    tokens: tuple[Tensor, ...] = ()
    between: Mapping[str, Between] = field(default_factory=dict)
    y: Any = None

    def key(self, element: str) -> Any:
        """What rows have in common that run together."""
        alone = next((r.name for r in self.riders if element in r.alone), None)
        tokens = tuple(t.shape[1:] for t in self.tokens)
        return alone, self.x.shape[1:], self.x.dtype, self.size, tokens, tuple(self.between)


class Streams:
    """One forward of many adapters."""

    def __init__(
        self, tuned: StagedModel, regions: Regions, streams: list[Stream], rows_at_once: int | None
    ) -> None:
        """Begin with the images.

        Args:
            tuned: The backbone, plain.
            regions: Where its places are reached.
            streams: Images, each with the adapters that are to see it.
            rows_at_once: Most rows that an element is run on at once, of several adapters.
        """
        self._tuned, self._chain = tuned, regions.chain
        self._rows_at_once = rows_at_once
        self._streams = streams
        riders = {r.name: r for s in streams for r in s.riders}
        self._states: dict[str, dict[str, Any]] = {
            name: dict.fromkeys(n for n, _ in rider.sides) for name, rider in riders.items()
        }
        self._contexts: dict[tuple[int, int], Context] = {}

    def run(self) -> dict[str, Tensor]:
        """Run the backbone.

        Returns:
            Logits by adapter.
        """
        tuned, model = self._tuned, self._tuned.backbone
        self._pass(STEM, lambda size: partial(tuned.family.stem, model), beside=False)
        for path in self._chain:
            self._pass(path, partial(self._block, path))
        self._streams = [s for stream in self._streams for s in self._finished(stream)]
        self._pass(FINISH, lambda size: partial(tuned.family.finish, model), beside=False)
        return {r.name: self._logits(s.x, r) for s in self._streams for r in s.riders}

    def _block(self, path: str, size: tuple[int, int]) -> Block:
        if size not in self._contexts:
            self._contexts[size] = self._tuned.context(size)
        return self._tuned.run(path, self._contexts[size])

    def _pass(
        self, element: str, call: Callable[[tuple[int, int]], Block], beside: bool = True
    ) -> None:
        """Take every stream through an element; adapters part where they must."""
        self._streams = [s for stream in self._streams for s in _parted(stream, element)]
        runs: list[_Run] = []
        asked = [self._ask(stream, element, beside, runs) for stream in self._streams]
        groups: dict[object, list[_Run]] = {}
        for run in runs:
            groups.setdefault(run.key(element), []).append(run)
        for group in groups.values():
            for part in _parts(group, self._rows_at_once):
                self._compute(element, call(part[0].size), part)
        self._streams = [
            s
            for stream, answers in zip(self._streams, asked, strict=True)
            for s in self._answered(stream, element, call, answers, beside)
        ]

    def _ask(
        self, stream: Stream, element: str, beside: bool, runs: list[_Run]
    ) -> list[_Run | None]:
        """Find on what each rider's side networks want the element run; None: not at all."""
        plain = _Run((), stream.x, stream.size)
        wanted: list[_Run | None] = []
        for rider in stream.riders:
            run: _Run | None = plain
            if beside and rider.sides:
                run = None
                try:
                    states = dict(self._states[rider.name])
                    along(rider.sides, element, _Asked.block, states)(stream.x)
                except _Asked as a:
                    same = a.x is stream.x and not a.tokens and not a.between
                    run = plain if same else _Run((), a.x, stream.size, a.tokens, a.between)
            if run is not None:
                run.riders += (rider,)
                runs += [run] if len(run.riders) == 1 else []
            wanted.append(run)
        return wanted

    def _compute(self, element: str, call: Block, group: Sequence[_Run]) -> None:
        """Run an element on the rows of many runs at once."""
        rows = [run.x.shape[0] for run in group]
        tokens = [joined(parts) for parts in zip(*(run.tokens for run in group), strict=True)]
        between = {
            name: _by_rows([run.between[name] for run in group], rows) for name in group[0].between
        }
        with self._edited(element, group):
            y = call(joined([run.x for run in group]), *tokens, **between)
        outputs = y if isinstance(y, tuple) else (y,)
        for run, *parts in zip(group, *(t.split(rows) for t in outputs), strict=True):
            run.y = tuple(parts) if isinstance(y, tuple) else parts[0]

    @contextlib.contextmanager
    def _edited(self, element: str, group: Sequence[_Run]) -> Iterator[None]:
        """Put the edits of all rows in place for a while."""
        model = self._tuned.backbone
        own = [run.riders[0].edits.get(element, {}) for run in group]
        with contextlib.ExitStack() as stack:
            if len(group) == 1:
                stack.enter_context(in_place(model, own[0]))
            for path in dict.fromkeys(p for e in own for p in e) if len(group) > 1 else ():
                rows = [(e.get(path), run.x.shape[0]) for e, run in zip(own, group, strict=True)]
                together = Together(find(model, path), rows)
                stack.enter_context(replaced(model, path, together))
            yield

    def _answered(
        self,
        stream: Stream,
        element: str,
        call: Callable[[tuple[int, int]], Block],
        wanted: Sequence[_Run | None],
        beside: bool,
    ) -> Iterable[Stream]:
        """Let side networks finish; riders whose map is what the element gave stay together."""
        together: dict[int, Stream] = {}
        for rider, run in zip(stream.riders, wanted, strict=True):
            x: Any = run.y if run is not None else None
            if beside and rider.sides:
                block = partial(self._answer, [run], rider, element, call(stream.size))
                x = along(rider.sides, element, block, self._states[rider.name])(stream.x)
            at = together.setdefault(id(x), Stream(x, (), stream.size))
            at.riders += (rider,)
        return together.values()

    def _answer(
        self,
        waiting: list[_Run | None],
        rider: Rider,
        element: str,
        call: Block,
        x: Tensor,
        *tokens: Tensor,
        **between: Between,
    ) -> object:
        """Give what was computed for the first question; a second one is computed by itself."""
        if waiting and (run := waiting.pop()) is not None:
            return run.y
        again = _Run((rider,), x, (0, 0), tokens, between)
        self._compute(element, call, [again])
        return again.y

    def _finished(self, stream: Stream) -> Iterable[Stream]:
        together: dict[int, Stream] = {}
        for rider in stream.riders:
            x = stream.x
            for name, side in rider.sides:
                x = side.finish(x, self._states[rider.name][name])
            at = together.setdefault(id(x), Stream(x, (), stream.size))
            at.riders += (rider,)
        return together.values()

    def _logits(self, x: Tensor, rider: Rider) -> Tensor:
        model = self._tuned.backbone
        with in_place(model, rider.edits.get(FINISH, {}) | rider.edits.get(HEAD, {})):
            logits: Tensor = model.forward_head(x)
        for name, side in rider.sides:
            logits = side.classify(logits, self._states[rider.name][name])
        return logits


def _parted(stream: Stream, element: str) -> Iterable[Stream]:
    """Let adapters that change an element leave the others."""
    if len(stream.riders) == 1:
        return (stream,)
    stay = tuple(r for r in stream.riders if element not in r.edits)
    leave = [Stream(stream.x, (r,), stream.size) for r in stream.riders if element in r.edits]
    return (*leave, Stream(stream.x, stay, stream.size)) if stay else leave


def _parts(group: Sequence[_Run], most: int | None) -> Iterator[list[_Run]]:
    """Cut runs into parts of at most so many rows, a single run never."""
    part: list[_Run] = []
    for run in group:
        if part and most and sum(r.x.shape[0] for r in (*part, run)) > most:
            yield part
            part = []
        part.append(run)
    yield part


def _by_rows(functions: Sequence[Between], rows: list[int]) -> Between:
    """Apply each function to its rows."""
    return lambda x: torch.cat([f(part) for f, part in zip(functions, x.split(rows), strict=True)])
