"""What a family table says, and how it becomes measured sites."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.branches import Sum
from ..core.site import Layout, Role, Site, Sites
from ..core.wrapped import numbers_of
from ..errors import InputError
from .classifier import classifiers
from .kinds import channel_axis, is_map, is_norm, ungraftable
from .meta_model import meta_copy
from .parameter_reads import watch_parameter_reads

Roles = tuple[tuple[str, Role], ...]
Extend = Callable[..., tuple[Tensor, Tensor]]
Context = Mapping[str, Mapping[str, Any]]
"""By path of an element of the chain: what it takes beside the feature map, by name."""
ANYWHERE = {Role.LINEAR, Role.CONV, Role.NORM}
"""Roles that say what a module is and not where it stands: it has them only if it is called, read
by its own forward alone and held in one place, so that a graft there is the only way to it."""
SEPARATE = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q", "k", "v"))
"""What libraries call the maps to queries, keys and values, where each has its own."""
LINEAR_MAPS = {
    Role.STEM,
    Role.DOWN,
    Role.QKV,
    Role.PROJ,
    Role.FC1,
    Role.FC2,
    Role.LINEAR,
    Role.CONV,
}


@dataclass(frozen=True)
class Family:
    """One table: path pattern to role, and the backbone as steps.

    The steps are `stem`, every module of `chain` one after another, `finish`, then timm's
    `forward_head(pre_logits=True)` and the classifier. Together they equal the model's own forward.

    Attributes:
        name: The family's name.
        classes: Class names of the backbones it describes.
        roles: Pairs of a regular expression that must match a whole path, and a role.
        layout: Channel axis of the feature map between blocks.
        stem: Image to the first block's input.
        chain: Paths of the blocks, and of what stands between stages, in order.
        finish: Last block's output to the final feature map.
        tiny: Builds a small, fast member for the tests, random weights.
        extend: Runs an element of the chain with extra tokens (B, n, C) that its own can attend to,
            and gives both; None where the number of tokens is fixed. Takes the context as well.
        halves: Runs a block with a function of the feature map between attention and MLP; None
            where nothing can run there. Takes the context as well.
        last: Path of the module that gives the final feature map, a site even if it is an Identity.
        context: What elements of the chain take beside the feature map, such as rotary positions,
            for images of a height and width; computed once per forward.
        total: The final feature map, where branches are added up to it and linear maps alone read
            it on the way; None where a single module gives it.
    """

    name: str
    classes: tuple[str, ...]
    roles: Roles
    layout: Layout
    stem: Callable[[Any, Tensor], Tensor]
    chain: Callable[[Any], tuple[str, ...]]
    finish: Callable[[Any, Tensor], Tensor]
    tiny: Callable[[], nn.Module]
    extend: Extend | None = None
    halves: Callable[..., Tensor] | None = None
    last: str = ""
    context: Callable[[Any, tuple[int, int]], Context] = lambda model, size: {}
    total: Callable[[Any], Sum | None] = lambda model: None

    def role(self, path: str, module: nn.Module) -> Role | None:
        """Look a module up in the table.

        Args:
            path: Its path.
            module: The module.

        Returns:
            Its role, or None where it is no site: no role and no parameters of its own.
        """
        if isinstance(module, nn.Identity) and path != self.last:
            return None
        for pattern, role in self.roles:
            if re.fullmatch(pattern, path) and self._fits(role, path, module):
                return role
        return Role.OTHER if module._parameters else None

    def _fits(self, role: Role, path: str, module: nn.Module) -> bool:
        if role is Role.NORM:
            return (is_norm(module) and bool(module._parameters)) or path == self.last
        return role not in LINEAR_MAPS or is_map(module)


def staged(container: str) -> Callable[[Any], tuple[str, ...]]:
    """Make the chain of a backbone whose stages hold a `downsample` and `blocks`.

    Args:
        container: Attribute that holds the stages.

    Returns:
        A function from the backbone to the paths of its chain; identities are left out.
    """

    def chain(model: Any) -> tuple[str, ...]:
        paths: list[str] = []
        for i, stage in enumerate(getattr(model, container)):
            if not isinstance(stage.downsample, nn.Identity):
                paths.append(f"{container}.{i}.downsample")
            paths.extend(f"{container}.{i}.blocks.{j}" for j in range(len(stage.blocks)))
        return tuple(paths)

    return chain


def prepare(model: nn.Module) -> None:
    """Make a timm backbone call its fused qkv projection as a module.

    SwinV2, BEiT and EVA read `qkv.weight` past the module, so nothing grafted there would ever
    run; timm's own switch changes that and leaves the function as it is.

    Args:
        model: The backbone; changed in place.
    """
    for module in model.modules():
        if getattr(module, "qkv_bias_separate", None) is False:
            module.qkv_bias_separate = True  # type: ignore[assignment]


def image_shape(model: nn.Module) -> tuple[int, int, int]:
    """Find the input a backbone was built for.

    Args:
        model: A timm backbone, any model with `pretrained_cfg`, or one of transformers'.

    Returns:
        Channels, height, width.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    shape = tuple(cfg.get("input_size") or _configured(model))
    stem = getattr(model, "patch_embed", None) or getattr(model, "stem", None)
    size = getattr(stem, "img_size", None)
    if size is not None:
        shape = (shape[0], *size)
    return (getattr(model, "in_chans", None) or shape[0], *shape[1:])


def _configured(model: Any) -> tuple[int, int, int]:
    """Read what a transformers model says of its images; most take 224 x 224."""
    config = getattr(model, "config", None)
    config = getattr(config, "vision_config", None) or config
    size = getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    return (getattr(config, "num_channels", None) or 3, height, width)


def measure(model: nn.Module, family: Family) -> Sites:
    """Find every site by table and measure it with one forward on the meta device.

    Args:
        model: The untouched backbone.
        family: Its table.

    Returns:
        The sites, in the order of `named_modules`.

    Raises:
        InputError: The backbone cannot run on the image it says it wants.
    """
    heads = classifiers(model)
    inside = tuple(f"{path}." for path in heads)  # all of it trains, whatever the method
    found = [(p, m) for p, m in model.named_modules() if not p.startswith(inside)]
    roles = {p: r for p, m in found if (r := family.role(p, m)) is not None}
    roles |= dict.fromkeys(heads, Role.HEAD)
    meta = meta_copy(model).eval()
    read = watch_parameter_reads(meta, [p for p, r in roles.items() if r in ANYWHERE])
    seen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for path in roles:

        def note(module: nn.Module, args: tuple, out: object, path: str = path) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                seen.setdefault(path, (tuple(args[0].shape), tuple(out.shape)))

        meta.get_submodule(path).register_forward_hook(note)
    image = image_shape(model)
    try:
        with torch.no_grad():
            meta(torch.empty(1, *image, device="meta", dtype=_dtype(model)))
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(f"{type(model).__name__} does not run on a {image} image: {reason}") from e
    modules = dict(model.named_modules())
    barred = _barred(roles, modules, seen.keys(), read, _shared(model))
    roles |= {p: Role.OTHER for p, r in roles.items() if r in ANYWHERE and p not in seen}
    roles |= dict.fromkeys(barred, Role.OTHER)
    blocks = [p for p, r in roles.items() if r is Role.BLOCK]
    for path in [p for p, r in roles.items() if r is Role.QKV]:
        if getattr(modules[path.rpartition(".")[0]], "head_first", False):
            roles[path] = Role.LINEAR  # queries, keys and values of each head, not of all
    prefix, patches = getattr(model, "num_prefix_tokens", 0), _patches(model)
    return Sites(
        Site(
            path,
            role,
            next((i for i, b in enumerate(blocks) if f"{path}.".startswith(f"{b}.")), -1),
            _layout(modules[path], family.layout, seen.get(path, ((), ()))[1]),
            *seen.get(path, ((), ())),
            tuple(n for n, p in modules[path]._parameters.items() if p is not None),
            family.extend is not None and role is Role.BLOCK,
            family.halves is not None and role is Role.BLOCK,
            prefix,
            _depthwise(modules[path]),
            _kernel(modules[path]),
            patches,
            _part(path, roles),
            *barred.get(path, ()),
        )
        for path, role in roles.items()
    )


def _barred(
    roles: Mapping[str, Role],
    modules: Mapping[str, nn.Module],
    measured: Collection[str],
    read: Collection[str],
    shared: Collection[str],
) -> dict[str, tuple[str, Role]]:
    """Find what takes part, has a kind with a role, and cannot be grafted on; say why."""
    found: dict[str, tuple[str, Role]] = {}
    for path, role in roles.items():
        kind = ungraftable(modules[path])
        if role in ANYWHERE and path in read:
            found[path] = "another module reads its parameters", role
        elif role in ANYWHERE and path in shared and path in measured:
            found[path] = "two places hold it", role
        elif role is Role.OTHER and kind is not None:
            found[path] = f"nothing grafts on a {type(modules[path]).__name__}", kind
    return found


def _part(path: str, roles: Mapping[str, Role]) -> str:
    """Tell which of queries, keys and values a map gives, where it and two beside it do."""
    parent, _, leaf = path.rpartition(".")
    if roles[path] is Role.LINEAR:
        for names in SEPARATE:
            if leaf in names and {roles.get(f"{parent}.{n}") for n in names} == {Role.LINEAR}:
                return "qkv"[names.index(leaf)]
    return ""


def _dtype(model: nn.Module) -> torch.dtype:
    return numbers_of(model).dtype


def _shared(model: nn.Module) -> set[str]:
    """Find modules that two places hold: a graft in one would leave the other as it was."""
    places = Counter(id(c) for m in model.modules() for c in m._modules.values())
    return {path for path, m in model.named_modules() if places[id(m)] > 1}


def _patches(model: nn.Module) -> tuple[int, int]:
    stem = getattr(model, "patch_embed", None) or getattr(model, "stem", None)
    grid = getattr(stem, "grid_size", None)
    return (0, 0) if grid is None else (int(grid[0]), int(grid[1]))


def _depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def _kernel(module: nn.Module) -> tuple[int, int]:
    return module.kernel_size if isinstance(module, nn.Conv2d) else (1, 1)  # type: ignore[return-value]


def _layout(module: nn.Module, otherwise: Layout, shape: tuple[int, ...] = ()) -> Layout:
    # ConvNeXt's blocks are channels first, and their MLPs may be either.
    if (own := channel_axis(module, shape)) is not None:
        return own
    inside = {_layout(m, otherwise) for m in module.modules() if is_map(m)}
    return inside.pop() if len(inside) == 1 else otherwise
