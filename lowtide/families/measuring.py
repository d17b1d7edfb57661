"""Turn a table into sites: paths looked up, then measured in one forward without numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from ..core.outputs import tensors
from ..core.site import Layout, Role, Site, Sites
from ..core.wrapped import numbers_of
from ..errors import InputError
from .classifier import classifiers
from .extractors import core, original, rebuilt
from .kinds import channel_axis, is_map, scales, ungraftable
from .meta_model import meta_copy
from .parameter_reads import watch_parameter_reads
from .table import Family, image_shape

Shapes = tuple[tuple[int, ...], tuple[int, ...]]
ANYWHERE = {Role.LINEAR, Role.CONV, Role.NORM}
"""Roles that say what a module is and not where it stands: it has them only if it is called, read
by its own forward alone and held in one place, so that a graft there is the only way to it."""
SEPARATE = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q", "k", "v"))
"""What libraries call the maps to queries, keys and values, where each has its own."""


@dataclass
class _Run:
    """What one forward on the meta device shows.

    Attributes:
        shapes: Of the first input and the output, by path.
        read: Paths of modules whose parameters another module reads.
        used: Names of the parameters, and paths of the modules, that the outputs depend on.
    """

    shapes: dict[str, Shapes] = field(default_factory=dict)
    read: Collection[str] = ()
    used: set[str] = field(default_factory=set)


def measure(model: nn.Module, family: Family) -> Sites:
    """Find every site of a backbone that classifies, and measure it.

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
    return _sites(model, family, roles, _run(model, roles))


def measure_part(part: nn.Module, family: Family, path: str) -> Sites:
    """Find every site of a backbone that is a part of a model and gives feature maps; measure it.

    What the feature maps do not depend on is no site: a stage behind the last map, a pooler.

    Args:
        part: The untouched backbone, as it takes images.
        family: Its table.
        path: Where it is in the model.

    Returns:
        The sites by their paths in the model, in the order of `named_modules`.

    Raises:
        InputError: The backbone cannot run on the image it says it wants.
    """
    prefix, inner = core(part)
    name = original if rebuilt(inner) else str
    roles = {
        p: r
        for p, m in part.named_modules()
        if not isinstance(m, nn.Identity)
        and (r := family.role(name(p.removeprefix(prefix)), m)) is not None
    }
    run = _run(part, roles, uses=True)
    roles = {p: r for p, r in roles.items() if p in run.used}
    roles |= {p: Role.OTHER for p in roles if p not in run.shapes}
    return Sites(_moved(s, path, run.used) for s in _sites(part, family, roles, run))


def _moved(site: Site, path: str, used: Collection[str]) -> Site:
    """Name a part's site as in the whole model, without parameters that no output depends on."""
    inside = f"{site.path}." if site.path else ""
    params = tuple(n for n in site.params if f"{inside}{n}" in used)
    where = ".".join(name for name in (path, site.path) if name)
    return replace(site, path=where, params=params, elastic=False, halved=False)


def _run(model: nn.Module, roles: Mapping[str, Role], uses: bool = False) -> _Run:
    """Run a backbone on one image without numbers; with `uses`, also backward."""
    meta = meta_copy(model).eval()
    run = _Run(read=watch_parameter_reads(meta, [p for p, r in roles.items() if r in ANYWHERE]))
    for path in roles:
        meta.get_submodule(path).register_forward_hook(partial(_note, run, path))
    for p in meta.parameters() if uses else ():
        p.requires_grad_(p.is_floating_point())
    image = image_shape(model)
    try:
        with torch.set_grad_enabled(uses):
            given = torch.empty(1, *image, device="meta", dtype=numbers_of(model).dtype)
            outputs = [y.sum() for y in tensors(meta(given)) if y.requires_grad]
            if outputs:
                torch.stack(outputs).sum().backward()
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(f"{type(model).__name__} does not run on a {image} image: {reason}") from e
    for name, p in meta.named_parameters():
        if p.grad is not None:
            parts = name.split(".")
            run.used |= {".".join(parts[:i]) for i in range(len(parts) + 1)}
    return run


def _note(run: _Run, path: str, module: nn.Module, args: tuple, out: object) -> None:
    """Note the shapes of a call, and later whether a gradient comes to its output."""
    if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
        run.shapes.setdefault(path, (tuple(args[0].shape), tuple(out.shape)))
        if out.requires_grad:
            out.register_hook(lambda _: run.used.add(path))


def _sites(model: nn.Module, family: Family, roles: dict[str, Role], run: _Run) -> Sites:
    """Join roles and what a forward showed."""
    modules, seen, (_, facts) = dict(model.named_modules()), run.shapes, core(model)
    barred = _barred(roles, modules, seen.keys(), run.read, _shared(model))
    roles |= {p: Role.OTHER for p, r in roles.items() if r in ANYWHERE and p not in seen}
    roles |= dict.fromkeys(barred, Role.OTHER)
    blocks = [p for p, r in roles.items() if r is Role.BLOCK]
    for path in [p for p, r in roles.items() if r is Role.QKV]:
        if getattr(modules[path.rpartition(".")[0]], "head_first", False):
            roles[path] = Role.LINEAR  # queries, keys and values of each head, not of all
    prefix, patches = getattr(facts, "num_prefix_tokens", 0), _patches(facts)
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
            part=_part(path, roles),
            barred=barred[path][0] if path in barred else "",
            barred_role=barred[path][1] if path in barred else None,
            affine=scales(modules[path]),
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
