"""What differs between versions of timm and torch, and which of them are promised."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from torch import nn

from lowtide.versions import classes, on_meta


def test_classes_that_a_version_lacks_are_left_out() -> None:
    assert classes("torch.nn", "Linear", "NoSuchLayer", "ReLU") == (nn.Linear, nn.ReLU)
    assert classes("torch.no_such_module", "Linear") == ()


def test_models_are_made_on_meta_though_they_read_drop_path_rates_as_numbers() -> None:
    with on_meta():
        rates = [x.item() for x in torch.linspace(0, 0.5, 3)]
        map_ = nn.Linear(3, 4)
    assert rates == [0, 0.25, 0.5] and map_.weight.is_meta
    assert torch.linspace(0, 1, 2).device.type == "cpu" and not torch.zeros(1).is_meta


ROOT = Path(__file__).parents[1]
TOOLS = {"dev", "docs"}
"""Extras for whoever works on lowtide, each pinned to one version."""
in_a_checkout = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="runs in a checkout only"
)


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(lines: list[str]) -> dict[str, str]:
    """Packages of which one version is named."""
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    return {r.name: str(r.specifier)[2:] for r in found if str(r.specifier).startswith("==")}


@in_a_checkout
def test_what_pyproject_promises_begins_with_what_is_tested() -> None:
    oldest = pins((ROOT / "tests" / "oldest.txt").read_text().splitlines())
    extras = [(name, *lines) for name, lines in project()["optional-dependencies"].items()]
    optional = [line for name, *lines in extras if name not in TOOLS for line in lines]
    for promised in map(Requirement, (*project()["dependencies"], *optional)):
        (bound,) = promised.specifier
        assert bound.operator == ">=", promised
        assert Version(oldest[promised.name]) == Version(bound.version), promised


@in_a_checkout
def test_tools_are_of_one_version() -> None:
    extras = project()["optional-dependencies"]
    loose = {"types-PyYAML", "matplotlib"}  # any will do
    for line in (line for name in TOOLS for line in extras[name]):
        assert str(Requirement(line).specifier).startswith("==") or line in loose, line


@in_a_checkout
def test_the_documentation_names_both_ends() -> None:
    text = (ROOT / "docs" / "installation.md").read_text()
    table = {row[0]: row[1:] for row in re.findall(r"^\| (\w+) \| (\S+) \| (\S+) \|$", text, re.M)}
    oldest = pins((ROOT / "tests" / "oldest.txt").read_text().splitlines())
    newest = pins(project()["optional-dependencies"]["dev"])
    for name in ("torch", "torchvision", "timm"):
        assert table[name] == (oldest[name], newest[name])
    makefile = (ROOT / "Makefile").read_text()
    assert f"OLDEST_PYTHON ?= python{table['Python'][0]}\n" in makefile
    assert project()["requires-python"] == f">={table['Python'][0]}"
