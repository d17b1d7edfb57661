"""Weights of a file that are packed as they are read: the same model, never wide as a whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.eva import Eva

from lowtide import METHODS, set_frozen_dtype
from lowtide.errors import InputError
from lowtide.memory.frozen_dtype import frozen_dtype_of
from lowtide.tuning.applying import apply, load
from lowtide.tuning.backbone import create
from lowtide.tuning.fingerprint import fingerprint
from lowtide.tuning.weights import Unfilled, leaves_frozen

NETS = {
    "vit": ("vit_micro_patch4_32", 48),
    "vit_registers": ("vit_tiny_r_s16_p8_224", None),
    "swin": ("swin_tiny_patch4_window7_224", None),
    "swin_v2": ("swinv2_cr_tiny_ns_224", None),  # computes with its parameters as it is made
    "convnext": ("convnext_atto", None),
    "resnet": ("resnet10t", None),
    "eva": ("eva02_tiny_patch14_224", 112 if hasattr(Eva, "set_input_size") else None),
}


@pytest.fixture(scope="module", params=NETS.values(), ids=NETS)
def file(request, tmp_path_factory) -> tuple[str, int | None, Path]:
    name, size = request.param
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file({k: v.clone() for k, v in create(name, pretrained=False).state_dict().items()}, path)
    return name, size, path


@pytest.mark.parametrize("dtype", ["bf16", "nf4"])
def test_it_is_the_model_that_is_packed_afterwards(file, dtype) -> None:
    name, size, path = file
    wide = create(name, checkpoint=path, image_size=size)
    assert frozen_dtype_of(wide) == "fp32"
    before = fingerprint(wide)
    set_frozen_dtype(wide, dtype)
    model = create(name, checkpoint=path, image_size=size, frozen_dtype=dtype)
    assert fingerprint(model) == before == fingerprint(wide)
    state, other = model.state_dict(), wide.state_dict()
    assert list(state) == list(other)
    assert all(torch.equal(state[key], other[key]) for key in state)
    assert not any(p.requires_grad for p in model.parameters())
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        assert torch.equal(model.eval()(x), wide.eval()(x))


def test_without_a_classifier_in_the_file_the_model_has_a_new_one(tmp_path) -> None:
    name, path = "vit_micro_patch4_32", tmp_path / "weights.safetensors"
    state = create(name, pretrained=False).state_dict()
    save_file({k: v for k, v in state.items() if not k.startswith("head.")}, path)
    model = create(name, checkpoint=path, frozen_dtype="nf4")
    assert model.head.weight.shape == state["head.weight"].shape
    assert bool(model.head.weight.isfinite().all()) and not model.head.weight.is_meta
    assert fingerprint(model) == fingerprint(create(name, checkpoint=path))


def test_an_adapter_goes_from_one_to_the_other(tmp_path) -> None:
    name, path = "vit_micro_patch4_32", tmp_path / "weights.safetensors"
    save_file(create(name, pretrained=False).state_dict(), path)
    tuned = apply(create(name, checkpoint=path), METHODS["lora"](), num_classes=3)
    for p in tuned.parameters():
        if p.requires_grad:
            p.data.normal_(std=0.1)
    set_frozen_dtype(tuned, "int8").save_pretrained(tmp_path / "adapter")
    again = load(create(name, checkpoint=path, frozen_dtype="int8"), tmp_path / "adapter")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), tuned.eval()(x))


@pytest.mark.parametrize(
    ("name", "frozen"), [("lora", True), ("bias", True), ("partial", False), ("full", False)]
)
def test_it_is_known_which_methods_leave_all_weights_frozen(name, frozen) -> None:
    model = timm.create_model("vit_micro_patch4_32")
    tuned = apply(model, METHODS[name](), num_classes=3)
    assert leaves_frozen(tuned) is frozen


def test_parameters_and_their_parts_are_left_as_they_are_and_other_tensors_filled() -> None:
    whole, other = torch.nn.Parameter(torch.full((4, 3), 7.0)), torch.zeros(3)
    with Unfilled():
        torch.nn.init.trunc_normal_(whole, std=0.02)
        torch.nn.init.ones_(whole[2:])  # as timm's SwiGLU starts its gate
        with torch.no_grad():
            whole.zero_()
        torch.nn.init.ones_(other)
    assert torch.equal(whole, torch.full((4, 3), 7.0)) and torch.equal(other, torch.ones(3))


def test_infinite_numbers_are_refused_before_they_are_rounded(tmp_path) -> None:
    name, path = "vit_micro_patch4_32", tmp_path / "weights.safetensors"
    state = create(name, pretrained=False).state_dict()
    state["blocks.1.mlp.fc1.weight"][3, 2] = float("inf")
    save_file(state, path)
    for dtype in ("fp32", "nf4"):
        with pytest.raises(InputError, match=r"'blocks\.1\.mlp\.fc1\.weight' holds NaN"):
            create(name, checkpoint=path, frozen_dtype=dtype)


PEAK = r"""
import re, sys
from pathlib import Path
import torch
from lowtide.tuning.backbone import create
from lowtide.memory.frozen_dtype import pack_frozen
pack_frozen(torch.nn.Linear(64, 64).requires_grad_(False), "nf4")  # the kernels are loaded
status = lambda: Path("/proc/self/status").read_text()
peak = lambda: int(re.search(r"VmHWM:\s+(\d+) kB", status())[1]) * 1024  # no parent's, as ru_maxrss
before = peak()
model = create(sys.argv[1], checkpoint=Path(sys.argv[2]), frozen_dtype=sys.argv[3])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_never_holds_the_wide_model(tmp_path) -> None:
    """The peak of the whole process, as the system counts it: pages of the file included."""
    name, path = "vit_base_patch16_224", tmp_path / "weights.safetensors"
    state = {k: v.normal_() for k, v in timm.create_model(name).state_dict().items()}
    save_file(state, path)
    wide, largest = path.stat().st_size, max(v.nbytes for v in state.values())
    del state
    grown = {
        dtype: int(subprocess.check_output([sys.executable, "-c", PEAK, name, str(path), dtype]))
        for dtype in ("fp32", "nf4")
    }
    assert grown["nf4"] < 0.15 * wide + 4 * largest + 2**25 < 0.7 * grown["fp32"]
