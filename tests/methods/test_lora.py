"""LoRA against its equation written out, and its published count."""

from __future__ import annotations

import pytest
import torch
from counts import trained
from nets import images, near, stir, tiny
from torch import Tensor, nn

import lowtide
from lowtide.core.site import Role
from lowtide.errors import Unsupported
from lowtide.methods.lora import LoRA


@pytest.mark.parametrize(
    "backbone, method, count",
    [
        ("vit", LoRA(rank=8), 294_912),
        ("vit", LoRA(rank=48), 1_769_472),
        ("vit", LoRA(rank=8, parts="qkv"), 442_368),
        ("vit", LoRA(rank=4, parts="k"), 12 * 4 * 2 * 768),
        ("vit", LoRA(rank=8, roles=(Role.FC1,)), 12 * 8 * 5 * 768),
        ("vit", LoRA(rank=8, all_linear=True), 12 * 8 * (3 * 2 + 2 + 2 * 5) * 768),
        ("swin", LoRA(rank=8, all_linear=True), 8 * (3 * 2 + 2 + 2 * 5) * 12_032),
        ("convnext", LoRA(rank=8, all_linear=True), 2 * 8 * 5 * 18_048),
        ("swin", LoRA(rank=8), 2 * 8 * 2 * 12_032),
        ("convnext", LoRA(rank=8), 2 * 8 * 5 * 18_048),
        ("convnext", LoRA(rank=1, roles=(Role.CONV,)), (49 + 1) * 18_048),
    ],
    ids=str,
)
def test_count(backbone: str, method: LoRA, count: int) -> None:
    assert trained(backbone, method) == count


def test_the_equation_on_the_query_and_value_slices() -> None:
    """q += s B_q A_q x and v += s B_v A_v x; k stays."""
    model = tiny("vit").eval()
    qkv = model.blocks[1].attn.qkv
    tuned = lowtide.apply(model, LoRA(rank=3, alpha=6.0)).eval()
    stir(tuned)
    state = tuned.adapter_state()
    at = {k.removeprefix("blocks.1.attn.qkv/lora/"): v for k, v in state.items()}
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    a, b = ([at[f"{f}.{i}.weight"] for i in (0, 1)] for f in ("down", "up"))
    q, k, v = (x @ qkv.weight.T + qkv.bias).chunk(3, -1)
    expected = torch.cat([q + 2 * x @ a[0].T @ b[0].T, k, v + 2 * x @ a[1].T @ b[1].T], -1)
    near(model.blocks[1].attn.qkv(x), expected)


@pytest.mark.parametrize("family", ["vit", "swin", "mixer"])
def test_every_linear_map_of_the_blocks_moves_and_nothing_else(family: str) -> None:
    model = tiny(family)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    inside = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "blocks." in n}
    tuned = lowtide.apply(model, LoRA(rank=2, all_linear=True))
    stir(tuned)
    merged = dict(tuned.merge_and_unload().named_parameters())
    moved = {n for n, old in before.items() if not torch.equal(merged[n], old)}
    assert moved - {n for n in moved if n.startswith("head")} == {f"{n}.weight" for n in inside}


def test_a_network_without_linear_maps_gets_its_convolutions() -> None:
    names = [
        sorted(lowtide.apply(tiny("resnet"), LoRA(rank=2, all_linear=every)).adapter_state())
        for every in (False, True)
    ]
    assert names[0] == names[1] and any("conv" in name for name in names[0])


@pytest.mark.parametrize(
    "parts, moved", [("q", [0]), ("k", [1]), ("kq", [0, 1]), ("qkv", [0, 1, 2])]
)
def test_parts_move_their_own_rows_only(parts: str, moved: list[int]) -> None:
    model = tiny("vit")
    before = model.blocks[0].attn.qkv.weight.detach().clone()
    tuned = lowtide.apply(model, LoRA(rank=2, parts=parts))
    stir(tuned)
    change = tuned.merge_and_unload().blocks[0].attn.qkv.weight - before
    rows = [i for i, part in enumerate(change.chunk(3)) if part.abs().max() > 0]
    assert rows == moved
    for i in rows:
        assert torch.linalg.matrix_rank(change.chunk(3)[i]) == 2


def unfolded(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A convolution written as one matrix product over patches, (B, groups, in * taps, L)."""
    patches = nn.functional.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
    return patches.unflatten(1, (conv.groups, -1))


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_the_equation_on_a_convolution(groups: int) -> None:
    conv = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=groups)
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).double()
    model.pretrained_cfg = {"input_size": (8, 6, 6)}
    tuned = lowtide.apply(model, LoRA(rank=2, roles=(Role.CONV,))).eval()
    stir(tuned)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    state = tuned.adapter_state()
    patches = unfolded(x, conv)
    down = state["0/lora/down.0.weight"].flatten(1).unflatten(0, (groups, -1))
    up = state["0/lora/up.0.weight"].flatten(1).unflatten(0, (groups, -1))
    update = (up @ (down @ patches)).flatten(1, 2).unflatten(-1, (3, 3))
    near(model[0](x), conv(x) + update)


def test_dropout_acts_in_training_only() -> None:
    model = tiny("vit")
    tuned = lowtide.apply(model, LoRA(dropout=0.5))
    stir(tuned)
    x = images(model)
    tuned.train()
    assert (tuned(x) - tuned(x)).abs().max() > 1e-6
    tuned.eval()
    near(tuned(x), tuned(x))


@pytest.mark.parametrize(
    "options", [{"rank": 0}, {"parts": "qx"}, {"parts": ""}, {"parts": "qq"}], ids=str
)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="rank >= 1 and parts"):
        LoRA(**options)


def test_roles_and_all_linear_are_one_choice() -> None:
    with pytest.raises(ValueError, match="roles or all_linear, not both"):
        LoRA(all_linear=True, roles=(Role.FC1,))


def test_a_role_the_backbone_lacks_is_refused() -> None:
    with pytest.raises(Unsupported, match="lora.*qkv"):
        lowtide.apply(tiny("resnet"), LoRA(roles=(Role.QKV,)))
