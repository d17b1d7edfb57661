"""A tuned model: its adapter is saved, loaded, and merged away."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..core.graft import find
from ..core.method import method_name
from ..core.wrapped import plain
from ..errors import InputError, UnknownName, Unsupported
from ..memory.chunking import declare
from ..memory.compress import decompress
from ..memory.frozen_dtype import FrozenDtype, hidden_numbers, pack_frozen, packable, unpack_frozen
from .adapter_config import WHOLE, AdapterConfig
from .adapter_files import describe, read_adapter, write_adapter
from .exchange import exchange_hooks, set_module
from .fingerprint import ORIGINAL, architecture, refuse_other_base, refuse_other_part
from .holder import AdapterHolder
from .weights import pack_backbone


class Tuned(AdapterHolder):
    """A model with methods in place on its backbone. Verbs and their meaning are PEFT's."""

    def adapter_state(self) -> dict[str, Tensor]:
        """Collect all tensors that the active adapter trained, and BatchNorm statistics that moved.

        Returns:
            Tensors by `site path/method/name`; the backbone itself and side networks are `.`.
        """
        return self.adapters[self.active].state(self.model)

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Copy a saved state in; every key and shape must match.

        Args:
            state: What `adapter_state` gave.

        Raises:
            InputError: A key is missing or unexpected, a shape differs, or numbers are of another
                kind (whole or complex, where the model's are real); nothing was copied.
        """
        own = self.adapter_state()
        state = {key if key in own else plain(key): value for key, value in state.items()}
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or extra:
            raise InputError(
                f"the adapter file does not match this adapter: {len(missing)} keys missing"
                f" {missing[:2]},"
                f" {len(extra)} unexpected {extra[:2]}"
            )
        state = self.adapters[self.active].fitted(state)
        for key, value in own.items():
            if value.shape != state[key].shape:
                raise InputError(
                    f"{key} has shape {tuple(state[key].shape)} in the file and"
                    f" {tuple(value.shape)} in the model"
                )
            if not _alike(value, state[key]):
                raise InputError(
                    f"{key} is of {str(state[key].dtype).removeprefix('torch.')} in the file and of"
                    f" {str(value.dtype).removeprefix('torch.')} in the model"
                )
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(state[key])

    def trainable_counts(self) -> tuple[int, int]:
        """Count parameters, whatever bytes they are kept in.

        Returns:
            Those that train, and all, side networks and grafts included.
        """
        parameters = list(self.parameters())
        every = sum(p.numel() for p in parameters) + hidden_numbers(self)
        return sum(p.numel() for p in parameters if p.requires_grad), every

    def print_trainable_parameters(self) -> None:
        """Print the line PEFT users know."""
        trained, total = self.trainable_counts()
        print(
            f"trainable params: {trained:,d} || all params: {total:,d}"
            f" || trainable%: {100 * trained / total:.4f}"
        )

    def save_pretrained(self, folder: Path | str, **record: Any) -> None:
        """Write the active adapter: trained tensors, nothing that is frozen.

        Args:
            folder: Where to; made if missing.
            **record: More to keep in the config (pre-processing, class names, ...); plain JSON.
        """
        config = {
            "base_model_name_or_path": architecture(self.model),
            "base_model_sha256": self.base_sha256,
            "frozen_dtype": self.frozen_dtype,
            "methods": [describe(m) for m in self.methods],
            "num_classes": self.num_classes,
            **self._place(),
            "versions": {p: version(p) for p in ("lowtide", "torch", "timm")},
            **record,
        }
        write_adapter(Path(folder), config, self.adapter_state())

    def _place(self) -> dict[str, object]:
        """Say where the backbone is, if it is not all of the model."""
        if self.backbone_path is None:
            return {}
        return {"backbone_path": self.backbone_path or WHOLE, "head": self.head}

    def load_adapter(self, folder: Path | str, name: str) -> None:
        """Add a saved adapter and switch to it; on any error the active one stays.

        Args:
            folder: What `save_pretrained` wrote to.
            name: Name for the adapter.

        Raises:
            InputError: The files are damaged, or the backbone is not the one recorded.
        """
        content, state = read_adapter(Path(folder))
        config = AdapterConfig.of(content, folder)
        refuse_other_part(self.backbone_path, self.head, config, folder)
        refuse_other_base(self.base_sha256, self.model, config, folder)
        before = self.active
        self.add_adapter(name, *config.methods, num_classes=config.num_classes or None)
        try:
            self.set_adapter(name)
            self.load_adapter_state(state)
            self.adapters[name].frozen_dtype = config.frozen_dtype
        except BaseException:
            self._take_out()  # nothing was copied yet, so even an overwriting method may leave
            if before:
                self.set_adapter(before)
            del self.adapters[name]
            raise

    def merge_and_unload(self) -> nn.Module:
        """Fold every graft into the backbone and give the plain backbone back.

        Returns:
            The backbone, equal to this model in eval mode; this object must not be used again.

        Raises:
            Unsupported: Something cannot be folded; nothing was changed.
        """
        model, unfolded = merge(self)
        if unfolded:
            more = f" (and {len(unfolded) - 1} more)" if len(unfolded) > 1 else ""
            raise Unsupported(f"cannot merge {unfolded[0]}{more}")
        return model


declare((__name__,), (Tuned.__name__,))


def set_frozen_dtype(model: nn.Module, dtype: FrozenDtype) -> nn.Module:
    """Keep the frozen weights of linear maps and convolutions in 16, 8 or 4 bits.

    What trains stays as it is, and so do the classifier, norms, biases and embeddings. An adapter's
    files name the dtype and record the hash of the original weights: loaded on the original
    backbone, it merges into the original weights.

    Args:
        model: A tuned model, its adapters in place; or a backbone, all of which is frozen with it.
            Changed in place.
        dtype: `bf16`, `int8`, `nf4` or `int4`; `fp32` makes the weights wide again, rounded as they
            are.

    Returns:
        The same object.

    Raises:
        InputError: Weights are kept in another dtype already, or none is frozen.
        UnknownName: There is no such dtype.
    """
    if dtype not in get_args(FrozenDtype):
        raise UnknownName("frozen dtype", dtype, get_args(FrozenDtype))
    backbone = model.model if isinstance(model, Tuned) else model
    if dtype == "fp32":
        unpack_frozen(backbone)
        backbone.__dict__.pop(ORIGINAL, None)
    elif isinstance(model, Tuned):
        _refuse_all_trained(model, dtype)
        waiting = [p for adapter in model.adapters.values() for *_, p in adapter.thawed]
        pack_frozen(backbone, dtype, but=waiting)
    else:
        pack_backbone(backbone, dtype)
    return model


def _refuse_all_trained(tuned: Tuned, dtype: FrozenDtype) -> None:
    """Refuse to keep frozen weights in few bits where there are none."""
    if tuned.frozen_dtype == "fp32" and not any(packable(tuned.model, dtype)):
        names = " + ".join(method_name(type(m)) for m in tuned.methods)
        raise InputError(
            f"{names} leaves no weight frozen that could be kept in {dtype}: expected frozen_dtype"
            " fp32, or a method that trains little"
        )


def merge(tuned: Tuned) -> tuple[nn.Module, list[str]]:
    """Fold the active adapter into the backbone, if all of it folds.

    Weights in few bits are made wide first, so that the result equals the model as it was trained.

    Args:
        tuned: A tuned model; once merged it must not be used again.

    Returns:
        The plain backbone and no names; or the backbone as it stands, grafts in place, and what
        cannot be folded, each with the reason.
    """
    dtype = tuned.frozen_dtype
    set_frozen_dtype(tuned, "fp32")
    recomputing, tuned.checkpointing = tuned.checkpointing, False
    whole = tuned.backbone_path is None
    total = tuned.family.total(tuned.backbone) if whole else None
    folded, unfolded = tuned.adapters[tuned.active].merged(tuned.model, total)
    if unfolded:
        tuned.checkpointing = recomputing
        set_frozen_dtype(tuned, dtype)
    else:
        for path, module in folded.items():
            exchange_hooks(module, find(tuned.model, path))
            set_module(tuned.model, path, module.train(tuned.training))
        decompress(tuned).requires_grad_(True)
    return tuned.model, unfolded


def _alike(own: Tensor, given: Tensor) -> bool:
    """Whether numbers may be copied: the same kind, or real ones of another precision."""
    return own.dtype == given.dtype or (own.is_floating_point() and given.is_floating_point())
