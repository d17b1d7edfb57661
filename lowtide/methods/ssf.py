"""SSF: scale and shift deep features. Lian et al. 2022, arXiv:2210.08823, eq. 2."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from ..core.method import Edit, Method, Swap, method, need
from ..core.scale_shift import Init, ScaleShift, absorbs_shift
from ..core.site import Role, Site, Sites
from ..values import Index

AFTER = (Role.NORM, Role.QKV, Role.PROJ, Role.FC1, Role.FC2, Role.LINEAR)
CONVOLVED = (Role.STEM, Role.CONV, Role.DOWN)
OPERATIONS = {
    "mlp": (Role.FC1, Role.FC2),
    "attention": (Role.QKV, Role.PROJ),
    "embedding": (Role.STEM,),
    "norm": (Role.NORM,),
}


@method
@dataclass(frozen=True)
class SSF(Method):
    """Scale and shift the output of every operation, channel by channel.

        y = gamma * x + beta,    gamma ~ N(1, 0.02^2),  beta ~ N(0, 0.02^2)

    It follows every norm, every linear map and every convolution with a bias (one without is
    followed by a norm anyway), the patch embedding among them, and ends the feature map. A linear
    map or norm without a bias is scaled only: the plain backbone has no place for a shift there.

    Parameters: ViT-B/16 205,824; Swin-B 274,432; ConvNeXt-B 260,608. With `stages=False` Swin-B
    267,264, ConvNeXt-B 255,232; with `without=("embedding",)` as well AS-MLP-B 266,752. These are
    the paper's 0.37, 0.36 and 0.37 million of table 5, with 102,500 of a classifier of 100.

    Merge: exact, `W' = gamma W`, `b' = gamma b + beta` (by rows). The one that ends a feature map
    that is a sum of branches, as ConvNeXt's, goes into the maps of its last stage: rows of the
    downsampling and of every fc2 times gamma, the inputs of the depthwise ones by gamma, and the
    last fc2's bias plus beta / layer scale. That needs a gamma and a layer scale that are not 0.

    Saves:
        The output of every operation it follows, for gamma's gradient: 11 u per ViT block, more
        than full fine-tuning keeps.

    Differs:
        The paper's text has it after every operation. In the authors' code for Swin, ConvNeXt and
        AS-MLP the option does not arrive where the backbone changes stage (patch merging,
        downsampling), nor in AS-MLP's patch embedding: what the paper's tables count and score is
        `stages=False`.

    The other attributes are the paper's ablations (table 6). Its counts say that `layers` leaves
    the patch embedding and the final norm in, and that without `norm` the final norm stays.

    Attributes:
        init: `paper` starts at the random values above; `identity` at gamma = 1, beta = 0;
            `uniform` and `trunc_normal` with the same spread; `random` with gamma around 0.
        layers: Blocks that get it, counted from the image; 0 for all.
        stages: Whether what stands between blocks gets it, where the backbone changes stage.
        without: Operations that get none: any of mlp attention embedding norm; `embedding` is all
            that stands before the first block.
        scale: A factor per channel, one `scalar` for all, or `none`.
        shift: Whether there is a beta.
    """

    learning_rate: ClassVar[float] = 0.005

    init: Init = "paper"
    layers: Index = 0
    stages: bool = True
    without: tuple[Literal["mlp", "attention", "embedding", "norm"], ...] = ()
    scale: Literal["vector", "scalar", "none"] = "vector"
    shift: bool = True

    def __post_init__(self) -> None:
        unknown = set(self.without) - set(OPERATIONS)
        if self.layers < 0 or unknown or (self.scale == "none" and not self.shift):
            raise ValueError(
                f"ssf needs layers >= 0, without of {' '.join(OPERATIONS)}, and a scale or a shift,"
                f" not layers={self.layers} without={self.without!r} scale={self.scale}"
                f" shift={self.shift}"
            )

    @property
    def identity(self) -> bool:
        """Whether the method promises that training starts exactly at the backbone."""
        return self.init == "identity"

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Graft a scale and shift after every operation."""
        graft = partial(ScaleShift, init=self.init, scale=self.scale, shift=self.shift)
        left_out = Sites() if self.stages else sites.between
        if "embedding" in self.without:
            left_out = Sites((*left_out, *sites.before))
        followed = sites.where(lambda s: self._follows(s) and s not in left_out)
        return [
            Swap(s, partial(graft, site=s)) for s in need(followed, "ssf", "a linear map or a norm")
        ]

    def _follows(self, site: Site) -> bool:
        behind_map = site.role in AFTER or (site.role in CONVOLVED and "bias" in site.params)
        kept = site.depth < (self.layers or site.depth + 1)
        left_out = any(site.role in OPERATIONS[o] for o in self.without)
        if site.role is Role.NORM and site.depth < 0:
            left_out = False
        return (
            behind_map and kept and not left_out and (self.scale != "none" or absorbs_shift(site))
        )
