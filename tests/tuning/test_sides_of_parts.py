"""Side networks beside the blocks of a backbone that gives feature maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from kinds_of_models import MODELS, SIDE, loss
from nets import near, stir, wake
from torch import Tensor, nn

import lowtide
from lowtide import METHODS, POLICIES, compress
from lowtide.core.method import Beside
from lowtide.core.outputs import tensors
from lowtide.errors import Unsupported
from lowtide.tuning.left_out import LeftOutWarning
from lowtide.tuning.tuned import Tuned

pytestmark = pytest.mark.filterwarnings(f"ignore::{LeftOutWarning.__module__}.LeftOutWarning")

SIDES: dict[str, dict[str, Any]] = {
    "s2a": {"bias": False, "prompt": False},
    "dtl": {"start_block": 1},
    "lst": {"init": "identity"},
    "unipt": {},
}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()


def extractor() -> nn.Module:
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 2}
    net = timm.create_model("vit_tiny_patch16_224", features_only=True, out_indices=(2,), **small)
    return wake(net).double().eval()


def tuned(method: str, model: nn.Module, **options: Any) -> Tuned:
    found = lowtide.apply(model, METHODS[method](**options))
    stir(found)
    return found.eval()


def blocks_of(model: Any) -> tuple[Any, nn.ModuleList]:
    """The ViT inside of timm's extractor."""
    return model.model, model.model.blocks


def stem(model: Any, x: Tensor) -> Tensor:
    vit, _ = blocks_of(model)
    return vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(x))))


def as_map(vit: Any, x: Tensor) -> Tensor:
    side = round((x.shape[1] - vit.num_prefix_tokens) ** 0.5)
    return x[:, vit.num_prefix_tokens :].mT.unflatten(2, (side, side))


def test_dtl_corrects_the_map_that_is_read() -> None:
    made = tuned("dtl", extractor(), start_block=1)
    vit, blocks = blocks_of(made.model)
    side, h = made.sides["dtl"], 0
    x = stem(made.model, IMAGES)
    for i, block in enumerate(blocks):
        down, up = side.layers[f"model-blocks-{i}"]
        h = h + x @ down.weight.T @ up.weight.T
        x = block(x) + h * torch.sigmoid(100 * h)
    (found,) = made(IMAGES)
    near(found, as_map(vit, x))
    assert (found - as_map(vit, stem(made.model, IMAGES))).abs().max() > 1e-3


def test_s2a_adds_its_branch_to_the_map_that_is_read() -> None:
    made = tuned("s2a", extractor(), bias=False, prompt=False)
    vit, blocks = blocks_of(made.model)
    side, y = made.sides["s2a"], None
    x = stem(made.model, IMAGES)
    for i, block in enumerate(blocks):
        x = block(x)
        pooled = x.unflatten(-1, (-1, 8)).mean(-1)
        branch = side.branches[f"model-blocks-{i}"]
        z = F.relu(branch.norm1(branch.pw1(pooled if y is None else pooled + y)))
        patches = branch.dw(as_map(vit, z)).flatten(2).mT
        y = branch.norm3(branch.pw2(F.relu(branch.norm2(_joined(z, patches)))))
    last = side.maps[f"model-blocks-{len(blocks) - 1}"]
    (found,) = made(IMAGES)
    near(found, as_map(vit, x + last(y)))
    with made.disable_adapter():
        near(made(IMAGES)[0], as_map(vit, x))


def _joined(z: Tensor, patches: Tensor) -> Tensor:
    return torch.cat([z[:, : z.shape[1] - patches.shape[1]], patches], 1)


@pytest.mark.parametrize("method", SIDES)
def test_nothing_of_a_pass_stays_for_the_next_one(method: str) -> None:
    model = extractor()
    plain = tensors(model(IMAGES))
    made = tuned(method, model, **SIDES[method])
    first, second = (tensors(made(IMAGES)) for _ in range(2))
    near(first[0], second[0])
    assert (first[0] - plain[0]).abs().max() > 1e-3
    assert not any("forward" in m.__dict__ for m in made.model.modules())
    near(tensors(made.model(IMAGES))[0], plain[0])


@pytest.mark.parametrize("method", SIDES)
def test_what_is_saved_gives_the_same_maps(method: str, tmp_path: Path) -> None:
    made = tuned(method, extractor(), **SIDES[method])
    made.save_pretrained(tmp_path)
    near(tensors(lowtide.load(extractor(), tmp_path)(IMAGES))[0], tensors(made(IMAGES))[0])


@pytest.mark.parametrize("policy", ["exact", "tight"])
@pytest.mark.parametrize("kind", ["rcnn_swin", "smp_timm"])
@pytest.mark.parametrize("method", ["s2a", "dtl"])
def test_a_detector_and_a_segmenter_train_with_them(kind: str, method: str, policy: str) -> None:
    torch.manual_seed(0)
    made = lowtide.apply(wake(MODELS[kind][2]()), METHODS[method]()).train()
    compress(made, POLICIES[policy]())
    made.checkpointing = True
    loss(made, kind, torch.rand(2, 3, SIDE, SIDE)).backward()
    trained = [p for p in made.sides.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)


def test_networks_with_tokens_of_their_own_are_refused() -> None:
    for name, kind in METHODS.items():
        model = extractor()
        try:
            beside = [e for e in kind().edits(_sites(model)) if isinstance(e, Beside)]
        except Unsupported:
            continue
        if any(not e.maps for e in beside):
            with pytest.raises(Unsupported, match=f"{name} runs beside the blocks, with tokens"):
                lowtide.apply(model, kind())


def _sites(model: nn.Module) -> Any:
    return lowtide.apply(model, METHODS["bias"]()).sites


def test_a_plan_of_s2a_on_a_part_counts_what_trains() -> None:
    model = extractor().float()
    trained, _ = lowtide.apply(extractor(), METHODS["s2a"]()).trainable_counts()
    step = lowtide.StepConfig(batch_size=2)
    planned = lowtide.plan(model, METHODS["s2a"](), step=step, image_size=(32, 32))
    assert planned.trainable_parameters == trained
