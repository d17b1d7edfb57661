"""What is no model, method, folder or number is refused in one line, where it comes in."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from nets import images, tiny
from torch import nn

import lowtide
from lowtide import METHODS, LowtideError, MultiAdapter, StepConfig, apply, create, load, plan

LORA = METHODS["lora"]()


def traced() -> nn.Module:
    model = tiny("vit").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is old, and still met
        return torch.jit.trace(model, images(model))


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "apply scripted": (lambda: apply(traced(), LORA), "methods come before torch.jit.script"),
    "apply nothing": (lambda: apply(nn.Sequential(), LORA), "Sequential has no weights"),
    "apply 2.5 classes": (lambda: apply(tiny("vit"), LORA, num_classes=2.5), "a whole number"),
    "apply True classes": (lambda: apply(tiny("vit"), LORA, num_classes=True), "a whole number"),
    "apply 1e12 classes": (lambda: apply(tiny("vit"), LORA, num_classes=10**12), "to 1000000"),
    "plan None": (lambda: plan(None, LORA), "plan takes a module, not None"),
    "plan a class": (lambda: plan(nn.Linear, LORA), "plan takes a module, not <class"),
    "plan a dict": (lambda: plan(tiny("vit"), LORA, step={"batch_size": 2}), "is a StepConfig"),
    "plan no step": (lambda: plan(tiny("vit"), LORA, step=None), "is a StepConfig"),
    "plan -1 boxes": (lambda: plan(tiny("vit"), LORA, boxes=-1), "boxes must be a whole number"),
    "plan on numbers": (lambda: plan(tiny("vit"), LORA, examples=3, loss=4), "are functions"),
    "plan a text": (lambda: plan("test_vit", LORA, image_size="x"), "image_size must be a whole"),
    "decompress": (lambda: lowtide.decompress(None), "decompress takes a module, not None"),
    "create None": (lambda: create(None), "model must be text"),
    "create a model": (lambda: create(tiny("vit")), "model must be text"),
    "create -3 pixels": (lambda: create("test_vit", image_size=-3), "from 1 to 16384, not -3"),
    "create drop path": (lambda: create("test_vit", drop_path=2), "from 0 below 1, not 2"),
    "create three bits": (lambda: create("test_vit", frozen_dtype="int3"), "did you mean int8"),
    "create of 3": (lambda: create("test_vit", checkpoint=3), "must be a path, not 3"),
    "load None": (lambda: load(tiny("vit"), None), "folder must be a path, not None"),
    "load bytes": (lambda: load(tiny("vit"), b"x"), "folder must be a path, not b'x'"),
    "load into None": (lambda: load(None, "x"), "load takes a module, not None"),
    "share None": (lambda: MultiAdapter(None), "MultiAdapter takes a module, not None"),
    "share a list": (lambda: MultiAdapter(tiny("vit"), ["x"]), "are folders by their names"),
    "share a text": (lambda: MultiAdapter(tiny("vit"), "x"), "are folders by their names"),
    "share no folder": (lambda: MultiAdapter(tiny("vit"), {"a": None}), "folder must be a path"),
    "share no rows": (lambda: MultiAdapter(tiny("vit"), rows_at_once=0), "a whole number from 1"),
    "share 2.5 rows": (lambda: MultiAdapter(tiny("vit"), rows_at_once=2.5), "a whole number"),
    "fit into 3": (lambda: lowtide.fit("test_vit", "x", output=3), "output must be a path, not 3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_type_is_refused_in_one_line(name: str) -> None:
    call, said = WRONG[name]
    with pytest.raises(LowtideError) as refusal:
        call()
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_nothing_is_put_on_a_model_that_could_not_train_it() -> None:
    model = tiny("vit")
    with torch.inference_mode(), pytest.raises(LowtideError, match="apply outside of it"):
        apply(model, LORA)
    assert apply(model, LORA).trainable_counts()[0]
    assert plan("test_vit", LORA, step=StepConfig(batch_size=2)).peak_bytes
