"""A step: its options are those of everything that plans or runs it; what decays and what not."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import timm
import torch
import yaml
from nets import tiny
from torch import nn

from lowtide import METHODS, InputError, StepConfig, UnknownName, plan
from lowtide.bench.suite import Suite
from lowtide.cli import main
from lowtide.planning.simulate import set_up_step
from lowtide.planning.step import make_optimizer
from lowtide.training.config import RunConfig
from lowtide.tuning.applying import apply

OTHER = {
    "batch_size": 8,
    "policy": "tight",
    "chunk": 4096,
    "checkpointing": True,
    "recomputed_blocks": 2,
    "accumulate": 1,
    "amp": "bf16",
    "frozen_dtype": "bf16",
    "opt": "sgd",
    "update_in_backward": True,
    "mixup": 0.8,
    "cutmix": 1.0,
    "ema": 0.5,
    "task": "classify",
    "loss": "cross_entropy",
    "balance": "weights",
}
"""For each option of a step another value than its default, where the others allow one."""


def test_every_option_of_a_step_is_one_of_the_commands_and_files(capsys, tmp_path):
    """A field of StepConfig, and nothing else, makes an option everywhere."""
    assert list(OTHER) == [f.name for f in dataclasses.fields(StepConfig)]
    given = yaml.safe_dump({"data": {"d": "d"}, "methods": {"m": {"method": "lora", **OTHER}}})
    (tmp_path / "suite.yaml").write_text(f"defaults: {{model: vit_tiny_patch16_224}}\n{given}")
    (row,) = Suite.read(tmp_path / "suite.yaml").rows()
    config = RunConfig("vit_tiny_patch16_224", "d", **OTHER)
    for name, value in OTHER.items():
        assert config.to_dict()[name] == value == getattr(row.config, name)
    assert RunConfig.from_dict(config.to_dict()) == config
    for command in ("plan", "train"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert not [n for n in OTHER if f"--{n.replace('_', '-')} " not in said]


def test_a_step_is_held_to_its_ranges():
    for name, value in {"policy": "tihgt", "amp": "fp8", "frozen_dtype": "int5"}.items():
        with pytest.raises(UnknownName, match=f"{value}"):
            StepConfig(**{name: value})
    for name, value in {"batch_size": 0, "chunk": -1, "accumulate": 33, "ema": 1}.items():
        with pytest.raises(InputError):
            StepConfig(**{name: value})


def test_a_chunk_is_what_runs_at_once():
    model, method, step = tiny("vit").float(), METHODS["bias"](), StepConfig(policy="tight")
    peaks = [
        plan(model, method, step=dataclasses.replace(step, chunk=chunk)).peak_bytes
        for chunk in (0, 2**16, 2**12)
    ]
    assert peaks[0] > peaks[1] > peaks[2]
    whole, cut = (
        set_up_step(
            apply(copy.deepcopy(model), method), dataclasses.replace(step, chunk=chunk)
        ).eval()
        for chunk in (0, 4096)
    )
    x = torch.randn(8, 3, *model.patch_embed.img_size)
    torch.testing.assert_close(whole(x), cut(x))


def decays(model: nn.Module) -> dict[str, bool]:
    """Whether an update without a gradient shrinks each trained parameter."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(model, "adamw", lr=0.1, weight_decay=0.5)
    with torch.no_grad():
        for p in trained.values():
            p.fill_(2.0)
            p.grad = torch.zeros_like(p)
    optimizer.step()
    values = {n: p.unique().item() for n, p in trained.items()}
    assert all(v == 2.0 or v == pytest.approx(2.0 * (1 - 0.1 * 0.5)) for v in values.values())
    return {n: v != 2.0 for n, v in values.items()}


@pytest.mark.parametrize("shape", [(), (6,), (6, 1), (1, 6), (6, 1, 1), (1, 1, 6), (1, 6, 1, 1)])
def test_a_vector_never_decays_in_any_layout(shape):
    model = nn.Module()
    model.scale = nn.Parameter(torch.ones(shape))
    model.matrix = nn.Parameter(torch.ones(6, 2))
    assert decays(model) == {"scale": False, "matrix": True}


def test_norms_and_biases_do_not_decay_and_kernels_do():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 2))
    assert [n for n, shrinks in decays(model).items() if shrinks] == ["0.weight", "3.weight"]


def test_a_factor_of_rank_one_decays_like_one_of_any_rank():
    """The weight of a map stays a matrix where it has one row."""
    assert decays(nn.Linear(6, 1)) == {"weight": True, "bias": False}
    tuned = [
        apply(timm.create_model("test_vit", num_classes=4), METHODS["lora"](rank=r)) for r in (1, 2)
    ]
    assert decays(tuned[0]) == decays(tuned[1])
    assert any(shrinks for n, shrinks in decays(tuned[0]).items() if "blocks" in n)


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext", "test_resnet"])
def test_of_ssf_only_the_classifier_decays(backbone):
    """Its scales over feature maps are (C, 1, 1), and all start near one."""
    tuned = apply(timm.create_model(backbone, num_classes=4), METHODS["ssf"]())
    shrinking = [n for n, shrinks in decays(tuned).items() if shrinks]
    assert [tuned.get_parameter(n).shape[0] for n in shrinking] == [4]


def test_without_decay_nothing_shrinks():
    optimizer = make_optimizer(nn.Linear(3, 2), weight_decay=0.0)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]
