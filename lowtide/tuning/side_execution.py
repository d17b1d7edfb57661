"""How a backbone and its side networks compute together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core.graft import find
from ..core.side import Block, Side
from ..core.site import Role, Sites
from ..errors import InputError, Unsupported
from ..families import Context, Family, classifiers, image_shape, recomputable
from ..memory.gradient_checkpointing import recompute

Between = Callable[[Tensor], Tensor]
States = dict[str, Any]
"""What the last steps of side networks returned, by name."""
STEM, FEATURE = "", "pre_logits"
"""Names, beside the paths of the chain, of what `StagedModel.forward_from` may be given."""


class StagedModel(nn.Module):
    """A backbone, element after element of its chain, with side networks around each.

    Attributes:
        family: The backbone's table.
        model: The whole model.
        backbone: The model, or the part of it that is the backbone.
        backbone_path: Where that part is; None where the model classifies and has nothing else.
        sites: The backbone's sites.
        sides: Side networks by name.
    """

    family: Family
    model: Any
    backbone: Any
    backbone_path: str | None
    sites: Sites
    sides: Any
    _checkpointing = 0

    @cached_property
    def blocks(self) -> frozenset[str]:
        """Paths of the blocks, where the model is run as the chain that its table says."""
        whole = self.backbone_path is None
        return frozenset(s.path for s in self.sites.of(Role.BLOCK) if whole)

    @property
    def checkpointing(self) -> int:
        """How many blocks, from the first, are recomputed in backward instead of kept; True: all.

        A backbone without a table has its `parts` recomputed.

        Raises:
            Unsupported: It is switched on, and nothing of the backbone can be recomputed.
            InputError: The backbone has fewer blocks.
        """
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, on: int) -> None:
        name, most = type(self.backbone).__name__, self.recomputes if on else 0
        if on and not most:
            raise Unsupported(
                f"checkpointing recomputes blocks, and {name} has no part"
                " whose recomputation would save memory"
            )
        if on > most:
            raise InputError(f"{name} has {most} blocks to recompute, not {on}")
        self._checkpointing = count = most if on is True else int(on)
        for i, part in enumerate(self.parts if on or "parts" in self.__dict__ else ()):
            part.__dict__.pop("forward", None)
            if i < count:
                part.forward = partial(_recomputed_forward, part)

    @property
    def recomputes(self) -> int:
        """How many blocks checkpointing can recompute."""
        return len(self.family.chain(self.backbone)) if self.blocks else len(self.parts)

    @cached_property
    def parts(self) -> tuple[nn.Module, ...]:
        """What checkpointing recomputes where the model is not run as a chain of blocks."""
        if self.blocks:
            return ()
        blocks = tuple(find(self.model, s.path) for s in self.sites.of(Role.BLOCK))
        return blocks or tuple(find(self.backbone, path) for path in recomputable(self.backbone))

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Run the model: classify images, detect, segment.

        Args:
            *inputs: `(B, 3, H, W)`, pre-processed as the weights want; around a part, or where
                nothing runs beside the blocks or is recomputed, whatever the model takes.
            **options: The same by name.

        Returns:
            Logits `(B, K)`, or what the model gives in their place.
        """
        if self.backbone_path is not None:
            with self.beside_modules():
                return self.model(*inputs, **options)
        if not self.sides and not (self.checkpointing and self.blocks):
            return self.model(*inputs, **options)
        (x,) = (*inputs, *options.values())
        context = self.context((x.shape[-2], x.shape[-1]))
        return self._run_from(self.family.stem(self.backbone, x), STEM, {}, context)

    @cached_property
    def along(self) -> dict[str, nn.Module]:
        """Blocks, and what stands between stages, as modules by path, in the order they run."""
        blocks = [s.path for s in self.sites.of(Role.BLOCK)]
        inner = tuple(f"{path}." for path in blocks)
        between = [s.path for s in self.sites.of(Role.DOWN) if not s.path.startswith(inner)]
        order = [s.path for s in self.sites if s.path in {*blocks, *between}]
        return {path: find(self.model, path) for path in order} if blocks else {}

    @contextmanager
    def beside_modules(self) -> Iterator[None]:
        """Run side networks wherever the model's own forward calls a block; yields nothing."""
        states: States = {}
        called = tuple(self.along.items()) if self.sides else ()
        before = [(m, {k: f for k, f in vars(m).items() if k == "forward"}) for _, m in called]
        try:
            for path, module in called:
                module.forward = partial(self._beside_module, path, module.forward, states)
            yield
        finally:
            for module, own in before:
                del module.__dict__["forward"]
                module.__dict__.update(own)

    def _beside_module(
        self, path: str, run: Block, states: States, x: Tensor, *more: object, **options: object
    ) -> Tensor:
        order = tuple(self.along)
        states.update(dict.fromkeys(self.sides) if path == order[0] else {})
        x = self.beside(path, lambda x: run(x, *more, **options), states)(x)
        for name, side in self.sides.items() if path == order[-1] else ():
            x = side.finish(x, states[name])
        return x

    def forward_from(self, given: Mapping[str, Tensor]) -> Tensor:
        """Classify from the outputs of the first elements of the chain; they are not run.

        Args:
            given: Outputs by path, of an element and of those after it that side networks read;
                `STEM` is the stem's, `FEATURE` what the classifier is given.

        Returns:
            Logits `(B, K)`.
        """
        if FEATURE in given:
            (head,) = classifiers(self.backbone)
            return self.backbone.get_submodule(head)(given[FEATURE])
        first = next(p for p in (STEM, *self.family.chain(self.backbone)) if p in given)
        return self._run_from(given[first], first, given, self.context())

    def context(self, size: tuple[int, int] | None = None) -> Context:
        """Compute the inputs of elements beside the feature map.

        Args:
            size: Height and width of the images; by default what the backbone is made for.

        Returns:
            Arguments by name, by path.
        """
        return self.family.context(self.backbone, size or image_shape(self.backbone)[1:])

    def _run_from(
        self, x: Tensor, after: str, given: Mapping[str, Tensor], context: Context
    ) -> Tensor:
        """Run what comes after an element, x being its output; nothing holds x but its readers."""
        model = self.backbone
        # The compiler of torch 2.8 makes no keys of a ModuleDict by itself.
        states: States = {name: None for name in self.sides}
        chain = (STEM, *self.family.chain(model))
        for path in chain[chain.index(after) + 1 :]:
            element = _known(given[path]) if path in given else self.run(path, context)
            x = self.beside(path, element, states)(x)
        for name, side in self.sides.items():
            x = side.finish(x, states[name])
        x = model.forward_head(self.family.finish(model, x))
        for name, side in self.sides.items():
            x = side.classify(x, states[name])
        return x

    def feature(self, x: Tensor) -> Tensor:
        """Pool the last element's output.

        Args:
            x: The output.

        Returns:
            What the classifier is given.
        """
        return self.backbone.forward_head(self.family.finish(self.backbone, x), pre_logits=True)

    def beside(self, path: str, inner: Block, states: States) -> Block:
        """Run the side networks around an element of the chain.

        Args:
            path: The element.
            inner: Runs it.
            states: Side networks' states by name; brought up to date by running.

        Returns:
            Runs the element and the side networks.
        """
        return along(self.sides.items(), path, inner, states)

    def run(self, path: str, context: Context) -> Block:
        """Make the function that runs one element of the chain.

        Args:
            path: The element.
            context: What elements take beside the feature map.

        Returns:
            Runs it.
        """
        block, extend, halves = (
            self.backbone.get_submodule(path),
            self.family.extend,
            self.family.halves,
        )
        beside = context.get(path, {})
        first = self.family.chain(self.backbone)[: self.checkpointing]
        recomputing = path in first and torch.is_grad_enabled()

        def run(x: Tensor, *tokens: Tensor, **between: Between) -> Any:
            if tokens and between:
                raise Unsupported(
                    f"{path} runs with extra tokens or with something between its attention and its"
                    f" MLP: of {' and '.join(self.sides)} choose one"
                )
            call = partial(extend, block) if tokens and extend else block
            call = partial(halves, block, **between) if between and halves else call
            call = partial(call, **beside) if beside else call
            return recompute(call, block, x, *tokens) if recomputing else call(x, *tokens)

        return run


def along(sides: Iterable[tuple[str, Side]], path: str, inner: Block, states: States) -> Block:
    """Run side networks around an element of the chain.

    Args:
        sides: Side networks with their names, innermost first.
        path: The element.
        inner: Runs it.
        states: Their states by name; brought up to date by running.

    Returns:
        Runs the element and the side networks.
    """
    for name, side in sides:
        inner = _with_side(side, name, path, inner, states)
    return inner


def _with_side(side: Side, name: str, path: str, inner: Block, states: States) -> Block:
    """Run a side network around an element of the chain; extra tokens from outside pass through."""

    def run(x: Tensor, *tokens: Tensor, **outer_between: Between) -> Any:
        passed: list[Tensor] = []

        def block(x: Tensor, *own: Tensor, **between: Between) -> Any:
            between = {**outer_between, **between}
            if not tokens:
                return inner(x, *own, **between)
            x, *beyond = inner(x, torch.cat([*tokens, *own], 1), **between)
            outer = tokens[0].shape[1]
            passed.append(beyond[0][:, :outer])
            return (x, beyond[0][:, outer:]) if own else x

        x, states[name] = side.step(path, block, x, states[name])
        return (x, passed[0]) if tokens else x

    return run


def _recomputed_forward(module: nn.Module, *args: object, **kwargs: object) -> object:
    """Stand in for a part's forward; its class may change meanwhile."""
    run = partial(type(module).forward, module)
    if torch.is_grad_enabled():
        return recompute(run, module, *args, **kwargs)
    return run(*args, **kwargs)


def _known(y: Tensor) -> Block:
    """An element of the chain whose output is known."""
    return lambda x: y
