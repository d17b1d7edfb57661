"""Frozen weights in few bits: the formula, what is saved, and what the files know of it."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import NormalDist

import pytest
import torch
import torch.nn.functional as F
from nets import cotangent, images, near, stir, tiny
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lowtide import (
    METHODS,
    InputError,
    UnknownName,
    apply,
    compress,
    load,
    merge,
    set_frozen_dtype,
)
from lowtide.codecs.base import Residue
from lowtide.codecs.normal_float import LEVELS, NormalFloat
from lowtide.families import FAMILIES
from lowtide.kernels.normal_float import dynamic_tree
from lowtide.memory.frozen_dtype import CODECS, Frozen, pack_frozen, unpack_frozen
from lowtide.memory.policies import POLICIES
from lowtide.memory.policy import Policy
from lowtide.ops.frozen import Slabs

DTYPES = list(CODECS)
BITS = {"bf16": 16, "int8": 8, "nf4": 4.127, "int4": 4.5}
LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 5, 6)),
    "rows": (lambda: nn.Linear(6, 4, bias=False), (3, 6)),
    "cut": (lambda: nn.Linear(650, 1300), (2, 3, 650)),
    "conv": (lambda: nn.Conv2d(10, 6, 3, stride=2, padding=1, groups=2), (2, 10, 7, 7)),
    "conv_cut": (lambda: nn.Conv2d(65, 1000, 3, padding=2, dilation=2), (2, 65, 5, 4)),
}


def rounded(model: nn.Module, dtype: str = "bf16") -> nn.Module:
    """The same model with every weight that is kept in few bits rounded, in its own dtype."""
    model = copy.deepcopy(model)
    pack_frozen(model, dtype)
    unpack_frozen(model)
    return model


@contextmanager
def kept() -> Iterator[list[Tensor]]:
    found: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        found.append(t)
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        yield found


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def nearest(x: Tensor, table: Tensor) -> Tensor:
    return table[(x[:, None] - table).abs().argmin(1)]


def plain_rounding(weight: Tensor, dtype: str) -> Tensor:
    """The formulas once more, number by number, for a weight of one slab."""
    flat = weight.flatten(1)
    if dtype == "bf16":
        return weight.bfloat16().to(weight.dtype)
    if dtype == "int8":
        low, high = flat.amin(1, True).float(), flat.amax(1, True).float()
        step = (high - low) / 255
        return (((flat - low) / step).round() * step + low).view_as(weight)
    groups = flat.flatten().split(64)
    if dtype == "int4":
        made = []
        for g in groups:
            low = (g.min() - 2**-7 * g.min().abs()).bfloat16().to(g.dtype)
            step = ((g.max() - low) / 15 * (1 + 2**-7)).bfloat16().to(g.dtype)
            made.append(((g - low) / step).round().clamp(0, 15) * step + low)
        return torch.cat(made).view_as(weight)
    scales = torch.stack([g.abs().max() for g in groups])
    mean = scales.mean()
    tree = torch.tensor(dynamic_tree(), dtype=weight.dtype)
    again = []
    for part in (scales - mean).split(256):
        most = part.abs().max().clamp_min(1e-30)
        again.append(nearest(part / most, tree) * most + mean)
    levels = torch.tensor(LEVELS, dtype=weight.dtype)
    triples = zip(groups, scales, torch.cat(again), strict=True)
    return torch.cat([nearest(g / s, levels) * r for g, s, r in triples]).view_as(weight)


def test_the_levels_are_quantiles_of_a_normal_distribution() -> None:
    """Section 3 of the paper, as its appendix has it: eight steps down, nine up, one zero."""
    offset = 1 - (1 / 30 + 1 / 32) / 2
    ppf = NormalDist().inv_cdf
    up = [ppf(offset + (0.5 - offset) * i / 8) for i in range(8)]
    down = [-ppf(offset + (0.5 - offset) * i / 7) for i in range(7)]
    quantiles = sorted([*up, 0.0, *down])
    assert len(LEVELS) == 16
    for level, quantile in zip(LEVELS, quantiles, strict=True):
        assert level == pytest.approx(quantile / max(quantiles), abs=3e-7)


def test_the_scales_have_eight_bits_of_dynamic_tree() -> None:
    tree = dynamic_tree()
    assert len(set(tree)) == 256 and all(a < b for a, b in pairwise(tree))
    assert tree[-1] == 1 and 0 in tree
    for number in tree:
        assert number in (0.0, 1.0) or -number in tree
    # Between 0.1 and 1 there are 64 numbers and 1 itself, between 0.01 and 0.1 there are 32, ...
    for i in range(7):
        within = [n for n in tree if 10.0**-i * 0.1 < n < 10.0**-i]
        assert len(within) == 2 ** (6 - i)
        assert sum(within) / len(within) == pytest.approx(0.55 * 10.0**-i)


@pytest.mark.parametrize("shape", [(40, 64), (30, 31), (256, 192), (5, 7, 3, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_is_rounded_by_its_formula(dtype: str, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, dtype=torch.float64) * torch.rand(shape[0], *[1] * (len(shape) - 1))
    slabs, packed = Slabs.pack(CODECS[dtype], weight)
    assert packed.dtype == torch.uint8
    near(slabs.whole(packed), plain_rounding(weight, dtype), 2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bytes_of_a_weight(dtype: str) -> None:
    weight = torch.randn(768, 768)
    slabs, packed = Slabs.pack(CODECS[dtype], weight)
    assert 8 * len(packed) / weight.numel() == pytest.approx(BITS[dtype], rel=0.02)
    pieces = [slab for _, slab in slabs.each(packed, torch.float32)]
    assert len(pieces) > 1 and max(p.numel() for p in pieces) < 2**19


def test_double_quantisation_is_that_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(512, 384) * torch.rand(512, 1)
    codes, state = functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    theirs = functional.dequantize_4bit(codes, state)
    codec = NormalFloat()
    ours = codec.unpack(codec.pack(Residue(weight)), weight.shape, weight.dtype)
    different = (ours - theirs).abs() > 1e-6
    assert different.double().mean() < 1e-3  # a number in the middle of two levels
    table = torch.tensor(dynamic_tree())
    assert torch.allclose(state.state2.code.cpu().sort().values, table, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_frozen_layer_computes_with_the_rounded_weight(name: str, dtype: str) -> None:
    build, shape = LAYERS[name]
    layer = build().double()
    layer.weight.requires_grad_(False)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    given = layer.weight.detach().clone()
    pack_frozen(layer, dtype)
    assert isinstance(layer, Frozen) and layer.weight.dtype == torch.float64
    weight = layer.weight
    assert 0 < (weight - given).abs().max() < 0.2 * given.abs().max()
    with kept() as saved:
        y = layer(x)
    assert [t.data_ptr() for t in saved] == [layer.packed.data_ptr()]
    dy = cotangent(y, 1)
    y.backward(dy)
    again = x.detach().requires_grad_()
    bias = None if layer.bias is None else layer.bias.detach().clone().requires_grad_()
    if isinstance(layer, nn.Conv2d):
        window = (layer.stride, layer.padding, layer.dilation, layer.groups)
        expected = F.conv2d(again, weight, bias, *window)
    else:
        expected = F.linear(again, weight, bias)
    expected.backward(dy)
    near(y, expected)
    near(x.grad, again.grad)
    if bias is not None:
        near(layer.bias.grad, bias.grad)


@pytest.mark.parametrize(
    ("dtype", "name"), [("bf16", "bias"), *((d, n) for d in DTYPES for n in ("lora", "rlrr"))]
)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_model_in_few_bits_is_the_rounded_one(family: str, name: str, dtype: str) -> None:
    tuned = apply(tiny(family), METHODS[name]())
    stir(tuned)
    plain, x = rounded(tuned, dtype), images(tuned.backbone)
    trained = {n: p.dtype for n, p in tuned.named_parameters() if p.requires_grad}
    counts = tuned.trainable_counts()
    set_frozen_dtype(tuned, dtype)
    assert tuned.frozen_dtype == dtype and tuned.trainable_counts() == counts
    assert set(trained.values()) == {torch.float64}
    assert trained == {n: p.dtype for n, p in tuned.named_parameters() if p.requires_grad}
    for model in (plain, tuned):
        model.train()
        torch.manual_seed(0)
        y = model(x)
        y.backward(cotangent(y, 2))
    theirs = gradients(plain)
    assert theirs.keys() == gradients(tuned).keys()
    for key, value in gradients(tuned).items():
        near(value, theirs[key], 1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_stays_wide(dtype: str) -> None:
    """The rule of docs/memory.md, said with the names of two backbones."""
    for family, wide, few in (
        ("vit", {"patch_embed.proj"}, {"blocks.0.attn.qkv", "blocks.3.mlp.fc2"}),
        ("convnext", {"stem.0", "stages.0.blocks.0.conv_dw"}, {"stages.1.downsample.1"}),
    ):
        model = set_frozen_dtype(tiny(family), dtype)
        found = {n for n, m in model.named_modules() if isinstance(m, Frozen)}
        heads = {n for n in found if n.startswith("head")}
        assert not heads and few <= found
        assert wide <= found if dtype == "bf16" else not wide & found
        others = {p.dtype for n, p in model.named_parameters() if not n.endswith("packed")}
        assert others == {torch.float64}


@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_keeps_no_second_copy_of_a_weight(dtype: str) -> None:
    tuned = set_frozen_dtype(apply(FAMILIES["vit"].tiny(), METHODS["bias"]()), dtype)
    shapes = {m.slabs.shape for m in tuned.modules() if isinstance(m, Frozen)}
    with kept() as saved, torch.autocast("cpu", torch.bfloat16):
        y = tuned(torch.randn(2, 3, 32, 32))
    y.sum().backward()
    assert not [t for t in saved if t.shape in shapes or t.shape[::-1] in shapes]
    bytes_ = {p.data_ptr() for n, p in tuned.named_parameters() if n.endswith("packed")}
    assert len(bytes_ & {t.data_ptr() for t in saved}) > 4


@pytest.mark.parametrize("name", ["bias", "lora"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_files_are_those_of_the_original_weights(dtype: str, name: str, tmp_path) -> None:
    model = tiny("vit").float()
    original = copy.deepcopy(model.state_dict())
    tuned = set_frozen_dtype(apply(copy.deepcopy(model), METHODS[name](), num_classes=5), dtype)
    stir(tuned)
    tuned.save_pretrained(tmp_path)
    state = tuned.adapter_state()
    assert all(v.dtype == torch.float32 for v in state.values())
    loaded = load(copy.deepcopy(model), tmp_path)
    assert any(dtype in note for note in loaded.notes)
    merged = loaded.merge_and_unload()
    weights = merged.state_dict()
    for key, value in original.items():
        if key.startswith("head.") or (name == "bias" and key.endswith("bias")):
            continue
        if name == "bias" or "qkv" not in key:
            assert torch.equal(weights[key], value), key
    if name == "lora":
        graft = tuned.backbone.blocks[0].attn.qkv
        pairs = zip(graft.down, graft.up, strict=True)
        q, v = (graft.scale * up.weight @ down.weight for down, up in pairs)
        key = "blocks.0.attn.qkv.weight"
        near(weights[key], original[key] + torch.cat([q, torch.zeros_like(q), v]), 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_adapter_goes_back_onto_a_backbone_in_few_bits(dtype: str, tmp_path) -> None:
    model = tiny("vit").float()
    tuned = set_frozen_dtype(apply(copy.deepcopy(model), METHODS["lora"](), num_classes=5), dtype)
    stir(tuned)
    tuned.save_pretrained(tmp_path)
    x = images(model)
    for again in (
        load(set_frozen_dtype(copy.deepcopy(model), dtype), tmp_path),
        set_frozen_dtype(load(copy.deepcopy(model), tmp_path), dtype),
    ):
        near(again(x), tuned.eval()(x), 1e-6)
    assert not load(set_frozen_dtype(copy.deepcopy(model), dtype), tmp_path).notes
    other = set_frozen_dtype(tiny("vit").float(), "int8" if dtype != "int8" else "nf4")
    assert any(dtype in note for note in load(other, tmp_path).notes)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight.mul_(1.01)
    with pytest.raises(InputError, match="same pre-trained weights"):
        load(set_frozen_dtype(model, dtype), tmp_path)


@pytest.mark.parametrize("name", ["bias", "lora", "ssf", "rlrr", "arc"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_merging_in_place_gives_the_model_that_was_trained(dtype: str, name: str) -> None:
    tuned = set_frozen_dtype(apply(tiny("vit"), METHODS[name]()), dtype).eval()
    stir(tuned)
    if merge(copy.deepcopy(tuned))[1]:
        pytest.skip(f"{name} does not fold")
    x = images(tuned.backbone)
    before = tuned(x)
    plain, unfolded = merge(tuned)
    assert not unfolded
    assert not [m for m in plain.modules() if isinstance(m, Frozen)]
    assert {p.dtype for p in plain.parameters()} == {torch.float64}
    near(plain.eval()(x), before)


def test_a_failed_merge_leaves_the_weights_in_few_bits() -> None:
    tuned = set_frozen_dtype(apply(tiny("vit"), METHODS["s2a"]()), "nf4")
    before = tuned.backbone.blocks[0].mlp.fc1.weight
    assert merge(tuned)[1]
    assert tuned.frozen_dtype == "nf4"
    near(tuned.backbone.blocks[0].mlp.fc1.weight, before, 0.1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adapters_may_be_added_later(dtype: str) -> None:
    tuned = apply(tiny("vit"), METHODS["lora"]())
    tuned.add_adapter("other", METHODS["linear"]())
    set_frozen_dtype(tuned, dtype)
    for name in ("bias", "ssf", "adaptformer", "lora", "dtl"):
        tuned.add_adapter(name, METHODS[name]())
    for name in ("other", "default", "bias", "ssf", "adaptformer", "lora", "dtl"):
        tuned.set_adapter(name)
        y = tuned(images(tuned.backbone))
        y.backward(cotangent(y, 3))
    assert all(p.dtype == torch.float64 for p in tuned.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["full", "partial"])
def test_what_trains_rounded_weights_is_refused_in_one_line(name: str) -> None:
    tuned = set_frozen_dtype(apply(tiny("vit"), METHODS["lora"]()), "nf4")
    with pytest.raises(InputError, match=f"^{name} trains the weight of blocks.*nf4") as refusal:
        tuned.add_adapter("other", METHODS[name]())
    assert "\n" not in str(refusal.value)
    assert list(tuned.adapters) == ["default"]
    with pytest.raises(InputError, match=f"{name} trains the weight"):
        apply(set_frozen_dtype(tiny("vit"), "int8"), METHODS[name]())


def test_full_has_nothing_to_keep_in_few_bits_and_partial_the_rest() -> None:
    with pytest.raises(InputError, match="full leaves no weight frozen"):
        set_frozen_dtype(apply(tiny("vit"), METHODS["full"]()), "nf4")
    tuned = set_frozen_dtype(apply(tiny("vit"), METHODS["partial"]()), "nf4")
    blocks = tuned.backbone.blocks
    assert isinstance(blocks[0].mlp.fc1, Frozen) and not isinstance(blocks[-1].mlp.fc1, Frozen)


def test_weights_another_adapter_would_train_stay() -> None:
    tuned = apply(tiny("vit"), METHODS["lora"]())
    tuned.add_adapter("other", METHODS["full"]())
    set_frozen_dtype(tuned, "nf4").set_adapter("other")
    tuned(images(tuned.backbone)).sum().backward()
    assert {p.dtype for p in tuned.parameters() if p.requires_grad} == {torch.float64}


@pytest.mark.parametrize("dtype", ["bf16", "nf4"])
def test_compress_and_frozen_dtype_in_either_order(dtype: str) -> None:
    x, found = images(tiny("vit").float()), []
    for packed_first in (True, False):
        tuned = apply(tiny("vit").float(), METHODS["bias"]())
        if packed_first:
            compress(set_frozen_dtype(tuned, dtype), "tight")
        else:
            set_frozen_dtype(compress(tuned, "tight"), dtype)
        tuned(x).backward(torch.ones(3, 10))
        found.append(gradients(tuned))
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_checkpointing_gives_the_same_gradients(dtype: str) -> None:
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        tuned = set_frozen_dtype(apply(tiny("vit"), METHODS["lora"]()), dtype).train()
        stir(tuned)
        tuned.checkpointing = again
        y = tuned(images(tuned.backbone))
        y.backward(cotangent(y, 1))
        found.append(gradients(tuned))
    for key, value in found[0].items():
        near(value, found[1][key])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_under_tight_points_where_the_rounded_models_does(dtype: str) -> None:
    flat = []
    for policy in (Policy(), POLICIES["tight"]()):
        torch.manual_seed(1)
        tuned = set_frozen_dtype(apply(tiny("vit").float(), METHODS["lora"]()), dtype)
        stir(tuned)
        y = compress(tuned, policy)(images(tuned.backbone, batch=8))
        y.backward(cotangent(y, 1))
        flat.append(torch.cat([g.flatten() for g in gradients(tuned).values()]))
    assert F.cosine_similarity(*flat, dim=0) >= 0.99


@pytest.mark.parametrize("dtype", DTYPES)
def test_states_are_those_of_the_bytes_and_wide_ones_are_rounded(dtype: str) -> None:
    model, x = tiny("vit"), images(tiny("vit"))
    wide = copy.deepcopy(model.state_dict())
    frozen = set_frozen_dtype(model, dtype).eval()
    y, state = frozen(x), frozen.state_dict()
    assert "blocks.0.mlp.fc1.packed" in state and "blocks.0.mlp.fc1.weight" not in state
    other = set_frozen_dtype(tiny("vit"), dtype).eval()
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    for given in (state, wide):
        before = dict(given)
        other.load_state_dict(given)
        assert given.keys() == before.keys()
        near(other(x), y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_state_of_another_precision_is_rounded_as_one_of_the_models_own(dtype: str) -> None:
    wide = tiny("vit").float().state_dict()
    frozen = set_frozen_dtype(tiny("vit").float().double(), dtype)
    own = frozen.state_dict()
    for p in frozen.parameters():
        p.detach().zero_()
    frozen.load_state_dict(wide)
    for name, value in frozen.state_dict().items():
        assert torch.equal(value, own[name]), name


def test_a_wide_weight_of_another_shape_is_named() -> None:
    frozen = set_frozen_dtype(tiny("vit"), "nf4")
    wide = {**tiny("vit").state_dict(), "blocks.0.mlp.fc1.weight": torch.zeros(3, 4)}
    with pytest.raises(RuntimeError, match=r"blocks\.0\.mlp\.fc1\.weight"):
        frozen.load_state_dict(wide)


def test_no_cast_changes_the_bytes() -> None:
    model = set_frozen_dtype(tiny("vit"), "nf4")
    before = [m.packed.clone() for m in model.modules() if isinstance(m, Frozen)]
    model.half().double().to(torch.bfloat16)
    after = [m.packed for m in model.modules() if isinstance(m, Frozen)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_two_places_share_one_weight_as_before() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model.requires_grad_(False)
    model[1].weight = model[0].weight
    pack_frozen(model, "nf4")
    assert model[0].packed is model[1].packed
    unpack_frozen(model)
    assert model[0].weight is model[1].weight and type(model[0]) is nn.Linear
    names = [n for n, _ in model.named_parameters()]
    assert names == ["0.weight", "0.bias", "1.bias"]


def test_a_second_rounding_and_an_unknown_dtype_are_refused() -> None:
    tuned = set_frozen_dtype(apply(tiny("vit"), METHODS["lora"]()), "nf4")
    set_frozen_dtype(tuned, "nf4")
    with pytest.raises(InputError, match="kept in nf4 and would be rounded once more to int8"):
        set_frozen_dtype(tuned, "int8")
    with pytest.raises(UnknownName, match="nf4"):
        set_frozen_dtype(tuned, "fp4")
    file = io.BytesIO()
    torch.save(tuned.backbone.blocks[0].mlp, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    near(again.fc1.weight, tuned.backbone.blocks[0].mlp.fc1.weight)
