"""The description of a family of backbones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..core.branches import Sum
from ..core.site import Layout, Role
from .constants import Constant
from .extractors import core
from .kinds import is_map, scales

Roles = tuple[tuple[str, Role], ...]
Extend = Callable[..., tuple[Tensor, Tensor]]
Context = Mapping[str, Mapping[str, Any]]
"""By path of an element of the chain: what it takes beside the feature map, by name."""
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
        attentions: Classes of its attention modules, which backward recomputes from their input.
        mlps: Classes of its MLPs that no other backbone has, if they treat every token by itself.
        constants: Buffers of its modules that follow from their sizes, which equal ones share.
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
    attentions: tuple[type[nn.Module], ...] = ()
    mlps: tuple[type[nn.Module], ...] = ()
    constants: tuple[Constant, ...] = ()
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
            return scales(module) or path == self.last
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
    _, model = core(model)
    cfg = getattr(model, "pretrained_cfg", None) or {}
    shape = tuple(cfg.get("input_size") or _configured(model))
    stem = getattr(model, "patch_embed", None) or getattr(model, "stem", None)
    size = getattr(stem, "img_size", None)
    if size is not None:
        shape = (shape[0], *size)
    return (getattr(model, "in_chans", None) or shape[0], *shape[1:])


def _configured(model: nn.Module) -> tuple[int, int, int]:
    """Read what a transformers model says of its images; most take 224 x 224."""
    config = getattr(model, "config", None)
    config = getattr(config, "vision_config", None) or config
    size = getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    return (getattr(config, "num_channels", None) or 3, height, width)
