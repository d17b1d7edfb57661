"""The Triton kernels, without a GPU: under the interpreter, and compiled for one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from triton import JITFunction
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from lowtide.kernels import triton as gpu
from lowtide.kernels import triton_activation as activation
from lowtide.kernels import triton_layer_norm as norm
from lowtide.kernels import triton_normal_float as nf

CASES = Path(__file__).with_name("triton_cases.py")
FLOATS = {"fp32": "*fp32", "bf16": "*bf16"}


@pytest.mark.parametrize("interpreted", ["1", pytest.param("0", marks=pytest.mark.gpu)])
def test_equal_to_the_definitions(interpreted: str) -> None:
    if interpreted == "0" and not torch.cuda.is_available():
        pytest.skip("the compiled kernels need a GPU")
    # Triton decides at its first import, so in a process of its own. Numpy, which the interpreter
    # computes with, warns of the groups behind the last one, and of what an older Triton does.
    quiet = ("-W", "ignore::RuntimeWarning", "-W", "ignore::DeprecationWarning")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *quiet, "-p", "no:cacheprovider", str(CASES)],
        env=os.environ | {"TRITON_INTERPRET": interpreted, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert "passed" in run.stdout or "%]" in run.stdout


@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("number", FLOATS.values(), ids=FLOATS)
def test_compiled_for_a_gpu(number: str, bits: int) -> None:
    """The interpreter takes more than the compiler does; the code has no fused multiply-add."""
    kernels = {
        gpu._affine_pack: (
            {"x": number, "row": "i32", "n": "i32", "out": "*u8"}
            | dict.fromkeys(("mean", "rstd"), "*fp32")
            | dict.fromkeys(("low_out", "step_out"), "*bf16"),
            {"ROWS": True, "SHORT": True, "BITS": bits, "GROUP": 64, "SIZE": 1024},
        ),
        gpu._affine_unpack: (
            {"lows": "*bf16", "steps": "*bf16", "packed": "*u8", "out": number}
            | {"group": "i32", "n": "i32"},
            {"BITS": bits, "SIZE": 1024},
        ),
        gpu._threshold_pack: (
            {"x": number, "edges": "*fp32", "codes": "*i32", "out": "*u8"}
            | {"count": "i32", "n": "i64"},
            {"BITS": bits, "SIZE": 1024},
        ),
        gpu._threshold_unpack: (
            {"packed": "*u8", "levels": "*fp32", "dy": number, "out": number, "n": "i32"},
            {"SCALE": True, "BITS": bits, "SIZE": 1024},
        ),
        nf._normal_float_unpack: (
            {"scales": "*u8", "packed": "*u8", "out": number}
            | dict.fromkeys(("mean", "most", "levels", "tree"), "*fp32")
            | dict.fromkeys(("block", "second", "n"), "i32"),
            {"SIZE": 1024},
        ),
        norm._layer_norm_backward: (
            {"dy": number, "lows": "*bf16", "steps": "*bf16", "packed": "*u8", "dx": number}
            | {"rstd": "*fp32", "each": "i32", "rows": "i32"}
            | ({"weight": "*fp32", "sums": "*fp32"} if bits == 4 else {}),
            {"BITS": bits, "GROUP": 64, "ROW": 768, "SIZE": 1024}
            | ({} if bits == 4 else {"weight": None, "sums": None}),
        ),
    }
    for kernel, (types, fixed) in kernels.items():
        assert "fma" not in compiled(kernel, types, fixed)


def compiled(kernel: JITFunction, types: dict[str, str], fixed: dict[str, object]) -> str:
    """Compile a kernel for a GPU, and give its assembly."""
    signature = {n: types.get(n, "constexpr") for n in kernel.arg_names}
    places = {(kernel.arg_names.index(n),): value for n, value in fixed.items()}
    source = ASTSource(kernel, signature, places)
    made = compile(source, target=GPUTarget("cuda", 80, 32), options=gpu.EXACT)
    assert "cubin" in made.asm
    return made.asm["ptx"]


@pytest.mark.parametrize("number", FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize("function", range(len(activation.NAMES)), ids=activation.NAMES)
def test_activations_compiled_for_a_gpu(function: int, number: str) -> None:
    types = {"x": number, "y": number, "edges": "*fp32", "codes": "*i32", "out": "*u8"}
    types |= {"count": "i32", "n": "i32"}
    fixed = {"FUNCTION": function, "PACK": True, "BITS": 4, "SIZE": 1024}
    # CUDA's erf and exp have fused multiply-adds of their own.
    written = "fma" in compiled(activation._activation_pack, types, fixed)
    assert written == (activation.NAMES[function] in ("gelu", "silu"))
