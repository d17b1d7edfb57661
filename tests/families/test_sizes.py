"""Images that are no square, and images of another size than the backbone was made for."""

from __future__ import annotations

import pytest
import torch
from nets import FEW, backward, images, wake
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lowtide.errors import Unsupported
from lowtide.methods.dtl import DTL
from lowtide.methods.s2a import S2A
from lowtide.tuning.applying import apply


def vit(**options: object) -> nn.Module:
    model = VisionTransformer(
        img_size=(48, 64), patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=FEW,
        **options,
    )  # fmt: skip
    return wake(model.double())


@pytest.mark.parametrize("method", [S2A(), DTL(plus=True, kernel=3)], ids=["s2a", "dtl+"])
def test_a_grid_that_is_no_square(method) -> None:
    tuned = apply(vit(), method)
    blocks = [s for s in tuned.sites if s.role == "block"]
    assert {s.grid for s in blocks} == {(6, 8)}
    x = images(tuned.backbone)
    backward(tuned, x)
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)


def test_the_branch_convolves_height_by_width() -> None:
    """A filter that reads what is below carries a change one row up and no further."""
    tuned = apply(vit(), S2A())
    branch = next(iter(tuned.sides["s2a"].branches.values()))
    with torch.no_grad():
        branch.dw.weight.zero_()
        branch.dw.weight[:, 0, 2, 1] = 1
    y = torch.zeros(1, 1 + 48, 4, dtype=torch.float64)
    y[0, 1 + 2 * 8 + 5] = 1  # row 2, column 5
    moved = branch._depthwise(y, branch.grid)[0, 1:].sum(1).nonzero().flatten().tolist()
    assert moved == [1 * 8 + 5]


def test_another_size_than_the_branch_was_made_for_is_refused_in_one_line() -> None:
    tuned = apply(vit(dynamic_img_size=True), S2A(prompt=False)).eval()
    tuned(images(tuned.backbone))
    with pytest.raises(Unsupported, match="6 x 8 patches, and the image has 16") as refusal:
        tuned(torch.randn(1, 3, 32, 32, dtype=torch.float64))
    assert "\n" not in str(refusal.value)
