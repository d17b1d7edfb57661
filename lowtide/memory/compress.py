"""Make a model keep for its backward pass what a policy says, and undo it."""

from __future__ import annotations

from torch import nn

from ..core.wrapped import refuse_no_module, refuse_scripted
from ..errors import Unsupported
from ..ops.unary import MODULES
from .attention import RECURRENT
from .policies import policy_of
from .policy import Policy
from .state import NAME, State
from .swapped import swapped


def compress(model: nn.Module, policy: Policy | str) -> nn.Module:
    """Make a model keep for its backward pass what the policy says; its outputs do not change.

    For the length of each forward a `TorchFunctionMode` answers the functions of the policy's ops.
    No module is replaced: the class of each module that has children becomes a subclass of itself
    that enters the mode, so a block recomputed by gradient checkpointing is answered as well.
    Modules, parameters, `state_dict` keys and `isinstance` stay. Without gradients nothing differs.

    Args:
        model: Any module; changed in place. A policy it had before is replaced.
        policy: What to keep, or a policy's name: `tight`, `codes`, `s2a`, `blocks`,
            `exact`.

    Returns:
        The same object.

    Raises:
        InputError: The model is no module.
        UnknownName: No policy has that name.
        Unsupported: A module is scripted; or the policy keeps nothing but the inputs of blocks, and
            the model is not one of `lowtide.apply`, which knows its blocks.
    """
    refuse_no_module("compress", model)
    refuse_scripted(model, "compress it")
    policy = policy_of(policy)
    if policy.checkpointing and not hasattr(model, "checkpointing"):
        raise Unsupported(
            f"the policy recomputes blocks, and {type(model).__name__} does not say which: expected"
            " a model of lowtide.apply; policy tight compresses any model"
        )
    if policy.checkpointing and not model.checkpointing:
        model.checkpointing = True  # type: ignore[assignment]
    decompress(model)
    if policy == Policy():
        return model
    for module in model.modules():
        leaf = module is not model and not any(True for _ in module.children())
        if not leaf or type(module) in MODULES or type(module) in RECURRENT:
            module.__class__ = swapped(type(module))
            setattr(module, NAME, State(policy))
    return model


def decompress(model: nn.Module) -> nn.Module:
    """Undo `compress`.

    Args:
        model: Any module; changed in place.

    Returns:
        The same object.

    Raises:
        InputError: The model is no module.
    """
    refuse_no_module("decompress", model)
    for module in model.modules():
        if (plain := getattr(type(module), "_lowtide_plain", None)) is not None:
            module.__class__ = plain
            vars(module).pop(NAME, None)
    return model
