"""A tuned model that was pickled or copied computes and trains as it did."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from nets import FEW, TABLES, backward, images, stir, tiny
from torch import nn

import lowtide
from lowtide.families import family_named
from lowtide.methods import METHODS
from lowtide.methods.lora import LoRA
from lowtide.tuning.tuned import Tuned


def saved(model: nn.Module) -> nn.Module:
    """Through `torch.save`, as users write a whole model."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    back: nn.Module = torch.load(file, weights_only=False)
    return back


def pickled(model: nn.Module) -> nn.Module:
    back: nn.Module = pickle.loads(pickle.dumps(model))
    return back


def like(twin: nn.Module, tuned: nn.Module) -> None:
    """The same outputs and gradients to the bit, and nothing shared."""
    x = images(tuned.backbone)
    assert torch.equal(backward(tuned, x), backward(twin, x))
    own, other = dict(tuned.named_parameters()), dict(twin.named_parameters())
    assert own.keys() == other.keys()
    for name, p in own.items():
        assert p.requires_grad == other[name].requires_grad
        assert p.data_ptr() != other[name].data_ptr()
        if p.grad is not None:
            assert torch.equal(p.grad, other[name].grad), name
    for one in (tuned, twin):
        one.zero_grad()


def kept(model: nn.Module) -> int:
    """Bytes that backward reads."""
    meter: set[tuple[int, int]] = set()

    def note(t: torch.Tensor) -> torch.Tensor:
        meter.add((t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()))
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = model(images(model.backbone))
        return sum(size for _, size in meter) + 0 * len(y)


@pytest.mark.parametrize("copied", [pickled, saved, copy.deepcopy], ids=lambda f: f.__name__)
@pytest.mark.parametrize("family", sorted(TABLES))
def test_a_copy_of_any_family_is_the_same(
    family: str, copied: Callable[[nn.Module], nn.Module]
) -> None:
    tuned = lowtide.apply(tiny(family), LoRA(), num_classes=FEW).train()
    stir(tuned)
    twin = copied(tuned)
    assert isinstance(twin, Tuned)
    assert twin.family is tuned.family is family_named(family)
    like(twin, tuned)


@pytest.mark.parametrize(
    ("family", "policy"),
    [("vit", "tight"), ("swin", "s2a"), ("vit", "blocks"), ("generic", "blocks")],
)
def test_what_is_kept_for_backward_is_copied_too(family: str, policy: str) -> None:
    tuned = lowtide.apply(tiny(family), LoRA(), num_classes=FEW).train()
    lowtide.compress(tuned, policy)
    twin = pickled(tuned)
    assert twin.checkpointing == tuned.checkpointing
    like(twin, tuned)
    assert kept(twin) == kept(tuned)
    twin.checkpointing = False
    assert tuned.checkpointing == (policy == "blocks") * tuned.recomputes
    like(lowtide.decompress(twin), lowtide.decompress(pickled(twin)))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_copy_of_any_method_merges_saves_and_leaves_as_it_would(method: str) -> None:
    backbone = tiny("swin" if method == "conv_adapter" else "vit")
    tuned = lowtide.apply(backbone, METHODS[method](), num_classes=FEW).train()
    stir(tuned)
    twin = pickled(tuned)
    like(twin, tuned)
    own, other = tuned.adapter_state(), twin.adapter_state()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[key], other[key]) for key in own)
    if not any(m.overwrites for m in tuned.methods):
        tuned.add_adapter("b", LoRA(), num_classes=3)
        twin = pickled(tuned)
        twin.set_adapter("b")
        twin.set_adapter("default")
        like(twin, tuned)


@pytest.mark.parametrize("dtype", ["bf16", "int8", "nf4", "int4"])
def test_frozen_weights_in_few_bits_stay_in_them(dtype: str) -> None:
    tuned = lowtide.apply(tiny("vit").float(), LoRA(), num_classes=FEW)
    lowtide.set_frozen_dtype(tuned, dtype)
    twin = pickled(tuned)
    assert twin.frozen_dtype == dtype
    assert twin.trainable_counts() == tuned.trainable_counts()
    like(twin, tuned)
