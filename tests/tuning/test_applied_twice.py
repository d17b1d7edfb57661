"""What cannot be tuned: no model, no method, what is tuned already. And a compressed one can be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import backward, images, near, stir, tiny
from torch import nn

from lowtide import METHODS, InputError, apply, compress
from lowtide.errors import Unsupported

METHOD = METHODS["lora"](rank=2)
UNFIT = [
    (lambda: "vit_tiny_patch16_224", METHOD, "on a model, such as timm.create_model gives, not on"),
    (lambda: tiny("vit"), METHODS["lora"], "a method is an object such as"),
    (lambda: tiny("vit"), "lora", "a method is an object such as .* not 'lora'"),
    (lambda: apply(tiny("vit"), METHOD), METHOD, "the model is tuned already"),
    (lambda: apply(tiny("vit"), METHODS["s2a"]()), METHOD, "the model is tuned already"),
    (lambda: apply(tiny("vit"), METHOD).backbone, METHODS["bias"](), "the model is tuned already"),
    (lambda: nn.Sequential(apply(tiny("vit"), METHOD)), METHOD, "the model is tuned already"),
]


@pytest.mark.parametrize(("model", "method", "said"), UNFIT)
def test_what_is_no_model_or_no_method_is_refused(model: Any, method: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        apply(model(), method)


def test_a_backbone_may_be_compressed_before_it_is_tuned() -> None:
    first = apply(tiny("vit"), METHOD)
    x = images(first.model)
    stir(first)
    compress(first, "tight")
    second = apply(compress(tiny("vit"), "tight"), METHOD)
    second.load_adapter_state(first.adapter_state())
    assert torch.equal(backward(first, x), backward(second, x))
    gradients = dict(second.named_parameters())
    trained = [(n, p) for n, p in first.named_parameters() if p.requires_grad]
    assert trained
    for name, p in trained:
        near(gradients[name].grad, p.grad)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_what_cannot_be_compressed_is_said() -> None:
    with pytest.raises(InputError, match="compress takes a module, not"):
        compress(len, "tight")  # type: ignore[arg-type]
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.GELU()))
    with pytest.raises(Unsupported, match=r"before torch\.jit\.script"):
        compress(nn.Sequential(scripted), "tight")
