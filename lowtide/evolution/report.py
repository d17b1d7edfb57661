"""Write a search's results: every generation as JSON, and a page of text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from ..paths import write_text
from ..training.config import RunConfig
from ..tuning.adapter_files import describe
from .evolve import Candidate, best_first
from .options import Search
from .space import Space

GENERATIONS, REPORT = "generations.json", "report.md"


def write_report(
    folder: Path,
    config: RunConfig,
    options: Search,
    space: Space,
    done: Sequence[Sequence[Candidate]],
) -> None:
    """Write `generations.json` and `report.md`.

    Args:
        folder: Where to.
        config: The run that trains what is found.
        options: How it was searched.
        space: Makes methods.
        done: The generations so far.
    """
    best = best_first([c for generation in done for c in generation])[0]
    found = describe(space.method(best.genes))
    content = {
        "search": asdict(options),
        "seed": config.seed,
        "best": {**best.to_dict(), "method": found},
        "generations": [[c.to_dict() for c in generation] for generation in done],
    }
    write_text(folder / GENERATIONS, json.dumps(content, indent=1) + "\n")
    write_text(folder / REPORT, _page(config, options, found, best, done))


def _page(
    config: RunConfig,
    options: Search,
    found: dict[str, object],
    best: Candidate,
    done: Sequence[Sequence[Candidate]],
) -> str:
    """Write the page."""
    limits = [
        f"{options.most_trained:,} trained parameters" if options.most_trained else "",
        f"{options.most_memory} of a training step" if options.most_memory else "",
    ]
    lines = [
        f"# Search on {Path(config.data).name}",
        "",
        f"{config.model}; at most {' and '.join(filter(None, limits)) or 'anything'};"
        f" {len(done)} of {options.generations} generations, seed {config.seed}.",
        "",
        "## Generations",
        "",
        "| generation | candidates | best | mean | best so far | trained | planned MiB | from |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for n, generation in enumerate(done):
        top = best_first([c for one in done[: n + 1] for c in one])[0]
        scores = [c.score for c in generation]
        own = [f"{max(scores):.4f}", f"{mean(scores):.4f}"] if scores else ["", ""]
        cells = [str(n + 1), str(len(scores)), *own, f"{top.score:.4f}", f"{top.cost.trained:,}"]
        lines.append(f"| {' | '.join([*cells, _mib(top), top.origin])} |")
    lines += ["", "## Found", "", f"Score {best.score:.4f} on the validation images.", ""]
    lines += [f"- {name}: {value}" for name, value in found.items()]
    return "\n".join(lines) + "\n"


def _mib(candidate: Candidate) -> str:
    peak = candidate.cost.peak_bytes
    return "" if peak is None else f"{peak / 2**20:.1f}"
