"""The command line: what it prints, and one clear line for whatever a user may give it."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from lowtide.cli import COMMANDS, main
from lowtide.core.site import Role
from lowtide.methods import METHODS
from lowtide.training.config import RunConfig
from lowtide.training.options import Parser, config_of, run_config

PLAN = ["plan", "--model", "vit_base_patch16_224"]
MODEL = "vit_micro_patch4_32"


def images(root, classes=("cat", "dog"), count=3):
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (32, 32), (i * 40, 10, 200)).save(root / name / f"{i}.png")
    return root


def refused(args, capsys, code=2):
    """Run a command that must fail; give its one line."""
    assert main([str(a) for a in args]) == code
    out, err = capsys.readouterr()
    assert err.startswith("lowtide: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    return err


def test_help_names_every_command(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"lowtide {command}" in capsys.readouterr().out


def test_help_shows_the_options_of_the_chosen_method(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--method", "s2a", "--help"])
    out = capsys.readouterr().out
    assert "--method.prompt_every" in out
    assert "--method.name" not in out


def test_plan_prints_one_json_object(capsys):
    assert main([*PLAN, "--num-classes", "100", "--method", "s2a", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["trainable_parameters"] == 775_276
    assert planned["peak_bytes"] == sum(planned["parts"].values())
    assert set(planned["parts"]) == {"weights", "saved", "temporaries", "gradients", "optimiser"}


def test_method_options_reach_the_method(capsys):
    args = [*PLAN, "--num-classes", "100", "--method=lora", "--method.rank", "4", "--json"]
    assert main(args) == 0
    assert json.loads(capsys.readouterr().out)["trainable_parameters"] == 294_912 // 2 + 76_900


def test_without_a_method_lora_is_on_every_linear_map(capsys):
    every, head = 12 * 8 * (3 * 2 + 2 + 2 * 5) * 768, 76_900
    named = ["--method", "lora", "--method.all_linear", "true"]
    for more, count in (([], every), (named, every), (["--method.rank", "4"], every // 2)):
        assert main([*PLAN, "--num-classes", "100", *more, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["trainable_parameters"] == count + head
    assert RunConfig("m", "d").method == config_of({"model": "m", "data": "d"}).method
    assert config_of({"model": "m", "data": "d", "method": "lora"}).method == METHODS["lora"]()


def test_info_lists_sites(capsys):
    assert main(["info", "resnet18", "--json"]) == 0
    sites = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(s["role"] == "block" for s in sites) == 8
    assert [s["path"] for s in sites if s["role"] == "head"] == ["fc"]


def test_methods_lists_every_method(capsys):
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("full", "linear", "bias", "lora", "ssf", "s2a"))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["trian"], "did you mean train"),
        (["plan", "--model", "vit_bse_patch16_224"], "did you mean vit_base_patch16_224"),
        (["plan"], "--model is required"),
        ([*PLAN, "--method", "lroa"], "did you mean lora"),
        ([*PLAN, "--method.rnk", "3"], "did you mean --method.rank"),
        ([*PLAN, "--method.rank", "three"], "three"),
        (
            [*PLAN, "--method.rank", "0"],
            "--method.rank must be a whole number from 1 to 4096, not 0",
        ),
        ([*PLAN, "--method.roles", "[qvk]"], "qvk"),
        ([*PLAN, "--policy", "thight"], "did you mean tight"),
        ([*PLAN, "--frozen-dtype", "bf61"], "bf16"),
        (
            [*PLAN, "--batch-size", "0"],
            "--batch-size must be a whole number from 1 to 1000000, not 0",
        ),
        ([*PLAN, "--batch-sze", "3"], "did you mean --batch-size"),
        (["plan", "--model", "davit_tiny", "--method", "s2a"], "no table"),
        (["plan", "--model", "mixer_b16_224", "--image-size", "256"], "256"),
        (["train", "--model", MODEL], "--data is required"),
        (["train", "--model", MODEL, "--data", "/no/such"], "/no/such does not exist"),
        (["train", "--resume", "/no/such"], "no run to resume"),
        (["train", "--config", "/no/such.yaml"], "no config file"),
        (["eval", "/no/such"], "holds no adapter"),
        (["predict", "/no/such", "x.png"], "holds no adapter"),
        (["merge", "/no/such", "--output", "m.pth"], "must end in .safetensors"),
        (["info", "nothing_like_a_model_at_all"], "unknown model"),
        (["info", "zzzz"], " in all"),
    ],
)
def test_bad_arguments_get_one_line(args, said, capsys):
    assert said in refused(args, capsys)


def test_bad_folders_get_one_line(tmp_path, capsys):
    train = ["train", "--model", MODEL, "--output", tmp_path / "run", "--data"]
    (tmp_path / "empty").mkdir()
    assert "is empty" in refused([*train, tmp_path / "empty"], capsys)
    one = images(tmp_path / "one", classes=("cat",))
    assert "only one class" in refused([*train, one], capsys)
    bad = images(tmp_path / "bad")
    (bad / "cat" / "0.png").write_bytes(b"no image")
    assert "0.png" in refused([*train, bad], capsys)
    assert not (tmp_path / "run").exists()
    assert main([*map(str, [*train, bad]), "--skip-bad-images", "--epochs", "1"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert any("0.png" in s for s in summary["data"]["skipped"])


def test_bad_checkpoints_get_one_line(tmp_path, capsys):
    data = images(tmp_path / "data")
    train = ["train", "--model", MODEL, "--data", data, "--output", tmp_path / "run"]
    (tmp_path / "w.safetensors").write_bytes(b"pickle?")
    assert "no safetensors file" in refused(
        [*train, "--checkpoint", tmp_path / "w.safetensors"], capsys
    )
    assert "did you mean" in refused([*train, "--checkpoint", tmp_path / "v.safetensors"], capsys)
    state = timm.create_model(MODEL).state_dict()
    state["norm.weight"] = torch.zeros(7)
    save_file(state, tmp_path / "w.safetensors")
    said = refused([*train, "--checkpoint", tmp_path / "w.safetensors"], capsys)
    assert "norm.weight is (7,) in the file and (192,) in the model" in said
    del state["norm.weight"]
    save_file(state, tmp_path / "w.safetensors")
    assert "1 tensors missing ['norm.weight']" in refused(
        [*train, "--checkpoint", tmp_path / "w.safetensors"], capsys
    )


def test_a_config_file_cannot_import_anything(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.yaml"
    path.write_text("model: !!python/object/apply:os.system ['touch pwned']\n")
    assert "no YAML" in refused(["train", "--config", path], capsys)
    path.write_text("modle: vit_micro_patch4_32\n")
    assert "did you mean model" in refused(["train", "--config", path], capsys)
    path.write_text("model: a\nmethod:\n  class_path: os.system\n")
    assert "method needs a name" in refused(["train", "--config", path], capsys)
    path.write_text("model: a\nmethod:\n  name: lora\n  class_path: os.system\n")
    assert "class_path" in refused(["train", "--config", path], capsys)
    assert not (tmp_path / "pwned").exists()


def test_adapter_for_another_backbone_is_refused(tmp_path, capsys):
    data = images(tmp_path / "data")
    run = tmp_path / "run"
    train = ["train", "--model", MODEL, "--data", data, "--epochs", "1", "--output", run]
    assert main([str(a) for a in train]) == 0
    capsys.readouterr()
    other = timm.create_model(MODEL, pretrained=False)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    said = refused(["eval", run, "--checkpoint", tmp_path / "other.safetensors"], capsys)
    assert "load the same pre-trained weights" in said


def test_roles_are_spelt_the_same_everywhere():
    config = RunConfig("m", "d", METHODS["lora"](roles=(Role.QKV, Role.FC1)))
    assert config_of(config.to_dict()) == config
    args = ["--model", "m", "--data", "d", "--method", "lora", "--method.roles", "[qkv, fc1]"]
    assert run_config(Parser("train", ""), args)[0] == config
