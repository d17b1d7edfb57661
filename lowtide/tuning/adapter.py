"""One adapter: grafts and trained parameters of a set of methods, put in and taken out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from ..core.branches import Sum
from ..core.graft import Graft, find, root
from ..core.method import Beside, Edit, Method, Swap, Thaw
from ..core.side import Side
from ..core.wrapped import numbers_of
from ..errors import InputError, Unsupported
from ..families import config_of, exchange_config
from ..memory.frozen_dtype import PACKED, FrozenDtype, frozen_dtype_of
from .exchange import exchange_hooks, set_module

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass
class Adapter:
    """The grafts and trained parameters of one set of methods.

    Attributes:
        methods: The methods that made it.
        grafts: Path, method name and graft; innermost first.
        thawed: Path, method name, parameter name and the parameter that trains.
        sides: Method name and side network.
        classes: Number of classes of its classifier.
        originals: What the backbone had in the places of `thawed`, while this is in place.
        notes: What to know of it, a line each.
        statistics: Path, method name and buffer name of BatchNorm statistics that move as this
            trains, and those that are not in place: its own, or while it is, the backbone's.
        frozen_dtype: What frozen weights were kept in when it was trained, if it was loaded.
        config: transformers' config that names as many classes, or while this is in place, the
            backbone's; None where that fits or there is none.
    """

    methods: tuple[Method, ...]
    grafts: list[tuple[str, str, Graft]] = field(default_factory=list)
    thawed: list[tuple[str, str, str, nn.Parameter]] = field(default_factory=list)
    sides: list[tuple[str, Side]] = field(default_factory=list)
    classes: int = 0
    originals: dict[tuple[str, str], nn.Parameter] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    statistics: dict[tuple[str, str, str], Tensor] = field(default_factory=dict)
    frozen_dtype: FrozenDtype | None = None
    config: object = None

    def put_in(self, backbone: nn.Module) -> None:
        """Put grafts and thawed parameters in place.

        Args:
            backbone: Carries no adapter; changed in place.
        """
        device = next(backbone.parameters()).device
        for path, _, graft in self.grafts:
            graft.base = find(backbone, path)
            exchange_hooks(graft, graft.base)
            set_module(backbone, path, graft.to(device))
        for path, _, name, p in self.thawed:
            module = root(find(backbone, path))
            p.data = p.data.to(device)
            self.originals[path, name] = module.get_parameter(name)
            p.requires_grad_(True)
            module._parameters[name] = p
        self._exchange_statistics(backbone)
        self._exchange_config(backbone)
        for _, side in self.sides:
            side.to(device)

    def take_out(self, backbone: nn.Module) -> None:
        """Give the backbone its own modules and parameters back, the same objects.

        Args:
            backbone: Carries this adapter; changed in place.
        """
        for (path, name), original in self.originals.items():
            module = root(find(backbone, path))
            original.requires_grad_(False)
            original.data = original.data.to(module.get_parameter(name).device)
            module._parameters[name] = original
        self.originals.clear()
        self._exchange_statistics(backbone)
        self._exchange_config(backbone)
        for path, _, graft in reversed(self.grafts):
            exchange_hooks(graft, graft.base)
            set_module(backbone, path, graft.base)

    def _exchange_statistics(self, backbone: nn.Module) -> None:
        for (path, method, name), waiting in self.statistics.items():
            module = root(find(backbone, path))
            standing = module.get_buffer(name)
            module._buffers[name] = waiting.to(standing.device)
            self.statistics[path, method, name] = standing

    def _exchange_config(self, backbone: nn.Module) -> None:
        if self.config is not None:
            self.config = exchange_config(backbone, self.config)

    def state(self, backbone: nn.Module) -> dict[str, Tensor]:
        """Collect all trained tensors, and BatchNorm statistics that moved.

        Args:
            backbone: Carries this adapter.

        Returns:
            Tensors by `site path/method/name`; the backbone itself and side networks are `.`.
        """
        state: dict[str, Tensor] = {}
        seen: set[int] = set()
        for path, method, graft in self.grafts:
            for name, value in graft.own():
                if id(value) not in seen:  # factors shared by several grafts are kept once
                    seen.add(id(value))
                    state[f"{path or '.'}/{method}/{name}"] = value
        for path, method, name, p in self.thawed:
            state[f"{path or '.'}/{method}/{name}"] = p
        for path, method, name in self.statistics:
            state[f"{path}/{method}/{name}"] = root(find(backbone, path)).get_buffer(name)
        for method, side in self.sides:
            state |= {f"./{method}/{n}": v for n, v in side.state_dict(keep_vars=True).items()}
        return {key: value.detach() for key, value in state.items()}

    def fitted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fit a saved state to this backbone's image size, graft by graft.

        Args:
            state: What `state` gave, maybe on another image size.

        Returns:
            The state to load.
        """
        keys = {
            f"{path or '.'}/{method}/{name}": (graft, name)
            for path, method, graft in self.grafts
            for name, _ in graft.own()
        }
        return {k: keys[k][0].fitted(keys[k][1], v) if k in keys else v for k, v in state.items()}

    def merged(
        self, backbone: nn.Module, total: Sum | None
    ) -> tuple[dict[str, nn.Module], list[str]]:
        """Fold every graft that can be folded, innermost first; last what stands behind a sum.

        Args:
            backbone: Carries this adapter.
            total: The final feature map, where branches are added up to it.

        Returns:
            Plain modules by path, and what cannot be folded, each with the reason.
        """
        unfolded = [f"{method}: {side.unmergeable}" for method, side in self.sides]
        folded: dict[str, nn.Module] = {}
        behind: list[tuple[Sum, str, tuple[Tensor | None, Tensor | None]]] = []
        for path, method, graft in self.grafts:
            standing, graft.base = graft.base, folded.get(path, graft.base)
            plain = graft.merged()
            graft.base = standing
            scaling = graft.channelwise()
            if plain is not None:
                folded[path] = plain
            elif total and path == total.path and scaling is not None:
                behind.append((total, method, scaling))
                folded[path] = graft.root
            else:
                unfolded.append(f"{method} at {path}: {graft.unmergeable}")
        for branches, method, (scale, shift) in behind:
            try:
                folded |= branches.absorb(partial(_plain, backbone, folded), scale, shift)
            except Unsupported as reason:
                unfolded.append(f"{method} at {branches.path}: {reason}")
        return folded, unfolded


def build(
    backbone: nn.Module,
    methods: tuple[Method, ...],
    edits: Iterable[tuple[str, Edit]],
    heads: Mapping[str, nn.Module],
    classes: int,
) -> Adapter:
    """Make an adapter from edits, without changing the backbone.

    Args:
        backbone: Carries no adapter.
        methods: The methods the edits came from.
        edits: Method name and edit.
        heads: Modules by path whose own parameters train, as copies: of the backbone's classifier,
            of a new one, or of what is not the backbone.
        classes: Classes of that classifier.

    Returns:
        The adapter.

    Raises:
        Unsupported: A graft's site is never called by the backbone.
    """
    adapter = Adapter(methods)
    overwrites = any(m.overwrites for m in methods)
    sides = []
    for method, edit in edits:
        if isinstance(edit, Thaw):
            _thaw(adapter, backbone, method, edit, overwrites)
        elif isinstance(edit, Beside):
            sides.append((method, edit))
        elif not edit.site.in_shape:
            raise Unsupported(f"{method}: the backbone never calls {edit.site.path}")
        else:
            _swap(adapter, backbone, method, edit)
    adapter.classes, adapter.config = classes, config_of(backbone, classes)
    copies: dict[int, nn.Parameter] = {}
    for path, source in heads.items():
        for name, p in source._parameters.items():
            if p is not None:
                mine = copies.setdefault(id(p), nn.Parameter(p.detach().clone()))
                _train(adapter, source, path, "head", name, mine)
    like = numbers_of(backbone)
    adapter.sides = [(method, edit.side(adapter.classes).to(like)) for method, edit in sides]
    return adapter


def _plain(backbone: nn.Module, folded: Mapping[str, nn.Module], path: str) -> nn.Module:
    """Find what stands at a place once the grafts there are folded."""
    return folded[path] if path in folded else find(backbone, path)


def _thaw(adapter: Adapter, backbone: nn.Module, method: str, edit: Thaw, overwrites: bool) -> None:
    module = backbone.get_submodule(edit.site.path)
    have = {(path, name) for path, _, name, _ in adapter.thawed}
    for name in edit.names:
        if name in ("weight", PACKED) and PACKED in module._parameters:
            raise InputError(
                f"{method} trains the weight of {edit.site.path}, which is kept in"
                f" {frozen_dtype_of(module)}: apply it to the original weights, before"
                " set_frozen_dtype"
            )
        if (edit.site.path, name) not in have:
            p = module.get_parameter(name)
            mine = p if overwrites else nn.Parameter(p.detach().clone())
            _train(adapter, module, edit.site.path, method, name, mine)


def _train(
    adapter: Adapter, module: nn.Module, path: str, method: str, name: str, p: nn.Parameter
) -> None:
    """Let a parameter train; a BatchNorm's statistics move with its weight."""
    adapter.thawed.append((path, method, name, p))
    if name == "weight" and isinstance(module, nn.modules.batchnorm._BatchNorm):
        own = p is module._parameters["weight"]
        moving = {n: b for n in STATISTICS if (b := module._buffers.get(n)) is not None}
        adapter.statistics |= {
            (path, method, n): b if own else b.clone() for n, b in moving.items()
        }


def _swap(adapter: Adapter, backbone: nn.Module, method: str, edit: Swap) -> None:
    below = [graft for path, _, graft in adapter.grafts if path == edit.site.path]
    base = below[-1] if below else backbone.get_submodule(edit.site.path)
    graft = edit.graft(base)
    dtype = numbers_of(backbone).dtype
    for _, value in graft.own():
        if value.is_floating_point():
            value.data = value.data.to(dtype)
    adapter.grafts.append((edit.site.path, method, graft))
