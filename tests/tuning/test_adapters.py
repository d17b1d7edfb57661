"""Several adapters on one backbone: added, switched, disabled, saved and taken out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nets import FEW, backward, images, near, stir, tiny
from torch import nn

import lowtide
from lowtide.core.method import Method
from lowtide.errors import InputError, UnknownName, Unsupported
from lowtide.methods.bias import Bias
from lowtide.methods.full import Full
from lowtide.methods.linear import Linear
from lowtide.methods.lora import LoRA
from lowtide.methods.partial import Partial
from lowtide.methods.rlrr import RLRR
from lowtide.methods.s2a import S2A
from lowtide.methods.ssf import SSF
from lowtide.tuning.tuned import Tuned


def three(family: str = "vit") -> tuple[nn.Module, Tuned]:
    """A backbone with three stirred adapters of different methods and numbers of classes."""
    model = tiny(family).eval()
    tuned = lowtide.apply(model, LoRA(), name="a", num_classes=FEW).eval()
    tuned.add_adapter("b", SSF(), Bias(), num_classes=7)
    tuned.add_adapter("c", S2A(), num_classes=3)
    for name in "abc":
        tuned.set_adapter(name)
        stir(tuned)
    return model, tuned


@pytest.mark.parametrize("family", ["vit", "swin", "convnext", "resnet"])
def test_switching_back_and_forth_is_exact(family: str) -> None:
    model, tuned = three(family)
    x = images(model)
    answers = {}
    for name, classes in (("a", FEW), ("b", 7), ("c", 3)):
        tuned.set_adapter(name)
        assert (tuned.active, tuned.num_classes) == (name, classes)
        answers[name] = tuned(x)
        assert answers[name].shape == (3, classes)
    for name in "cabacb":
        tuned.set_adapter(name)
        near(tuned(x), answers[name])


def test_only_the_active_one_trains_and_counts() -> None:
    model, tuned = three()
    x = images(model)
    for name, word in (("a", "down"), ("b", "gamma"), ("c", "branches")):
        tuned.set_adapter(name)
        tuned.zero_grad()
        backward(tuned, x)
        trained = {n for n, p in tuned.named_parameters() if p.grad is not None}
        assert any(word in n for n in trained)
        others = {"down", "gamma", "branches"} - {word}
        assert not [n for n in trained if any(o in n for o in others)]
        state = tuned.adapter_state()
        assert sum(v.numel() for v in state.values()) == tuned.trainable_counts()[0]


def test_disabling_gives_the_backbone_and_then_the_adapter_back() -> None:
    plain = tiny("vit").eval()
    model, tuned = three()
    x = images(model)
    tuned.set_adapter("c")
    before = tuned(x)
    with tuned.disable_adapter():
        assert tuned.active == ""
        assert tuned(x).shape == (3, FEW)
        near(model.forward_features(x), plain.forward_features(x))
        assert not [p for p in model.parameters() if p.requires_grad]
    near(tuned(x), before)
    with pytest.raises(RuntimeError, match="inside"), tuned.disable_adapter():
        raise RuntimeError("inside")
    near(tuned(x), before)


def test_an_adapter_does_not_leak_into_the_next() -> None:
    model, tuned = three()
    tuned.set_adapter("b")
    kept = {k: v.clone() for k, v in tuned.adapter_state().items()}
    tuned.set_adapter("a")
    stir(tuned)
    tuned.set_adapter("b")
    assert all((v == kept[k]).all() for k, v in tuned.adapter_state().items())


def test_merging_one_of_several_gives_that_one() -> None:
    model, tuned = three()
    x = images(model)
    tuned.set_adapter("b")
    y = tuned(x)
    merged = tuned.merge_and_unload().eval()
    near(merged(x), y)
    plain = tiny("vit")
    plain.reset_classifier(7)
    plain.double().eval().load_state_dict(merged.state_dict())
    near(plain(x), y)


def test_refusals_name_what_is_wrong_and_keep_the_active_one() -> None:
    model, tuned = three()
    x = images(model)
    tuned.set_adapter("a")
    y = tuned(x)
    with pytest.raises(InputError, match="'a' exists"):
        tuned.add_adapter("a", Linear())
    with pytest.raises(UnknownName, match="'bb'.*did you mean b"):
        tuned.set_adapter("bb")
    with pytest.raises(InputError, match="lora is given twice"):
        tuned.add_adapter("d", LoRA(), LoRA(rank=2))
    with pytest.raises(Unsupported, match="averages 5"):
        tuned.add_adapter("d", S2A(reduction=5))
    assert tuned.active == "a" and "d" not in tuned.adapters
    near(tuned(x), y)


def test_saved_adapters_meet_again_on_one_backbone(tmp_path: Path) -> None:
    model, tuned = three()
    x, answers = images(model), {}
    for name in "abc":
        tuned.set_adapter(name)
        answers[name] = tuned(x)
        tuned.save_pretrained(tmp_path / name, classes=["x"])
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert config["classes"] == ["x"] and config["num_classes"] == tuned.num_classes
    again = lowtide.load(tiny("vit"), tmp_path / "a", name="a")
    for name in "bc":
        again.load_adapter(tmp_path / name, name)
    for name in "acb":
        again.eval().set_adapter(name)
        near(again(x), answers[name])


def test_full_leaves_no_gradient_flag_behind_on_a_failed_load(tmp_path: Path) -> None:
    model = tiny("vit")
    lowtide.apply(model, Full()).save_pretrained(tmp_path)
    tuned = lowtide.apply(tiny("vit"), LoRA(), name="a").eval()
    x = images(tuned.backbone)
    y = tuned(x)
    trained = tuned.trainable_counts()
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["num_classes"] = 4
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="shape"):
        tuned.load_adapter(tmp_path, "full")
    assert tuned.active == "a" and tuned.trainable_counts() == trained
    near(tuned(x), y)
    lowtide.apply(tiny("vit"), Full()).save_pretrained(tmp_path)
    tuned.load_adapter(tmp_path, "full")  # the name is free again
    assert tuned.active == "full"


@pytest.mark.parametrize("method", [Partial(), Full()], ids=["partial", "full"])
def test_a_run_whose_statistics_moved_opens_again(method: Method, tmp_path: Path) -> None:
    tuned = lowtide.apply(tiny("resnet"), method, num_classes=FEW).train()
    x = images(tuned.backbone)
    tuned(x)
    tuned.save_pretrained(tmp_path)
    again = lowtide.load(tiny("resnet"), tmp_path)
    near(again(x), tuned.eval()(x))


def test_statistics_that_move_are_the_adapter_s_own() -> None:
    model = tiny("resnet").eval()
    x = images(model)
    before = model(x)
    tuned = lowtide.apply(model, Partial(), name="a")
    tuned.add_adapter("b", Linear())
    tuned.train()(x)
    after = tuned.eval()(x)
    assert (after - before).abs().max() > 1e-3
    with tuned.disable_adapter():
        near(tuned(x), before)
    tuned.set_adapter("b")
    near(tuned(x), before)
    tuned.set_adapter("a")
    near(tuned(x), after)


def test_statistics_stand_still_or_move_with_the_adapter_in_place() -> None:
    tuned = lowtide.apply(tiny("resnet"), Partial(), name="moving").train()
    tuned.add_adapter("still", Linear())
    norms = [m for m in tuned.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    moving = [m.training for m in norms]
    assert any(moving) and not all(moving)
    tuned.set_adapter("still")
    assert tuned.training and not any(m.training for m in norms)
    tuned.set_adapter("moving")
    assert [m.training for m in norms] == moving


def test_three_methods_on_one_map_stand_on_one_another() -> None:
    tuned = lowtide.apply(tiny("vit"), RLRR(), LoRA(), SSF(init="identity"))
    stir(tuned)
    backward(tuned, x := images(tuned.backbone))
    grafts = tuned.adapters[tuned.active].grafts
    path = "blocks.0.attn.qkv"
    assert [method for p, method, _ in grafts if p == path] == ["rlrr", "lora", "ssf"]
    for _, method, graft in grafts:
        assert all(v.grad is not None and v.grad.any() for _, v in graft.own()), method
    y = tuned.eval()(x)
    near(tuned.merge_and_unload()(x), y)


def test_a_backbone_that_differs_in_a_statistic_alone_is_another_one(tmp_path: Path) -> None:
    lowtide.apply(tiny("resnet"), LoRA()).save_pretrained(tmp_path)
    other = tiny("resnet")
    other.bn1.running_var[0] += 0.5
    with pytest.raises(InputError, match="load the same pre-trained weights"):
        lowtide.load(other, tmp_path)
