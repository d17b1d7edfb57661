"""The supernet against the networks it holds, each made by itself."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from nets import FEW, backward, images, near, stir, tiny

import lowtide
from lowtide.evolution.supernet import Supernet
from lowtide.evolution.widths import WidthSpace, quarters
from lowtide.methods.noah import PARTS
from lowtide.tuning.tuned import Tuned

WIDTHS = (1, 2, 4)


def made(family: str, parts: tuple[str, ...] = PARTS) -> tuple[Supernet, WidthSpace]:
    blocks = len(lowtide.apply(tiny(family), lowtide.METHODS["linear"]()).sites.of("block"))
    space = WidthSpace(blocks, WIDTHS, quarters(blocks), parts, dropout=0.0)
    torch.manual_seed(0)
    tuned = lowtide.apply(tiny(family), space.widest, num_classes=FEW)
    stir(tuned)
    return Supernet(tuned, space), space


def alone(family: str, supernet: Supernet, genes: Any) -> Tuned:
    """The candidate as a method of its own, its tensors cut here by hand."""
    tuned = lowtide.apply(tiny(family), supernet.space.method(genes), num_classes=FEW)
    wide, state = supernet.tuned.adapter_state(), {}
    for name, value in tuned.adapter_state().items():
        cut = tuple(slice(0, size) for size in value.shape)
        state[name] = wide[name][cut]
    tuned.load_adapter_state(state)
    return tuned


CASES = [
    ("vit", {"prompts": [1, 4, 0, 0], "lora": [2, 0, 0, 0], "adapter": [4, 1, 2, 1]}),
    ("vit", {"prompts": [2, 0, 0, 0], "lora": [4, 4, 1, 2], "adapter": [2, 2, 0, 0]}),
    ("eva", None),
    ("swin", None),
]


@pytest.mark.parametrize("family, genes", CASES)
def test_a_candidate_is_the_method_with_its_widths(family: str, genes: Any) -> None:
    supernet, space = made(family)
    genes = genes or space.draw(random.Random(3))
    other = alone(family, supernet, genes).train()
    x = images(other.backbone)
    supernet.tuned.train()
    supernet.chosen = genes  # what eval runs; here without eval's own changes
    supernet.training = False
    near(backward(supernet, x), backward(other, x))
    wide = {n: p.grad for n, p in supernet.tuned.named_parameters()}
    met = set()
    for name, p in other.named_parameters():
        if p.requires_grad:
            cut = tuple(slice(0, size) for size in p.shape)
            near(wide[name][cut], p.grad)
            rest = wide[name].clone()
            rest[cut] = 0
            assert not rest.any(), f"{name}: a gradient beyond the candidate's width"
            met.add(name)
    beyond = {n for n, g in wide.items() if g is not None and g.any()} - met
    assert not beyond


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_it_counts_what_the_method_would_train(family: str) -> None:
    supernet, space = made(family)
    rng = random.Random(0)
    for _ in range(6):
        genes = space.draw(rng)
        tuned = lowtide.apply(tiny(family), space.method(genes), num_classes=FEW)
        head = sum(v.numel() for n, v in tuned.adapter_state().items() if "/head/" in n)
        assert supernet.count(genes) == tuned.trainable_counts()[0] - head


def test_training_draws_a_candidate_for_each_step_from_torch_s_generator() -> None:
    supernet, _ = made("vit")
    x = images(supernet.tuned.backbone)
    drawn: list[list[Any]] = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append([supernet.train()(x).detach() for _ in range(4)])
    for one, again in zip(*drawn, strict=True):
        assert torch.equal(one, again)
    assert (drawn[0][0] - drawn[0][1]).abs().max() > 1e-6


def test_eval_runs_the_widest_unless_one_is_chosen() -> None:
    supernet, space = made("vit")
    x = images(supernet.tuned.backbone)
    near(supernet.eval()(x), supernet.tuned(x))
    supernet.chosen = space.draw(random.Random(1))
    near(supernet(x), alone("vit", supernet, supernet.chosen).eval()(x))


def test_the_whole_tensors_come_back_the_same_objects() -> None:
    supernet, space = made("vit")
    before = dict(supernet.tuned.named_parameters())
    x = images(supernet.tuned.backbone)
    supernet.train()(x).sum().backward()
    supernet.train()(x)  # and no backward
    supernet.chosen = space.draw(random.Random(0))
    with torch.no_grad():
        supernet.eval()(x)
    after = dict(supernet.tuned.named_parameters())
    assert after.keys() == before.keys() and all(after[n] is p for n, p in before.items())


def test_parts_may_be_left_out() -> None:
    supernet, space = made("beit", ("lora", "adapter"))
    genes = space.draw(random.Random(2))
    assert set(genes) == {"lora", "adapter"} and space.method(genes).prompts == (0,)
    supernet.chosen = genes
    x = images(supernet.tuned.backbone)
    near(supernet.eval()(x), alone("beit", supernet, genes).eval()(x))


@pytest.mark.parametrize("policy", ["tight", "s2a", "blocks"])
def test_compression_meets_a_candidate_s_own_tensors_in_backward(policy: str) -> None:
    """What is computed again there; what is kept in few bits is no rougher than by itself."""
    supernet, space = made("vit")
    genes = space.draw(random.Random(4))
    plain, other = (alone("vit", supernet, genes).train() for _ in range(2))
    x = images(other.backbone)
    for tuned in (supernet.tuned.train(), other):
        lowtide.compress(tuned, policy)
        tuned.checkpointing = policy == "blocks"
    supernet.chosen, supernet.training = genes, False
    near(backward(supernet, x), backward(other, x))
    backward(plain, x)
    wide, exact = dict(supernet.tuned.named_parameters()), dict(plain.named_parameters())
    own, shared = [], []
    for name, p in other.named_parameters():
        if p.requires_grad:
            mine = wide[name].grad[tuple(slice(0, size) for size in p.shape)]
            own.append((p.grad - exact[name].grad).flatten())
            shared.append((mine - exact[name].grad).flatten())
    assert torch.cat(shared).norm() <= 1.5 * torch.cat(own).norm() + 1e-9
