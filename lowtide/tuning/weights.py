"""Read a backbone's weights from a safetensors file, all at once or tensor by tensor."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..core.wrapped import unprefixed
from ..errors import InputError
from ..families import backbone_path, classifiers, holders
from ..memory.frozen_dtype import FROZEN, PACKED, Frozen, FrozenDtype, pack_frozen
from .fingerprint import ORIGINAL, fingerprint
from .finite import refuse_infinite

FILLS = {
    getattr(Tensor, f"{name}_")
    for name in ("add", "clamp", "copy", "erfinv", "fill", "mul", "normal", "uniform", "zero")
}
"""What initialisations write with, beside the functions of `torch.nn.init`."""


class Weights:
    """The tensors of a safetensors file, under a model's names; read when they are asked for.

    Attributes:
        path: The file.
        names: Its names by those of the model; the classifier's only where it fits.
        classifies: Whether the classifier fits.
    """

    def __init__(self, path: Path, name: str, model: nn.Module) -> None:
        """Look whether a file fits a model. No tensor is read.

        Args:
            path: The file.
            name: timm's name of the model.
            model: The model, also without its numbers.

        Raises:
            InputError: There is no such file, it is of another format, or does not fit the model.
        """
        if not path.is_file():
            near = sorted(path.parent.glob("*.safetensors")) if path.parent.is_dir() else []
            raise InputError(f"no file {path}" + (f"; did you mean {near[0]}?" if near else ""))
        try:
            with safe_open(path, "pt") as file:
                shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}
        except SafetensorError as e:
            raise InputError(
                f"{path} is no safetensors file ({e}); other formats can run code and are not read:"
                " convert with safetensors.torch.save_file"
            ) from e
        self.path, self.classifies = path, True
        own = {key: list(value.shape) for key, value in model.state_dict().items()}
        names = unprefixed({key: key for key in shapes}, own.keys())
        heads = tuple(f"{p}." for p in classifiers(model))
        found = {key: shapes[names[key]] for key in names}
        for key in [k for k in own if k.startswith(heads)]:
            if found.get(key) != own[key]:
                own.pop(key)  # another number of classes, or none: the head is made anew
                self.classifies = False
        self.names = {key: names[key] for key in names if key in own}
        wrong = [k for k in self.names if found[k] != own[k]]
        if wrong:
            raise InputError(
                f"{path} does not fit {name}: {wrong[0]} is {tuple(found[wrong[0]])} in the file"
                f" and {tuple(own[wrong[0]])} in the model"
            )
        missing = sorted(own.keys() - names.keys())
        extra = sorted(k for k in names.keys() - own.keys() if not k.startswith(heads))
        if missing or extra:
            raise InputError(
                f"{path} does not fit {name}: {len(missing)} tensors missing {missing[:2]},"
                f" {len(extra)} unexpected {extra[:2]}{_nearest(missing, extra)}"
            )

    def read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Read some tensors.

        The file is opened anew, for pages that were read count as the process's own until then.

        Args:
            keys: Names in the model; those that are not in the file are left out.

        Returns:
            Tensors that are pages of the file: copy what is to stay.
        """
        found = [key for key in keys if key in self.names]
        if not found:
            return {}
        with safe_open(self.path, "pt") as file:
            return {key: file.get_tensor(self.names[key]) for key in found}


class Unfilled(TorchFunctionMode):
    """Make models without drawing their parameters, which are to be loaded: no page is touched."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Do nothing where a parameter would be filled."""
        kwargs = kwargs or {}
        first = next(iter((*args, *kwargs.values())), None)
        fills = func in FILLS or getattr(func, "__module__", "") == nn.init.__name__
        whole = first._base if isinstance(first, Tensor) and first._is_view() else first
        return first if fills and isinstance(whole, nn.Parameter) else func(*args, **kwargs)


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Load a file module by module, so that no more of it than a module's tensors is in memory.

    Args:
        model: Changed in place. Parameters without numbers get theirs, in few bits where they are
            kept so.
        weights: The file.

    Raises:
        InputError: Numbers are not finite; the model is then partly loaded.
    """
    for path, module in list(model.named_modules()):
        prefix = f"{path}." if path else ""
        own = {"weight" if n == PACKED else n for n in (*module._parameters, *module._buffers)}
        state = weights.read(prefix + name for name in own)
        refuse_infinite(weights.path, state)
        empty = any(p is not None and p.is_meta for p in module._parameters.values())
        state = {
            name: value.to(_dtype(module, name), copy=empty and not _is_packed(module, name))
            for name, value in ((k.removeprefix(prefix), v) for k, v in state.items())
        }
        module.load_state_dict(state, strict=False, assign=empty)


def forget_numbers(model: nn.Module) -> None:
    """Take the numbers of a backbone's parameters away, but its classifier's.

    Args:
        model: Changed in place; buffers stay.
    """
    heads = [p for path in classifiers(model) for p in model.get_submodule(path).parameters()]
    memo: dict[int, nn.Parameter] = {id(p): p for p in heads}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                empty = nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
                module._parameters[name] = memo.setdefault(id(p), empty)


def pack_backbone(model: nn.Module, dtype: FrozenDtype) -> None:
    """Keep a backbone's weights in few bits, but its classifier's; its hash stays what it was.

    Args:
        model: A backbone without an adapter, perhaps without numbers; frozen, changed in place.
        dtype: What to keep the weights in.
    """
    path = backbone_path(model)
    if not next(model.parameters()).is_meta:
        model.__dict__[ORIGINAL] = fingerprint(model, path)
    heads = classifiers(model) if path is None else holders(model, path)
    own = [model.get_submodule(p) for p in heads]
    every = [p for m in own for p in m.parameters(recurse=path is None)]
    pack_frozen(model.requires_grad_(False), dtype, but=every)


def leaves_frozen(tuned: Any) -> bool:
    """Tell whether the active adapter trains no weight that could be kept in few bits.

    Args:
        tuned: A tuned model, perhaps without numbers.

    Returns:
        Whether its backbone may be packed before the adapter is applied.
    """
    heads = tuple(f"{path}." for path in tuned.heads)
    return not any(
        name == "weight" and type(tuned.model.get_submodule(path)) in FROZEN
        for path, _, name, _ in tuned.adapters[tuned.active].thawed
        if not f"{path}.".startswith(heads)
    )


def _is_packed(module: nn.Module, name: str) -> bool:
    return isinstance(module, Frozen) and name == "weight"


def _dtype(module: nn.Module, name: str) -> torch.dtype:
    """Say in what dtype a module has, or had, one of its own tensors."""
    had: Any = module.slabs if _is_packed(module, name) else getattr(module, name)
    dtype: torch.dtype = had.dtype
    return dtype


def _nearest(missing: list[str], extra: list[str]) -> str:
    """Tell which name of the file is like one that the model lacks."""
    for key in missing[:10]:
        if near := difflib.get_close_matches(key, extra[:1000], n=1, cutoff=0.5):
            return f"; nearest to {key} is {near[0]}"
    return ""
