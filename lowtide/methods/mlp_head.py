"""MLP-k: a small network between the frozen features and the classifier. Jia et al. 2022 (VPT)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from ..core.graft import Graft
from ..core.method import Edit, Method, Swap, method, need
from ..core.site import Role, Site, Sites
from ..errors import InputError, Unsupported
from ..values import Index, Share


@method
@dataclass(frozen=True)
class MLPHead(Method):
    """Train an MLP of `layers` linear maps in place of the linear classifier, the backbone frozen.

        h_i = dropout(BN(relu(W_i h_{i-1} + b_i))),   i < k;    logits = W_k h_{k-1} + b_k

    `h_0` is the pooled feature, every hidden layer is as wide, and the last map is the classifier
    that already stands there. W_i ~ Kaiming-normal over its outputs.

    Parameters: `(k - 1) (C^2 + 3 C)` and the classifier; k = 4: ViT-B/16 1,776,384, Swin-B and
    ConvNeXt-B 3,154,944.

    Merge: none, a ReLU stands between the maps.

    Saves:
        Nothing in the backbone. Per image the feature, and per hidden layer C values that ReLU
        gives (BatchNorm reads the same ones), C that the next map reads, and dropout's mask.

    Attributes:
        layers: Linear maps k, the classifier's included.
        dropout: Probability of dropping a hidden value.
    """

    learning_rate: ClassVar[float] = 0.003

    layers: Index = 4
    dropout: Share = 0.1

    def __post_init__(self) -> None:
        if self.layers < 2 or not 0 <= self.dropout < 1:
            raise ValueError(
                "mlp_head needs layers >= 2 and a dropout in [0, 1), not"
                f" layers={self.layers} dropout={self.dropout}; one layer is the method linear"
            )

    @property
    def identity(self) -> bool:
        """No: a random network comes before the classifier."""
        return False

    def edits(self, sites: Sites) -> Iterable[Edit]:
        """Graft the hidden layers in front of the classifier.

        Args:
            sites: Every site of the backbone.

        Returns:
            One edit per classifier; a distilled backbone has two.

        Raises:
            Unsupported: The classifier's input is a map, not one feature per image.
        """
        heads = need(sites.of(Role.HEAD), "mlp_head", "a classifier")
        for s in heads:
            if len(s.in_shape) != 2:
                raise Unsupported(
                    f"mlp_head needs one feature vector per image, and {s.path} is given"
                    f" {s.in_shape}"
                )
        return [Swap(s, partial(MLPHeadGraft, site=s, config=self)) for s in heads]


class MLPHeadGraft(Graft):
    """`base(hidden(x))`."""

    unmergeable: ClassVar[str] = "a ReLU stands between its linear maps"

    def __init__(self, base: nn.Module, site: Site, config: MLPHead) -> None:
        super().__init__(base)
        self.hidden = nn.Sequential()
        for _ in range(config.layers - 1):
            linear = nn.Linear(site.in_dim, site.in_dim)
            nn.init.kaiming_normal_(linear.weight, mode="fan_out", nonlinearity="relu")
            self.hidden.extend([
                linear, nn.ReLU(), nn.BatchNorm1d(site.in_dim), nn.Dropout(config.dropout),
            ])  # fmt: skip

    def ahead(self, x: Tensor) -> Tensor:
        """Run the hidden layers on the classifier's input.

        Args:
            x: Features, `(B, C)`.

        Returns:
            The hidden features, `(B, C)`.

        Raises:
            InputError: A batch of one is to be trained on, which has no statistics.
        """
        if self.training and len(x) < 2:
            raise InputError(
                "mlp_head's BatchNorm cannot train on a batch of 1 image, it needs at least 2;"
                " choose a batch size that leaves no single image over"
            )
        hidden: Tensor = self.hidden(x)
        return hidden
