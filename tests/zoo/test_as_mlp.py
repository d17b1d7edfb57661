"""AS-MLP: the paper's sizes, its shift written out position by position, and timm's manners."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from nets import FEW, near, wake
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import lowtide
from lowtide.core.site import Layout, Role
from lowtide.families import family_of, measure
from lowtide.methods.bias import Bias
from lowtide.methods.linear import Linear
from lowtide.methods.lora import LoRA
from lowtide.methods.ssf import SSF
from lowtide.versions import on_meta
from lowtide.zoo.as_mlp import AsMlp, AxialShift, AxialShiftedBlock, PatchMerging, axial_shift


def small(**options: object) -> AsMlp:
    sizes = {"embed_dim": 16, "depths": (1, 2), "shift_size": 3, "num_classes": FEW}
    return wake(AsMlp(**{**sizes, **options}).double()).eval()


@pytest.mark.parametrize(
    "size, million, giga", [("tiny", 28, 4.4), ("small", 50, 8.5), ("base", 88, 15.2)]
)
def test_the_paper_s_sizes(size: str, million: int, giga: float) -> None:
    """Multiplications of the convolutions alone; the paper counts norms and sums as well."""
    with on_meta():
        model = timm.create_model(f"as_mlp_{size}")
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 224, 224))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == million
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga, rel=0.015)


def shifted(x: Tensor, groups: int, axis: int) -> Tensor:
    """The shift as a loop: channel c of run g takes its value from where g says, or zero."""
    y, run = torch.zeros_like(x), -(-x.shape[1] // groups)
    for c in range(x.shape[1]):
        step = c // run - groups // 2
        for p in range(x.shape[axis]):
            if 0 <= p - step < x.shape[axis]:
                y[:, c].select(axis - 1, p).copy_(x[:, c].select(axis - 1, p - step))
    return y


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize(
    "groups, shape", [(5, (2, 96, 7, 6)), (5, (1, 10, 1, 2)), (3, (2, 8, 4, 5)), (1, (1, 4, 3, 3))]
)
def test_the_shift(groups: int, shape: tuple[int, ...], axis: int) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    near(axial_shift(x, groups, axis), shifted(x, groups, axis), 0)


def test_five_groups_move_by_two_one_none_one_and_two() -> None:
    x = torch.tensor([1.0, 2, 3, 4]).expand(1, 5, 1, 4)
    expected = [[3, 4, 0, 0], [2, 3, 4, 0], [1, 2, 3, 4], [0, 1, 2, 3], [0, 0, 1, 2]]
    assert axial_shift(x, 5, 3)[0, :, 0].tolist() == expected


def projected(x: Tensor, map_: nn.Conv2d) -> Tensor:
    return torch.einsum("oc,bchw->bohw", map_.weight[:, :, 0, 0], x) + map_.bias[:, None, None]


def normalised(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Mean and variance over channels and positions of one image together."""
    mean = x.mean((1, 2, 3), keepdim=True)
    std = (x.var((1, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    return norm.weight[:, None, None] * (x - mean) / std + norm.bias[:, None, None]


def test_the_axial_shift_written_out() -> None:
    module = wake(AxialShift(10, 5).double())
    x = torch.randn(2, 10, 6, 7, dtype=torch.float64)
    h = F.gelu(normalised(projected(x, module.proj_in), module.norm1))
    across = F.gelu(projected(shifted(h, 5, 3), module.proj_w))
    down = F.gelu(projected(shifted(h, 5, 2), module.proj_h))
    near(module(x), projected(normalised(across + down, module.norm2), module.proj_out))


def test_the_block_written_out() -> None:
    block = small().stages[1].blocks[0]
    x = torch.randn(2, 32, 4, 4, dtype=torch.float64)
    y = x + block.shift(normalised(x, block.norm1))
    hidden = F.gelu(projected(normalised(y, block.norm2), block.mlp.fc1))
    assert block.mlp.fc1.out_channels == 128
    near(block(x), y + projected(hidden, block.mlp.fc2))


def test_merging_puts_four_neighbours_side_by_side() -> None:
    module = wake(PatchMerging(3).double())
    x = torch.randn(2, 3, 3, 4, dtype=torch.float64)
    padded = torch.cat([x, torch.zeros(2, 3, 1, 4)], 2)
    around = torch.zeros(2, 12, 2, 2, dtype=torch.float64)
    for i, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        for h in range(2):
            for w in range(2):
                around[:, 3 * i : 3 * i + 3, h, w] = padded[:, :, 2 * h + row, 2 * w + column]
    assert module.reduction.bias is None
    weight = module.reduction.weight[:, :, 0, 0]
    near(module(x), torch.einsum("oc,bchw->bohw", weight, normalised(around, module.norm)))


@pytest.mark.parametrize("size", [(32, 32), (50, 71), (8, 4)])
def test_any_image_size(size: tuple[int, int]) -> None:
    assert small()(torch.randn(2, 3, *size, dtype=torch.float64)).shape == (2, FEW)


def test_it_is_a_timm_model() -> None:
    model = timm.create_model("as_mlp_tiny", num_classes=7, in_chans=1, drop_path_rate=0.3).eval()
    x = torch.randn(2, 1, 64, 64)
    assert model.pretrained_cfg["input_size"] == (3, 224, 224) and model.in_chans == 1
    assert model.get_classifier() is model.head.fc and model.num_features == 768
    assert model.get_submodule(model.pretrained_cfg["classifier"]) is model.get_classifier()
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).in_channels == 1
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert features.shape == (2, 768, 2, 2)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model(x), model.get_classifier()(pooled))
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(3, "max")
    assert model.num_classes == 3 and model(x).shape == (2, 3)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), features.amax((2, 3)))
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), features)


def test_stochastic_depth_grows_with_depth_and_acts_in_training_only() -> None:
    model = timm.create_model("as_mlp_tiny", drop_path_rate=0.2)
    blocks = [b for stage in model.stages for b in stage.blocks]
    rates = [(b.drop_path1.drop_prob, b.drop_path2.drop_prob) for b in blocks]
    assert rates[0] == (0, 0) and rates[-1] == pytest.approx((0.2, 0.2)) and rates == sorted(rates)
    model, x = small(drop_path_rate=0.5), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    near(model(x), model(x))
    model.train()
    assert (model(x) - model(x)).abs().max() > 1e-3
    dropped, x = AxialShiftedBlock(8, 3, 4.0, drop_path=1.0).train(), torch.randn(2, 8, 4, 4)
    near(dropped(x), x, 0)


def test_timm_takes_its_stages_as_features() -> None:
    model = timm.create_model("as_mlp_tiny", features_only=True, out_indices=(1, 3))
    maps = model(torch.randn(1, 3, 64, 64))
    assert [m.shape for m in maps] == [(1, 192, 8, 8), (1, 768, 2, 2)]
    assert model.feature_info.channels() == [192, 768] and model.feature_info.reduction() == [8, 32]


def test_there_are_no_weights_to_load() -> None:
    assert not timm.is_model_pretrained("as_mlp_base")
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        timm.create_model("as_mlp_tiny", pretrained=True)


def test_it_compiles_without_a_break() -> None:
    model, x = small(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.compiler.reset()
    near(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


def test_sites() -> None:
    model = small()
    assert family_of(model).name == "as_mlp"
    sites = measure(model, family_of(model))
    assert {f"{s.path}.{p}" for s in sites for p in s.params} == {
        n for n, _ in model.named_parameters()
    }
    inside = {
        s.path.removeprefix("stages.1.blocks.1."): (s.role, s.in_dim, s.dim)
        for s in sites
        if s.depth == 2 and s.role is not Role.BLOCK
    }
    assert inside == {
        "norm1": (Role.NORM, 32, 32),
        "norm2": (Role.NORM, 32, 32),
        "shift.proj_in": (Role.LINEAR, 32, 32),
        "shift.proj_w": (Role.LINEAR, 32, 32),
        "shift.proj_h": (Role.LINEAR, 32, 32),
        "shift.proj_out": (Role.LINEAR, 32, 32),
        "shift.norm1": (Role.OTHER, 32, 32),
        "shift.norm2": (Role.OTHER, 32, 32),
        "mlp": (Role.MLP, 32, 32),
        "mlp.fc1": (Role.FC1, 32, 128),
        "mlp.act": (Role.ACT, 128, 128),
        "mlp.fc2": (Role.FC2, 128, 32),
    }
    assert {s.layout for s in sites if s.role is not Role.HEAD} == {Layout.FIRST}
    assert [s.path for s in sites.of(Role.DOWN)] == ["stages.1.downsample.reduction"]


WIDTHS = 2 * 128 + 2 * 256 + 18 * 512 + 2 * 1024
"""Channels of AS-MLP-B, summed over its blocks."""
HEAD = 102_500


@pytest.mark.parametrize(
    "method, count, printed",
    [
        (Linear(), 0, "0.10"),
        (Bias(), 13 * WIDTHS + 2 * 128 + 4 * 896 + 1024, "0.26"),
        (SSF(), 2 * (11 * WIDTHS + 2 * 128 + 4 * 896 + 1024), None),
        (SSF(stages=False), 267_264, None),
        (SSF(stages=False, without=("embedding",)), 266_752, "0.37"),
        (LoRA(rank=8), 8 * (4 * 2 + 2 * 5) * WIDTHS, None),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, int) else None,
)
def test_counts_on_as_mlp_b(method, count: int, printed: str | None) -> None:
    """Millions with the head of 100 classes, rounded as SSF's table 5 prints them."""
    with on_meta():
        model = timm.create_model("as_mlp_base", num_classes=100)
        trained = lowtide.apply(model, method).trainable_counts()[0]
    assert trained == count + HEAD
    assert printed is None or f"{trained / 1e6:.2f}" == printed
