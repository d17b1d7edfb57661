"""The peak of a process that loads a backbone from a file, by the dtype its weights are kept in.

    python -m benchmarks.loading --model vit_giant_patch14_dinov2

A file of random weights is written to a temporary folder. Each row is a process of its own; its
peak is what the system counts (VmHWM of Linux), pages of the file included.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from lowtide.memory.frozen_dtype import CODECS
from lowtide.tuning.backbone import create
from lowtide.versions import on_meta


def write_random(model: str, path: Path) -> None:
    """Write random weights of a model."""
    with on_meta():
        state = timm.create_model(model, num_classes=0).state_dict()
    torch.manual_seed(0)
    save_file({key: torch.randn(value.shape) * 0.02 for key, value in state.items()}, path)


def peak_mib() -> float:
    """Give the most memory that this process has held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def load(model: str, path: Path, dtype: str) -> str:
    """Load in this process, and describe it."""
    before, start = peak_mib(), time.perf_counter()
    made = create(model, checkpoint=path, frozen_dtype=dtype)
    seconds = time.perf_counter() - start
    kept = sum(p.nbytes for p in made.parameters()) / 2**20
    return f"| {dtype} | {kept:.0f} | {before:.0f} | {peak_mib():.0f} | {seconds:.0f} |"


def main() -> None:
    """Print a row for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_giant_patch14_dinov2")
    parser.add_argument("--dtypes", nargs="+", default=["fp32", *CODECS], choices=["fp32", *CODECS])
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.file:
        print(load(given.model, given.file, given.dtypes[0]))
        return
    print("| dtype | weights, MiB | process before | its peak, MiB | s |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        write_random(given.model, path)
        for dtype in given.dtypes:
            command = [sys.executable, "-m", "benchmarks.loading", "--model", given.model]
            subprocess.run([*command, "--dtypes", dtype, "--file", str(path)], check=True)


if __name__ == "__main__":
    main()
