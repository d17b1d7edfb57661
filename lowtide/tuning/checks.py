"""Checks when methods are applied, so that a mistake is an error and not a bad result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..core.graft import Graft
from ..core.method import Method
from ..core.outputs import tensors
from ..core.wrapped import numbers_of, refuse_scripted
from ..errors import InputError, LowtideError, Unsupported, shown
from ..families import meta_copy
from .side_execution import StagedModel

Image = tuple[int, int, int]


def refuse_unfit(model: object, methods: Iterable[object]) -> None:
    """Refuse what methods cannot be put on, and what is no method.

    Args:
        model: What should be tuned.
        methods: What should train.

    Raises:
        InputError: The model is none, has no weights, or is tuned already; a method is a name or a
            class; or nothing could be trained in this mode of torch.
        Unsupported: The model is scripted.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"methods are put on a model, such as timm.create_model gives, not on {shown(model)}"
        )
    refuse_scripted(model, "methods come")
    if next(model.parameters(), None) is None:
        raise InputError(f"{type(model).__name__} has no weights to put methods on")
    if torch.is_inference_mode_enabled():
        raise InputError(
            "what is made under torch.inference_mode cannot train: apply outside of it"
        )
    if any(isinstance(m, Graft | StagedModel) for m in model.modules()):
        raise InputError(
            "the model is tuned already: its add_adapter builds another adapter, and"
            " merge_and_unload gives a plain backbone"
        )
    for method in methods:
        if not isinstance(method, Method):
            raise InputError(
                f"a method is an object such as METHODS['lora'](rank=4), not {shown(method)}"
            )


@contextlib.contextmanager
def restored_on_error(model: nn.Module) -> Iterator[None]:
    """Restore a backbone if a block raises.

    Args:
        model: The backbone.

    Yields:
        Nothing.

    Raises:
        BaseException: Whatever went wrong, once the backbone is back.
    """
    before = [(m, _snapshot(m)) for m in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    except BaseException:
        for module, snapshot in before:
            module.__dict__.clear()
            module.__dict__.update(snapshot)
        for p, flag in flags:
            p.requires_grad_(flag)
        raise


def _snapshot(module: nn.Module) -> dict[str, object]:
    """Note a module's attributes, and what it holds as parameters, buffers and modules."""
    holds = {k: dict(module.__dict__[k]) for k in ("_parameters", "_buffers", "_modules")}
    return {**module.__dict__, **holds}


@contextlib.contextmanager
def blame_methods(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Report errors that a backbone raises only with the methods in place as the methods' own.

    Args:
        model: The backbone.
        names: The methods.

    Yields:
        Nothing.

    Raises:
        Unsupported: The backbone fails.
        LowtideError: Passed on, as what says that memory is short.
        MemoryError: The same.
        OutOfMemoryError: The same.
    """
    try:
        yield
    except (LowtideError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise Unsupported(
            f"{' + '.join(names)} cannot live on {type(model).__name__}, which fails with it in"
            f" place: {reason}"
        ) from e


def outputs_on_noise(model: nn.Module, image: Image, whole: bool = True) -> list[Tensor]:
    """Run a tuned model on one fixed noise image, in eval mode.

    Args:
        model: The model.
        image: Channels, height, width of its input.
        whole: Whether all of it runs, or its backbone alone.

    Returns:
        Its outputs; none on the meta device, where there are no weights.
    """
    noise = _noise(model, 1, image)
    if noise.is_meta:
        return []
    training = model.training
    with torch.no_grad():
        model.eval()
        outputs = tensors(_run(model, noise, whole))
    model.train(training)
    return outputs


def refuse_unreached(model: nn.Module, image: Image, whole: bool = True) -> None:
    """Refuse a parameter that should train and that no gradient reaches.

    Args:
        model: The model, methods in place.
        image: Channels, height, width of its input.
        whole: Whether all of it runs and is looked at, or its backbone alone.

    Raises:
        Unsupported: There is one.
    """
    meta: Any = meta_copy(model)
    looked = meta if whole else meta.backbone
    with torch.enable_grad():
        given = tensors(_run(meta, _noise(meta, 2, image), whole))
        outputs = [y.sum() for y in given if y.requires_grad]
        if outputs:
            torch.stack(outputs).sum().backward()
    trained = (*looked.named_parameters(), *(() if whole else meta.sides.named_parameters()))
    unreached = [n for n, p in trained if p.requires_grad and p.grad is None]
    if unreached:
        raise Unsupported(
            f"no gradient reaches {len(unreached)} of the trained parameters, first {unreached[0]}:"
            " the backbone does not use the module it was put on"
        )


def refuse_changed_outputs(before: list[Tensor], after: list[Tensor]) -> None:
    """Refuse methods that promise to start at the backbone, but change its outputs.

    Args:
        before: The backbone's outputs; empty on the meta device.
        after: The tuned model's; those of a new classifier have nothing to be compared with.

    Raises:
        LowtideError: The answers differ by more than rounding.
    """
    for old, new in zip(before, after, strict=False):
        if old.shape == new.shape and old.numel():
            error = (new - old).abs().max() / old.abs().max().clamp_min(1e-6)
            if error > torch.finfo(old.dtype).eps ** 0.5:
                raise LowtideError(f"the methods promise to start at the backbone; {error:.1e} off")


def _run(model: Any, images: Tensor, whole: bool) -> Any:
    """Run a tuned model, or its backbone with what runs beside it."""
    if whole:
        return model(images)
    with model.beside_modules():
        return model.backbone(images)


def _noise(model: nn.Module, batch: int, image: Image) -> Tensor:
    like = numbers_of(model)
    if like.is_meta:
        return torch.empty(batch, *image, device="meta", dtype=like.dtype)
    return torch.randn(batch, *image, generator=torch.Generator().manual_seed(0)).to(like)
