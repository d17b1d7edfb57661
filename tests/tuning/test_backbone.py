"""Stochastic depth of the backbone: on in training, inside frozen blocks, and off at zero."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import DropPath

from lowtide import METHODS
from lowtide.core.site import Role
from lowtide.errors import InputError
from lowtide.families import family_of, image_shape, measure
from lowtide.tuning.applying import apply
from lowtide.tuning.backbone import create
from lowtide.versions import on_meta

SMALL = {
    "vit": "vit_micro_patch4_32",
    "swin": "swin_tiny_patch4_window7_224",
    "convnext": "convnext_atto",
}


@pytest.fixture(scope="module", params=SMALL.values(), ids=SMALL)
def tuned(request):
    """Only the classifier trains: every block is frozen."""
    torch.manual_seed(0)
    backbone = create(request.param, pretrained=False, drop_path=0.5)
    for p in backbone.parameters():  # awake: a layer scale of 1e-6 would hide the residual branch
        p.data.normal_(std=0.3)
    return apply(backbone, METHODS["linear"](), num_classes=3)


def images(tuned, count=4):
    return torch.randn(1, *tuned.backbone.pretrained_cfg["input_size"]).expand(count, -1, -1, -1)


@torch.no_grad()
def test_frozen_blocks_are_dropped_image_by_image_in_training_only(tuned):
    x = images(tuned)
    same = tuned.eval()(x)
    assert torch.allclose(same, same[:1].expand_as(same), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(tuned.train()(x)[0], tuned(x)[1])
    assert not any(p.requires_grad for n, p in tuned.named_parameters() if "block" in n)


@torch.no_grad()
def test_a_dropped_branch_is_zero_and_a_kept_one_is_scaled(tuned):
    """`x + branch / (1 - rate)` or `x`, with rates that rise to the one asked for."""
    drops = [m for m in tuned.train().modules() if isinstance(m, DropPath)]
    rates = [m.drop_prob for m in drops]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.5)
    seen = []
    hook = drops[-1].register_forward_hook(lambda module, args, y: seen.append((args[0], y)))
    tuned(images(tuned, 16))
    hook.remove()
    branch, out = seen[0]
    kept = out.flatten(1).abs().sum(1) > 0
    assert 0 < kept.sum() < len(kept)
    torch.testing.assert_close(out[kept], 2 * branch[kept])


@pytest.mark.parametrize("name", SMALL.values(), ids=SMALL)
def test_zero_means_none_whatever_timm_defaults_to(name):
    model = create(name, pretrained=False)
    assert not any(m.drop_prob for m in model.modules() if isinstance(m, DropPath))


MICRO = "vit_micro_patch4_32"


@pytest.fixture
def state():
    torch.manual_seed(0)
    return create(MICRO, pretrained=False).state_dict()


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "model.", "state_dict.", "state_dict.model."],
)
@pytest.mark.parametrize("left_out", [(), ("head.weight", "head.bias")], ids=["", "headless"])
def test_a_checkpoint_under_one_name_loads(state, prefix, left_out, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file({prefix + k: v for k, v in state.items() if k not in left_out}, file)
    torch.manual_seed(1)
    loaded = create(MICRO, checkpoint=file).state_dict()
    assert loaded.keys() == state.keys()
    for key in loaded.keys() - set(left_out):
        assert torch.equal(loaded[key], state[key]), key


def test_parts_that_were_compiled_load(state, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file({k.replace("blocks.1.", "blocks.1._orig_mod."): v for k, v in state.items()}, file)
    assert torch.equal(
        create(MICRO, checkpoint=file).blocks[1].norm1.weight, state["blocks.1.norm1.weight"]
    )


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda k: k.replace("blocks.", "layers."), "missing .* unexpected .* nearest to blocks"),
        (lambda k: f"model.{k}" if k.startswith("blocks.0") else k, "nearest to blocks.0.* model."),
        (lambda k: f"model.{k.replace('qkv', 'in_proj')}", "nearest to .*qkv.* is .*in_proj"),
    ],
)
def test_a_checkpoint_of_other_names_is_refused_in_one_line(state, rename, message, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file({rename(k): v for k, v in state.items()}, file)
    with pytest.raises(InputError, match=message) as error:
        create(MICRO, checkpoint=file)
    assert "\n" not in str(error.value) and str(file) in str(error.value)


def test_of_a_teacher_and_a_student_none_is_chosen(state, tmp_path):
    file = tmp_path / "weights.safetensors"
    both = [{f"{who}.{k}": v.clone() for k, v in state.items()} for who in ("student", "teacher")]
    save_file(both[0] | both[1], file)
    with pytest.raises(InputError, match="unexpected"):
        create(MICRO, checkpoint=file)


def test_sam_takes_images_of_another_size():
    with on_meta():
        model = create("samvit_base_patch16", pretrained=False, image_size=224)
    sites = measure(model, family_of(model))
    assert image_shape(model) == (3, 224, 224)
    assert {s.out_shape for s in sites.of(Role.BLOCK)} == {(1, 14, 14, 768)}
    with pytest.raises(InputError, match="patches of 16 pixels, and 200"), on_meta():
        create("samvit_base_patch16", pretrained=False, image_size=200)
