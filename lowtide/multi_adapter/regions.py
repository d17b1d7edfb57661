"""Which places of a backbone belong to which element of its forward, found by running it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ..core.site import Sites
from ..errors import Unsupported
from ..tuning.side_execution import STEM, StagedModel

FINISH, HEAD = "finish", "head"
"""Names, beside the paths of the chain and `STEM`: what follows the chain, and the classifier."""
CLOSE = 1e-3
"""Two images differ more; one image alone and in a batch of two differs less."""

Seen = dict[str, tuple[Tensor, Tensor]]


class Regions:
    """Which element reaches each place of a backbone, and whether images come in rows there.

    Attributes:
        chain: Paths of the chain's elements.
    """

    def __init__(
        self, tuned: StagedModel, sites: Sites, heads: Iterable[str], image: tuple[int, ...]
    ) -> None:
        """Run the backbone on two images, and on the first of them.

        Args:
            tuned: The backbone, plain, in eval mode.
            sites: Its sites.
            heads: Paths of the classifier's modules.
            image: Channels, height and width.
        """
        backbone = tuned.backbone
        self.chain = tuned.family.chain(backbone)
        self._heads = tuple(heads)
        modules = {s.path: backbone.get_submodule(s.path) for s in sites if s.path}
        two = _two_images(image, next(backbone.parameters()))
        one, both = (
            _seen(modules, partial(backbone, two[:1])),
            _seen(modules, partial(backbone, two)),
        )
        self._called = frozenset(one)
        self._aligned = frozenset(p for p in one if p in both and _lies_first(one[p], both[p]))
        self._in_stem = frozenset(_seen(modules, partial(tuned.family.stem, backbone, two[:1])))

    def of(self, path: str) -> str:
        """Name the element that reaches a place.

        Args:
            path: The place.

        Returns:
            `STEM`, a path of the chain, `FINISH` or `HEAD`.

        Raises:
            Unsupported: No element is known to reach it.
        """
        if inside := [c for c in self.chain if _within(path, c)]:
            return inside[0]
        if any(_within(path, head) for head in self._heads):
            return HEAD
        if path not in self._called:
            raise Unsupported(
                f"nothing tells when the backbone reads {path or 'its own parameters'}, which this"
                " adapter trains"
            )
        return STEM if path in self._in_stem else FINISH

    def aligned(self, path: str) -> bool:
        """Whether a module reads and gives one image's rows after another's.

        Args:
            path: The module.

        Returns:
            Whether it was seen to.
        """
        return path in self._aligned


def _two_images(image: tuple[int, ...], like: Tensor) -> Tensor:
    """Two different images, the same every time; the generator is left alone."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *image, generator=generator).to(like.device, like.dtype)


@torch.no_grad()
def _seen(modules: Mapping[str, nn.Module], run: Callable[[], object]) -> Seen:
    """Record what each module that is called is given first, and gives."""
    seen: Seen = {}

    def record(path: str, module: nn.Module, given: tuple[object, ...], y: object) -> None:
        if given and isinstance(given[0], Tensor) and isinstance(y, Tensor):
            seen.setdefault(path, (given[0], y))

    with contextlib.ExitStack() as stack:
        for path, module in modules.items():
            stack.callback(module.register_forward_hook(partial(record, path)).remove)
        run()
    return seen


def _lies_first(one: tuple[Tensor, Tensor], both: tuple[Tensor, Tensor]) -> bool:
    return all(
        len(b) == 2 * len(a) and torch.allclose(b[: len(a)], a, rtol=CLOSE, atol=CLOSE)
        for a, b in zip(one, both, strict=True)
    )


def _within(path: str, outer: str) -> bool:
    return path == outer or path.startswith(f"{outer}.")
