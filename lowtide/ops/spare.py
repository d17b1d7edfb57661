"""Drop the codes of tensors that live on in full anyway."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..codecs.base import Reader
from .region import region

Packed = tuple[Tensor, ...]
Make = Callable[[Tensor], Tensor]
Place = tuple[torch.Size, tuple[int, ...], int | torch.SymInt]

_here = threading.local()
_PLAIN = (int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, type(None))


@dataclass
class Watched:
    """Codes, and the tensor that replaces them if it lives on.

    Attributes:
        packed: The codes.
        root: The tensor, or what it is a view of, as autograd knows it; not held.
        place: Size, stride and offset of the tensor in it.
        version: Of what is in it.
        make: Gives from the tensor what the codes stand for.
        reads: What it reads besides, with their versions.
    """

    packed: Packed
    root: weakref.ref[Tensor]
    place: Place
    version: int
    make: Make
    reads: tuple[tuple[Tensor, int], ...] = ()


@dataclass(frozen=True)
class Instead:
    """A tensor that lived on, read in the place of dropped codes.

    Attributes:
        tensor: The tensor that lived on.
        make: Gives from it what the codes stood for.
        versions: Of it, and of what is read besides.
    """

    tensor: Tensor
    make: Make
    versions: tuple[tuple[Tensor, int], ...]


@contextmanager
def watching() -> Iterator[list[Watched]]:
    """Gather the codes that are made in a forward pass.

    Yields:
        The codes, more and more of them.
    """
    before = getattr(_here, "watched", None)
    watched: list[Watched] = []
    _here.watched = watched
    try:
        yield watched
    finally:
        _here.watched = before


def watch(packed: Packed, tensor: Tensor, make: Make, reads: Iterable[Tensor] = ()) -> None:
    """Note a tensor that can replace codes if it is kept in full.

    Args:
        packed: The codes.
        tensor: The tensor.
        make: Gives from it what the codes stand for; it may hold what is kept anyway.
        reads: What it reads besides, which must not be written to.
    """
    watched = getattr(_here, "watched", None)
    if watched is None or torch.compiler.is_compiling() or isinstance(tensor, nn.Parameter):
        return
    memory = tensor.untyped_storage()._cdata
    if not packed or any(t.untyped_storage()._cdata == memory for t in packed):
        return
    if region() is not None:  # somebody takes what autograd saves
        return
    noted = tuple((t.detach(), t._version) for t in reads)
    watched.append(Watched(packed, *_whereabouts(tensor), make, noted))


def moved(old: Tensor, new: Tensor) -> None:
    """Note that a tensor's numbers were copied into another one that lives on.

    Args:
        old: Where they were.
        new: Where they are.
    """
    root = _root(old)
    for one in reversed(getattr(_here, "watched", None) or ()):
        if one.root() is not root:
            break
        one.root, one.place, one.version = _whereabouts(new)


def spare(watched: list[Watched], since: int, given: object) -> None:
    """Drop, at the end of a module, the codes of tensors that live on in full.

    The module's own names are gone by then: what is neither its argument nor its result is held by
    autograd, or by somebody else who keeps it.

    Args:
        watched: The codes.
        since: How many there were before the module.
        given: Its arguments and its result.
    """
    leaves = tree_leaves(given) if len(watched) > since else []
    if not all(isinstance(leaf, (Tensor, *_PLAIN)) for leaf in leaves):
        return  # whatever it is, it may hold any of them
    theirs = {t.untyped_storage()._cdata for t in leaves if isinstance(t, Tensor)}
    left = []
    for one in watched[since:]:
        root = one.root()
        if root is None or root._version != one.version:
            continue
        if root.untyped_storage()._cdata in theirs:
            left.append(one)
        elif all("_lowtide_instead" not in vars(t) for t in one.packed):
            _drop(one, root)
    watched[since:] = left


def _drop(one: Watched, root: Tensor) -> None:
    tensor = root.detach().as_strided(*one.place)
    for t in one.packed:
        t.data = t.new_empty(0)  # autograd has saved the object, and finds nothing in it
    versions = ((tensor, one.version), *one.reads)
    one.packed[0].__dict__["_lowtide_instead"] = Instead(tensor, one.make, versions)


def _whereabouts(tensor: Tensor) -> tuple[weakref.ref[Tensor], Place, int]:
    place = (tensor.shape, tensor.stride(), tensor.storage_offset())
    return weakref.ref(_root(tensor)), place, tensor._version


def _root(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base


def spared(packed: Packed) -> bool:
    """Say whether codes were dropped.

    Args:
        packed: What was kept.

    Returns:
        Whether there is something else to read.
    """
    if torch.compiler.is_compiling() or not packed:
        return False
    return "_lowtide_instead" in packed[0].__dict__


def unpack(reader: Reader, packed: Packed, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Read codes, or the tensor that replaced them.

    Args:
        reader: Reads the codes.
        packed: What was kept.
        shape: Shape of what they stand for.
        dtype: Its dtype.

    Returns:
        What they stand for.

    Raises:
        RuntimeError: The tensor that lived on, or what is read beside it, was written to since.
    """
    if not spared(packed):
        return reader.unpack(packed, shape, dtype)
    instead: Instead = packed[0].__dict__["_lowtide_instead"]
    if any(t._version != version for t, version in instead.versions):
        raise RuntimeError(
            "a tensor needed for the backward pass was modified by an in-place operation after the"
            " module that made it; write to a copy of it"
        )
    with torch.no_grad():
        return instead.make(instead.tensor).to(dtype)
