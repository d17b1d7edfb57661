"""Train the runs of docs/results.md, or write the page from the finished ones.

    python benchmarks/results.py run --data VTAB_LIKE --checkpoint WEIGHTS --output runs/results
    python benchmarks/results.py report --output runs/results

One recipe for every row, fixed before any run and never tuned; the model of the last epoch is
tested once. Finished rows are kept, so an interrupted command continues; `--part 0/2` and
`--part 1/2` share the rows between two processes.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

from lowtide import METHODS
from lowtide.config import RunConfig
from lowtide.train import CONFIG, train

MODEL = "vit_tiny_patch16_224"
NEAR, FAR = "dtd10", "sign_digits"
METHOD_ROWS = (("linear", "exact"), ("lora", "exact"), ("s2a", "exact"), ("s2a", "tight"))
ROWS = [
    *((FAR, method, policy, 0) for method, policy in METHOD_ROWS[::-1]),
    *((NEAR, method, policy, 0) for method, policy in METHOD_ROWS[::-1]),
    *((FAR, "s2a", policy, seed) for seed in (1, 2) for policy in ("exact", "tight")),
]
RECIPE = {
    "epochs": 10,
    "batch_size": 32,
    "lr": 3e-3,
    "weight_decay": 1e-4,
    "amp": "bf16",
    "device": "cpu",
}
PAGE = Path(__file__).parents[1] / "docs" / "results.md"


def run(args: argparse.Namespace) -> None:
    """Train every row of this part that is not finished."""
    part, parts = map(int, args.part.split("/"))
    for data, method, policy, seed in ROWS[part::parts]:
        folder = args.output / f"{data}-{method}-{policy}-{seed}"
        config = RunConfig(
            model=MODEL,
            checkpoint=str(args.checkpoint),
            data=str(args.data / data),
            method=METHODS[method](),
            policy=policy,
            seed=seed,
            **RECIPE,
        )
        print(folder, flush=True)
        train(config, folder, continues=(folder / CONFIG).exists())


def report(args: argparse.Namespace) -> None:
    """Write the page from the finished rows."""
    found = defaultdict(list)
    for path in sorted(args.output.glob("*/summary.json")):
        summary = json.loads(path.read_text())
        config = summary["config"]
        data = Path(config["data"]).name
        found[data, config["method"]["name"], config["policy"]].append(summary)
    lines = [
        "| data | method | policy | seeds | test accuracy | validation | trained | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for data in (NEAR, FAR):
        for method, policy in METHOD_ROWS:
            if runs := found[data, method, policy]:
                lines.append(_row(data, method, policy, runs))
    start, end = "<!-- results -->\n", "<!-- end of results -->"
    text = PAGE.read_text()
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    PAGE.write_text(before + start + "\n".join(lines) + "\n" + end + after)
    print("\n".join(lines))


def _row(data: str, method: str, policy: str, runs: list[dict]) -> str:
    accuracies = [r["test_accuracy"] for r in runs]
    spread = f" ± {stdev(accuracies):.3f}" if len(accuracies) > 1 else ""
    first = runs[0]
    cells = (
        data,
        method,
        policy,
        len(runs),
        f"{mean(accuracies):.3f}{spread}",
        f"{mean(r['val_accuracy'] for r in runs):.3f}",
        f"{first['trainable_parameters']:,}",
        f"{first['measured_peak_bytes'] / 2**20:.0f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Parse and run one of the two verbs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    runner = verbs.add_parser("run")
    runner.add_argument("--data", type=Path, required=True)
    runner.add_argument("--checkpoint", type=Path, required=True)
    runner.add_argument("--output", type=Path, required=True)
    runner.add_argument("--part", default="0/1")
    runner.set_defaults(verb=run)
    reporter = verbs.add_parser("report")
    reporter.add_argument("--output", type=Path, required=True)
    reporter.set_defaults(verb=report)
    args = parser.parse_args()
    args.verb(args)


if __name__ == "__main__":
    main()
