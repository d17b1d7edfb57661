"""`lowtide tune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ..core.method import method_name
from ..errors import InputError
from ..report.repeat import repeat
from ..training.config import RunConfig, read_yaml
from ..training.loop import CONFIG
from ..training.loop import train as fit
from ..training.options import Parser, add_fields, run_config
from ..training.tune import Search
from ..training.tune import tune as search_best
from .console import OUT
from .train import print_run

SUMMARY = "Search learning rate, width and augmentation on validation images; then train the best."
BEST = "best"


def tune(args: Sequence[str]) -> None:
    """Run `lowtide tune`; it takes every option of `lowtide train`, which stays as it is given.

    Args:
        args: The command's arguments.

    Raises:
        InputError: The validation images are to be learnt from.
    """
    parser = Parser("tune", SUMMARY)
    parser.add_argument("--config", type=str, help="YAML file with options of lowtide train.")
    parser.add_argument(
        "--output", type=str, help="Folder of the search; by default runs/DATA-METHOD-tune."
    )
    add_fields(parser, Search)
    config, own = run_config(parser, args)
    search = Search(**{f.name: own[f.name] for f in fields(Search)})
    if config.train_on_val:
        raise InputError("tune compares on the validation images: leave --train-on-val out")
    config.refuse_crowd()
    name = f"{Path(config.data).resolve().stem}-{method_name(type(config.method))}-tune"
    folder = Path(own["output"] or Path("runs") / name)
    best = search_best(config, folder, search)
    run = folder / BEST
    begun = (run / CONFIG).exists() and _same(best, RunConfig.from_dict(read_yaml(run / CONFIG)))
    summary = fit(best, run, continues=begun, overwrite=not begun)
    print_run(run, summary)
    OUT.print(repeat(summary.config.to_dict()), soft_wrap=True, markup=False, highlight=False)


def _same(one: RunConfig, other: RunConfig) -> bool:
    """Tell whether a search that went on has come to the same again."""
    return all(getattr(one, n) == getattr(other, n) for n in ("lr", "method", "augment"))
