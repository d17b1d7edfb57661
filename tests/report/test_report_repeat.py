"""The command of a row: parsed again it is the same config, run again it gives the same row."""

from __future__ import annotations

import dataclasses
import json
import random
import shlex
import typing
from enum import EnumType
from types import UnionType

import numpy as np
import pytest
from PIL import Image

from lowtide import METHODS
from lowtide.cli import main
from lowtide.planning.search import parse_bytes
from lowtide.presets import presets
from lowtide.report import gather
from lowtide.report.provenance import command
from lowtide.report.repeat import repeat
from lowtide.training.config import RunConfig
from lowtide.training.options import Parser, config_of, run_config

FIXED = {"policy": "tight", "opt": "sgd", "memory_budget": "640MiB", "checkpoint": "w.safetensors"}
FIXED |= {"task": "multilabel", "loss": "bce", "target": "one, two"}
PRESETS = sorted(presets())[::16]


def other(kind, value, draw):
    """Another value of an option's type."""
    if isinstance(kind, UnionType):
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        return draw.choice([v for v in typing.get_args(kind) if v != value])
    if typing.get_origin(kind) is tuple:
        of = typing.get_args(kind)[0]
        return (draw.choice(list(choices(of))) if choices(of) else draw.randint(1, 3),)
    if kind is bool:
        return not value
    return (value or 0) + (draw.randint(1, 3) if kind is int else draw.random() / 7)


def choices(kind):
    return kind if isinstance(kind, EnumType) else typing.get_args(kind)


def changed(cls, draw, share, **fixed):
    """Options of a dataclass, some of them not the defaults."""
    hints = typing.get_type_hints(cls)
    return {
        f.name: fixed.get(f.name) or other(hints[f.name], f.default, draw)
        for f in dataclasses.fields(cls)
        if f.default is not dataclasses.MISSING
        and f.name not in {"preset", "method"}
        and draw.random() < share
    }


def accepted(cls, draw, share, **fixed):
    """An instance with options that it takes together."""
    required = {"model": "a b", "data": "it's/$HOME"} if cls is RunConfig else {}
    while True:
        try:
            return cls(**required, **changed(cls, draw, share, **fixed))
        except ValueError:
            share *= 0.9


def parsed(said):
    words = shlex.split(said)
    assert words[:2] == ["lowtide", "train"]
    return run_config(Parser("train", ""), words[2:])[0]


def kept(config):
    """A config as a summary holds it."""
    return json.loads(json.dumps(config.to_dict()))


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_command_means_the_config(name, share):
    draw = random.Random(f"{name}{share}")
    method = accepted(METHODS[name], draw, share, parts="v")
    config = dataclasses.replace(accepted(RunConfig, draw, share, **FIXED), method=method)
    assert parsed(repeat(kept(config))) == config


def test_only_what_differs_is_said():
    config = RunConfig.from_dict({"model": "m", "data": "d", "method": {"name": "lora", "rank": 4}})
    assert repeat(kept(config)) == "lowtide train --model m --data d --method lora --method.rank 4"
    words = shlex.split(repeat(kept(config), processes=2))
    assert words[:5] == ["torchrun", "--nproc_per_node=2", "-m", "lowtide", "train"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_named_and_its_options_are_not_repeated(name):
    config = config_of({"preset": name, "model": "m", "data": "-d", "lr": 0.25, "image_size": None})
    said = repeat(kept(config))
    assert parsed(said) == config
    assert f"--preset {name}" in said and "--lr 0.25" in said and "--weight-decay" not in said


def test_a_preset_that_cannot_be_said_is_left_out():
    name = PRESETS[0]
    config = config_of({"preset": name, "model": "m", "data": "d"})
    gone = {**kept(config), "preset": "of/another/version"}
    assert parsed(repeat(gone)) == dataclasses.replace(config, preset=None)


def test_a_row_run_again_is_the_same(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2), ("test", 6)):
        for label in ("light", "dark"):
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 160, (32, 32, 3)) + 90 * (label == "light")
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(tmp_path / "images" / split / label / f"{i}.png")
    base = ["train", "--model", "vit_micro_patch4_32", "--data", str(tmp_path / "images")]
    base += ["--method", "lora", "--method.rank", "2", "--epochs", "2", "--batch-size", "8"]
    base += ["--warmup-epochs", "0", "--device", "cpu", "--seed", "3", "--train-on-val"]
    assert main([*base, "--output", str(tmp_path / "first")]) == 0
    (first,) = gather([tmp_path / "first"])
    words = shlex.split(command(first.runs[0]))
    assert main([*words[1:], "--output", str(tmp_path / "second")]) == 0
    (second,) = gather([tmp_path / "second"])
    for name in ("config", "test_accuracy", "test_confusion", "planned", "data", "preprocessing"):
        assert getattr(first.runs[0], name) == getattr(second.runs[0], name)
    losses = [[e.train_loss for e in r.runs[0].history] for r in (first, second)]
    assert losses[0] == losses[1]
    assert parse_bytes("1MiB") < first.planned == first.measured
