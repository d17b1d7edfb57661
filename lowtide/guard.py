"""What is checked when methods are applied, so that a mistake is an error and not a bad result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import set_module
from .errors import LowtideError, Unsupported
from .families import hollow

Image = tuple[int, int, int]


@contextlib.contextmanager
def intact(model: Any) -> Iterator[None]:
    """Put a backbone back as it was when a method refuses it.

    Args:
        model: The backbone.

    Yields:
        Nothing.

    Raises:
        LowtideError: Passed on, once the backbone is back.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    own = {path: dict(m._parameters) for path, m in modules.items()}
    flags = [(p, p.requires_grad) for p in model.parameters()]
    classes = getattr(model, "num_classes", None)
    try:
        yield
    except LowtideError:
        for path, module in modules.items():
            if path:
                set_module(model, path, module)
            module._parameters.update(own[path])
        for p, flag in flags:
            p.requires_grad_(flag)
        if classes is not None:
            model.num_classes = classes
        raise


def answer(model: nn.Module, image: Image) -> Tensor | None:
    """Ask a model about one fixed noise image, in eval mode.

    Args:
        model: The model.
        image: Channels, height, width of its input.

    Returns:
        Its output; None on the meta device, where there are no weights to ask.
    """
    noise = _noise(model, 1, image)
    if noise.is_meta:
        return None
    training = model.training
    with torch.no_grad():
        said: Tensor = model.eval()(noise)
    model.train(training)
    return said


def refuse_dead(model: nn.Module, image: Image) -> None:
    """Refuse a parameter that is said to train and that no gradient reaches.

    Args:
        model: The model, methods in place.
        image: Channels, height, width of its input.

    Raises:
        Unsupported: There is one.
    """
    shadow = hollow(model)
    with torch.enable_grad():
        shadow(_noise(shadow, 2, image)).sum().backward()
    dead = [n for n, p in shadow.named_parameters() if p.requires_grad and p.grad is None]
    if dead:
        raise Unsupported(
            f"no gradient reaches {len(dead)} of the trained parameters, first {dead[0]}: the"
            " backbone does not use the module it was put on"
        )


def refuse_moved(before: Tensor | None, after: Tensor | None) -> None:
    """Refuse methods that promise to start at the backbone and do not.

    Args:
        before: What the backbone said; None where it cannot be asked.
        after: What the tuned model says; a new classifier's answer has nothing to be held against.

    Raises:
        LowtideError: The answers differ by more than rounding.
    """
    if before is None or after is None or before.shape != after.shape:
        return
    error = (after - before).abs().max() / before.abs().max().clamp_min(1e-6)
    if error > torch.finfo(before.dtype).eps ** 0.5:
        raise LowtideError(f"the methods promise to start at the backbone; {error:.1e} off")


def _noise(model: nn.Module, batch: int, image: Image) -> Tensor:
    like = next(model.parameters())
    if like.is_meta:
        return torch.empty(batch, *image, device="meta", dtype=like.dtype)
    return torch.randn(batch, *image, generator=torch.Generator().manual_seed(0)).to(like)
