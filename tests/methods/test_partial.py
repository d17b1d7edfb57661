"""Partial-k: which parameters train, that they are copies, and that nothing is kept below."""

from __future__ import annotations

import pytest
import torch
from counts import trained
from nets import FEW, backward, images, near, stir, tiny
from torch import Tensor, nn

import lowtide
from lowtide.errors import Unsupported
from lowtide.methods.full import Full
from lowtide.methods.partial import Partial


@pytest.mark.parametrize(
    "backbone, blocks, count",
    [
        ("vit", 1, 7_089_408),
        ("vit", 2, 2 * (12 * 768**2 + 13 * 768) + 2 * 768),
        ("swin", 1, 12_603_680),
        ("convnext", 1, 8 * 1024**2 + 60 * 1024),
        ("resnet50", 1, 4_462_592),
    ],
)
def test_count(backbone: str, blocks: int, count: int) -> None:
    assert trained(backbone, Partial(blocks=blocks)) == count


HEADS = {"vit": "head", "swin": "head.fc", "convnext": "head.fc", "resnet": "fc"}
TOPS = {
    ("vit", 1): ("blocks.3.", "norm."),
    ("vit", 3): ("blocks.1.", "blocks.2.", "blocks.3.", "norm."),
    ("swin", 1): ("layers.1.blocks.1.", "norm."),
    ("swin", 3): ("layers.0.blocks.1.", "layers.1.", "norm."),
    ("convnext", 1): ("stages.3.blocks.0.", "head.norm."),
    ("convnext", 2): ("stages.2.blocks.1.", "stages.3.", "head.norm."),
    ("resnet", 2): ("layer3.0.", "layer4.0."),
}


@pytest.mark.parametrize("family, blocks", TOPS, ids=str)
def test_what_trains_is_the_top(family: str, blocks: int) -> None:
    """Whatever its kind: position bias tables, layer scales, what stands between two stages."""
    model = tiny(family)
    top = (*TOPS[family, blocks], HEADS[family])
    expected = {n for n, _ in model.named_parameters() if n.startswith(top)}
    tuned = lowtide.apply(model, Partial(blocks=blocks), num_classes=FEW)
    assert {n for n, p in tuned.backbone.named_parameters() if p.requires_grad} == expected
    assert family != "swin" or any("bias_table" in n for n in expected)


def test_gradients_are_those_of_full_fine_tuning() -> None:
    given, x = {}, None
    for method in (Full(), Partial(blocks=2)):
        model = tiny("swin").eval()
        x = images(model) if x is None else x
        tuned = lowtide.apply(model, method).eval()
        backward(tuned, x)
        given[type(method)] = {n: p.grad for n, p in tuned.named_parameters() if p.grad is not None}
    full, partial = given[Full], given[Partial]
    assert 0 < len(partial) < len(full)
    for n, grad in partial.items():
        near(grad, full[n])


def test_it_trains_copies_and_merges() -> None:
    model = tiny("vit").eval()
    x, own = images(model), dict(model.named_parameters())
    kept, before = {n: p.detach().clone() for n, p in own.items()}, model(x)
    tuned = lowtide.apply(model, Partial()).eval()
    stir(tuned)
    after = tuned(x)
    assert all(torch.equal(p, kept[n]) for n, p in own.items())
    with tuned.disable_adapter():
        near(tuned(x), before)
    near(tuned.merge_and_unload()(x), after)


@pytest.mark.parametrize("family", ["vit", "swin", "convnext", "resnet"])
def test_nothing_is_kept_below_the_first_thawed_block(family: str) -> None:
    tuned = lowtide.apply(tiny(family), Partial(blocks=1), num_classes=FEW).train()
    last = tuned.family.chain(tuned.backbone)[-1]
    kept: list[int] = []
    at_entry: list[int] = []

    def enter(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        at_entry.append(len(kept))

    tuned.backbone.get_submodule(last).register_forward_pre_hook(enter)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.nbytes) or t, lambda t: t
    ):
        tuned(images(tuned.backbone))
    assert at_entry == [0] and len(kept) > 5


def test_refusals() -> None:
    with pytest.raises(ValueError, match="partial needs blocks >= 1, not 0"):
        Partial(blocks=0)
    with pytest.raises(Unsupported, match="partial cannot train the last 5 blocks of 4"):
        lowtide.apply(tiny("vit"), Partial(blocks=5))
    with pytest.raises(Unsupported, match="partial needs a chain of blocks"):
        lowtide.apply(tiny("generic"), Partial())
