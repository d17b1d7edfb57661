"""A model and its adapters: build one, put it in place, take it out."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Self

from torch import Tensor, nn

from ..core.graft import find
from ..core.method import Beside, Method, method_name
from ..core.site import Role, Sites
from ..errors import InputError, UnknownName, Unsupported
from ..families import (
    HeadInit,
    core,
    family_of,
    holders,
    measure,
    measure_part,
    new_classifier,
    outputs,
    part_at,
    prepare,
    share_constants,
)
from ..memory.frozen_dtype import FrozenDtype, frozen_dtype_of
from .adapter import Adapter, build
from .adapter_config import Head
from .fingerprint import fingerprint
from .left_out import LeftOutWarning, left_out
from .side_execution import StagedModel


class AdapterHolder(StagedModel):
    """A model that holds adapters, one of them in place. Verbs and their meaning are PEFT's.

    Attributes:
        model: The whole model, with the active adapter's grafts in place.
        backbone: The part of it that methods change: all of a model that classifies.
        backbone_path: Where that part is; None where the model classifies and has nothing else.
        sides: The active adapter's side networks.
        sites: Every site of the backbone, by its path in the model, measured before anything was
            changed.
        active: Name of the adapter in place.
        heads: Paths of what trains whatever the method: the classifier's modules, or all modules
            beside the backbone.
        base_sha256: Hash of what is frozen of the model before anything could train, and before
            weights were rounded; empty on the meta device.
    """

    def __init__(
        self, model: nn.Module, backbone_path: str | None = None, head: Head = "train"
    ) -> None:
        super().__init__()
        prepare(model)
        self.backbone_path, self.head = backbone_path, head
        if backbone_path is None:
            self.family = family_of(model)
            self.sites: Sites = measure(model, self.family)
            self.heads = tuple(s.path for s in self.sites.of(Role.HEAD))
        else:
            part = part_at(model, backbone_path)
            self.family = family_of(core(part)[1])
            self.sites = measure_part(part, self.family, backbone_path)
            self.heads = holders(model, backbone_path) if head == "train" else ()
        share_constants(model)
        self.model = model.requires_grad_(False)
        self.sides = nn.ModuleDict()
        self.adapters: dict[str, Adapter] = {}
        self.active = ""
        on_meta = next(model.parameters()).is_meta
        self.base_sha256 = "" if on_meta else fingerprint(model, backbone_path, head)

    @property
    def backbone(self) -> Any:
        """The part of the model that methods change."""
        return find(self.model, self.backbone_path or "")

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods of the active adapter."""
        return self.adapters[self.active].methods

    @property
    def notes(self) -> list[str]:
        """Warnings about the active adapter: places it leaves out, and other frozen weights."""
        adapter = self.adapters[self.active]
        if adapter.frozen_dtype in (None, self.frozen_dtype):
            return list(adapter.notes)
        return [
            *adapter.notes,
            f"trained on frozen weights in {adapter.frozen_dtype}, and these are in"
            f" {self.frozen_dtype}; set_frozen_dtype gives original weights the dtype of the"
            " training",
        ]

    @property
    def frozen_dtype(self) -> FrozenDtype:
        """The dtype that the backbone's frozen weights are kept in."""
        return frozen_dtype_of(self.model)

    @property
    def num_classes(self) -> int:
        """Classes of the active adapter's classifier; 0 where there is none."""
        return self.adapters[self.active].classes

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # of a buffer that modules share it gives each its own
        share_constants(self.model)
        return self

    def train(self, mode: bool = True) -> Self:
        """Switch to training; a frozen BatchNorm stays in eval so that its statistics do not move.

        Args:
            mode: Whether to train.

        Returns:
            Itself.
        """
        super().train(mode)
        for m in self.model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and not _moves(m):
                m.eval()
        return self

    def add_adapter(
        self,
        name: str,
        *methods: Method,
        num_classes: int | None = None,
        head_init: HeadInit = "trunc_normal",
    ) -> None:
        """Build an adapter without putting it in place.

        Args:
            name: Its name.
            *methods: What it trains, innermost first.
            num_classes: Classes of its classifier; by default the backbone's.
            head_init: How a new classifier starts; see `apply`.

        Warns:
            LeftOutWarning: A method does not reach all places of its kind.

        Raises:
            InputError: The name is taken, or a method trains weights that are kept in few bits.
            Unsupported: A method cannot live on this backbone; nothing was changed.
        """
        if name in self.adapters:
            raise InputError(f"adapter {name!r} exists; choose another name")
        names = [method_name(type(m)) for m in methods]
        if twice := [n for n in names if names.count(n) > 1]:
            raise InputError(f"{twice[0]} is given twice; one adapter takes each method once")
        edits = [(n, e) for n, m in zip(names, methods, strict=True) for e in m.edits(self.sites)]
        for n, edit in edits:
            if isinstance(edit, Beside):
                self._refuse_beside(n, edit)
        with self.disable_adapter():
            heads, classes = self._new_heads(num_classes, head_init)
            self.adapters[name] = build(self.model, methods, edits, heads, classes)
        for n, method in zip(names, methods, strict=True):
            made = [edit for by, edit in edits if by == n]
            self.adapters[name].notes += left_out(n, method, made, self.sites)
        for line in self.adapters[name].notes:
            warnings.warn(line, LeftOutWarning, stacklevel=2)

    def _refuse_beside(self, method: str, edit: Beside) -> None:
        """Refuse a side network where nothing runs it."""
        if self.backbone_path is not None and not edit.maps:
            raise Unsupported(
                f"{method} runs beside the blocks, with tokens of its own or inside of them, and"
                " this backbone gives feature maps to other parts of the model"
            )
        if not (self.along if self.backbone_path is not None else self.blocks):
            raise Unsupported(
                f"{method} runs beside the blocks, and no family table says which modules of this"
                " backbone are blocks"
            )

    def _new_heads(
        self, num_classes: int | None, init: HeadInit
    ) -> tuple[dict[str, nn.Module], int]:
        """Say which modules an adapter trains besides, and how many classes they tell apart."""
        if self.backbone_path is not None:
            return {p: self.model.get_submodule(p) for p in self.heads}, 0
        own = outputs(self.model, self.heads)
        if num_classes in (None, own):
            heads = {p: self.model.get_submodule(p) for p in self.heads}
        else:
            heads = new_classifier(self.model, num_classes, init)
        inside = {p: m.named_modules(prefix=p) for p, m in heads.items()}
        return {p: m for modules in inside.values() for p, m in modules}, num_classes or own

    def set_adapter(self, name: str) -> None:
        """Put an adapter in place of the active one.

        Args:
            name: Which.

        Raises:
            UnknownName: No adapter has that name.
            InputError: The active adapter trains the backbone's own weights in place.
        """
        if name not in self.adapters:
            raise UnknownName("adapter", name, self.adapters)
        if name != self.active:
            self._may_leave()
        self._take_out()
        adapter = self.adapters[name]
        adapter.put_in(self.model)
        self.sides = nn.ModuleDict(dict(adapter.sides))
        self.active = name
        self.train(self.training)

    def _may_leave(self) -> None:
        if self.active and (lost := [m for m in self.methods if m.overwrites]):
            raise InputError(
                f"{method_name(type(lost[0]))} trains the backbone's own weights in place; no"
                " copy of the backbone is left to return to"
            )

    def _take_out(self) -> None:
        if self.active:
            self.adapters[self.active].take_out(self.model)
            self.sides, self.active = nn.ModuleDict(), ""

    @contextlib.contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Run as the untouched backbone inside a block.

        Yields:
            Nothing.

        Raises:
            InputError: The active adapter trains the backbone's own weights in place.
        """
        name = self.active
        self._may_leave()
        self._take_out()
        try:
            yield
        finally:
            if name:
                self.set_adapter(name)

    def unload_active(self) -> None:
        """Take the active adapter out, which leaves the untouched backbone.

        Raises:
            InputError: The active adapter trains the backbone's own weights in place.
        """
        self._may_leave()
        self._take_out()


def _moves(norm: nn.Module) -> bool:
    """Whether a BatchNorm's statistics should follow the data: only if its weight trains."""
    weight = norm._parameters.get("weight")
    return weight is not None and weight.requires_grad
