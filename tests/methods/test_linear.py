"""Linear probing: the classifier and nothing else, and no graph below it."""

from __future__ import annotations

import pytest
from counts import NAMES, trained
from nets import FEW, backward, cotangent, images, near, tiny

import lowtide
from lowtide.methods.linear import Linear


@pytest.mark.parametrize("backbone", NAMES)
def test_count(backbone: str) -> None:
    assert trained(backbone, Linear()) == 0


def test_features_carry_no_graph_and_the_head_gets_the_softmax_regression_gradient() -> None:
    model = tiny("vit").eval()
    x = images(model)
    features = model.forward_head(model.forward_features(x), pre_logits=True).detach()
    tuned = lowtide.apply(model, Linear(), num_classes=FEW).eval()
    logits = tuned(x)
    assert not model.forward_features(x).requires_grad
    near(logits, features @ model.head.weight.T + model.head.bias)
    backward(tuned, x, seed=5)
    near(model.head.weight.grad, cotangent(logits, 5).T @ features)
    near(model.head.bias.grad, cotangent(logits, 5).sum(0))
