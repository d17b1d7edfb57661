"""The change that a peft adapter makes to each map of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.linear_maps import fold
from ..core.wrapped import plain_kind
from ..errors import InputError, UnknownName

ALTERNATIVE = "merge it with peft (merge_and_unload) and give the result as --checkpoint"


@dataclass
class Change:
    """The change that an adapter makes to one map.

        W' = g * (W + s up down) * i,    b' = g * b + shift

    Attributes:
        down: Inner width by inputs, shaped like a map of its own; None where nothing is added.
        up: Outputs by inner width.
        scale: s.
        magnitude: DoRA's norm of each row of the weight, which it scales to that; not the bias.
        vector: IA3's factors, of outputs or of inputs.
        of_inputs: Whether `vector` is of inputs.
        shift: Added to the bias.
    """

    down: Tensor | None = None
    up: Tensor | None = None
    scale: float = 1.0
    magnitude: Tensor | None = None
    vector: Tensor | None = None
    of_inputs: bool = False
    shift: Tensor | None = None

    @property
    def low_rank(self) -> bool:
        """Whether it is an update of low rank and nothing else."""
        return self.down is not None and self.magnitude is self.vector is self.shift is None

    def merged(self, module: Any) -> nn.Module | None:
        """Fold the change into a copy of a map.

        Args:
            module: A Linear or Conv2d that the change fits.

        Returns:
            The copy; None where there is no such bias.
        """
        like = module.weight.detach()
        if self.vector is not None:
            vector = self.vector.flatten().to(like)
            return fold(module, **{"into" if self.of_inputs else "scale": vector})
        assert self.down is not None and self.up is not None
        delta = self.scale * torch.einsum("or,r...->o...", self.up, self.down).to(like)
        if self.magnitude is not None:
            wide = like + delta
            norm = torch.linalg.vector_norm(wide.flatten(1), dim=1)
            factor = (self.magnitude.flatten().to(like) / norm).view(-1, *[1] * (wide.ndim - 1))
            delta = wide * factor - like
        return fold(module, delta=delta, shift=None if self.shift is None else self.shift.to(like))


@dataclass
class PeftAdapter:
    """A peft adapter, read but not yet matched with a model.

    Attributes:
        folder: Where it is from.
        kind: `LoRA`, `DoRA`, `VeRA` or `IA3`.
        dropout: LoRA's dropout.
        changes: What it does, by path of the map.
        whole: Tensors that take the place of the model's, by name: `modules_to_save`, biases.
    """

    folder: Path
    kind: str
    dropout: float
    changes: dict[str, Change] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)


def fits(adapter: PeftAdapter, model: nn.Module) -> None:
    """Check a peft adapter against a model, the classifier left out.

    Args:
        adapter: What was read.
        model: The model it is to change.

    Raises:
        InputError: The model has no such map, or one of another shape.
    """
    modules = dict(model.named_modules())
    for path, change in adapter.changes.items():
        module: Any = modules.get(path)
        if module is None:
            near = UnknownName("module", path, modules)
            raise InputError(f"{adapter.folder} does not fit {type(model).__name__}: {near}")
        if plain_kind(module) not in (nn.Linear, nn.Conv2d):
            raise InputError(
                f"{adapter.folder} changes {path}, a {type(module).__name__}: expected a Linear or"
                f" Conv2d; {ALTERNATIVE}"
            )
        if change.down is not None and getattr(module, "groups", 1) > 1:
            raise InputError(
                f"{adapter.folder} changes {path}, a grouped convolution, across its groups; such"
                " an update is no convolution of the same kind"
            )
        if adapter.kind == "VeRA" and change.down is not None:  # projections are of the widest map
            change.down = change.down[:, : module.weight.shape[1]]
        for what, have, want in _shapes(change, module):
            if have != want:
                raise InputError(
                    f"{adapter.folder} does not fit {type(model).__name__}: {what} of {path} is"
                    f" {have}, and the map wants {want}"
                )


def _shapes(change: Change, module: Any) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    weight = module.weight
    out, inputs = len(weight), weight.shape[1] * getattr(module, "groups", 1)
    found = []
    if change.down is not None and change.up is not None:
        r = len(change.down)
        found.append(("lora_A", tuple(change.down.shape), (r, *weight.shape[1:])))
        found.append(("lora_B", tuple(change.up.shape), (out, r)))
    for what, value in (("magnitude", change.magnitude), ("bias", change.shift)):
        if value is not None:
            found.append((what, (value.numel(),), (out,)))
    if change.vector is not None:
        size = inputs if change.of_inputs else out
        found.append(("ia3_l", (change.vector.numel(),), (size,)))
    return found
