"""Read adapters that peft wrote, of its methods that are linear once trained.

A file of peft's may be anybody's: its config is read as data, field by field, and no pattern in it
is run as a regular expression.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from ..errors import InputError, shown
from ..paths import read_json
from ..values import Width, Within, read
from .adapter_files import CONFIG, WEIGHTS, read_tensors
from .finite import refuse_infinite
from .peft_change import ALTERNATIVE, Change, PeftAdapter

PREFIX = "base_model.model."
KINDS = {"LORA": "LoRA", "VERA": "VeRA", "IA3": "IA3"}
"""Types that can be read, DoRA being a LoRA with magnitudes."""
OF_TRAINING = {
    *("alpha_pattern auto_mapping base_model_name_or_path bias corda_config d_initial").split(),
    *("ensure_weight_tying eva_config exclude_modules feedforward_modules inference_mode").split(),
    *("init_ia3_weights init_weights init_lora_weights layers_pattern layers_to_transform").split(),
    *("loftq_config lora_alpha lora_bias lora_dropout lora_ga_config megatron_config").split(),
    *("megatron_core modules_to_save peft_type peft_version projection_prng_key r").split(),
    *("qalora_group_size rank_pattern revision runtime_config save_projection").split(),
    *("target_modules task_type use_dora use_rslora velora_config vera_dropout").split(),
}
"""Fields that are read here, or that say nothing of a trained adapter that its tensors do not."""
FLAGS = ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out")
"""Fields that say yes or no; a text is neither, though Python takes it for yes."""
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""LoRA's initialisations that leave the backbone's weights alone."""
Alpha = Annotated[float, Within(-1e6, 1e6)]


def is_peft(folder: Path) -> bool:
    """Tell whether a folder holds an adapter of peft's.

    Args:
        folder: Any folder.

    Returns:
        Whether its config names a type of peft's and is not lowtide's own.
    """
    path = folder / CONFIG
    config = read_json(path) if path.is_file() else None
    return isinstance(config, dict) and "peft_type" in config and "library" not in config


def read_peft(folder: Path) -> PeftAdapter:
    """Read an adapter that peft wrote.

    Args:
        folder: What peft's `save_pretrained` wrote to.

    Returns:
        The adapter.

    Raises:
        InputError: A file is missing or damaged, or the adapter does what cannot be read here.
    """
    path = folder / CONFIG
    config = read_json(path) if path.is_file() else None
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise InputError(f"{folder} holds no adapter of peft's: expected {CONFIG} in it")
    try:
        kind = _kind(config)
        dropout = read(
            "lora_dropout", Annotated[float, Within(0, 1)], config.get("lora_dropout", 0)
        )
        if not (folder / WEIGHTS).is_file():
            raise InputError(
                f"there is no {WEIGHTS} beside it; other formats can run code and are not read"
            )
        state = read_tensors(folder / WEIGHTS)
        refuse_infinite(folder / WEIGHTS, state)
        adapter = PeftAdapter(folder, kind, min(dropout, 0.999))
        _sort(adapter, config, state)
    except InputError as e:
        raise InputError(f"{path}: {e}") from e
    return adapter


def _kind(config: Mapping[str, object]) -> str:
    kind = config["peft_type"]
    if kind not in KINDS:
        raise InputError(
            f"adapters of type {shown(kind)} are not read here, only"
            f" {', '.join([*KINDS.values(), 'DoRA'])}: {ALTERNATIVE}"
        )
    for name, value in config.items():
        if name not in OF_TRAINING and value not in (None, False, {}, [], ""):
            raise InputError(f"{name} {shown(value)} is not read here: {ALTERNATIVE}")
    for name in FLAGS:
        if not (config.get(name) is None or isinstance(config[name], bool)):
            raise InputError(f"{name} must be true or false, not {shown(config[name])}")
    start = config.get("init_lora_weights")
    if not any(start is known or (isinstance(start, str) and start == known) for known in STARTS):
        raise InputError(
            f"init_lora_weights {shown(start)} changes the backbone's own weights: save with peft's"
            " path_initial_model_for_weight_conversion, which makes it a plain LoRA"
        )
    if kind == "VERA" and config.get("save_projection") is False:
        raise InputError("its projections were not saved: train it with save_projection=True")
    return "DoRA" if kind == "LORA" and config.get("use_dora") else KINDS[kind]


def _sort(adapter: PeftAdapter, config: Mapping[str, object], state: dict[str, Tensor]) -> None:
    """Give each tensor its place."""
    shared = {k: state.pop(f"base_model.vera_{k}", None) for k in "AB"}
    of_inputs = config.get("feedforward_modules") or []
    for key, value in state.items():
        name = key.removeprefix(PREFIX)
        if not key.startswith(PREFIX) or not value.is_floating_point():
            raise InputError(f"{WEIGHTS} holds {shown(key)}, which is no tensor of {adapter.kind}")
        path, kind = _split(name)
        value = value.to(torch.get_default_dtype()) if value.itemsize < 4 else value
        if not kind:
            adapter.whole[re.sub(r"\.(base_layer|modules_to_save)(?=\.)", "", name)] = value
            continue
        change = adapter.changes.setdefault(path, Change())
        PLACES[kind](change, value)
        if kind == "ia3_l":
            change.of_inputs = _named(of_inputs, path) or (value.ndim == 2 and len(value) == 1)
    for path, change in adapter.changes.items():
        if (change.magnitude is not None) != (adapter.kind == "DoRA"):
            raise InputError(f"use_dora is {config.get('use_dora')}, and {path} is otherwise")
        if (change.vector is not None) != (adapter.kind == "IA3"):
            raise InputError(f"{WEIGHTS} holds tensors of another method for {path}")
        if adapter.kind == "VeRA":
            _project(change, shared, path)
        elif adapter.kind != "IA3":
            _scale(change, config, path)
    if not adapter.changes and not adapter.whole:
        raise InputError(f"{WEIGHTS} holds nothing")
    saved = config.get("modules_to_save")
    names = saved if isinstance(saved, list) else []
    if names and not any(f".{name}." in f".{key}" for name in names for key in adapter.whole):
        raise InputError(f"{WEIGHTS} holds none of modules_to_save {shown(names)}")


def _project(change: Change, shared: Mapping[str, Tensor | None], path: str) -> None:
    """VeRA: `diag(b) B diag(d) A`, cut out of projections that all maps share."""
    a, b, d = shared["A"], shared["B"], change.down
    if a is None or b is None or d is None or change.up is None:
        raise InputError(f"{WEIGHTS} lacks a vector or a projection of {path}")
    if d.ndim != 1 or change.up.ndim != 1 or a.ndim != 2 or b.ndim != 2 or len(d) > len(a):
        raise InputError(f"the vectors of {path} do not fit the projections")
    change.down = d[:, None] * a[: len(d)]
    change.up = change.up[:, None] * b[: len(change.up), : len(d)]


def _scale(change: Change, config: Mapping[str, object], path: str) -> None:
    """LoRA: `alpha / r`, or over its root; only B is given to more than one input each."""
    if change.down is None or change.up is None or change.down.ndim < 2:
        raise InputError(f"{WEIGHTS} lacks lora_A or lora_B of {path}")
    rank = read("r", Width, len(change.down))
    _refuse_rank(rank, config, path)
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise InputError(f"alpha_pattern must be a mapping, not {shown(patterns)}")
    alpha = next((v for k, v in patterns.items() if _named([k], path)), config.get("lora_alpha", 8))
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank
    change.scale = read("lora_alpha", Alpha, alpha) / divisor
    change.up = change.up.flatten(1)
    if change.shift is not None:
        change.shift = change.shift * change.scale


def _refuse_rank(rank: int, config: Mapping[str, object], path: str) -> None:
    """Refuse tensors of another rank than any that the config names: it divides alpha."""
    patterns = config.get("rank_pattern") or {}
    if not isinstance(patterns, dict):
        raise InputError(f"rank_pattern must be a mapping, not {shown(patterns)}")
    known = {read("r", Width, r) for r in (config.get("r", rank), *patterns.values())}
    if rank not in known:
        raise InputError(f"lora_A of {path} has rank {rank}, and r is {sorted(known)[0]}")


def _named(names: object, path: str) -> bool:
    """Whether one of peft's names means a path: the path, or its end."""
    if not isinstance(names, list) or not all(
        isinstance(n, str) and re.fullmatch(r"\^?[\w.]+", n) for n in names
    ):
        raise InputError(f"{shown(names)} is a pattern: expected names of modules; {ALTERNATIVE}")
    return any(
        path == n.removeprefix("^") or (n[0] != "^" and path.endswith(f".{n}")) for n in names
    )


def _split(name: str) -> tuple[str, str]:
    """Tell path and kind of a tensor; no kind where it takes the place of one of the model's."""
    found = re.fullmatch(
        r"(.+)\.(lora_[AB]\.weight|lora_B\.bias|lora_magnitude_vector|vera_lambda_[bd]|ia3_l)"
        r"(?:(?<=vector)\.weight)?",
        name,
    )
    if found is None and re.search(r"\.(lora|vera|ia3)_", name):
        raise InputError(f"{WEIGHTS} holds {shown(name)}, which is not read here: {ALTERNATIVE}")
    return (found[1], found[2]) if found else ("", "")


def _puts(attribute: str) -> Callable[[Change, Tensor], None]:
    return lambda change, value: setattr(change, attribute, value)


PLACES = {
    "lora_A.weight": _puts("down"),
    "lora_B.weight": _puts("up"),
    "lora_B.bias": _puts("shift"),
    "lora_magnitude_vector": _puts("magnitude"),
    "vera_lambda_d": _puts("down"),
    "vera_lambda_b": _puts("up"),
    "ia3_l": _puts("vector"),
}
