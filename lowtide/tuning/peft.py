"""Exchange with peft: LoRA written for it, and its adapters loaded or merged here.

peft itself is not needed. Its methods are linear once trained, so each of them is one new weight
per map; LoRA and VeRA are updates of low rank besides, which `LoRA` trains on from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.method import method_name
from ..core.site import Role, Site
from ..core.wrapped import refuse_no_module, unwrapped
from ..errors import InputError, Unsupported
from ..families import classifiers, new_classifier
from ..methods.lora import PARTS, LoRA, LoRAGraft
from ..paths import path_of, write_text
from .adapter_files import CONFIG, WEIGHTS, write_tensors
from .applying import apply
from .applying import load as load_own
from .checks import restored_on_error
from .exchange import set_module
from .fingerprint import architecture
from .peft_change import ALTERNATIVE, Change, PeftAdapter, fits
from .peft_files import PREFIX, is_peft, read_peft
from .tuned import Tuned


def load(model: nn.Module, folder: Path | str, *, name: str = "default") -> Tuned:
    """Put a saved adapter on the backbone it was trained on: lowtide's, or a LoRA of peft's.

    Args:
        model: The backbone, with the same pre-trained weights; changed in place.
        folder: What `Tuned.save_pretrained` wrote to, or peft's `save_pretrained`. Of peft's, LoRA
            and VeRA become a `LoRA` that trains on; `merge_peft` takes DoRA and IA3 as well.
        name: Name for the adapter.

    Returns:
        The tuned model, in eval mode.

    Raises:
        InputError: The files are damaged, or the backbone is not the one recorded. The backbone is
            as it was.
    """
    refuse_no_module("load", model)
    folder = path_of("folder", folder)
    if not is_peft(folder):
        return load_own(model, folder, name=name)
    adapter = read_peft(folder)
    if other := [p for p, change in adapter.changes.items() if not change.low_rank]:
        raise InputError(
            f"{folder} holds a {adapter.kind} of peft's, which changes {other[0]} by more than an"
            " update of low rank: lowtide.merge_peft, or lowtide import, folds it in exactly"
        )
    with restored_on_error(model):
        return _load_lora(unwrapped(model), adapter, name).eval()


def merge_peft(model: nn.Module, folder: Path | str) -> nn.Module:
    """Fold an adapter of peft's into the model it was trained on, exactly.

    Args:
        model: The model, with the same pre-trained weights; changed in place. A classifier of
            another number of classes is made anew.
        folder: What peft's `save_pretrained` wrote to: LoRA, DoRA, VeRA or IA3.

    Returns:
        The plain model.

    Raises:
        InputError: The files are damaged, or do not fit the model. The model is as it was.
    """
    refuse_no_module("merge_peft", model)
    adapter = read_peft(path_of("folder", folder))
    with restored_on_error(model):
        model = unwrapped(model)
        fits(adapter, model)
        for path, change in adapter.changes.items():
            plain = change.merged(model.get_submodule(path))
            if plain is None:
                raise InputError(f"{folder} shifts {path}, which has no bias: {ALTERNATIVE}")
            set_module(model, path, plain)
        _take_whole(model, adapter)
    return model


def write_peft(tuned: Tuned, folder: Path | str) -> list[str]:
    """Write the active adapter, a LoRA, as `peft.PeftModel.from_pretrained` loads it.

    A fused qkv map of which only some parts are adapted gets one pair of factors of as many times
    the rank, its `lora_B` in blocks: the same update to the number. The classifier is kept under
    `modules_to_save`; the model that peft is given must have one of this many classes.

    Args:
        tuned: A tuned model whose only method is LoRA.
        folder: Where to; made if missing.

    Returns:
        What whoever loads it must know, a line each.

    Raises:
        Unsupported: Something else than LoRA and the classifier trains.
    """
    names = [method_name(type(m)) for m in tuned.methods]
    adapter = tuned.adapters[tuned.active]
    heads = tuple(f"{p}." for p in tuned.heads)
    lost = [p for p, *_ in adapter.thawed if not f"{p}.".startswith(heads)]
    if names != [method_name(LoRA)] or lost or adapter.statistics:
        raise Unsupported(
            f"peft has no {' + '.join(n for n in names if n != 'lora') or 'such LoRA'}: only LoRA"
            " is written for it; lowtide export --format safetensors merges what merges"
        )
    state: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for path, _, graft in adapter.grafts:
        assert isinstance(graft, LoRAGraft)
        down, up = graft.factors()
        ranks[path] = len(down)
        state[f"{PREFIX}{path}.lora_A.weight"], state[f"{PREFIX}{path}.lora_B.weight"] = down, up
    for path, _, name, p in adapter.thawed:
        state[f"{PREFIX}{path}.{name}"] = p.detach()
    config = _config(tuned, ranks)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, state)
    write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return _told(tuned)


def _config(tuned: Tuned, ranks: Mapping[str, int]) -> dict[str, object]:
    """Write what peft's LoraConfig holds; each target by its whole path."""
    graft = tuned.adapters[tuned.active].grafts[0][2]
    assert isinstance(graft, LoRAGraft)
    r = max(ranks.values())
    others = {path: rank for path, rank in ranks.items() if rank != r}
    everywhere = [p for p, _ in tuned.backbone.named_modules()]
    for path in (*ranks, *tuned.heads):  # peft takes names by their end
        if twice := [p for p in everywhere if p.endswith(f".{path}")]:
            raise Unsupported(f"peft would take {twice[0]} for {path} as well")
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": architecture(tuned.backbone),
        "inference_mode": True,
        "r": r,
        "lora_alpha": graft.scale * r,
        "lora_dropout": graft.drop.p,
        "rank_pattern": {f"^{path}": rank for path, rank in others.items()},
        "alpha_pattern": {f"^{path}": graft.scale * rank for path, rank in others.items()},
        "target_modules": sorted(ranks),
        "modules_to_save": sorted(tuned.heads),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }


def _told(tuned: Tuned) -> list[str]:
    """Say what the files cannot."""
    lines = [
        f"peft loads it on {architecture(tuned.backbone)} with the same pre-trained weights and"
        f" {tuned.num_classes} classes"
    ]
    if any(getattr(m, "qkv_bias_separate", None) is True for m in tuned.backbone.modules()):
        lines.append(
            "this backbone reads qkv.weight past the module, so that no LoRA of peft's there acts:"
            " set qkv_bias_separate = True on every module that has it before peft loads it"
        )
    return lines


def _load_lora(model: nn.Module, adapter: PeftAdapter, name: str) -> Tuned:
    """Put a `LoRA` in place that does what the adapter does."""
    fits(adapter, model)
    inside = tuple(f"{p}." for p in classifiers(model))
    if not inside:
        raise InputError(f"{type(model).__name__} has no classifier; give it one first")
    maps = {p: c for p, c in adapter.changes.items() if not f"{p}.".startswith(inside)}
    if other := [k for k in adapter.whole if not k.startswith(inside)]:
        raise InputError(
            f"{adapter.folder} replaces {other[0]} besides its LoRA: lowtide.merge_peft, or lowtide"
            " import, folds it in"
        )
    for path in adapter.changes.keys() - maps.keys():  # the classifier trains whole
        set_module(model, path, adapter.changes[path].merged(model.get_submodule(path)))  # type: ignore[arg-type]
    _take_whole(model, adapter)
    sites = {s.path: s for s in Tuned(model).sites}
    tuned = apply(model, _method(adapter, maps, sites), name=name)
    placed = {p: g for p, _, g in tuned.adapters[name].grafts}
    if lost := [p for p in maps if p not in placed]:
        raise InputError(
            f"{adapter.folder} adapts {lost[0]}, where nothing is grafted"
            f" ({sites[lost[0]].barred or 'it has no role'}): lowtide.merge_peft folds it in"
        )
    for path, graft in placed.items():
        assert isinstance(graft, LoRAGraft)
        if path in maps:
            _fill(graft, maps[path])
    if len(placed) > len(maps):
        tuned.adapters[name].notes.append(
            f"peft's adapter has {len(maps)} places; LoRA trains all {len(placed)} of their roles,"
            " of which the others start at nothing"
        )
    return tuned


def _method(adapter: PeftAdapter, maps: Mapping[str, Change], sites: Mapping[str, Site]) -> LoRA:
    """Choose the LoRA that reaches every map of an adapter."""
    if not maps:
        raise InputError(f"{adapter.folder} adapts nothing but the classifier")
    here = [sites[p] for p in maps if p in sites]
    separate = {s.part for s in here if s.part}
    roles = {Role.QKV if s.part else s.role for s in here}
    fused = {
        part
        for s in here
        if s.role is Role.QKV
        for part, i in PARTS.items()
        if _of_part(maps[s.path].up, i).any()
    }
    rank = max(len(c.down) for c in maps.values() if c.down is not None)
    scales = {c.scale for c in maps.values()}
    return LoRA(
        rank=rank,
        alpha=scales.pop() * rank if len(scales) == 1 else 0.0,
        roles=tuple(sorted(r for r in roles if r is not Role.OTHER)) or (Role.QKV,),
        parts="".join(sorted(separate | fused, key="qkv".index)) or "qkv",
        dropout=adapter.dropout,
    )


def _of_part(up: Tensor | None, i: int) -> Tensor:
    assert up is not None
    return up.unflatten(0, (3, -1))[i]


def _fill(graft: LoRAGraft, change: Change) -> None:
    """Copy a pair of factors, cut by the parts of a fused map."""
    assert change.down is not None and change.up is not None
    up = change.up * (change.scale / graft.scale)
    pieces = up.split(graft.width)
    with torch.no_grad():
        for i, down, back in zip(graft.parts, graft.down, graft.up, strict=True):
            a, b = _of_rank(change.down, pieces[i], len(down.weight))  # type: ignore[arg-type]
            down.weight.copy_(a)  # type: ignore[operator]
            back.weight.copy_(b.view_as(back.weight))  # type: ignore[operator, arg-type]


def _of_rank(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Write `up down` with more rank, or with the most that a map of its shape has."""
    more = rank - len(down)
    if more >= 0:
        return torch.cat([down, down.new_zeros(more, *down.shape[1:])]), nn.functional.pad(
            up, (0, more)
        )
    product = torch.einsum("or,r...->o...", up, down)
    if rank == len(up):
        return product, torch.eye(rank).to(up)
    return torch.eye(rank).to(down).view(rank, *down.shape[1:]), product.flatten(1)


def _take_whole(model: nn.Module, adapter: PeftAdapter) -> None:
    """Put tensors in the place of the model's; a classifier may have other classes."""
    heads = classifiers(model)
    inside = tuple(f"{p}." for p in heads)
    own = model.state_dict(keep_vars=True)
    for key, value in adapter.whole.items():
        if key.startswith(inside) and key in own and own[key].shape != value.shape:
            for path, module in new_classifier(model, len(value), "zero").items():
                set_module(model, path, module)
            if hasattr(model, "num_classes"):
                model.num_classes = len(value)  # type: ignore[assignment]
            own = model.state_dict(keep_vars=True)
    lacking = [k for k in own if k.startswith(inside) and k not in adapter.whole]
    if lacking and any(k.startswith(inside) for k in adapter.whole):
        raise InputError(f"{adapter.folder} holds a part of the classifier and no {lacking[0]}")
    for key, value in adapter.whole.items():
        if key not in own or own[key].shape != value.shape:
            has = f"has {tuple(own[key].shape)}" if key in own else "has none"
            raise InputError(
                f"{adapter.folder} holds {key} of shape {tuple(value.shape)}, and"
                f" {type(model).__name__} {has}"
            )
        with torch.no_grad():
            parent, _, leaf = key.rpartition(".")
            module = model.get_submodule(parent)
            fresh = value.to(own[key])
            if leaf in module._parameters:
                module._parameters[leaf] = nn.Parameter(fresh)
            else:
                module._buffers[leaf] = fresh
