"""An adapter sorted by element of the forward: edits, side networks, where it must run alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..core.side import Side
from ..tuning.adapter import Adapter
from .edits import Edits, edits_of
from .regions import Regions


@dataclass
class Rider:
    """An adapter, sorted by the elements of the backbone's forward.

    Attributes:
        name: Its name.
        sides: Its side networks, with their names.
        edits: Its edits by element of the forward, and there by path.
        alone: Elements that must run for it alone.
    """

    name: str
    sides: list[tuple[str, Side]]
    edits: dict[str, dict[str, Edits]] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, name: str, adapter: Adapter, backbone: nn.Module, regions: Regions) -> Rider:
        """Sort an adapter's edits.

        Args:
            name: Its name.
            adapter: The adapter, not in place.
            backbone: The backbone, plain.
            regions: Where its places are reached.

        Returns:
            The rider.
        """
        rider = cls(name, adapter.sides)
        for module in (*(s for _, s in adapter.sides), *(g for _, _, g in adapter.grafts)):
            module.eval()
        for path, edits in edits_of(adapter).items():
            region = regions.of(path)
            rider.edits.setdefault(region, {})[path] = edits
            if not (regions.aligned(path) and edits.share(backbone.get_submodule(path))):
                rider.alone.add(region)
        return rider

    def every(self) -> Iterator[Edits]:
        """List the adapter's edits.

        Yields:
            Those of each place.
        """
        for by_path in self.edits.values():
            yield from by_path.values()

    def convert(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move or cast the adapter's tensors.

        Args:
            fn: What `nn.Module._apply` applies.
        """
        for _, side in self.sides:
            side._apply(fn)
        for edits in self.every():
            for tensor in (*edits.tensors.values(), *edits.thawed.values()):
                tensor.data = fn(tensor.data)
            edits.__dict__.pop("kind", None)

    @property
    def nbytes(self) -> int:
        """Bytes of what trained, its own copies of the backbone's weights included."""
        own = [t for e in self.every() for t in (*e.tensors.values(), *e.thawed.values())]
        sides = [t for _, side in self.sides for t in (*side.parameters(), *side.buffers())]
        return nbytes([*own, *sides])


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Count the bytes of tensors.

    Args:
        tensors: Some may be the same.

    Returns:
        The bytes of all, each counted once.
    """
    return sum({t.untyped_storage()._cdata: t.nbytes for t in tensors}.values())
