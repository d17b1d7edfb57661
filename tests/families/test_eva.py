"""Rotary positions reach every block; extra tokens are not rotated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from nets import FEW, images, near, wake
from timm.models.eva import Eva
from torch import nn

from lowtide.core.site import Role
from lowtide.families import family_of, measure
from lowtide.families.eva import FAMILY
from lowtide.methods.dtl import DTL
from lowtide.tuning.applying import apply

KINDS: dict[str, dict[str, object]] = {
    "eva02": {"use_rot_pos_emb": True, "swiglu_mlp": True, "scale_mlp": True, "qkv_fused": False},
    "post_norm": {"use_rot_pos_emb": True, "use_post_norm": True},
    "no_rope": {"use_rot_pos_emb": False},
    "mixed": {"use_rot_pos_emb": True, "rope_type": "mixed", "dynamic_img_size": True},
    "dinov3": {
        "use_rot_pos_emb": True, "rope_type": "dinov3", "dynamic_img_size": True,
        "attn_type": "rope", "num_reg_tokens": 4, "use_abs_pos_emb": False,
    },
}  # fmt: skip
if not timm.is_model("vit_small_patch16_dinov3"):
    del KINDS["mixed"], KINDS["dinov3"]


def member(kind: str) -> nn.Module:
    model = Eva(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=FEW,
                **KINDS[kind])  # fmt: skip
    return wake(model.double()).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_steps_compose_to_the_forward(kind: str) -> None:
    model = member(kind)
    x = images(model)
    sizes = [x, x[..., :16]] if getattr(model, "dynamic_img_size", False) else [x]
    for given in sizes:
        context = FAMILY.context(model, given.shape[2:])
        assert bool(context) == (kind != "no_rope")
        y = FAMILY.stem(model, given)
        for path in FAMILY.chain(model):
            y = model.get_submodule(path)(y, **context.get(path, {}))
        torch.testing.assert_close(
            model.forward_head(FAMILY.finish(model, y)), model(given), rtol=0, atol=0
        )


@pytest.mark.parametrize("kind", KINDS)
def test_extra_tokens_are_not_rotated(kind: str) -> None:
    """The same as more tokens in front, of which the attention knows."""
    model = member(kind)
    x = FAMILY.stem(model, images(model))
    tokens = torch.randn(len(x), 5, 32, dtype=torch.float64)
    beside = FAMILY.context(model, (32, 32)).get("blocks.1", {})
    block = model.blocks[1]
    y, seen = FAMILY.extend(block, x, tokens, **beside)
    block.attn.num_prefix_tokens += 5
    both = block(torch.cat([tokens, x], 1), **beside)
    near(y, both[:, 5:])
    near(seen, both[:, :5])


def test_separate_projections_are_linear() -> None:
    found = measure(member("eva02"), FAMILY)
    assert family_of(member("eva02")) is FAMILY and not found.of(Role.QKV)
    assert {s.path.rpartition(".")[2] for s in found.of(Role.LINEAR) if s.depth == 0} == {
        "q_proj", "k_proj", "v_proj", "fc1_g", "fc1_x",
    }  # fmt: skip


@pytest.mark.parametrize("kind", sorted({"dinov3", "mixed"} & KINDS.keys()))
def test_another_image_size_has_its_own_positions(kind: str) -> None:
    """A side network that corrects nothing leaves the answer to a smaller image as it was."""
    model = member(kind)
    x = images(model)[..., :16]
    expected = model(x)
    near(apply(model, DTL(pool="model")).eval()(x), expected)


def test_what_drops_patches_is_refused() -> None:
    build: Callable[[], nn.Module] = lambda: Eva(  # noqa: E731
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, patch_drop_rate=0.5
    )
    with pytest.raises(ValueError, match="drops patches"):
        FAMILY.stem(build(), torch.randn(1, 3, 32, 32))
