"""`lowtide doctor`, `lowtide --version`: what runs here, and what keeps it from running better."""

from __future__ import annotations

import json
import re
from email.message import Message
from importlib.metadata import version

import pytest
import torch

from lowtide import InputError, extras
from lowtide.cli import main
from lowtide.kernels import native
from lowtide.training import environment


@pytest.fixture
def fresh():
    """A process that has not looked for its kernels yet."""
    native.kernels.cache_clear()
    yield
    native.kernels.cache_clear()


def found(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main(["doctor", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lowtide {version('lowtide')}\n"


def test_what_is_printed_is_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for package in ("torch", "timm", "safetensors", "accelerate"):
        assert f"{package} " in out and version(package) in out
    held = native.kernels()
    assert (held.instructions or held.reason) in out
    assert "device       cpu: " in out and "extra        plots: matplotlib" in out


def test_the_kernels_are_where_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    said = found(capsys)
    held = native.kernels()
    assert said["cpu_kernels"] == (held.instructions or None)
    assert said["cpu_kernels_file"] == (str(held.file) if held.file else None)
    assert said["cpu_kernels_absent"] == (held.reason or None)


def test_no_compiler(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    monkeypatch.setenv("CXX", "/nope/cc")
    said = found(capsys)
    assert said["compiler"] is said["cpu_kernels"] is None
    assert [w for w in said["warnings"] if "/nope/cc" in w]


def test_kernels_that_cannot_be_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "kernels", lambda: native.Kernels())
    monkeypatch.setattr(native, "cache", lambda: None)
    said = found(capsys)
    assert [w for w in said["warnings"] if "compiled at every start" in w and "home" in w]


def test_a_version_that_is_not_tested(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"timm": "0.9.16", "matplotlib": "2.0"}
    own = extras.version
    monkeypatch.setattr(extras, "version", lambda name: versions.get(name) or own(name))
    warned = found(capsys)["warnings"]
    assert [w for w in warned if w.startswith("timm 0.9.16 is installed; lowtide is tested with")]
    assert [w for w in warned if w.startswith("matplotlib 2.0 ")]


@pytest.mark.parametrize("installed", [False, True])
def test_what_lowtide_needs_is_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    """In a checkout by pyproject.toml, whatever the metadata of an older install says."""
    lines = ["torch>=2", "nothing-real>=3", 'matplotlib>=3; extra == "plots"', 'x; extra == "dev"']
    if installed:
        about = Message()
        about["Provides-Extra"], about["Provides-Extra"] = "plots", "dev"
        monkeypatch.setattr(extras, "__file__", "/nowhere/lowtide/extras.py")
        monkeypatch.setattr(extras, "metadata", lambda name: about)
    monkeypatch.setattr(extras, "requires", lambda name: lines)
    said = found(capsys)
    assert ("nothing-real" in said["packages"]) is installed
    assert ("pillow" in said["packages"]) is not installed
    declared = {"plots"} if installed else set(extras._declared()[1]) - {"dev"}
    assert set(said["extras"]) == declared and "plots" in declared
    assert list(said["extras"]["plots"]) == ["matplotlib"] and "x" not in said["packages"]


@pytest.mark.parametrize(
    ("module", "extra", "library", "least"),
    [
        ("litserve", "serve", "litserve", "0.2.14"),
        ("lowtide.serving.app", "serve", "litserve", "0.2.14"),
        ("pycocotools.mask", "dense", "pycocotools", "2.0.8"),
        ("segmentation_models_pytorch.base", "dense", "segmentation-models-pytorch", "0.5"),
    ],
)
def test_an_extra_that_is_too_old_is_said(
    monkeypatch: pytest.MonkeyPatch, module: str, extra: str, library: str, least: str
) -> None:
    own = extras.version
    monkeypatch.setattr(extras, "version", lambda name: "0.1" if name == library else own(name))
    extras._unfit.cache_clear()
    said = f'needs {library}>={least}, and 0.1 is installed: pip install "lowtide[{extra}]"'
    with pytest.raises(InputError, match=re.escape(said)):
        extras.extra(module, extra)
    extras._unfit.cache_clear()
    assert extras.extra("torchmetrics", "dense").__name__ == "torchmetrics"


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        name, total_memory = "Test Card", 8 * 2**30

    class Module:
        @staticmethod
        def get_device_properties(i: int) -> Card:
            return Card()

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: Module)
    assert environment.devices()[1:] == [f"cuda:{i}: Test Card, 8.0 GiB" for i in range(2)]
