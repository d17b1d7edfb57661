"""Adapters go to peft and come from it with equal outputs."""

from __future__ import annotations

import copy
import json

import pytest
import timm
import torch
from nets import FEW, stir, wake

import lowtide
from lowtide import METHODS, Role, apply, load, merge_peft, write_peft
from lowtide.cli import main
from lowtide.errors import InputError, Unsupported

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")


def vit():
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=FEW,
    )


def swin():
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        window_size=4,
        embed_dim=16,
        depths=(1, 1),
        num_heads=(2, 2),
        num_classes=FEW,
    )


def resnext():
    return timm.create_model("resnext26ts", num_classes=FEW)


def hf_vit():
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        num_labels=FEW,
    )
    return transformers.ViTForImageClassification(config)


MODELS = {"vit": (vit, 32), "swin": (swin, 64), "resnext": (resnext, 64), "hf_vit": (hf_vit, 32)}


def made(name):
    torch.manual_seed(0)
    make, side = MODELS[name]
    model = wake(make()).eval()
    if not hasattr(model, "pretrained_cfg"):
        model.pretrained_cfg = {"input_size": (3, side, side)}
    return model, torch.randn(2, 3, side, side)


def logits(output):
    return getattr(output, "logits", output)


def close(a, b):
    assert (a - b).abs().max() < 1e-4 * b.abs().max().clamp_min(1), (a - b).abs().max()


@pytest.mark.parametrize(
    "name, options",
    [
        ("vit", {}),
        ("vit", {"parts": "v", "alpha": 3.0}),
        ("vit", {"roles": (Role.QKV, Role.FC1, Role.STEM), "rank": 5}),
        ("swin", {"roles": (Role.QKV, Role.PROJ, Role.DOWN)}),
        ("resnext", {"roles": (Role.CONV,), "rank": 2}),
        ("hf_vit", {}),
        ("hf_vit", {"parts": "k"}),
    ],
)
def test_peft_loads_a_lora_with_equal_outputs(tmp_path, name, options):
    model, x = made(name)
    plain = copy.deepcopy(model)
    tuned = apply(model, METHODS["lora"](**options))
    stir(tuned)
    tuned.eval()
    write_peft(tuned, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path).eval()
    close(logits(theirs(x)), logits(tuned(x)))
    assert (logits(plain(x)) - logits(tuned(x))).abs().max() > 1e-2
    if name != "resnext":  # across groups
        back = load(copy.deepcopy(plain), tmp_path)
        close(logits(back(x)), logits(tuned(x)))
        close(logits(merge_peft(copy.deepcopy(plain), tmp_path)(x)), logits(tuned(x)))


def theirs(model, config, folder):
    """An adapter as peft trains and saves it."""
    wrapped = peft.get_peft_model(copy.deepcopy(model), config)
    with torch.no_grad():
        for p in wrapped.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.1)
    wrapped.eval().save_pretrained(folder)
    return wrapped


QKV = {"vit": ["qkv"], "swin": ["qkv"], "hf_vit": ["q_proj", "v_proj", "query", "value"]}
HEAD = {"vit": ["head"], "swin": ["head.fc"], "hf_vit": ["classifier"]}


@pytest.mark.parametrize("name", ["vit", "swin", "hf_vit"])
@pytest.mark.parametrize(
    "kind, options",
    [
        ("LoraConfig", {"r": 3, "lora_alpha": 7}),
        ("LoraConfig", {"r": 3, "use_rslora": True, "lora_bias": True}),
        ("LoraConfig", {"r": 4, "use_dora": True}),
        ("VeraConfig", {"r": 4}),
        ("IA3Config", {"feedforward_modules": []}),
    ],
)
def test_what_peft_wrote_is_loaded_or_merged_with_equal_outputs(tmp_path, name, kind, options):
    model, x = made(name)
    config = getattr(peft, kind)(target_modules=QKV[name], modules_to_save=HEAD[name], **options)
    expected = logits(theirs(model, config, tmp_path)(x))
    close(logits(merge_peft(copy.deepcopy(model), tmp_path)(x)), expected)
    if kind == "IA3Config" or {"use_dora", "lora_bias"} & options.keys():
        with pytest.raises(InputError, match="merge_peft") as error:
            load(model, tmp_path)
        assert "\n" not in str(error.value)
        return
    tuned = load(model, tmp_path)
    close(logits(tuned(x)), expected)
    close(logits(tuned.merge_and_unload()(x)), expected)


def test_ranks_and_scales_of_single_maps_are_kept(tmp_path):
    model, x = made("vit")
    config = peft.LoraConfig(
        r=2,
        target_modules=["blocks.1.attn.qkv", "fc1", "patch_embed.proj"],
        rank_pattern={"blocks.1.attn.qkv": 5},
        alpha_pattern={"fc1": 3},
    )
    expected = theirs(model, config, tmp_path)(x)
    tuned = load(copy.deepcopy(model), tmp_path)
    close(tuned(x), expected)
    assert any("start at nothing" in line for line in tuned.notes)


def test_another_number_of_classes_comes_with_the_classifier(tmp_path):
    model, x = made("vit")
    wide = copy.deepcopy(model)
    wide.reset_classifier(7)
    config = peft.LoraConfig(target_modules=["qkv"], modules_to_save=["head"])
    expected = theirs(wide, config, tmp_path)(x)
    close(load(copy.deepcopy(model), tmp_path)(x), expected)
    close(merge_peft(model, tmp_path)(x), expected)


def test_only_lora_is_written_and_our_own_files_are_not_called_pefts(tmp_path):
    model, _ = made("vit")
    tuned = apply(model, METHODS["ssf"]())
    with pytest.raises(Unsupported, match="peft has no ssf"):
        write_peft(tuned, tmp_path)
    tuned.save_pretrained(tmp_path)
    assert "peft_type" not in json.loads((tmp_path / "adapter_config.json").read_text())


BAD = {
    "fan_in_fan_out": (True, "fan_in_fan_out"),
    "peft_type": ("XLORA", "XLORA"),
    "init_lora_weights": ("pissa", "backbone's own weights"),
    "r": (2, None),
    "alpha_pattern": ({"(a+)+$": 3}, "pattern"),
    "lora_alpha": ("x", "lora_alpha"),
    "something_new": ({"a": 1}, "something_new"),
    "use_dora": (True, "use_dora"),
    "use_rslora": ("no", "use_rslora must be true or false, not 'no'"),
    "rank_pattern": ([2], "rank_pattern must be a mapping"),
    "modules_to_save": (["head"], "holds none of modules_to_save"),
}


def test_a_rank_that_is_none_of_the_config_s_is_refused(tmp_path):
    model, x = made("vit")
    expected = theirs(model, peft.LoraConfig(r=2, target_modules=["qkv"]), tmp_path)(x)
    path = tmp_path / "adapter_config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "r": 4}))  # its scale would be half as large
    with pytest.raises(InputError, match="has rank 2, and r is 4"):
        load(model, tmp_path)
    path.write_text(json.dumps({**written, "r": 4, "rank_pattern": {"qkv": 2}}))
    torch.testing.assert_close(load(model, tmp_path)(x), expected)


@pytest.mark.parametrize("field", BAD)
def test_a_strange_config_is_refused_in_one_line_and_the_model_stays(tmp_path, field):
    model, x = made("vit")
    theirs(model, peft.LoraConfig(r=2, target_modules=["qkv"]), tmp_path)
    value, said = BAD[field]
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    before = model(x)
    if said is None:
        load(model, tmp_path)
        return
    with pytest.raises(InputError, match=said) as error:
        load(model, tmp_path)
    assert "\n" not in str(error.value) and torch.equal(model(x), before)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    model, _ = made("vit")
    theirs(model, peft.LoraConfig(r=2, target_modules=["qkv"]), tmp_path)
    for other in ("swin", "hf_vit"):
        strange, x = made(other)
        before = logits(strange(x))
        for take in (load, merge_peft):
            with pytest.raises(InputError, match="does not fit"):
                take(strange, tmp_path)
        assert torch.equal(logits(strange(x)), before)


def test_the_command_folds_an_adapter_into_a_checkpoint(tmp_path, capsys):
    model = lowtide.create("vit_micro_patch4_32")
    model.reset_classifier(3)
    config = peft.LoraConfig(target_modules=["fc1"], modules_to_save=["head"], use_dora=True, r=2)
    x = torch.randn(2, 3, 32, 32)
    expected = theirs(model.eval(), config, tmp_path / "adapter")(x)
    words = ["--model", "vit_micro_patch4_32", "--output", str(tmp_path / "m.safetensors")]
    assert main(["import", str(tmp_path / "adapter"), *words]) == 0
    plain = timm.create_model(words[1], num_classes=3, checkpoint_path=words[3]).eval()
    close(plain(x), expected)
    capsys.readouterr()
    assert main(["import", str(tmp_path), *words]) == 2
    assert "no adapter of peft" in capsys.readouterr().err
