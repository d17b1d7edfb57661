"""RLRR against its weights written out, its published counts, and the bytes it keeps."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from counts import on_meta, trained
from nets import backward, cotangent, images, near, stir, tiny
from torch import Tensor, nn

import lowtide
from lowtide.codecs.exact import Exact
from lowtide.core.method import Method
from lowtide.errors import Unsupported
from lowtide.methods.bias import Bias
from lowtide.methods.lora import LoRA
from lowtide.methods.rlrr import RESCALE, RLRR
from lowtide.methods.ssf import SSF
from lowtide.ops.saved import saved
from lowtide.planning.meter import Meter

ABLATIONS = [
    {"sides": sides, "residual": residual}
    for sides, residual in itertools.product(("both", "left", "right"), (True, False))
]
over_ablations = pytest.mark.parametrize("options", ABLATIONS, ids=str)


@pytest.mark.parametrize(
    "backbone, options, count",
    [
        ("vit", {}, 288_768),
        ("vit", {"sides": "left"}, 205_824),
        ("vit", {"sides": "right"}, 205_824),
        ("vit", {"residual": False}, 288_768),
        ("swin", {}, 358_144),
        ("swin", {"reduction_bias": False}, 358_144 - 2 * (128 + 256 + 512)),
        ("convnext", {}, 19 * 18_048 + 5 * (128 + 256 + 512)),
    ],
    ids=str,
)
def test_count(backbone: str, options: dict, count: int) -> None:
    assert trained(backbone, RLRR(**options)) == count


def test_places() -> None:
    """On a ViT each part of qkv has its own s_l; with stages qkv has one, and fewer norms scale."""
    state = on_meta("vit", RLRR()).adapter_state()
    qkv = {k.rpartition("/")[2]: v.shape for k, v in state.items() if "blocks.3.attn.qkv" in k}
    assert qkv == {
        **{f"left.{i}": (768,) for i in range(3)},
        "right": (2304,),
        "shift": (2304,),
    }
    scaled = {k.partition("/")[0] for k in state if k.endswith("gamma")}
    norms = {f"blocks.{i}.norm{j}" for i in range(12) for j in (1, 2)}
    assert scaled == {"patch_embed.proj", "norm"} | norms
    state = on_meta("swin", RLRR()).adapter_state()
    assert [k for k in state if k.startswith("layers.1.blocks.0.attn.qkv") and "left" in k] == [
        "layers.1.blocks.0.attn.qkv/rlrr/left.0"
    ]
    assert {k for k in state if "downsample" in k} == {
        f"layers.{i}.downsample.reduction/rlrr/{n}"
        for i in (1, 2, 3)
        for n in ("left.0", "right", "shift")
    }
    outside = {k.partition("/")[0] for k in state if "gamma" in k and "blocks" not in k}
    assert outside == {"norm"}


def rescaled(graft: Any, weight: Tensor, groups: int = 1) -> Tensor:
    """W' entry by entry: (1 + s_r s_l) W, or s_r s_l W."""
    out = weight.clone()
    per_group, per_part = len(weight) // groups, len(weight) // (len(graft.left) or 1)
    for o in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            factor = 1.0
            if len(graft.left):
                column = i + o // per_group * weight.shape[1]
                factor = factor * graft.left[o // per_part][column]
            if graft.right is not None:
                factor = factor * graft.right[o]
            out[o, i] = weight[o, i] * (factor + graft.residual)
    return out


@over_ablations
def test_the_equation_on_linear_maps(options: dict) -> None:
    model = tiny("vit").eval()
    roots = {p: model.get_submodule(p) for p in ("blocks.1.attn.qkv", "blocks.2.mlp.fc2")}
    tuned = lowtide.apply(model, RLRR(**options)).eval()
    stir(tuned)
    for path, root in roots.items():
        graft = model.get_submodule(path)
        assert len(graft.left) == (options["sides"] != "right") * (3 if "qkv" in path else 1)
        x = torch.randn(2, 5, root.in_features, dtype=torch.float64)
        with torch.no_grad():
            near(graft(x), F.linear(x, rescaled(graft, root.weight), root.bias + graft.shift))
    x = images(model)
    before = tuned(x)
    near(tuned.merge_and_unload().eval()(x), before)


@pytest.mark.parametrize("groups", [1, 4])
@over_ablations
def test_the_equation_on_a_convolution(options: dict, groups: int) -> None:
    conv = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=groups)
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)).double()
    model.pretrained_cfg = {"input_size": (8, 6, 6)}
    tuned = lowtide.apply(model, RLRR(**options)).eval()
    stir(tuned)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        weight, bias = rescaled(model[0], conv.weight, groups), conv.bias + model[0].shift
        expected = F.conv2d(x, weight, bias, 2, 1, 1, groups)
    near(model[0](x), expected)
    near(tuned.merge_and_unload()[0](x), expected)


def plain(x: Tensor, weight: Tensor, right: Tensor | None, *left: Tensor) -> Tensor:
    """The same map with its weight written out."""
    rows = weight.chunk(len(left) or 1)
    weight = torch.cat([w * s for w, s in zip(rows, left or (1,), strict=True)])
    return F.linear(x, weight if right is None else weight * right[:, None])


@pytest.mark.parametrize("parts", [0, 1, 3])
@pytest.mark.parametrize("right", [True, False])
def test_gradients_are_those_of_the_weight_form(parts: int, right: bool) -> None:
    """For every choice of what wants a gradient; and only x is kept, if a vector does."""
    made = [torch.randn(s, dtype=torch.float64) for s in ((2, 5, 4), (6, 4), (6,), *[(4,)] * parts)]
    made[2:3] = made[2:3] if right else [None]
    for needs in itertools.product((True, False), repeat=len(made)):
        tensors = [
            None if t is None else t.clone().requires_grad_(n)
            for t, n in zip(made, needs, strict=True)
        ]
        wanted = [t for t in tensors if t is not None and t.requires_grad]
        if not wanted:
            continue
        y = saved(RESCALE, Exact(), *tensors)
        kept = {t.data_ptr() for t in y.grad_fn.saved_tensors if t is not None}
        assert kept <= {t.data_ptr() for t in tensors if t is not None}
        assert (tensors[0].data_ptr() in kept) == any(t.ndim != 3 for t in wanted)
        expected = plain(*tensors)
        near(y, expected)
        ours, theirs = (torch.autograd.grad(t, wanted, cotangent(y, 3)) for t in (y, expected))
        for a, b in zip(ours, theirs, strict=True):
            near(a, b)


def test_it_starts_as_the_paper_draws() -> None:
    torch.manual_seed(1)
    state = lowtide.apply(tiny("vit"), RLRR()).adapter_state()

    def part(end: str) -> Tensor:
        return torch.cat([v.flatten() for k, v in state.items() if k.endswith(end)])

    left, right = state["blocks.0.mlp.fc2/rlrr/left.0"], part("right")
    assert 0.9 < left.abs().max() / (6 / 128) ** 0.5 <= 1 and left.min() < 0 < left.max()
    assert 0.97 < right.abs().max() / 6**0.5 <= 1 and abs(right.mean()) < 0.15
    assert part("shift").abs().max() == 0
    for drawn, centre in ((part("gamma"), 1), (part("beta"), 0)):
        assert abs(drawn.mean() - centre) < 0.004 and abs(drawn.std() - 0.02) < 0.003
    state = lowtide.apply(tiny("vit"), RLRR(residual=False)).adapter_state()
    for end, centre in (("left.0", 1), ("right", 1), ("shift", 0)):
        drawn = part(end)
        assert abs(drawn.mean() - centre) < 0.004 and abs(drawn.std() - 0.02) < 0.003
    state = lowtide.apply(tiny("vit"), RLRR(sides="right")).adapter_state()
    assert 0.9 < state["blocks.0.mlp.fc1/rlrr/right"].abs().max() / (6 / 128) ** 0.5 <= 1


@over_ablations
def test_identity_starts_at_the_backbone_and_is_alive(options: dict) -> None:
    model = tiny("vit").eval()
    x = images(model)
    before = model(x)
    tuned = lowtide.apply(model, RLRR(init="identity", **options)).eval()
    near(tuned(x), before)
    backward(tuned, x)
    for module in tuned.modules():
        if hasattr(module, "left"):
            vectors = [*module.left, *([] if module.right is None else [module.right])]
            assert max(v.grad.abs().max() for v in vectors) > 1e-6


def delta(graft: Any, weight: Tensor) -> Tensor:
    return rescaled(graft, weight) - weight


@pytest.mark.parametrize("other", [LoRA(), SSF()], ids=["lora", "ssf"])
@pytest.mark.parametrize("first", [True, False])
def test_with_another_method_on_the_same_map(other: Any, first: bool) -> None:
    """W in the update is the frozen weight, whoever stands below, in training and when merged."""
    model = tiny("vit").eval()
    qkv = model.blocks[0].attn.qkv
    methods = (RLRR(), other) if first else (other, RLRR())
    tuned = lowtide.apply(model, *methods).eval()
    stir(tuned)
    top = model.blocks[0].attn.qkv
    ours, theirs = (top.base, top) if first else (top, top.base)
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    with torch.no_grad():
        update = x @ delta(ours, qkv.weight).T + ours.shift
        if isinstance(other, LoRA):
            pairs = zip(theirs.up, theirs.down, strict=True)
            q, v = (x @ (up.weight @ down.weight).T for up, down in pairs)
            expected = qkv(x) + torch.cat([q, torch.zeros_like(q), v], -1) + update
        elif first:
            expected = theirs.gamma * (qkv(x) + update) + theirs.beta
        else:
            expected = theirs.gamma * qkv(x) + theirs.beta + update
    near(top(x), expected)
    y = tuned(z := images(model))
    merged = tuned.merge_and_unload().eval()
    near(merged.blocks[0].attn.qkv(x), expected)
    near(merged(z), y)


def test_without_residual_no_other_method_may_stand_below() -> None:
    with pytest.raises(Unsupported, match=r"rlrr without residual.*give rlrr first"):
        lowtide.apply(tiny("vit"), LoRA(), RLRR(residual=False))
    tuned = lowtide.apply(tiny("vit"), RLRR(residual=False), LoRA()).eval()
    stir(tuned)
    y = tuned(x := images(tuned.backbone))
    near(tuned.merge_and_unload().eval()(x), y)


def test_swin_s_reduction_has_no_place_for_a_shift() -> None:
    tuned = lowtide.apply(tiny("swin"), RLRR())
    with pytest.raises(Unsupported, match=r"downsample\.reduction: .*reduction_bias=False"):
        tuned.merge_and_unload()
    tuned = lowtide.apply(tiny("swin"), RLRR(reduction_bias=False)).eval()
    stir(tuned)
    y = tuned(x := images(tuned.backbone))
    merged = tuned.merge_and_unload().eval()
    near(merged(x), y)
    assert merged.state_dict().keys() == tiny("swin").state_dict().keys()


def test_a_step_makes_no_tensor_of_a_weight_s_size() -> None:
    """Wide maps on few tokens: everything beside the weights is smaller than one of them."""
    torch.manual_seed(0)
    fc = nn.Linear(512, 512)
    tuned = lowtide.apply(_one_map(fc), RLRR())
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
    with Meter(tuned, optimizer) as meter:
        for _ in range(2):
            tuned(torch.randn(2, 3, 4, 4)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    weights = sum(t.nbytes for t in (*tuned.parameters(), *tuned.buffers()))
    assert meter.peak.peak_bytes - weights < fc.weight.nbytes / 4


def _one_map(fc: nn.Linear) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 512), fc, nn.Linear(512, 4))
    model.pretrained_cfg = {"input_size": (3, 4, 4)}
    return model


@over_ablations
def test_a_block_keeps_the_inputs_of_its_maps_and_what_its_norms_give(options: dict) -> None:
    """Over a frozen block 9 u, 1 of which (the input of proj) fused attention keeps anyway."""

    def kept(method: Method) -> int:
        tuned = lowtide.apply(tiny("vit").float(), method)
        storages: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        x = images(tuned.backbone)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = tuned(x)  # alive, so that no address is used twice
        known = {t.untyped_storage().data_ptr() for t in (x, *tuned.parameters())}
        assert y.requires_grad
        return sum(n for pointer, n in storages.items() if pointer not in known)

    u = 3 * 17 * 32 * 4
    stem_and_last_norm = u * 16 // 17 + u
    assert kept(RLRR(**options)) - kept(Bias()) == 4 * 8 * u + stem_and_last_norm


def test_under_autocast_with_frozen_weights_in_bf16_and_compiled() -> None:
    torch.manual_seed(0)
    model = tiny("vit").float()
    tuned = lowtide.apply(model, RLRR()).train()
    x = images(model)
    y = backward(tuned, x)
    wanted = {n: p.grad.clone() for n, p in tuned.named_parameters() if p.grad is not None}
    tuned.zero_grad()
    torch.compiler.reset()
    near(backward(torch.compile(tuned, fullgraph=True, backend="eager"), x), y, 1e-4)
    for n, p in tuned.named_parameters():
        if p.grad is not None:
            near(p.grad, wanted[n], 1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        rough = backward(tuned, x)
    assert rough.sub(y).abs().max() < 0.1 * y.abs().max()
    lowtide.set_frozen_dtype(tuned, "bf16")
    rough = backward(tuned, x)
    assert 0 < rough.sub(y).abs().max() < 0.1 * y.abs().max()


@pytest.mark.parametrize("options", [{"sides": "top"}, {"init": "zero"}], ids=str)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="rlrr needs sides both, left or right"):
        RLRR(**options)
