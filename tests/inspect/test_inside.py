"""Looking inside: every number against a plain statement of it."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from nets import FEW, TABLES, images, near, stir, tiny
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch.linalg import matrix_norm, qr

from lowtide import METHODS, InputError, Unsupported, apply
from lowtide.data import Preprocessing, Sample
from lowtide.families import classifiers, image_shape
from lowtide.inference.evaluate import Trained
from lowtide.inspect import (
    attention_maps,
    block_features,
    cka,
    draw_parameters,
    final_features,
    similarity,
    svg,
    tsne,
)
from lowtide.inspect.parameters import changes
from lowtide.targets.classify import Classify

CHANNELS_LAST = {"sam", "swin", "swin_v2"}
"""Families whose maps are (B, H, W, C); of the others they are (B, C, H, W) or tokens."""
CHAINED = [name for name, family in TABLES.items() if name != "generic"]


def mean_over_places(y, channels_last):
    if y.ndim == 3:
        return y.mean(1)
    return y.mean((1, 2) if channels_last else (2, 3))


def trained(family, *methods, dtype=torch.float32):
    """A tuned model whose weights moved, as a run would leave it."""
    model = family if isinstance(family, torch.nn.Module) else tiny(family)
    torch.manual_seed(1)
    tuned = apply(model.to(dtype), *methods or [METHODS["linear"]()], num_classes=FEW).eval()
    stir(tuned)
    size = image_shape(model)[1:]
    made = Preprocessing(size, (0.5,) * 3, (0.25,) * 3, "bilinear", 1.0, "squash")
    names = tuple("abcd")
    transform, name = made.transform(train=False), type(model).__name__
    return Trained(tuned, made, transform, names, name, Classify(names))


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(5):
        pixels = torch.randint(0, 256, (6, 6, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).resize((64, 64), Image.Resampling.BICUBIC).save(
            root / f"{i}.png"
        )
        found.append(Sample(root / f"{i}.png", i % FEW))
    return found


def inputs(model, samples):
    return torch.stack([model.transform(Image.open(s.path)) for s in samples])


# CKA


def test_cka_of_equal_features_is_one_whatever_their_basis_and_scale():
    x = torch.randn(30, 7, dtype=torch.float64)
    turn = qr(torch.randn(7, 7, dtype=torch.float64)).Q
    for unbiased in (False, True):
        for y in (x, x @ turn, 3.7 * x, x + torch.randn(7, dtype=torch.float64)):
            assert cka(x, y, unbiased=unbiased) == pytest.approx(1, abs=1e-12)
        assert cka(x, x * torch.arange(7), unbiased=unbiased) < 0.999  # no such map


def test_cka_is_its_formula():
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randn(20, 9, dtype=torch.float64)
    y[:, :5] += x
    a, b = x - x.mean(0), y - y.mean(0)
    said = matrix_norm(b.T @ a) ** 2 / (matrix_norm(a.T @ a) * matrix_norm(b.T @ b))
    assert cka(x, y) == pytest.approx(float(said), rel=1e-9)


def hsic(x, y):
    """Song et al. 2012, equation 5, written out."""
    n = len(x)
    k, m = (z @ z.T * (1 - torch.eye(n, dtype=z.dtype)) for z in (x, y))
    one = torch.ones(n, dtype=x.dtype)
    between = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (torch.trace(k @ m) + between - 2 * (one @ k @ m @ one) / (n - 2)) / (n * (n - 3))


def test_unbiased_cka_is_its_formula_and_does_not_flatter_noise():
    x, y = torch.randn(20, 300, dtype=torch.float64), torch.randn(20, 300, dtype=torch.float64)
    said = hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()
    assert cka(x, y, unbiased=True) == pytest.approx(float(said), rel=1e-9)
    assert abs(cka(x, y, unbiased=True)) < 0.2 < 0.8 < cka(x, y)


def test_similarity_is_a_matrix_of_cka():
    a = {str(d): torch.randn(12, d) for d in (3, 5)}
    b = {str(d): torch.randn(12, d) for d in (4, 6, 8)}
    matrix = similarity(a, b)
    assert matrix.shape == (2, 3)
    assert float(matrix[1, 2]) == pytest.approx(cka(a["5"], b["8"]))
    assert similarity({"dead": torch.ones(12, 3)}, b).isnan().all()
    with pytest.raises(InputError, match="at least 4"):
        similarity({"x": torch.randn(3, 2)}, {"x": torch.randn(3, 2)}, unbiased=True)
    with pytest.raises(InputError, match="same images"):
        similarity({"x": torch.randn(9, 2)}, {"x": torch.randn(8, 2)})


# features


@pytest.mark.parametrize("family", CHAINED)
def test_block_features_are_means_over_the_places_of_each_block(family, samples):
    model = trained(family)
    seen, handles = {}, []
    for path in model.tuned.family.chain(model.tuned.backbone):
        handles.append(
            model.tuned.backbone.get_submodule(path).register_forward_hook(
                lambda m, args, y, path=path: seen.setdefault(path, y)
            )
        )
    with torch.no_grad():
        logits = model.tuned(inputs(model, samples))
    for handle in handles:
        handle.remove()
    found = block_features(model, samples, batch_size=2)
    assert list(found) == list(seen)
    for path, y in seen.items():
        near(found[path], mean_over_places(y, family in CHANNELS_LAST), 1e-4)
    assert not model.tuned.sides
    with torch.no_grad():
        assert torch.equal(model.tuned(inputs(model, samples)), logits)


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_tokens_that_a_method_adds_are_no_part_of_features(family, samples):
    model = trained(family, METHODS["vpt"](tokens=3, depth="deep"))
    found = block_features(model, samples)
    kept = []

    def reading(run, block, x, *tokens):
        out = run(block, x, *tokens)
        kept.append(out[0])
        return out

    run = model.tuned.family.extend
    object.__setattr__(model.tuned.family, "extend", lambda *args: reading(run, *args))
    try:
        with torch.no_grad():
            model.tuned(inputs(model, samples))
    finally:
        object.__setattr__(model.tuned.family, "extend", run)
    blocks = [p for p in found if p in model.tuned.blocks]
    assert len(kept) == len(blocks)  # deep prompts: what stands between stages sees none
    for path, y in zip(blocks, kept, strict=True):
        near(found[path], y.flatten(1, -2).mean(1), 1e-5)


def test_a_backbone_without_a_table_is_read_where_timm_lists_its_features(samples):
    model = trained("generic")
    found = block_features(model, samples)
    assert list(found) == [info["module"] for info in model.tuned.backbone.feature_info]
    assert all(len(x) == len(samples) and x.std(0).max() > 0 for x in found.values())
    model.tuned.backbone.feature_info = [{"module": "nowhere", "num_chs": 8, "reduction": 4}]
    with pytest.raises(Unsupported, match="no table"):
        block_features(model, samples)
    with pytest.raises(InputError, match="no images"):
        block_features(trained("vit"), [])


@pytest.mark.parametrize("name", ["mambaout_femto", "davit_tiny"])
def test_places_are_those_of_the_layout_timm_names(name, samples):
    model = trained(timm.create_model(name))
    seen = {}
    for path in (info["module"] for info in model.tuned.backbone.feature_info):
        model.tuned.backbone.get_submodule(path).register_forward_hook(
            lambda m, args, y, path=path: seen.setdefault(path, y)
        )
    found = block_features(model, samples)
    assert len(seen) > 1
    for path, y in seen.items():
        near(found[path], mean_over_places(y, name.startswith("mambaout")), 1e-4)


@pytest.mark.parametrize("family", sorted(TABLES))
def test_final_features_are_what_the_classifier_reads(family, samples):
    method = METHODS["dtl" if family in {"vit", "swin"} else "ssf"]()
    model = trained(family, method)
    found = final_features(model, samples, batch_size=2)
    head = model.tuned.backbone.get_submodule(*classifiers(model.tuned.backbone))
    with torch.no_grad():
        near(F.linear(found, head.weight, head.bias), model.tuned(inputs(model, samples)), 1e-4)


# t-SNE


def test_tsne_keeps_groups_together_and_repeats_itself():
    groups = torch.randn(3, 1, 20) * 20 + torch.randn(3, 15, 20)
    points = tsne(groups.flatten(0, 1), seed=3)
    assert points.shape == (45, 2)
    assert (points == tsne(groups.flatten(0, 1), seed=3)).all()
    xy = torch.from_numpy(points)
    nearest = (torch.cdist(xy, xy) + 1e9 * torch.eye(45)).argmin(1)
    assert (nearest // 15 == torch.arange(45) // 15).all()


@pytest.mark.parametrize(("count", "perplexity"), [(4, 30.0), (20, 0.0)])
def test_tsne_refuses_what_it_cannot_embed(count, perplexity):
    with pytest.raises(InputError, match="at least 5 images"):
        tsne(torch.randn(count, 3), perplexity=perplexity)


# attention


def written_out(model, x):
    """What timm's unfused attention gives to its dropout: mean over heads, by block."""
    seen = []
    for s in model.tuned.sites:
        if s.role == "attn":
            module = model.tuned.backbone.get_submodule(s.path)
            module.fused_attn = False
            module.attn_drop.register_forward_pre_hook(lambda m, args: seen.append(args[0].mean(1)))
    with torch.no_grad():
        model.tuned(x)
    return seen


def vit(**options):
    torch.manual_seed(2)
    sizes = dict(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=FEW)
    model = VisionTransformer(**sizes, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.2)
    return model


@pytest.mark.parametrize("method", ["linear", "lora", "ssf", "adapter", "vpt", "dtl"])
@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "reg_tokens": 2}])
def test_attention_maps_are_those_of_the_unfused_attention(method, options):
    chosen = METHODS[method](tokens=5) if method == "vpt" else METHODS[method]()
    model = trained(vit(**options), chosen, dtype=torch.float64)
    x = images(model.tuned.backbone)
    assert model.tuned.backbone.blocks[0].attn.fused_attn
    found = attention_maps(model, x, blocks=(0, -1), batch_size=2)
    rolled = attention_maps(model, x, blocks=(2, 0), kind="rollout")
    truth = written_out(model, x)
    own = 16 + model.tuned.backbone.num_prefix_tokens
    added = truth[0].shape[-1] - own
    assert added == (5 if method == "vpt" else 0)
    for i, block in enumerate((0, 2)):
        near(found[:, i].flatten(1), truth[block][:, added, -16:].float(), 1e-6)
    step = [(a[:, -own:, -own:] + torch.eye(own, dtype=a.dtype)) / 2 for a in truth]
    product = torch.einsum("bij,bjk,bkl->bil", step[2], step[1], step[0])
    near(rolled[:, 0].flatten(1), product[:, 0, -16:].float(), 1e-6)
    near(rolled[:, 1].flatten(1), step[0][:, 0, -16:].float(), 1e-6)


def test_without_a_class_token_the_mean_of_the_patches_stands_for_it():
    model = trained(vit(class_token=False, global_pool="avg"), dtype=torch.float64)
    x = images(model.tuned.backbone)
    found = attention_maps(model, x)
    near(found[:, 0].flatten(1), written_out(model, x)[-1].mean(1).float(), 1e-6)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("swin", "inside windows"),
        ("swin_v2", "inside windows"),
        ("convnext", "without attention"),
        ("resnet", "without attention"),
        ("mixer", "without attention"),
        ("generic", "no table"),
    ],
)
def test_a_backbone_without_global_attention_is_refused(family, why):
    with pytest.raises(Unsupported, match=why) as refusal:
        attention_maps(trained(family), torch.zeros(1, 3, 32, 32))
    assert "\n" not in str(refusal.value)


def test_blocks_and_kinds_that_are_not_there_are_refused():
    model = trained("vit")
    with pytest.raises(InputError, match="expected 0 to 3"):
        attention_maps(model, torch.zeros(1, 3, 32, 32), blocks=[4])
    with pytest.raises(InputError, match="did you mean mean"):
        attention_maps(model, torch.zeros(1, 3, 32, 32), kind="means")


# parameters


@pytest.mark.parametrize(
    ("family", "method", "parts"),
    [
        ("resnet", "full", {"*.conv1.weight": 6, "*.bn2.bias": 6}),
        ("swin", "full", {"*.attn.qkv.weight": 4}),
        ("swin", "dtl", {}),
        ("vit", "lora", {"*.attn.qkv/lora/down.0.weight": 4}),
        ("vit", "vpt", {"./vpt/prompts.*": 4}),
    ],
)
def test_changes_are_gathered_by_kind_over_blocks(family, method, parts):
    model = trained(family, METHODS[method]())
    state = model.tuned.adapter_state()
    moved = {name: 2 * value + 1 for name, value in state.items() if value.is_floating_point()}
    names = {name.replace("/full/", "."): name for name in moved}
    found = changes(
        {plain: state[name] for plain, name in names.items()},
        {plain: moved[name] for plain, name in names.items()},
        model.tuned.sites,
    )
    assert [c.name for c in found] == list(names)
    depths = {}
    for c in found:
        depths.setdefault(c.part, []).append(c.depth)
        assert c.depth >= 0 or c.part == c.name
    for part, count in parts.items():
        assert sorted(depths[part]) == list(range(count))
    figure = draw_parameters(found, "a long title " * 20)
    titles = [a.get_title().partition("\n")[0] for f in figure.subfigs for a in f.axes]
    assert set(depths) <= set(titles)
    assert svg(figure).startswith("<svg")
