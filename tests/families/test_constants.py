"""Buffers that follow from a module's sizes: one for all that are equal, and the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import FEW, images, wake
from timm.models.beit import Beit
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import nn

from lowtide.memory.compress import compress
from lowtide.methods.lora import LoRA
from lowtide.planning.simulate import tune_on_meta
from lowtide.tuning.applying import apply

WINDOWED = {"window_size": 4, "embed_dim": 32, "depths": (2, 4), "num_heads": (2, 4)}
GRID = MaxxVitTransformerCfg(dim_head=8, window_size=(4, 4), grid_size=(4, 4))
BACKBONES = {
    "swin": lambda: SwinTransformer(img_size=32, patch_size=2, num_classes=FEW, **WINDOWED),
    "swin_v2": lambda: SwinTransformerV2(img_size=32, patch_size=2, num_classes=FEW, **WINDOWED),
    "beit": lambda: Beit(
        img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=FEW,
        use_rel_pos_bias=True, use_abs_pos_emb=False,
    ),
    "maxvit": lambda: MaxxVit(
        MaxxVitCfg(
            embed_dim=(24, 32), depths=(2, 2), block_type=("M", "M"), stem_width=24,
            transformer_cfg=GRID,
        ),
        img_size=64,
        num_classes=FEW,
    ),
}  # fmt: skip
# An index of 8-byte numbers for each size of window. Swin: windows of 16 places; of the first stage
# 16 a mask, of the second 4, one byte a number.
BYTES = {
    "swin": 8 * 16**2 + (16 + 4) * 16**2,
    "swin_v2": 8 * 16**2 + (16 + 4) * 16**2,
    "beit": 8 * 17**2,
    "maxvit": 8 * 16**2,
}
names = pytest.mark.parametrize("name", BACKBONES)


def backbone(name: str) -> nn.Module:
    torch.manual_seed(0)
    return wake(BACKBONES[name]().double()).eval()


def constants(model: nn.Module) -> dict[str, torch.Tensor]:
    wanted = ("relative_position_index", "attn_mask")
    named = model.named_buffers(remove_duplicate=False)
    return {path: b for path, b in named if path.rpartition(".")[2] in wanted}


def storages(model: nn.Module) -> int:
    """Bytes of the storages behind them, each once."""
    every = {b.untyped_storage().data_ptr(): b for b in constants(model).values()}
    return sum(b.untyped_storage().nbytes() for b in every.values())


@names
def test_equal_constants_are_held_once_and_say_the_same(name) -> None:
    plain = backbone(name)
    before = constants(plain)
    tuned = apply(copy.deepcopy(plain), LoRA()).eval()
    after = constants(tuned.model)
    assert before.keys() == after.keys() and len(before) > 2
    for path, value in before.items():
        assert torch.equal(after[path].to(value.dtype), value)
    assert storages(tuned.model) == BYTES[name] < storages(plain) / 2
    x = images(plain)
    shared = tuned(x)
    torch.testing.assert_close(shared, plain(x), rtol=1e-9, atol=1e-9)
    forget(tuned)
    assert torch.equal(shared, tuned(x))


@names
def test_a_gradient_through_them_is_the_same_to_the_bit(name) -> None:
    found = []
    for change in (lambda model: None, forget):
        torch.manual_seed(1)
        tuned = compress(apply(backbone(name), LoRA()), "tight").train()
        change(tuned)
        tuned(images(tuned.backbone)).square().sum().backward()
        found.append([p.grad for p in tuned.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def forget(model: nn.Module) -> None:
    """Give each module its own again, as timm makes them."""
    for module in model.modules():
        for key, value in module._buffers.items():
            if key in ("relative_position_index", "attn_mask") and value is not None:
                whole = value.double() if value.dtype == torch.int8 else value.clone()
                module._buffers[key] = whole


@names
def test_they_stay_shared_when_moved_and_copied(name) -> None:
    tuned = apply(backbone(name), LoRA())
    moved = copy.deepcopy(tuned)._apply(torch.clone)
    for other in (copy.deepcopy(tuned), moved, tuned.float()):
        assert storages(other.model) == BYTES[name]
        assert len({id(b) for b in constants(other.model).values()}) <= 3


@names
def test_a_plan_knows_them_without_their_numbers(name) -> None:
    planned = constants(tune_on_meta(BACKBONES[name](), LoRA()).model)
    real = constants(apply(backbone(name), LoRA()).model)
    assert [(p, b.shape, b.dtype) for p, b in planned.items()] == [
        (p, b.shape, b.dtype) for p, b in real.items()
    ]
    for path, b in planned.items():
        shared = [p for p, c in planned.items() if c is b]
        assert shared == [p for p, c in real.items() if c is real[path]]


@names
def test_they_come_out_of_a_merge_as_they_went_in(name) -> None:
    tuned = apply(backbone(name), LoRA()).eval()
    x = images(tuned.backbone)
    wanted = tuned(x)
    merged = tuned.merge_and_unload().eval()
    torch.testing.assert_close(merged(x), wanted, rtol=1e-9, atol=1e-9)
    assert not constants(merged).keys() & merged.state_dict().keys()


def test_what_somebody_wrote_to_stays_as_it_is() -> None:
    plain = backbone("swin")
    block = plain.layers[0].blocks[1]
    block.attn_mask[0, 0, 5] = -0.5
    plain.layers[0].blocks[0].attn.relative_position_index[3, 4] = 0
    x = images(plain)
    wanted = plain(x)
    tuned = apply(copy.deepcopy(plain), LoRA()).eval()
    assert torch.equal(tuned(x), wanted)
    assert tuned.model.layers[0].blocks[1].attn_mask.dtype == torch.float64


@pytest.mark.filterwarnings("ignore::UserWarning")  # of timm's resampling
def test_another_size_of_the_images_makes_them_anew() -> None:
    plain = backbone("swin")
    tuned = apply(copy.deepcopy(plain), LoRA()).eval()
    for model in (plain, tuned.model):
        model.set_input_size((48, 48), window_size=6)
    x = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    assert torch.equal(tuned(x), plain(x))
    tuned.double()
    assert torch.equal(tuned(x), plain(x))
    assert storages(tuned.model) == 8 * 36**2 + (16 + 4) * 36**2


def test_a_refusal_leaves_them_alone() -> None:
    plain = backbone("swin")
    before = constants(plain)
    with pytest.raises(ValueError, match="num_classes"):
        apply(plain, LoRA(), num_classes=0)
    with pytest.raises(Exception, match="lora"):
        apply(plain, LoRA(roles=("conv",)))
    assert all(constants(plain)[path] is b for path, b in before.items())
