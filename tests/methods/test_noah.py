"""NOAH against its equations written out, its counts, its start, and where it cannot live."""

from __future__ import annotations

import pytest
import torch
from counts import trained
from nets import FEW, images, near, stir, tiny
from torch import Tensor

import lowtide
from lowtide.core.graft import Graft
from lowtide.errors import InputError, Unsupported
from lowtide.methods.noah import NOAH, PARTS
from lowtide.presets import presets

RELEASED = {n: o for n, o in presets().items() if n.startswith("noah/vtab/")}
FEW_SHOT = {
    "food101, 16 images": (
        (50, 10, 50, *[0] * 9),
        (10, 10, 5, 5, 10, 5, *[0] * 6),
        (50, 10, 10, 50, 10, 5, 5, 10, 5, 5, 5, 5),
    ),
    "oxford_pets, 1 image": tuple(
        (*w, *[0] * 9) for w in ((50, 10, 10), (10, 10, 50), (10, 10, 50))
    ),
}


@pytest.mark.parametrize(
    "backbone, method, count",
    [
        ("vit", NOAH(prompts=(0,), lora=(8,), adapter=(0,)), 294_912),  # the authors' LoRA
        ("vit", NOAH(prompts=(0,), lora=(0,), adapter=(8,)), 156_768),  # and their adapter
        ("vit", NOAH(prompts=(50,), lora=(0,), adapter=(0,)), 460_800),
        ("vit", NOAH(*FEW_SHOT["food101, 16 images"]), 493_226),
        ("vit", NOAH(*FEW_SHOT["oxford_pets, 1 image"]), 378_694),
        ("swin", NOAH(), 36 * 12_032 + 24 * 5),
    ],
    ids=str,
)
def test_count(backbone: str, method: NOAH, count: int) -> None:
    assert trained(backbone, method) == count


def test_the_released_networks_have_the_counts_that_the_paper_reports() -> None:
    """0.43 M in table 1: the code counts a dead set of prompts, which is left out here."""
    ours, theirs = [], []
    for options in RELEASED.values():
        prompts, lora, adapter = (tuple(options[f"method.{p}"]) for p in PARTS)
        ours.append(trained("vit", NOAH(prompts, lora, adapter)))
        theirs.append(ours[-1] + (prompts[0] + 100) * 768)
    assert len(ours) == 19
    assert (min(ours), max(ours), round(sum(ours) / 19)) == (287_278, 431_686, 360_134)
    assert (round(sum(theirs) / 19), max(theirs)) == (442_512, 516_166)


def test_the_equations() -> None:
    """Block 0 sees no prompts, 1 its own, 2 those that block 1 made of them, 3 its own again."""
    model = tiny("vit").eval()
    x = images(model)
    method = NOAH(prompts=(0, 3, 0, 2), lora=(2, 0, 3, 0), adapter=(0, 3, 0, 2))
    tuned = lowtide.apply(model, method).eval()
    stir(tuned)
    state = tuned.adapter_state()
    with tuned.disable_adapter():
        z = model.norm_pre(model._pos_embed(model.patch_embed(x)))
        own = z.shape[1]
        for i, block in enumerate(model.blocks):
            prompts = state.get(f"./noah/prompts.blocks-{i}")
            if prompts is not None:
                z = torch.cat([z[:, :own], prompts.expand(len(x), -1, -1)], 1)
            z = z + attention(block, block.norm1(z), parts(state, f"blocks.{i}.attn.qkv"))
            y = block.mlp(block.norm2(z))
            if found := parts(state, f"blocks.{i}.mlp"):
                h = y @ found["down.weight"].T + found["down.bias"]
                h = h / (1 + (-1.702 * h).exp())
                y = y + h @ found["up.weight"].T + found["up.bias"]
            z = z + y
        expected = model.norm(z)[:, 0]
    near(tuned(x), model.head(expected))


def parts(state: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    place = f"{path}/noah/"
    return {k.removeprefix(place): v for k, v in state.items() if k.startswith(place)}


def attention(block: object, z: Tensor, lora: dict[str, Tensor]) -> Tensor:
    """One pair of factors for queries, keys and values together."""
    weight = block.attn.qkv.weight
    if lora:
        weight = weight + lora["up.weight"] @ lora["down.weight"]
    q, k, v = (z @ weight.T + block.attn.qkv.bias).chunk(3, -1)
    heads, outs = block.attn.num_heads, []
    for q1, k1, v1 in zip(*(t.chunk(heads, -1) for t in (q, k, v)), strict=True):
        outs.append((q1 @ k1.mT / q1.shape[-1] ** 0.5).softmax(-1) @ v1)
    return block.attn.proj(torch.cat(outs, -1))


def test_it_starts_as_the_paper_draws() -> None:
    state = lowtide.apply(tiny("vit"), NOAH((400,), (40,), (300,))).adapter_state()
    for name, bound in (
        ("./noah/prompts.blocks-0", (6 / (3 * 8**2 + 32)) ** 0.5),
        ("blocks.0.attn.qkv/noah/down.weight", 32**-0.5),
        ("blocks.0.mlp/noah/down.weight", (6 / 332) ** 0.5),
        ("blocks.0.mlp/noah/up.weight", (6 / 332) ** 0.5),
    ):
        assert state[name].abs().max() <= bound and abs(state[name].std() / bound - 3**-0.5) < 0.03
    for name in ("attn.qkv/noah/up.weight", "mlp/noah/down.bias", "mlp/noah/up.bias"):
        assert not state[f"blocks.0.{name}"].any()


def test_dropout_falls_on_prompts_on_lora_s_input_and_behind_phi() -> None:
    for method in (NOAH((3,), (0,), (0,)), NOAH((0,), (3,), (0,)), NOAH((0,), (0,), (3,))):
        tuned = lowtide.apply(tiny("vit"), method).eval()
        stir(tuned)
        x = images(tuned.backbone)
        near(tuned(x), tuned(x))
        assert (tuned.train()(x) - tuned(x)).abs().max() > 1e-6


def test_lora_alone_merges_and_the_others_say_why_not() -> None:
    tuned = lowtide.apply(tiny("vit"), NOAH((0,), (1, 0, 2, 3), (0,))).eval()
    stir(tuned)
    x = images(tuned.backbone)
    expected = tuned(x)
    merged = tuned.merge_and_unload()
    assert not [m for m in merged.modules() if isinstance(m, Graft)]
    near(merged.eval()(x), expected)
    for method, why in ((NOAH((2,), (2,), (0,)), "tokens"), (NOAH((0,), (2,), (2,)), "activation")):
        with pytest.raises(Unsupported, match=f"cannot merge noah.*{why}"):
            lowtide.apply(tiny("vit"), method).merge_and_unload()


@pytest.mark.parametrize(
    "family, method, why",
    [
        ("vit", NOAH((1, 2)), "2 widths for prompts and this backbone 4 blocks"),
        ("convnext", NOAH(lora=(0,)), "prompts are tokens"),
        ("resnet", NOAH(prompts=(0,), lora=(0,)), "adapter needs an MLP"),
        ("beit", NOAH(), "takes a fixed number"),
        ("mixer", NOAH(prompts=(0,)), "lora needs a fused qkv"),
    ],
)
def test_what_a_backbone_lacks_is_refused(family: str, method: NOAH, why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        lowtide.apply(tiny(family), method)


@pytest.mark.parametrize(
    "family, method",
    [("convnext", NOAH((0,), (0,), (3,))), ("beit", NOAH((0,), (2,), (3,))), ("swin", NOAH())],
)
def test_what_a_backbone_has_is_used(family: str, method: NOAH) -> None:
    tuned = lowtide.apply(tiny(family), method, num_classes=FEW).train()
    tuned(images(tuned.backbone)).square().sum().backward()
    trained = [p for p in tuned.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize("widths", [{"prompts": ()}, dict.fromkeys(PARTS, (0,))])
def test_no_widths_are_refused(widths: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="noah needs widths"):
        NOAH(**widths)


def test_a_width_for_each_block_is_read_from_text(capsys: pytest.CaptureFixture[str]) -> None:
    method = lowtide.training.config.RunConfig.from_dict({
        "model": "m", "data": "d",
        "method": {"name": "noah", "prompts": [1, 0, 5], "lora": [0], "adapter": [10]},
    }).method  # fmt: skip
    assert method == NOAH((1, 0, 5), (0,), (10,))
    with pytest.raises(InputError, match="from 0 to 4096"):
        lowtide.training.config.RunConfig.from_dict({
            "model": "m",
            "data": "d",
            "method": {"name": "noah", "lora": [-1]},
        })
