"""Roles by what a module does, variants included; what is read from outside has none."""

from __future__ import annotations

import pytest
import timm
import timm.layers as tl
import torch
from nets import FEW, backward, images, near, stir, tiny, wake
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from lowtide import StepConfig, compress, plan
from lowtide.core.site import Layout, Role
from lowtide.families import FAMILIES, GENERIC, family_of, measure
from lowtide.families.kinds import channel_axis, is_map, is_norm
from lowtide.memory.attention import holds_attention
from lowtide.methods.bias import Bias
from lowtide.methods.lora import LoRA
from lowtide.methods.ssf import SSF
from lowtide.tuning.applying import apply
from lowtide.versions import on_meta

pytestmark = pytest.mark.filterwarnings("ignore:.* places of its kind")

NAMES = ("efficientnet_b0", "regnety_002", "mobilenetv3_small_100", "densenet121")
NAMES += ("mobilenetv2_100", "mobilenetv4_conv_small", "resnetv2_50x1_bit", "xcit_nano_12_p16_224")


@pytest.mark.parametrize("name", ["levit_128s", "tiny_vit_5m_224"])
def test_what_a_model_keeps_of_an_answer_stands_in_no_way(name: str) -> None:
    model = timm.create_model(name, num_classes=FEW).eval()
    wanted = plan(model, Bias(), step=StepConfig(batch_size=2))
    answer = model(torch.ones(1, 3, 224, 224))  # keeps biases with their graph
    assert plan(model, Bias(), step=StepConfig(batch_size=2)) == wanted
    tuned = apply(model, Bias()).eval()
    assert torch.equal(tuned(torch.ones(1, 3, 224, 224)), answer)


@pytest.mark.parametrize("name", NAMES)
def test_ssf_finds_every_norm(name: str) -> None:
    with on_meta():
        model = timm.create_model(name, num_classes=FEW)
        norms = {p for p, m in model.named_modules() if is_norm(m)}
        assert len(norms) > 20
        assert {s.path for s in measure(model, family_of(model)).of(Role.NORM)} == norms
        state = apply(model, SSF()).adapter_state()
    assert norms <= {key.partition("/")[0] for key in state if key.endswith("/ssf/gamma")}


@pytest.mark.parametrize(
    "module, layout",
    [
        (tl.BatchNormAct2d(6), Layout.FIRST),
        (tl.GroupNormAct(6, 2), Layout.FIRST),
        (tl.LayerNorm2d(6), Layout.FIRST),
        (tl.LayerNormAct2d(6), Layout.FIRST),
        (tl.FrozenBatchNormAct2d(6), Layout.FIRST),
        (FrozenBatchNorm2d(6), Layout.FIRST),
        (nn.SyncBatchNorm(6), Layout.FIRST),
        (nn.InstanceNorm2d(6, affine=True), Layout.FIRST),
        (tl.LayerNorm(6), Layout.LAST),
        (tl.RmsNorm(6), Layout.LAST),
        (nn.RMSNorm(6), Layout.LAST),
        (tl.SimpleNorm(6), Layout.LAST),
    ],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize("square", [False, True])
def test_norms_of_every_kind(module: nn.Module, layout: Layout, square: bool) -> None:
    other = 6 if square else 5
    assert is_norm(module) and GENERIC.role("x", module) is Role.NORM
    shape = (1, 6, other, other) if layout is Layout.FIRST else (1, other, other, 6)
    assert channel_axis(module, shape) is layout
    assert channel_axis(module, ()) is layout


def test_a_norm_over_the_last_axis_of_its_own_making_is_measured() -> None:
    class First(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.movedim(1, -1)).movedim(-1, 1)

    norm = First(6)
    assert channel_axis(norm, norm(torch.randn(1, 6, 4, 4)).shape) is Layout.FIRST


@pytest.mark.parametrize(
    "module",
    [
        tl.Conv2dSame(3, 4, 3),
        tl.StdConv2d(3, 4, 3),
        tl.ScaledStdConv2d(3, 4, 3),
        nn.MultiheadAttention(8, 2).out_proj,
    ],
    ids=lambda m: type(m).__name__,
)
def test_maps_of_every_kind(module: nn.Module) -> None:
    assert is_map(module) and GENERIC.role("x", module) in {Role.CONV, Role.LINEAR}


class Reads(nn.Module):
    """Attention takes its last map's weight, and one map's weight is asked for its device."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.asked = nn.Linear(3, 8), nn.Linear(8, 8)
        self.attn, self.plain = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)
        self.unused, self.fc = nn.Linear(8, 8), nn.Linear(8, FEW)
        self.pretrained_cfg = {"input_size": (3, 8, 8)}

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(2).mT).to(self.asked.weight.device)
        x = self.asked(x)
        x = x + self.attn(x, x, x)[0]
        return self.fc(self.plain(x).mean(1))


def test_nothing_is_grafted_on_what_is_read_from_outside_or_never_called() -> None:
    model = wake(Reads().double())
    found = {s.path: s.role for s in measure(model, GENERIC)}
    assert {p for p, r in found.items() if r is Role.LINEAR} == {"stem", "plain"}
    assert {p for p, r in found.items() if r is Role.OTHER} == {
        "asked", "attn", "attn.out_proj", "unused",
    }  # fmt: skip
    tuned = apply(model, LoRA(rank=2, roles=(Role.LINEAR,)))
    x = images(model)
    backward(tuned, x)
    stir(tuned)
    y = tuned.eval()(x)
    near(tuned.merge_and_unload().eval()(x), y)


class Tied(nn.Module):
    """One map under two names, and one block in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Linear(3, 8), nn.Linear(8, 8)
        self.second, self.block = self.first, nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.again, self.fc = self.block, nn.Linear(8, FEW)
        self.pretrained_cfg = {"input_size": (3, 8, 8)}

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(self.stem(x.flatten(2).mT)).tanh())
        return self.fc(self.again(self.block(x)).mean(1))


@pytest.mark.parametrize("method", [LoRA(rank=2), SSF(), Bias()], ids=lambda m: type(m).__name__)
def test_a_layer_under_two_names_is_one_layer(method) -> None:
    model = wake(Tied().double())
    assert {s.path for s in measure(model, GENERIC).of(Role.LINEAR)} == {"stem", "block.0"}
    tuned = apply(model, method)
    x = images(model)
    backward(tuned, x)
    stir(tuned)
    y = tuned.eval()(x)
    merged = tuned.merge_and_unload().eval()
    assert merged.first is merged.second and merged.block is merged.again
    near(merged(x), y)
    plain = Tied().double().eval()
    plain.load_state_dict(merged.state_dict())
    near(plain(x), y)


def test_a_norm_with_an_activation_is_scaled_in_front_of_it_when_compressed_too() -> None:
    tuned = apply(tiny("efficientnet"), SSF()).eval()
    stir(tuned)
    x = images(tuned.backbone)
    expected = tuned(x)
    near(compress(tuned, "tight")(x), expected)
    near(tuned.merge_and_unload().eval()(x), expected)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.attentions])
def test_the_attention_a_family_names_is_recomputed(name: str) -> None:
    model, kinds = tiny(name), FAMILIES[name].attentions
    blocks = [m for m in model.modules() if any(isinstance(c, kinds) for c in m.children())]
    assert len(blocks) > 1 and all(map(holds_attention, blocks))
