"""The door: whatever comes in from outside and cannot work gets one line and code 2."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from typing import Annotated

import pytest
import yaml
from reported import summary, write_row, write_suite

from lowtide import InputError, LowtideError, cli, interrupt
from lowtide.bench import Suite, read_results
from lowtide.cli import main
from lowtide.commands.console import OUT
from lowtide.data import Preprocessing
from lowtide.errors import printable, shown
from lowtide.methods import METHODS
from lowtide.paths import refuse_unwritable
from lowtide.report.write import write_report
from lowtide.training.config import RunConfig, read_yaml
from lowtide.training.options import Parser, config_of, run_config
from lowtide.training.summary import read_summary
from lowtide.tuning.adapter_config import AdapterConfig
from lowtide.tuning.adapter_files import construct, read_config
from lowtide.values import Within, words
from lowtide.yaml_text import parse_yaml

TRAIN = ["train", "--model", "vit_micro_patch4_32", "--data", "/no/such"]
PLAN = ["plan", "--model", "vit_micro_patch4_32"]
LONG = "1" * 23


def refused(args, capsys):
    """Run a command that must refuse; give its one line."""
    assert main([str(a) for a in args]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("lowtide: ") and err.count("\n") == 1
    assert "Traceback" not in out + err and "jsonargparse" not in err
    return err


NUMBERS = [
    ("epochs", "0", "a whole number from 1 to 1000000"),
    ("epochs", "1.5", "a whole number from 1"),
    ("epochs", "ten", "a whole number from 1"),
    ("epochs", "1e3", "a whole number"),
    ("epochs", LONG, "a whole number"),
    ("batch_size", "0", "a whole number from 1"),
    ("batch_size", "-4", "a whole number from 1"),
    ("batch_size", LONG, "a whole number"),
    ("accumulate", "0", "a whole number from 1"),
    ("image_size", "0", "a whole number from 1 to 16384"),
    ("image_size", "-32", "a whole number from 1"),
    ("image_size", LONG, "a whole number"),
    ("image_size", "224x224", "a whole number"),
    ("seed", "-1", "a whole number from 0 to 4294967295"),
    ("seed", LONG, "a whole number"),
    ("workers", "-1", "a whole number from 0"),
    ("workers", "1e2", "a whole number"),
    ("workers", LONG, "a whole number"),
    ("lr", "0", "a number above 0"),
    ("lr", "-1", "a number above 0"),
    ("lr", "nan", "a number above 0"),
    ("lr", "inf", "a number above 0"),
    ("lr", "1e400", "a number above 0"),
    ("lr", "fast", "a number above 0"),
    ("min_lr", "-1e-9", "a number from 0"),
    ("weight_decay", "-1", "a number from 0"),
    ("weight_decay", "nan", "a number from 0"),
    ("warmup_epochs", "-3", "a number from 0"),
    ("warmup_epochs", "inf", "a number from 0"),
    ("cooldown_epochs", "-1", "a whole number from 0"),
    ("smoothing", "2", "a number from 0 below 1"),
    ("smoothing", "1", "a number from 0 below 1"),
    ("smoothing", "-1", "a number from 0 below 1"),
    ("smoothing", "nan", "a number from 0 below 1"),
    ("clip_grad", "-1", "0, or from"),
    ("clip_grad", "1e-300", "0, or from"),
    ("clip_grad", "inf", "0, or from"),
    ("ema", "1", "a number from 0 below 1"),
    ("ema", "-0.1", "a number from 0 below 1"),
    ("drop_path", "3", "a number from 0 below 1"),
    ("drop_path", "1", "a number from 0 below 1"),
    ("drop_path", "-1", "a number from 0 below 1"),
    ("val_fraction", "1", "a number from 0 below 1"),
    ("test_fraction", "-0.1", "a number from 0 below 1"),
    ("amp", "bf61", "did you mean bf16"),
    ("device", "tpu", "did you mean cpu"),
    ("augment", "flop", "did you mean flip"),
    ("head_init", "zeros", "did you mean zero"),
    ("normalize", "imagenett", "did you mean imagenet"),
    ("policy", "thight", "did you mean tight"),
    ("memory_budget", "lots", "no size in bytes"),
    ("memory_budget", "1e400GiB", "no size in bytes"),
    ("memory_budget", "-1GiB", "no size in bytes"),
    ("pretrained", "maybe", "true or false"),
    ("checkpointing", "2", "true or false"),
    ("preset", "dtl/vtab/cifarr", "unknown preset"),
    ("model", "", "is empty"),
    ("data", "", "is empty"),
    ("checkpoint", "", "is empty"),
    ("checkpoint", "a\0b", "NUL"),
    ("preset", "", "is empty"),
    ("opt", " ", "is empty"),
    ("method.rank", "0", "a whole number from 1 to 4096"),
    ("method.rank", "1000000000", "a whole number from 1 to 4096"),
    ("method.rank", "8.5", "a whole number"),
    ("method.dropout", "1.5", "a number from 0 below 1"),
    ("method.dropout", "-1", "a number from 0 below 1"),
    ("method.alpha", "nan", "a number from"),
    ("method.roles", "[qvk]", "unknown role 'qvk'"),
    ("method.roles", " ", "is empty; is a variable not set?"),
    ("method.rnk", "3", "did you mean"),
    ("modle", "x", "did you mean"),
]
"""Option, text, and what the line says; one declaration, so the same from everywhere."""


@pytest.mark.parametrize(("name", "text", "said"), NUMBERS)
def test_the_command_line_is_held_to_it(name, text, said, capsys):
    flag = f"--{name}" if name.startswith("method.") else f"--{name.replace('_', '-')}"
    assert said in refused([*TRAIN, f"{flag}={text}"], capsys)


@pytest.mark.parametrize(("name", "text", "said"), NUMBERS)
def test_a_config_file_is_held_to_it(name, text, said, tmp_path, capsys):
    options = {"model": "m", "data": "/no/such", "method": {"name": "lora"}}
    outer, _, inner = name.partition(".")
    value = yaml.safe_load(text) if text.strip() and "\0" not in text else text
    (options["method"] if inner else options)[inner or outer] = value
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(options))
    assert said in refused(["train", "--config", path], capsys)


@pytest.mark.parametrize(("name", "text", "said"), NUMBERS)
def test_a_suite_is_held_to_it(name, text, said, tmp_path):
    if name in {"data", "seed"}:  # a suite has its own words for these
        return
    outer, _, inner = name.partition(".")
    method = {"method": {"name": "lora", inner: text}} if inner else {outer: text}
    path = tmp_path / "s.yaml"
    suite = {"defaults": {"model": "m"}, "data": {"d": "/d"}, "methods": {"x": method}}
    path.write_text(yaml.safe_dump(suite))
    with pytest.raises(InputError, match=said.replace("[", r"\[")):
        Suite.read(path)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([*TRAIN, "--lr"], "--lr needs a value"),
        ([*TRAIN, "--overwrite=1"], "takes no value"),
        ([*TRAIN, "x"], "unexpected argument 'x'"),
        ([*TRAIN, "--output", ""], "--output is empty"),
        ([*TRAIN, "--method", ""], "--method is empty"),
        ([*TRAIN, "--config", ""], "--config is empty"),
        (["train", "--resume", ""], "--resume is empty"),
        ([*TRAIN, "--workers", "4096"], "on this machine of"),
        ([*TRAIN, "--epochs", "3", "--warmup-epochs", "5"], "below epochs (3)"),
        ([*TRAIN, "--epochs", "1", "--warmup-epochs", "5"], "below epochs (1)"),
        ([*TRAIN, "--output", "/dev/null/x"], "/dev/null is a file"),
        ([*TRAIN, "--output", "/dev/null"], "is a file: give a folder"),
        ([*TRAIN, "--output", "n" * 300], "too long"),
        ([*TRAIN, "--output", "/proc/x"], "cannot be written"),
        ([*TRAIN, "--output", "a\0b"], "NUL"),
        ([*PLAN, "--machine", "tpu"], "unknown machine 'tpu'"),
        ([*PLAN, "--machine", "cpu"], "give --budget as well"),
        ([*PLAN, "--methods", "x"], "unknown method 'x'"),
        ([*PLAN, "--methods", "lora"], "give --budget as well"),
        ([*PLAN, "--methods", "lora,lora", "--budget", "1GiB"], "names lora twice"),
        ([*PLAN, "--methods", "bias", "--method", "lora", "--budget", "1GiB"], "give one of them"),
        ([*PLAN, "--budget", "some"], "no size in bytes"),
        ([*PLAN, "--num-classes", "0"], "a whole number from 1"),
        ([*PLAN, "--accumulate", "64"], "cannot be cut into 64"),
        (["predict", "run"], "images is required"),
        (["predict", "run", "x.png", "--top", "0"], "--top must be a whole number from 1"),
        (["predict", "run", "x.png", "--top", "-1"], "--top must be a whole number from 1"),
        (["predict", "run", "x.png", "--batch-size", "0"], "--batch-size must be"),
        (["predict", "run", "x.png", "--batch-size", "-1"], "--batch-size must be"),
        (["predict", "run", "x.png", "--device", "tpu"], "unknown --device 'tpu'"),
        (["predict", "", "x.png"], "run is empty"),
        (["predict", "run", ""], "images is empty"),
        (["eval", "run", "--data", ""], "--data is empty"),
        (["eval", "run", "--batch-size", "-1"], "--batch-size must be"),
        (["eval", "run", "--device", "cuda:9"], "unknown --device"),
        (["eval", "run", "--checkpoint", ""], "--checkpoint is empty"),
        (["merge", "run", "--output", ""], "--output is empty"),
        (["merge", "run", "--output", "m.safetensors", "--device", "tpu"], "unknown --device"),
        (["merge", "run"], "--output is required"),
        (["merge", "run", "--output", "/dev/null/m.safetensors"], "is a file"),
        (["merge", "run", "--output", "n" * 300 + ".safetensors"], "too long"),
        (["inspect", "tsne", "run", "--batch-size", "0", "--json"], "--batch-size must be"),
        (["inspect", "tsne", "run", "--seed", "-1", "--json"], "--seed must be"),
        (["inspect", "tsne", "run", "--perplexity", "nan", "--json"], "--perplexity must be"),
        (["inspect", "cka", "run", "--count", "0", "--json"], "--count must be"),
        (["inspect", "cka", "run", "--output", "/dev/null/a.svg"], "is a file"),
        (["inspect", "attention", "run", "--images", "", "--json"], "--images is empty"),
        (["inspect", ""], "unknown inspection ''"),
        (["bench", "s.yaml", "--processes", "0"], "--processes must be"),
        (["bench", "s.yaml", "--processes", "-1"], "--processes must be"),
        (["bench", "s.yaml", "--launcher", "slurm"], "known: local, ray"),
        (["bench", ""], "suite is empty"),
        (["bench", "/no/such.yaml"], "no config file"),
        (["report", "/no/such"], "holds no"),
        (["report", "", "--output", "x.csv"], "runs is empty"),
        (["report", "r", "--output", ""], "--output is empty"),
        (["report", "r", "--output", "r.pdf"], "must end in"),
        (["report", "r", "--output", "/dev/null/r.csv"], "is a file"),
        (["report", "r", "--output", "n" * 300 + ".csv"], "too long"),
        (["report", "r", "--figures", "/no/such.svg"], "is no SVG file"),
        (["info", ""], "model is empty"),
        (["info"], "model is required"),
        (["data", "look", "x"], "unknown action 'look': known: check"),
        (["data", "check", ""], "source is empty"),
        (["data", "check", "a\0b"], "NUL"),
        (["presets", "nothing like it"], "unknown preset"),
        (["methods", "x"], "unexpected argument"),
        ([""], "unknown command ''"),
    ],
)
def test_arguments_that_cannot_work_get_one_line(args, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refused(args, capsys)
    assert not list(tmp_path.iterdir())


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "more than 100000 values"),
        ("a: " + "[" * 3000 + "]" * 3000, "levels deep"),
        ("a: &a [*a]", "refers to a node that contains it"),
        ("a: &a {b: *a}", "refers to a node that contains it"),
        ("lr: 1\nlr: 2", "'lr' is given twice"),
        ("lr: " + "9" * 5000, "not what its tag says"),
        ("model: !!python/object/apply:os.system ['x']", "plain value"),
        ("model: !!binary x", "plain value"),
        ("model: !!set {a}", "plain value"),
        ("epochs: !!int x", "not what its tag says"),
        ("epochs: !!bool x", "not what its tag says"),
        ("lr: !!float x", "not what its tag says"),
        ("seed: 2020-13-45", "a date"),
        ("data: 2020-01-01", "a date"),
        ("? [a]\n: b", "unhashable"),
        ("model: [", "no YAML"),
        ("- 1", "holds no options"),
        ("", "holds no options"),
        ("1: x", "name of an option must be text"),
        ("~: x", "name of an option must be text"),
        ("true: x", "name of an option must be text"),
        ("config: x", "no option of a file"),
        ("resume: x", "no option of a file"),
        ("output: x", "no option of a file"),
        ("epochs: ten", "epochs must be a whole number"),
        ("epochs: {a: 1}", "epochs must be a whole number"),
        ("epochs: {}", "epochs must be a whole number"),
        ("epochs: [1]", "epochs must be a whole number"),
        ("epochs: true", "epochs must be a whole number"),
        ("batch_size: ", "batch_size must be a whole number"),
        ("epochs: 1.5", "epochs must be a whole number"),
        ("lr: .nan", "lr must be a number"),
        ("lr: .inf", "lr must be a number"),
        ("model: 3", "put it in quotes"),
        ("model: {a: b}", "model must be text"),
        ("data: 007", "put it in quotes"),
        ("pretrained: 1", "true or false"),
        ("method: 3", "method must be a name"),
        ("method: [lora]", "method must be a name"),
        ("method: ", "method must be a name"),
        ("method: {}", "method needs a name"),
        ("method: {name: 3}", "method must be text"),
        ("method: {name: lroa}", "did you mean lora"),
        ("method: {name: lora, rank: [1]}", "method.rank must be a whole number"),
        ("method: {name: lora, rank: {a: 1}}", "method.rank must be a whole number"),
        ("method: {name: lora, roles: 3}", "must be a list"),
        ("method: {name: lora, roles: [[qkv]]}", "unknown role"),
        ("method.rank: 3\nmethod: {name: lora, rank: 4}", "given twice"),
        ("preset: 3", "preset must be text"),
        ("preset: [a]", "preset must be text"),
    ],
)
def test_a_config_that_cannot_work_gets_one_line(text, said, tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert said in refused(["train", "--config", path], capsys)


@pytest.mark.parametrize("content", [b"model: \xff\xfe", b"\0", b"\x01: x"])
def test_a_config_that_is_no_text_gets_one_line(content, tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    assert str(path) in refused(["train", "--config", path], capsys)
    assert "no config file" in refused(["train", "--config", tmp_path], capsys)


GOOD = {
    "defaults": {"model": "m", "epochs": 2},
    "data": {"d": "/no/such"},
    "methods": {"x": "lora"},
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": [0, 0]}, "seeds holds 0 twice"),
        ({"seeds": [True]}, "seeds.0 is True, not a whole number"),
        ({"seeds": [-1]}, "whole number from 0"),
        ({"seeds": [2**40]}, "whole number from 0"),
        ({"seeds": []}, "seeds must hold one whole number at least"),
        ({"seeds": "0"}, "seeds is '0', not a list"),
        ({"lr": [0.1, 0.1]}, "lr holds 0.1 twice"),
        ({"lr": [0.1, "1e-1"]}, "lr holds 0.1 twice"),
        ({"lr": [0.1234567, 0.12345671]}, "twice, to six digits"),
        ({"lr": []}, "empty list"),
        ({"lr": [None]}, "a number above 0"),
        ({"lr": [True]}, "a number above 0"),
        ({"lr": {"a": 1}}, "a number above 0"),
        ({"lr": float("nan")}, "a number above 0"),
        ({"defaults": 3}, "defaults is 3, not a mapping"),
        ({"defaults": ""}, "defaults is '', not a mapping"),
        ({"data": {}}, "data must map names"),
        ({"data": None}, "data is None, not a mapping"),
        ({"data": {"d": None}}, "data must be text, not nothing"),
        ({"data": {"d": 3}}, "data must be text"),
        ({"data": {"d": {"data": "/x", "group": [1]}}}, "group must be text"),
        ({"methods": {"a": None}}, "method must be a name"),
        ({"methods": {"a": 3}}, "method must be a name"),
        ({"methods": {"a": {"method": [1]}}}, "method must be a name"),
        ({"methods": {"a": {"epochs": "ten"}}}, "epochs must be a whole number"),
        ({"methods": {"": "lora"}}, "names of text"),
        ({"methods": {None: "lora"}}, "names of text"),
        ({"methods": {"m" * 300: "lora"}}, "longer than 100 bytes"),
        ({"data": {"d" * 300: "/x"}}, "longer than 100 bytes"),
        ({"sedes": [0]}, "did you mean seeds"),
        ({}, "/no/such does not exist"),
        ({"data": {"d": {"data": "/", "checkpoint": "/no/such"}}}, "/no/such does not exist"),
    ],
)
def test_a_suite_that_cannot_work_gets_one_line(changes, said, tmp_path, capsys):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    assert said in refused(["bench", path, "--output", tmp_path / "out"], capsys)
    assert not (tmp_path / "out").exists()


def test_methods_of_one_name_are_not_one_method(tmp_path, capsys):
    path = tmp_path / "s.yaml"
    path.write_text("data: {d: /d}\nmethods:\n  a: lora\n  a: bias\n")
    assert "'a' is given twice" in refused(["bench", path], capsys)


ADAPTER = {
    "library": "lowtide",
    "peft_type": "LORA",
    "base_model_name_or_path": "vit_micro_patch4_32",
    "base_model_sha256": "ab" * 32,
    "methods": [{"name": "lora", "rank": 8}],
    "num_classes": 3,
    "backbone": {
        "name": "vit_micro_patch4_32",
        "checkpoint": None,
        "pretrained": False,
        "image_size": None,
        "seed": 0,
    },
    "preprocessing": {
        "size": [32, 32],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
    },
    "augment": "none",
    "classes": ["a", "b", "c"],
}
GONE = object()


def edited(path, value):
    """The adapter's config with one field changed, or without it."""
    content = json.loads(json.dumps(ADAPTER))
    *outer, last = path.split(".")
    place = content
    for key in outer:
        place = place[int(key) if isinstance(place, list) else key]
    if value is GONE:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return content


def test_the_adapter_that_is_edited_below_is_good():
    config = AdapterConfig.of(ADAPTER, "run")
    assert config.methods == (METHODS["lora"](rank=8),)
    assert (config.num_classes, config.classes) == (3, ("a", "b", "c"))
    assert config.backbone.name == "vit_micro_patch4_32"
    assert Preprocessing.from_dict(config.preprocessing).size == (32, 32)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("methods", GONE, "methods must be a list"),
        ("methods", None, "methods must be a list"),
        ("methods", "lora", "methods must be a list"),
        ("methods", [], "methods must be a list"),
        ("methods", [3], "a name and options"),
        ("methods", [{"name": "lora"}] * 2, "holds lora twice"),
        ("methods", [{"name": "lora"}] * 1000, "methods must be a list"),
        ("methods.0.name", 3, "unknown method 3"),
        ("methods.0.name", [], "unknown method"),
        ("methods.0.name", {}, "unknown method"),
        ("methods.0.name", "os.system", "unknown method"),
        ("methods.0.rank", 1e9, "a whole number from 1 to 4096"),
        ("methods.0.rank", 8.5, "a whole number from 1 to 4096"),
        ("methods.0.rank", 10**30, "a whole number from 1 to 4096"),
        ("methods.0.rank", None, "a whole number from 1 to 4096"),
        ("methods.0.alpha", "x", "a number"),
        ("methods.0.roles", 3, "must be a list"),
        ("methods.0.roles", ["q"], "unknown role"),
        ("methods.0.class_path", "os.system", "unknown option of lora"),
        ("num_classes", GONE, "num_classes is missing"),
        ("num_classes", "three", "a whole number from 1"),
        ("num_classes", 0, "a whole number from 1"),
        ("num_classes", 1e9, "a whole number from 1"),
        ("num_classes", 4, "classes holds 3 names and num_classes is 4"),
        ("base_model_sha256", GONE, "base_model_sha256 is missing"),
        ("base_model_sha256", None, "must be text"),
        ("base_model_sha256", "abc", "64 hexadecimal digits"),
        ("base_model_name_or_path", GONE, "base_model_name_or_path is missing"),
        ("base_model_name_or_path", {}, "must be text"),
        ("backbone", None, "backbone must map names"),
        ("backbone", [], "backbone must map names"),
        ("backbone.name", 3, "must be text"),
        ("backbone.name", GONE, "backbone has no name"),
        ("backbone.checkpoint", 3, "must be text"),
        ("backbone.pretrained", "perhaps", "true or false"),
        ("backbone.image_size", "large", "a whole number from 1 to 16384"),
        ("backbone.image_size", 10**9, "a whole number from 1 to 16384"),
        ("backbone.seed", "x", "a whole number from 0"),
        ("backbone.seed", float("nan"), "a whole number from 0"),
        ("backbone.seed", 1e40, "a whole number from 0"),
        ("backbone.head_init", "zeros", "did you mean zero"),
        ("backbone.os", "x", "unknown field of backbone"),
        ("preprocessing", 3, "preprocessing must map names"),
        ("augment", GONE, "augment is missing"),
        ("augment", 3, "must be text"),
        ("classes", GONE, "must be a list of names"),
        ("classes", "abc", "must be a list of names"),
        ("classes", {"a": 0}, "must be a list of names"),
        ("classes", [0, 1, 2], "must be a list of names"),
        ("classes", ["a", "a", "b"], "holds 'a' twice"),
        ("classes", ["a", "b"], "classes holds 2 names"),
        ("classes", [["a"], "b", "c"], "must be a list of names"),
        ("classes", ["a", "", "c"], "is empty"),
    ],
)
def test_an_adapter_of_another_person_is_checked(path, value, said):
    with pytest.raises(InputError, match="run/adapter_config.json is damaged") as refusal:
        AdapterConfig.of(edited(path, value), "run")
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("size", [64], "height and width"),
        ("size", [10**5, 10**5], "from 1 to 16384"),
        ("size", 32, "must be a list"),
        ("size", ["a", 1], "a whole number"),
        ("mean", [float("nan")] * 3, "a number from"),
        ("mean", [0.5], "expected 1 or 3 of each"),
        ("std", [0, 0, 0], "a number from"),
        ("std", None, "must be a list"),
        ("interpolation", [], "unknown interpolation"),
        ("crop_mode", "x", "unknown crop mode"),
        ("crop_pct", 0, "a number from"),
        ("crop_pct", "x", "a number from"),
        ("bits", 3, "a whole number from 8 to 16"),
    ],
)
def test_a_preprocessing_of_another_person_is_checked(name, value, said):
    with pytest.raises(InputError) as refusal:
        Preprocessing.from_dict({**ADAPTER["preprocessing"], name: value})
    assert said in str(refusal.value)


JUNK = [
    (b"", "no JSON"),
    (b"[" * 100_000, "no JSON"),
    (b'{"a":' * 100_000, "no JSON"),
    (b'{"library": "lowtide", "n": ' + b"9" * 5000 + b"}", "too long"),
    (b'{"library": "lowtide", "n": NaN}', "holds NaN"),
    (b'{"library": "lowtide", "n": -Infinity}', "holds -Infinity"),
    (b'{"a": 1, "a": 2}', "holds 'a' twice"),
    (b"\xff\xfe{}", "no text in UTF-8"),
    (b"null", "not "),
    (b"[1]", "not "),
    (b'{"a": [1, 2]}', "not "),
]


@pytest.mark.parametrize(("content", "said"), JUNK)
def test_files_that_are_no_such_json_get_one_line(content, said, tmp_path):
    for read, name in ((read_config, "adapter_config.json"), (read_summary, "summary.json")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError) as refusal:
            read(tmp_path if read is read_config else path)
        assert said in str(refusal.value) and str(path) in str(refusal.value)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [c for c, _ in JUNK])
def test_a_damaged_summary_stops_report_and_resume_with_one_line(content, tmp_path, capsys):
    config = RunConfig("vit_micro_patch4_32", "/d")
    write_row(tmp_path, summary(config, 100))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "r.csv")]) == 0
    (tmp_path / "summary.json").write_bytes(content)
    capsys.readouterr()
    assert "summary.json" in refused(["report", tmp_path, "--output", tmp_path / "r.md"], capsys)
    assert "summary.json" in refused(["train", "--resume", tmp_path], capsys)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config", 3),
        ("test_accuracy", 7),
        ("test_accuracy", -0.1),
        ("test_accuracy", "x"),
        ("val_accuracy", 2),
        ("measured_peak_bytes", -1),
        ("measured_peak_bytes", 10**30),
        ("trainable_parameters", True),
        ("step_seconds", "x"),
        ("history", [3]),
        ("environment", None),
        ("environment", {"threads": ["4"]}),
        ("test_confusion", [[0, 0]]),
        ("test_confusion", [[0, 99, 1]]),
        ("test_confusion", [[0, 0, -1]]),
    ],
)
def test_a_summary_says_what_it_should(name, value, tmp_path):
    content = summary(RunConfig("m", "/d"), 100)
    write_row(tmp_path, {**content, name: value})
    with pytest.raises(InputError, match="summary.json"):
        read_summary(tmp_path / "summary.json")


EVIL = "a\x1b[31m[/b][red]\x07\u202e"


def test_names_are_printed_as_they_are(capsys):
    OUT.print(f"run folder {EVIL}")
    said = capsys.readouterr().out
    assert said == "run folder a\\x1b[31m[/b][red]\\x07\\u202e\n"


def test_a_table_shows_names_as_they_are(tmp_path, capsys):
    folder = write_suite(tmp_path / "s", {("m[/x]", "d[red]"): [100]})
    for path in folder.rglob("summary.json"):
        assert path.parent.parent.parent.name == "d-red"
    (result,) = read_results(folder)
    assert (result.label, result.data) == ("m[/x]", "d[red]")
    OUT.print(result.label)
    assert capsys.readouterr().out == "m[/x]\n"


def test_a_message_obeys_nothing_and_is_one_line(capsys):
    assert "a\\x1b" in refused([EVIL + "\nb"], capsys)
    assert printable("é ü\n") == "é ü\\n"
    assert printable("\udcff") == "\\udcff"


def test_what_is_shown_stays_short():
    assert shown(10**5000) == "a whole number of about 5000 digits"
    assert len(shown("x" * 10**6)) < 100
    assert len(shown([0] * 10**6)) < 100


@pytest.mark.parametrize(
    "name",
    ["=1+1", "+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", '"=1', "'=1", " =1", "＝1", "\n=1"],
)
def test_a_spreadsheet_computes_nothing(name, tmp_path):
    folder = write_suite(tmp_path / "s", {("method", "data"): [100]})
    (path,) = folder.rglob("summary.json")
    content = json.loads(path.read_text())
    content["config"]["model"] = name
    content["environment"] = {"torch": name, name: name, "machine": name}
    path.write_text(json.dumps(content))
    write_report([folder], tmp_path / "r.csv")
    (row,) = csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text()))
    assert name not in row
    for cell in (row["backbone"], row["torch"], row["machine"]):
        assert cell.startswith("'") and cell.endswith(printable(name))
    assert row["threads"] == ""
    assert row["seed"] == "0"


def test_names_that_are_no_utf8_are_reported(tmp_path):
    folder = write_suite(tmp_path / "s", {("method", "data"): [100]})
    (path,) = folder.rglob("summary.json")
    content = json.loads(path.read_text())
    content["data"]["classes"] = ["\udcff", *content["data"]["classes"][1:]]
    content["config"]["model"] = "m\udcff"
    path.write_text(json.dumps(content))
    for suffix in ("html", "md", "csv"):
        write_report([folder], tmp_path / f"r.{suffix}")
        assert "udcff" in (tmp_path / f"r.{suffix}").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (OSError(28, "No space left on device", "x"), 1, "x: No space left on device"),
        (OSError(30, "Read-only file system", "x"), 2, "x: Read-only file system"),
        (PermissionError(13, "Permission denied", b"x"), 2, "x: Permission denied"),
        (InputError("bad"), 2, "bad"),
        (LowtideError("failed"), 1, "failed"),
        (MemoryError(), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_whatever_stops_a_command_is_one_line(raised, code, said, monkeypatch, capsys):
    def fail(args):
        raise raised

    for command in cli.COMMANDS:
        monkeypatch.setitem(cli.COMMANDS, command, (fail, ""))
        assert main([command]) == code
        err = capsys.readouterr().err
        assert err.startswith(f"lowtide: {said}") and err.count("\n") == 1
        again = code == 130 and command in {"bench", "search", "tune"}
        assert ("the same command continues" in err) is again


def test_ctrl_c_while_the_libraries_load_is_one_line():
    code = (
        "import sys, os, signal; sys.argv = ['/bin/lowtide']\n"
        f"exec(open({interrupt.__file__!r}).read())\n"
        "os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(9)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, env={**os.environ}
    )
    assert (done.returncode, done.stderr) == (130, b"lowtide: interrupted\n")


def test_a_program_keeps_its_own_ctrl_c():
    assert signal.getsignal(signal.SIGINT) is not interrupt.leave_at_once


@pytest.mark.parametrize("folder", [False, True])
def test_places_that_can_be_written_are_left_as_they_are(folder, tmp_path):
    refuse_unwritable(tmp_path / "a" / "b" / "c.csv", folder=folder)
    assert list(tmp_path.iterdir()) == []


def test_truths_need_no_value_and_take_one():
    base = ["--model", "m", "--data", "d", "--method", "dtl"]

    def plus(*args):
        return run_config(Parser("train", ""), [*base, *args])[0].method.plus

    assert plus("--method.plus") and plus("--method.plus", "true") and plus("--method.plus=on")
    assert not plus("--method.plus", "false") and not plus()
    config, _ = run_config(Parser("train", ""), [*base, "--checkpointing", "--pretrained", "no"])
    assert config.checkpointing and not config.pretrained


def reading_files():
    parser = Parser("train", "")
    parser.add_argument("--config")
    return parser


def test_values_are_of_their_type_from_everywhere(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: m\ndata: d\nlr: 1e-3\nepochs: '7'\namp: no\nseed: 3.0\n")
    config, _ = run_config(reading_files(), ["--config", str(path)])
    assert (config.lr, config.epochs, config.amp, config.seed) == (1e-3, 7, "no", 3)
    assert config == config_of(read_yaml(path))
    assert config == RunConfig("m", "d", lr="1e-3", epochs="7", seed=3)
    assert construct({"name": "lora", "rank": "4"}) == METHODS["lora"](rank=4)


def test_python_is_held_to_the_same_bounds():
    for options in ({"smoothing": -1}, {"epochs": True}, {"clip_grad": 1e-300}, {"method": 3}):
        with pytest.raises(InputError):
            RunConfig("m", "d", **options)


def test_the_last_of_several_values_is_taken(tmp_path):
    for name, epochs in (("a", 3), ("b", 4)):
        (tmp_path / name).write_text(f"model: m\ndata: d\nepochs: {epochs}\n")
    args = ["--config", str(tmp_path / "a"), "--config", str(tmp_path / "b")]
    assert run_config(reading_files(), args)[0].epochs == 4


def test_aliases_and_merges_within_bounds_are_read():
    text = "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n"
    assert parse_yaml(text, "f") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}] * 2}


def test_bounds_are_said_in_words():
    assert words(int | None) == "a whole number"
    assert words(Annotated[float, Within(0, 1, below=True)]) == "a number from 0 below 1"
    assert words(Annotated[float, Within(1e-6, 9, zero=True)]) == "a number 0, or from 1e-06 to 9"
