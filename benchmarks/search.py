"""What a search finds, against single methods of as many parameters and of as much memory.

    VTAB_LIKE=FOLDER python -m benchmarks.search

For each data set two searches over the widths of NOAH on one supernet, one under the parameters of
LoRA at rank 8 (and of 32 prompts), one under 140 MiB of a training step; then a suite of what was
found, a single adapter and single prompts, three seeds each, in `results/noah_DATA`. Interrupt it
at any time: the same command goes on. The rows have the settings of the suite `vtab_one_rate`, so
that those of its methods can stand beside them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lowtide.bench import Suite, run_suite
from lowtide.evolution import Search, search
from lowtide.evolution.report import REPORT
from lowtide.evolution.search import SUPERNET
from lowtide.methods.noah import NOAH, PARTS
from lowtide.training.config import RunConfig, write_yaml
from lowtide.training.loop import SUMMARY

ROOT = Path(__file__).parents[1]
DATA = {"sign_digits": "structured", "flowers5": "natural"}
SETTINGS = {
    "model": "vit_micro_patch4_32",
    "epochs": 5,
    "batch_size": 32,
    "warmup_epochs": 0.5,
    "device": "cpu",
    "head_init": "trunc_normal",
}
RATE = 0.016
LIMITS = {
    "NOAH, found by parameters": {"most_trained": 36_864},
    "NOAH, found by memory": {"most_trained": 0, "most_memory": "140MiB"},
}
SINGLE = {
    "adapter, r=15": {"name": "adapter", "rank": 15},
    "VPT-deep, n=32": {"name": "vpt", "tokens": 32},
}
SIZES = {"supernet_epochs": 15, "supernet_lr": RATE, "generations": 5, "population": 12}
PARENTS = {"parents": 4, "mutants": 5, "crossovers": 5}


def main() -> None:
    """Search, then run the suites."""
    for data, group in DATA.items():
        output = ROOT / "results" / f"noah_{data}"
        output.mkdir(parents=True, exist_ok=True)
        methods: dict[str, object] = {}
        supernet: Path | None = None
        for label, limit in LIMITS.items():
            folder = ROOT / "runs" / f"noah_{data}" / label.rpartition(" ")[2]
            if supernet is not None and not (folder / SUPERNET / SUMMARY).exists():
                shutil.copytree(supernet, folder / SUPERNET, dirs_exist_ok=True)
            found = _found(data, folder, limit)
            supernet = folder / SUPERNET
            methods[label] = {"method": {"name": "noah", **{p: getattr(found, p) for p in PARTS}}}
            shutil.copy(folder / REPORT, output / f"search-{folder.name}.md")
        methods |= {label: {"method": method} for label, method in SINGLE.items()}
        _run(output, data, group, methods)


def _found(data: str, folder: Path, limit: dict[str, object]) -> NOAH:
    """Search under one limit."""
    options = {**SETTINGS, "method": "noah", "lr": RATE, "data": f"$VTAB_LIKE/{data}"}
    config = RunConfig.from_dict(options)
    made = search(config, folder, Search(**{**SIZES, **PARENTS, **limit}))  # type: ignore[arg-type]
    assert isinstance(made.method, NOAH)
    return made.method


def _run(output: Path, data: str, group: str, methods: dict[str, object]) -> None:
    """Run the suite of one data set."""
    suite = {
        "defaults": SETTINGS,
        "lr": RATE,
        "seeds": [0, 1, 2],
        "data": {data: {"data": f"$VTAB_LIKE/{data}", "group": group}},
        "methods": methods,
    }
    plain = write_yaml(_plain(suite))
    head = "# Written by python -m benchmarks.search\n"
    (output / "suite.yaml").write_text(head + plain, encoding="utf-8")
    run_suite(Suite.read(output), output)


def _plain(value: object) -> object:
    """Tuples as lists, which YAML has."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    main()
