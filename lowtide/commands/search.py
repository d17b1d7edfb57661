"""`lowtide search`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from ..evolution import Search
from ..evolution import search as search_best
from ..report.repeat import repeat
from ..training.loop import CONFIG
from ..training.loop import train as fit
from ..training.options import Parser, add_fields, run_config, value_of
from .console import OUT
from .train import print_run

SUMMARY = "Search by evolution what trains, within limits; then train what was found."
BEST = "best"
USUAL: Mapping[str, object] = {
    "method": "noah",
    "epochs": 100,
    "batch_size": 64,
    "lr": 1e-3,
    "min_lr": 1e-5,
    "weight_decay": 1e-4,
    "warmup_epochs": 10.0,
    "drop_path": 0.1,
    "head_init": "trunc_normal",
}
"""How NOAH's paper trains what it found, where nothing else is given."""


def search(args: Sequence[str]) -> None:
    """Run `lowtide search`; it takes every option of `lowtide train`, for what is found.

    Args:
        args: The command's arguments.
    """
    parser = Parser("search", SUMMARY)
    parser.add_argument("--config", type=str, help="YAML file with options of lowtide train.")
    parser.add_argument(
        "--output", type=str, help="Folder of the search; by default runs/DATA-search."
    )
    add_fields(parser, Search)
    over = value_of(args, "--over") or "widths"
    config, own = run_config(parser, args, USUAL if over == "widths" else None)
    options = Search(**{f.name: own[f.name] for f in fields(Search)})
    folder = Path(own["output"] or Path("runs") / f"{Path(config.data).resolve().stem}-search")
    found = search_best(config, folder, options)
    run = folder / BEST
    summary = fit(found, run, continues=(run / CONFIG).exists())
    print_run(run, summary)
    OUT.print(repeat(summary.config.to_dict()), soft_wrap=True, markup=False, highlight=False)
