"""DTL: published counts, its equations written out, and what the backbone keeps: nothing early."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from counts import on_meta, trained
from nets import FEW, images, near, stir, tiny
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import lowtide
from lowtide.errors import Unsupported
from lowtide.methods.dtl import DTL
from lowtide.tuning.tuned import Tuned


@pytest.mark.parametrize(
    "backbone, method, count",
    [
        ("vit", DTL(), 36_864),
        ("vit", DTL(plus=True, kernel=3), 43_776),
        ("vit", DTL(plus=True, kernel=4), 49_152),
        ("vit", DTL(plus=True), 56_064),
        ("swin", DTL(), 45_056),
        ("swin", DTL(rank=4), 90_112),
        ("swin", DTL(rank=4, plus=True), 128_512),
        ("swin", DTL(rank=4, plus=True, start_block=1), 144_256),
        ("convnext", DTL(), 67_584),
        ("resnet50", DTL(), 36_864),
    ],
    ids=str,
)
def test_count(backbone: str, method: DTL, count: int) -> None:
    assert trained(backbone, method) == count


def places(tuned: Tuned) -> tuple[list[int], list[int]]:
    """Depths, from 0, of the blocks that are read and of those that are corrected."""
    depth = {s.path.replace(".", "-"): s.depth for s in tuned.sites if s.role == "block"}
    side = tuned.sides["dtl"]
    return [depth[k] for k in side.layers], [depth[k] for k in side.stage_of]


@pytest.mark.parametrize(
    "backbone, method, read, corrected",
    [
        ("vit", DTL(), range(12), range(6, 12)),
        ("vit", DTL(start_block=3), range(12), range(2, 12)),
        ("swin", DTL(), range(4, 24), range(14, 24)),
        ("swin", DTL(start_block=4), range(2, 24), range(3, 24)),
        ("convnext", DTL(), range(6, 36), range(21, 36)),
        ("resnet50", DTL(), [8, 9, 10, 11, 12, 14, 15], [11, 12, 14, 15]),
    ],
    ids=str,
)
def test_places(backbone: str, method: DTL, read: range, corrected: range) -> None:
    """A stage is read from its first block; ResNet's first of a stage changes shape and is not."""
    assert places(on_meta(backbone, method)) == (list(read), list(corrected))


def swish(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-100 * x))


def same(x: Tensor, weight: Tensor) -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # even kernels: "may require a padded copy"
        return F.conv2d(x, weight, padding="same", groups=len(weight))


@pytest.mark.parametrize("kernel", [0, 3, 4])
def test_the_equations_on_a_vit(kernel: int) -> None:
    """h += z A^T B^T; from M on z += theta(h), or g(theta(h)) on patches; GAP before the norm."""
    model = tiny("vit").eval()
    method = DTL(plus=kernel > 0, kernel=kernel or 5, start_block=2)
    tuned = lowtide.apply(model, method, num_classes=FEW).eval()
    stir(tuned)
    state, x = tuned.adapter_state(), images(model)
    z = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    h = torch.zeros_like(z)
    for i, block in enumerate(model.blocks):
        a, b = (state[f"./dtl/layers.blocks-{i}.{n}.weight"] for n in (0, 1))
        h += z @ a.T @ b.T
        z = block(z)
        if i >= 1:
            y = swish(h)
            if kernel:
                grid = y[:, 1:].transpose(1, 2).reshape(-1, 32, 4, 4)
                grid = same(grid, state["./dtl/g.0.weight"])
                y = torch.cat([y[:, :1], grid.flatten(2).transpose(1, 2)], 1)
            z = z + y
    features = model.norm(z[:, 1:].mean(1))
    near(tuned(x), features @ model.head.weight.T + model.head.bias)


@pytest.mark.parametrize("family", ["swin", "convnext", "resnet"])
def test_the_equations_on_a_hierarchy(family: str) -> None:
    """h restarts in every stage, and every stage has its own g."""
    model = tiny(family).eval()
    tuned = lowtide.apply(model, DTL(plus=True, kernel=3, start_block=1)).eval()
    stir(tuned)
    state, x = tuned.adapter_state(), images(model)
    z, h, stages = tuned.family.stem(model, x), 0, -1
    first = family != "swin"
    for path in tuned.family.chain(model):
        block, key = model.get_submodule(path), path.replace(".", "-")
        if f"./dtl/layers.{key}.0.weight" not in state:
            z, h = block(z), 0
            continue
        stages += isinstance(h, int)
        a, b = (state[f"./dtl/layers.{key}.{n}.weight"].flatten(1) for n in (0, 1))
        h = h + torch.einsum("b...c,rc,dr->b...d", z.movedim(1, -1) if first else z, a, b)
        y = same(swish(h).movedim(-1, 1), state[f"./dtl/g.{stages}.weight"])
        z = block(z) + (y if first else y.movedim(1, -1))
    assert stages >= 1
    near(tuned(x), model.forward_head(tuned.family.finish(model, z)))


def test_a_is_drawn_as_pytorch_does_and_b_is_zero() -> None:
    state = lowtide.apply(tiny("vit"), DTL(rank=16)).adapter_state()
    a = torch.stack([state[f"./dtl/layers.blocks-{i}.0.weight"] for i in range(4)])
    assert a.abs().max() <= 32**-0.5 and abs(a.std() - (3 * 32) ** -0.5) < 0.01
    assert all(not state[f"./dtl/layers.blocks-{i}.1.weight"].any() for i in range(4))


def test_pooling() -> None:
    model = tiny("vit").eval()
    x = images(model)
    before, z = model(x), model.norm_pre(model._pos_embed(model.patch_embed(x)))
    for block in model.blocks:
        z = block(z)
    tuned = lowtide.apply(model, DTL()).eval()
    near(tuned(x), model.head(model.norm(z[:, 1:].mean(1))))
    near(lowtide.apply(tiny("vit"), DTL(pool="model")).eval()(x), before)
    assert DTL(pool="model").identity and not DTL().identity


def kept_until(tuned: Tuned, last: int) -> tuple[list[int], list[int]]:
    """Bytes autograd keeps besides parameters: up to the end of block `last`, and after it."""
    kept: tuple[list[int], list[int]] = ([], [])
    own = {p.data_ptr() for p in tuned.parameters()}
    done = 0

    def left(block: object, args: object, y: Tensor) -> None:
        nonlocal done
        done += 1
        assert y.requires_grad is (done > last)

    def pack(t: Tensor) -> Tensor:
        if t.data_ptr() not in own:
            kept[done >= last].append(t.nbytes)
        return t

    for block in tuned.backbone.blocks:
        block.register_forward_hook(left)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        tuned(images(tuned.backbone))
    return kept


@pytest.mark.parametrize("plus", [False, True])
def test_up_to_block_m_only_the_csn_s_own_inputs_are_kept(plus: bool) -> None:
    tuned = lowtide.apply(tiny("vit"), DTL(start_block=4, plus=plus)).train()
    u, r = 3 * 17 * 32 * 8, 3 * 17 * 2 * 8
    early, late = kept_until(tuned, 4)
    assert sorted(early) == sorted([u, r] * 4)
    grid = [3 * 16 * 32 * 8] if plus else []
    assert late[: 1 + plus] == [u, *grid]


def test_a_grid_or_a_block_that_is_not_there_is_refused() -> None:
    with pytest.raises(Unsupported, match="dtl starts at block 5, and this backbone has 4"):
        lowtide.apply(tiny("vit"), DTL(start_block=5))
    wide = VisionTransformer((32, 64), 8, embed_dim=32, depth=2, num_heads=2, num_classes=3)
    assert lowtide.apply(wide, DTL()).trainable_counts()[0] == 2 * 2 * 32 * 2 + 33 * 3


@pytest.mark.parametrize("option", [{"rank": 0}, {"start_block": -1}, {"kernel": 0}, {"beta": 0.0}])
def test_wrong_options_are_refused(option: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        DTL(**option)
