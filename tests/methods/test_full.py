"""Full: published sizes, and the backbone's own weights move."""

from __future__ import annotations

import pytest
from counts import trained
from nets import images, stir, tiny

import lowtide
from lowtide.errors import InputError
from lowtide.methods.bias import Bias
from lowtide.methods.full import Full
from lowtide.methods.lora import LoRA


@pytest.mark.parametrize(
    "backbone, count",
    [("vit", 85_798_656), ("swin", 86_743_224), ("convnext", 87_566_464), ("resnet50", 23_508_032)],
)
def test_count(backbone: str, count: int) -> None:
    assert trained(backbone, Full()) == count


def test_the_backbone_itself_trains() -> None:
    model = tiny("vit")
    before = dict(model.named_parameters())
    tuned = lowtide.apply(model, Full())
    heads = {"head.weight", "head.bias"}
    assert all(p is before[n] for n, p in model.named_parameters() if n not in heads)
    assert tuned.trainable_counts()[0] == tuned.trainable_counts()[1]


def test_no_other_adapter_can_follow_on_an_overwritten_backbone() -> None:
    tuned = lowtide.apply(tiny("vit"), Full())
    with pytest.raises(InputError, match="in place"):
        tuned.add_adapter("b", LoRA())


def test_nor_can_it_be_left_for_an_older_one() -> None:
    model = tiny("vit")
    tuned = lowtide.apply(model, Bias(), name="bias").eval()
    x = images(model)
    tuned.add_adapter("full", Full())
    tuned.set_adapter("full")
    stir(tuned)
    with pytest.raises(InputError, match="in place"):
        tuned.set_adapter("bias")
    assert tuned.active == "full" and tuned(x).isfinite().all()
