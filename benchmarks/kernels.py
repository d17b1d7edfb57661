"""Compare the CPU kernels built for this processor, built for any, and absent, in one process.

    python benchmarks/kernels.py [--threads T] [--rounds R]

The ways take turns, so that whatever else the machine does falls on all of them; a number is the
median over the rounds, in milliseconds per 2^20 float32 numbers, and in brackets the median ratio
to the first column of the same round.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from ctypes import CDLL
from datetime import date
from statistics import median

import torch

from lowtide.codecs.affine import Affine
from lowtide.codecs.base import Residue
from lowtide.codecs.codebook import Codebook
from lowtide.kernels import native
from lowtide.ops import activation_derivatives as slopes
from lowtide.training.environment import _processor

SHAPE = 1024, 1024
X86 = platform.machine() in ("x86_64", "AMD64")
TUNINGS = {"this processor": "-march=native", "AVX2": "-march=x86-64-v3", "any": ""}


def library(tuning: str) -> CDLL | None:
    """Build the kernels with this tuning, or find out that they cannot be."""
    native.TUNING = tuple(tuple(f for f in (tuning, omp) if f) for omp in ("-fopenmp", ""))
    try:
        return native._found(native.compiler()).library
    except native.NoKernels as e:
        raise SystemExit(f"nothing to compare: {e}") from e


def works() -> dict[str, Callable[[], object]]:
    """What compression asks of the kernels, most often first."""
    x, dy = torch.randn(SHAPE), torch.randn(SHAPE)
    affine, gelu = Affine(6, 64), Codebook.of("gelu")
    residue = Residue(x, slopes.gelu, (), True)
    groups, codes = affine.pack(Residue(x)), gelu.pack(residue)
    return {
        "pack in 6 bits": lambda: affine.pack(Residue(x)),
        "unpack": lambda: affine.unpack(groups, x.shape, x.dtype),
        "pack GELU's slope in 4 bits": lambda: gelu.pack(residue),
        "multiply with it": lambda: gelu.scale(codes, dy),
    }


def clock(work: Callable[[], object]) -> float:
    """Time one run, in milliseconds."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=50)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    ways = {n: library(t) for n, t in TUNINGS.items() if X86 or n != "AVX2"} | {"none": None}
    native._library = lambda: None
    print(
        f"{date.today()}, {_processor()}, {platform.machine()}, torch {torch.__version__},"
        f" {args.threads} threads, median of {args.rounds} rounds\n"
    )
    print(f"| ms per 2^20 numbers | {' | '.join(ways)} |\n|{'---|' * (len(ways) + 1)}")
    for name, work in works().items():
        rounds = []
        for _ in range(args.rounds + 1):
            row = []
            for built in ways.values():
                native._library = lambda built=built: built
                row.append(clock(work))
            rounds.append(row)
        columns = list(zip(*rounds[1:], strict=True))  # the first is a warm-up
        cells = [
            f"{median(c):.2f} ({median(t / r for t, r in zip(c, columns[0], strict=True)):.2f})"
            for c in columns
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
