"""What autograd keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


@contextmanager
def keeping() -> Iterator[list[Tensor]]:
    """List the tensors that are kept inside."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda t: t):
        yield kept


def bytes_besides(kept: list[Tensor], known: Iterable[Tensor | None]) -> int:
    """Count the bytes of what is kept, without storages that are there anyway."""
    there = {id(t.untyped_storage()) for t in known if t is not None}
    storages = {id(s): s.nbytes() for t in kept if id(s := t.untyped_storage()) not in there}
    return sum(storages.values())


def kept_bytes(model: nn.Module, *inputs: Tensor) -> int:
    """Count what a model keeps of a forward besides its weights."""
    with keeping() as kept:
        model(*inputs)
    return bytes_besides(kept, [*model.parameters(), *model.buffers()])


def stored_bytes(packed: tuple[Tensor, ...]) -> int:
    """Count the bytes of what a codec made, as they lie in memory."""
    return sum(t.untyped_storage().nbytes() for t in packed)
