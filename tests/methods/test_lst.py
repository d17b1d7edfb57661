"""LST: its count, its ladder written out, and a backbone that keeps nothing."""

from __future__ import annotations

import pytest
import torch
from counts import trained
from nets import FEW, images, near, stir, tiny
from torch import Tensor, nn

import lowtide
from lowtide.errors import Unsupported
from lowtide.methods.lst import LST, Rung


@pytest.mark.parametrize(
    "method, count",
    [
        (LST(), 2_374_284),
        (LST(bias=True), 2_376_300),
        (LST(bias=True, final_norm=True), 2_376_492),
    ],
)
def test_count(method: LST, count: int) -> None:
    assert trained("vit", method) == count


@pytest.mark.parametrize("width, heads", [(96, 3), (112, 2), (48, 1), (4, 1), (128, 4)])
def test_heads_are_at_least_so_wide_and_divide_the_ladder(width: int, heads: int) -> None:
    assert Rung(2 * width, width, LST()).heads == heads


def attention(x: Tensor, heads: int) -> Tensor:
    """Softmax attention, head by head; x holds queries, keys and values side by side."""
    c = x.shape[2] // 3
    parts = []
    for i in range(heads):
        q, k, v = (x[:, :, j * c :][:, :, i * c // heads : (i + 1) * c // heads] for j in range(3))
        scores = torch.einsum("bnd,bmd->bnm", q, k) / (c // heads) ** 0.5
        parts.append(scores.softmax(2) @ v)
    return torch.cat(parts, 2)


@pytest.mark.parametrize("family", ["vit", "mixer"])
@pytest.mark.parametrize(
    "options", [{}, {"bias": True, "final_norm": True, "init": "identity"}], ids=str
)
def test_the_ladder(family: str, options: dict) -> None:
    model = tiny(family).eval()
    method = LST(reduction=2, head_dim=8, temperature=0.3, **options)
    tuned = lowtide.apply(model, method, num_classes=FEW).eval()
    stir(tuned)
    state, x = tuned.adapter_state(), images(model)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"./lst/{name}.weight"].T + state.get(f"./lst/{name}.bias", 0)

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(2, keepdim=True)
        scaled = centred / (centred.square().mean(2, keepdim=True) + 1e-6).sqrt()
        return scaled * state[f"./lst/{name}.weight"] + state[f"./lst/{name}.bias"]

    h = tuned.family.stem(model, x)
    s = linear("enter", h)
    for path in tuned.family.chain(model):
        h, name = model.get_submodule(path)(h), f"rungs.{path.replace('.', '-')}"
        gate = 1 / (1 + torch.exp(-state[f"./lst/{name}.alpha"] / 0.3))
        s = gate * s + (1 - gate) * linear(f"{name}.down", h)
        mixed = attention(linear(f"{name}.qkv", norm(f"{name}.norm1", s)), heads=2)
        s = s + linear(f"{name}.proj", mixed)
        hidden = linear(f"{name}.fc1", norm(f"{name}.norm2", s))
        s = s + linear(f"{name}.fc2", hidden * torch.special.ndtr(hidden))
    if options:
        assert state["./lst/norm.weight"].shape == state["./lst/norm.bias"].shape == s.shape[2:]
        s = norm("norm", s)
    y = linear("leave", s) + (h if options else 0)
    near(tuned(x), model.forward_head(tuned.family.finish(model, y)))


def test_gates_start_half_open() -> None:
    side = lowtide.apply(tiny("vit"), LST()).sides["lst"]
    assert all(not r.alpha.any() for r in side.rungs.values()) and len(side.rungs) == 4


def test_the_backbone_keeps_nothing() -> None:
    """No block has a graph; before the final norm a block costs h_i and 17 narrow maps."""
    model = tiny("vit")
    tuned = lowtide.apply(model, LST(reduction=2), num_classes=FEW).train()
    own = {p.data_ptr() for p in tuned.parameters()}
    inside, kept = [False], dict[int, int]()

    def enter(*_: object) -> None:
        inside[0] = True

    def leave(block: nn.Module, args: object, y: Tensor) -> None:
        inside[0] = False
        assert not y.requires_grad

    def pack(t: Tensor) -> Tensor:
        assert not inside[0]
        if t.data_ptr() not in own and t.numel() > 1:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    for block in model.blocks:
        block.register_forward_pre_hook(enter)
        block.register_forward_hook(leave)
    side, x, beside = tuned.sides["lst"], images(model), []
    finish = side.finish
    side.finish = lambda x, state: (finish(x, state), beside.append(sum(kept.values())))[0]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        tuned(x)
    u, small = 17 * 32, 17  # a full map; the norms' statistics and attention's log-sum-exp
    blocks = 4 * (u + 17 * u // 2 + 5 * small)
    assert beside == [8 * 3 * (u + blocks + u // 2)]


def test_it_starts_at_the_backbone_if_told_to() -> None:
    model = tiny("vit").eval()
    x = images(model)
    before = model(x)
    near(lowtide.apply(model, LST(init="identity", bias=True)).eval()(x), before)
    assert LST(init="identity").identity and not LST().identity


@pytest.mark.parametrize("family", ["swin", "convnext", "resnet"])
def test_a_hierarchy_is_refused(family: str) -> None:
    with pytest.raises(Unsupported, match="lst attends over one sequence of tokens, and"):
        lowtide.apply(tiny(family), LST())


def test_a_width_it_cannot_divide_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"lst divides the width by 5, and blocks.0 has 32"):
        lowtide.apply(tiny("vit"), LST(reduction=5))


@pytest.mark.parametrize("option", [{"reduction": 0}, {"head_dim": 0}, {"temperature": 0.0}])
def test_wrong_options_are_refused(option: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        LST(**option)
