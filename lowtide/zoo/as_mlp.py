"""AS-MLP: an axial shifted MLP in four stages. Lian et al. 2021, arXiv:2107.08391.

timm has no model of this family, so it is written here from the paper. No weights come with it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, DropPath, Mlp, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn


def axial_shift(x: Tensor, groups: int, axis: int) -> Tensor:
    """Move groups of channels by different distances along one axis, zeros from outside.

        y[g, p] = x[g, p - (g - floor(groups / 2))]                          (section 3.2)

    Channels are cut into `groups` runs of equal length, the last one shorter where they must be.

    Args:
        x: `(B, C, H, W)`.
        groups: Number of groups, odd.
        axis: 2 shifts along H, 3 along W.

    Returns:
        `(B, C, H, W)`.
    """
    reach = groups // 2
    sides = (reach, reach) if axis == 3 else (0, 0, reach, reach)
    runs = F.pad(x, sides).chunk(groups, 1)
    size = x.shape[axis]
    return torch.cat([g.narrow(axis, 2 * reach - i, size) for i, g in enumerate(runs)], 1)


class AxialShift(nn.Module):
    """Mix each position with its neighbours along both axes, by shifts between 1x1 projections."""

    def __init__(self, dim: int, shift_size: int) -> None:
        super().__init__()
        self.shift_size = shift_size
        self.proj_in = nn.Conv2d(dim, dim, 1)
        self.norm1 = nn.GroupNorm(1, dim)
        self.act = nn.GELU()
        self.proj_w = nn.Conv2d(dim, dim, 1)
        self.proj_h = nn.Conv2d(dim, dim, 1)
        self.norm2 = nn.GroupNorm(1, dim)
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Project, shift along each axis, project each, add, project.

        Args:
            x: `(B, C, H, W)`.

        Returns:
            `(B, C, H, W)`.
        """
        x = self.act(self.norm1(self.proj_in(x)))
        across = self.act(self.proj_w(axial_shift(x, self.shift_size, 3)))
        down = self.act(self.proj_h(axial_shift(x, self.shift_size, 2)))
        return self.proj_out(self.norm2(across + down))


class AxialShiftedBlock(nn.Module):
    """`x + shift(norm(x))`, then `x + mlp(norm(x))`."""

    def __init__(self, dim: int, shift_size: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, dim)
        self.shift = AxialShift(dim, shift_size)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.GroupNorm(1, dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), use_conv=True)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block.

        Args:
            x: `(B, C, H, W)`.

        Returns:
            `(B, C, H, W)`.
        """
        x = x + self.drop_path1(self.shift(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Halve the resolution and double the width: four neighbours side by side, reduced."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 4 * dim)
        self.reduction = nn.Conv2d(4 * dim, 2 * dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Merge 2 x 2 neighbours.

        Args:
            x: `(B, C, H, W)`; a last odd row or column is filled up with zeros.

        Returns:
            `(B, 2 C, ceil(H / 2), ceil(W / 2))`.
        """
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        corners = [x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, 1)))


class AsMlp(nn.Module):
    """AS-MLP, with the surface of a timm model; takes images of any size."""

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        shift_size: int = 5,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        dims = [embed_dim * 2**i for i in range(len(depths))]
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = [
            {"module": f"stages.{i}", "num_chs": dim, "reduction": patch_size * 2**i}
            for i, dim in enumerate(dims)
        ]
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))
        self.patch_embed = _chain(
            proj=nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size),
            norm=nn.GroupNorm(1, embed_dim),
        )
        self.stages = nn.Sequential()
        for dim, own in zip(dims, rates, strict=True):
            blocks = [AxialShiftedBlock(dim, shift_size, mlp_ratio, rate) for rate in own.tolist()]
            merging = PatchMerging(dim // 2) if len(self.stages) else nn.Identity()
            self.stages.append(_chain(downsample=merging, blocks=nn.Sequential(*blocks)))
        self.norm = nn.GroupNorm(1, dims[-1])
        self.head = ClassifierHead(
            dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate
        )
        self.apply(_draw)

    def get_classifier(self) -> nn.Module:
        """Get the classifier.

        Returns:
            The last linear map.
        """
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier.

        Args:
            num_classes: Classes of the new one; 0 for none.
            global_pool: Another pooling.
        """
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Run everything before pooling.

        Args:
            x: `(B, in_chans, H, W)`.

        Returns:
            The final feature map, `(B, num_features, H / 32, W / 32)`.
        """
        return self.norm(self.stages(self.patch_embed(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify.

        Args:
            x: What `forward_features` gave.
            pre_logits: Whether to stop before the classifier.

        Returns:
            Logits `(B, num_classes)`, or features `(B, num_features)`.
        """
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: `(B, in_chans, H, W)`.

        Returns:
            Logits `(B, num_classes)`.
        """
        return self.forward_head(self.forward_features(x))


def _chain(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _draw(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_CFG = {
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "num_classes": 1000,
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "patch_embed.proj",
    "classifier": "head.fc",
    "paper_ids": "arXiv:2107.08391",
}
default_cfgs = generate_default_cfgs({
    "as_mlp_tiny": _CFG,
    "as_mlp_small": _CFG,
    "as_mlp_base": _CFG,
})


def _create(name: str, pretrained: bool, **options: Any) -> AsMlp:
    cfg = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}
    return build_model_with_cfg(AsMlp, name, pretrained, feature_cfg=cfg, **options)


@register_model
def as_mlp_tiny(pretrained: bool = False, **kwargs: object) -> AsMlp:
    """Build AS-MLP-T: width 96, depths 2, 2, 6, 2, 28 million parameters.

    Args:
        pretrained: Refused by timm, there are no weights.
        **kwargs: Passed on to `AsMlp`.

    Returns:
        The model.
    """
    return _create("as_mlp_tiny", pretrained, **kwargs)


@register_model
def as_mlp_small(pretrained: bool = False, **kwargs: object) -> AsMlp:
    """Build AS-MLP-S: width 96, depths 2, 2, 18, 2, 50 million parameters.

    Args:
        pretrained: Refused by timm, there are no weights.
        **kwargs: Passed on to `AsMlp`.

    Returns:
        The model.
    """
    return _create("as_mlp_small", pretrained, **{"depths": (2, 2, 18, 2), **kwargs})


@register_model
def as_mlp_base(pretrained: bool = False, **kwargs: object) -> AsMlp:
    """Build AS-MLP-B: width 128, depths 2, 2, 18, 2, 88 million parameters.

    Args:
        pretrained: Refused by timm, there are no weights.
        **kwargs: Passed on to `AsMlp`.

    Returns:
        The model.
    """
    sizes = {"embed_dim": 128, "depths": (2, 2, 18, 2)}
    return _create("as_mlp_base", pretrained, **{**sizes, **kwargs})
