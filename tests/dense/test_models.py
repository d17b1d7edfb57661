"""Feature pyramids, decoders and detectors on plain and staged backbones."""

from __future__ import annotations

import pytest
import torch
from shapes import BODIES, body
from torch import Tensor, nn

from lowtide.codecs.exact import Exact
from lowtide.dense.decoders import DECODERS, default_decoder, segmenter
from lowtide.dense.detectors import BACKGROUND, DETECTORS, detector
from lowtide.dense.pyramid import STRIDES, FeatureMaps, backbone_path, pyramid
from lowtide.errors import InputError
from lowtide.memory import bands
from lowtide.memory.chunking import sizes
from lowtide.memory.compress import compress
from lowtide.memory.policy import Policy
from lowtide.ops import bands as cut
from lowtide.ops import fan

IMAGES = (2, 3, 64, 64)
STRIDE = {"unet": 1, "fpn": 4, "upernet": 4, "dpt": 2}
"""Of the scores in training."""


@pytest.mark.parametrize("kind", BODIES)
def test_a_pyramid_has_the_strides_and_widths_it_says(kind: str) -> None:
    made = pyramid(body(kind), 16, 4).eval()
    maps = made(torch.randn(IMAGES))
    assert made.strides == STRIDES
    shapes = [(c, 64 // s, 64 // s) for c, s in zip(made.channels, STRIDES, strict=True)]
    assert [tuple(m.shape[1:]) for m in maps] == shapes


@pytest.mark.parametrize("kind", BODIES)
def test_nothing_stands_in_a_pyramid_that_no_map_reads(kind: str) -> None:
    """A parameter without a gradient would train nothing, and a method on it would be refused."""
    made = pyramid(body(kind), 16, 2)
    torch.stack([m.square().sum() for m in made(torch.randn(IMAGES))]).sum().backward()
    assert not [n for n, p in made.named_parameters() if p.grad is None]


def test_the_maps_of_a_staged_backbone_are_timms_own() -> None:
    model = body("swin").eval()
    x = torch.randn(IMAGES)
    own = model.forward_intermediates(x, intermediates_only=True, norm=False)
    made = pyramid(model, 16, 4).eval()
    for mine, theirs in zip(made(x), own, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_the_last_map_of_a_plain_backbone_is_its_normed_tokens() -> None:
    model = body("vit").eval()
    x = torch.randn(IMAGES)
    tokens = model.forward_features(x)[:, 1:]
    (last,) = FeatureMaps(model).eval()(x)
    torch.testing.assert_close(last.flatten(2).mT, tokens)


def test_a_patch_of_fourteen_pixels_is_resampled_to_sixteen() -> None:
    vit = type(body("vit"))
    model = vit(img_size=224, patch_size=14, embed_dim=32, depth=1, num_heads=2)
    maps = pyramid(model, 8, 4).eval()(torch.randn(1, 3, 224, 224))
    assert [m.shape[-1] for m in maps] == [56, 28, 14, 7]


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_segmenter_scores_every_pixel_and_all_of_it_learns(kind: str, decoder: str) -> None:
    if decoder == "dpt" and kind != "vit":
        with pytest.raises(InputError, match="expected --decoder fpn or unet or upernet"):
            segmenter(body(kind), 3, decoder, 64)
        return
    model = segmenter(body(kind), 3, decoder, 64)
    scores: Tensor = model(torch.randn(IMAGES))
    assert (scores.shape[:2], 64 // scores.shape[2]) == ((2, 3), STRIDE[decoder])
    assert model.eval()(torch.randn(IMAGES)).shape == (2, 3, 64, 64)
    (scores * torch.randn_like(scores)).sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


@pytest.mark.parametrize("kind", BODIES)
def test_upernet_computes_what_its_own_decoder_does(kind: str) -> None:
    model = segmenter(body(kind), 3, "upernet", 64).double()
    images = torch.randn(IMAGES).double()
    maps = model.backbone(images)
    mine = model.decode(model.decoder, list(maps), images)
    theirs = model.decoder([images, images, *maps[-4:]])
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_a_decoder_is_chosen_by_what_the_backbone_gives() -> None:
    chosen = {kind: default_decoder(body(kind)) for kind in BODIES}
    assert chosen == {"vit": "dpt", "swin": "upernet", "convnext": "upernet", "resnet": "unet"}


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("backbone", ["vit", "swin"])
def test_a_detector_learns_from_objects_and_from_images_without(backbone: str, kind: str) -> None:
    model = detector(body(backbone), 2, kind, 64, 32)
    first = BACKGROUND[kind]
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[:, 8:40, 8:40] = 1
    some = {
        "boxes": torch.tensor([[8.0, 8, 40, 40], [20, 30, 50, 60]]),
        "labels": torch.tensor([0, 1]) + first,
        "masks": masks,
    }
    none = {name: value[:0] for name, value in some.items()}
    losses = model(list(torch.randn(IMAGES)), [some, none])
    torch.stack(list(losses.values())).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    found = model.eval()(list(torch.randn(IMAGES)))
    for each in found:
        assert each["labels"].numel() == 0 or each["labels"].min() >= first
        assert each["labels"].numel() == 0 or each["labels"].max() < 2 + first
        assert ("masks" in each) == (kind == "maskrcnn")


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("backbone", ["vit", "swin"])
def test_a_detector_in_bands_of_rows_has_the_gradients_of_the_whole(
    backbone: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every map counts as large; what is kept is exact."""
    for module, name, value in ((bands, "LARGE", 1), (fan, "LARGE", 1), (cut, "BAND", 1 << 10)):
        monkeypatch.setattr(module, name, value)
    torch.manual_seed(0)
    model = detector(body(backbone), 2, kind, 64, 32).double()
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[:, 8:40, 8:40] = 1
    objects = {
        "boxes": torch.tensor([[8.0, 8, 40, 40]], dtype=torch.float64),
        "labels": torch.tensor([BACKGROUND[kind]]),
        "masks": masks,
    }
    images = list(torch.randn(IMAGES, dtype=torch.float64))
    wanted, found = list(model.parameters()), []
    exact = {name: Exact() for name in ("conv", "roi_align", "max_pool", "layer_norm")}
    for policy in (Policy(), Policy(exact, chunk=1 << 10)):
        torch.manual_seed(1)  # which regions are drawn
        losses = compress(model, policy)(images, [objects] * 2)
        found.append(torch.autograd.grad(torch.stack(list(losses.values())).sum(), wanted))
    for whole, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-9, atol=1e-9)


def test_the_pyramid_is_torchvisions() -> None:
    levels = detector(body("swin"), 2, "fasterrcnn", 64, 16).double().eval().backbone
    images = torch.randn(IMAGES, dtype=torch.float64)
    maps = dict(zip("0123", levels.maps(images), strict=True))
    mine, theirs = levels(images), levels.fpn(maps)
    assert list(mine) == list(theirs)
    for name, level in theirs.items():
        torch.testing.assert_close(mine[name], level, rtol=1e-9, atol=1e-9)


def test_the_mask_branch_runs_on_some_regions_at_a_time() -> None:
    """Each region alone: cut or not, masks and gradients are the same."""
    model = detector(body("swin"), 2, "maskrcnn", 64, 32).double()
    branch = nn.Sequential(model.roi_heads.mask_head, model.roi_heads.mask_predictor)
    regions = torch.randn(7, 32, 14, 14, dtype=torch.float64, requires_grad=True)
    assert sizes(branch[0], 2 * 32 * 14 * 14, (regions,), {}) == [2, 2, 2, 1]
    found = []
    for chunk in (None, 2 * 32 * 14 * 14):
        masks = compress(branch, Policy({"conv": Exact()}, chunk=chunk))(regions)
        wanted = [regions, *branch.parameters()]
        found.append([masks, *torch.autograd.grad(masks.square().sum(), wanted)])
    for whole, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-9, atol=1e-9)


def test_the_part_that_methods_change_is_found() -> None:
    for kind, path in (("resnet", "backbone.maps"), ("vit", "backbone.maps.maps")):
        model = detector(body(kind), 2, "retinanet", 64, 16)
        assert backbone_path(model) == path
        assert isinstance(model.get_submodule(path), FeatureMaps)


def test_a_backbone_without_such_maps_is_refused_in_one_line() -> None:
    resnet = body("resnet")
    resnet.feature_info = resnet.feature_info[:3]
    with pytest.raises(InputError, match=r"have strides \[2, 4, 8\], and a decoder"):
        pyramid(resnet, 16, 4)
    del resnet.feature_info
    with pytest.raises(InputError, match="timm gives no feature maps of ResNet"):
        pyramid(resnet, 16, 4)
