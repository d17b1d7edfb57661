"""Bias: exactly the biases, by exact name."""

from __future__ import annotations

import pytest
from counts import on_meta, trained
from nets import backward, images, near, tiny

import lowtide
from lowtide.methods.bias import Bias


@pytest.mark.parametrize(
    "backbone, count",
    [("vit", 102_912), ("swin", 137_216), ("convnext", 130_304), ("resnet50", 26_560)],
)
def test_count(backbone: str, count: int) -> None:
    assert trained(backbone, Bias()) == count


def test_a_relative_position_bias_table_is_no_bias() -> None:
    tuned = on_meta("swin", Bias())
    names = [n for n, p in tuned.named_parameters() if p.requires_grad]
    assert not [n for n in names if "table" in n]
    assert {n.rpartition(".")[2] for n in names if "head" not in n} == {"bias"}


def test_gradients_are_those_of_full_training() -> None:
    model = tiny("vit").eval()
    reference = tiny("vit").eval().requires_grad_(True)
    tuned = lowtide.apply(model, Bias()).eval()
    x = images(model)
    backward(tuned, x)
    backward(reference, x)
    expected = dict(reference.named_parameters())
    for name, p in model.named_parameters():
        if p.grad is not None:
            near(p.grad, expected[name].grad)
