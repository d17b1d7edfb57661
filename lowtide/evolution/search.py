"""A search from end to end: supernet, evolution, report, and the config of what was found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from ..core.method import Method
from ..errors import InputError, shown
from ..paths import read_json, write_text
from ..training.config import RunConfig
from ..training.owner import owned, refuse_run
from ..training.progress import note
from .evolve import Candidate, best_first, evolve
from .inherit import inherited_score, shared_config, trained_supernet, width_space
from .journal import Journal
from .limits import Limits
from .options import Search
from .progress import Progress
from .registry import every_method
from .report import write_report
from .space import Genes, Space
from .trials import classes_to_compare, trial_score

ASKED, JOURNAL, SUPERNET = "search.json", "candidates.jsonl", "supernet"
FREE = {"data", "checkpoint", "device", "workers"}
"""Options of the run that a search may go on with otherwise: no result depends on them."""


def search(config: RunConfig, folder: Path, options: Search) -> RunConfig:
    """Search by evolution under limits, and give the config that trains what was found.

    Over widths one supernet is trained on the training images, a uniformly drawn candidate each
    step, and candidates are scored on the validation images with the weights they inherit. Over
    methods each candidate is trained for a few epochs by itself. All goes on after a kill.
    `candidates.jsonl` holds every plan and score, `report.md` and `generations.json` what
    came of each generation. Test images are left alone.

    Args:
        config: The run that trains what is found; over widths its method says which parts are
            searched (those with a width) and their dropout.
        folder: Where everything is kept.
        options: How.

    Returns:
        The config of the best candidate, learnt from training and validation images together.

    Raises:
        InputError: The folder holds another search, the config does not fit a search, or nothing is
            within the limits.
    """
    _refuse_unfit(config)
    over = {"widths": _over_widths, "methods": _over_methods}[options.over]
    prepared = over(config, folder, options)
    refuse_run(folder)
    with owned(folder):
        _refuse_other(folder, config, options)
        method = prepared()
    return found_config(config, method)


def _over_widths(config: RunConfig, folder: Path, options: Search) -> Callable[[], Method]:
    """Check what is asked of NOAH; give what searches."""
    space = width_space(config, options)

    def found() -> Method:
        shared = shared_config(config, space, options)
        supernet, run = trained_supernet(shared, folder / SUPERNET, space)
        journal = Journal(folder / JOURNAL)
        limits = Limits(space, config, len(run.targets.names), options, journal, supernet.count)
        score = remembered(journal, inherited_score(run, supernet))
        return _evolved(space, config, options, limits, score, folder)

    return found


def _over_methods(config: RunConfig, folder: Path, options: Search) -> Callable[[], Method]:
    """Give what searches the registry."""
    space = every_method(options.mutate_part, options.mutate_depth)

    def found() -> Method:
        journal = Journal(folder / JOURNAL)
        limits = Limits(space, config, classes_to_compare(config, folder), options, journal)
        score = remembered(journal, trial_score(config, folder, space, options.trial_epochs))
        return _evolved(space, config, options, limits, score, folder)

    return found


def found_config(config: RunConfig, method: Method) -> RunConfig:
    """Give the config that trains the best candidate from scratch, on train and val together.

    Args:
        config: The run's options.
        method: What was found.

    Returns:
        Its config.
    """
    return replace(config, method=method, train_on_val=True, keep="last")


def remembered(journal: Journal, score: Callable[[Genes], float]) -> Callable[[Genes], float]:
    """Score each candidate once, over every call of a search.

    Args:
        journal: Knows scores.
        score: Scores one.

    Returns:
        The same, looked up where it is known.
    """

    def scored(genes: Genes) -> float:
        known = journal.get(genes).get("score")
        if known is None:
            known = score(genes)
            journal.note(genes, score=known)
        return float(known)

    return scored


def _evolved(
    space: Space,
    config: RunConfig,
    options: Search,
    limits: Limits,
    score: Callable[[Genes], float],
    folder: Path,
) -> Method:
    """Run the evolution, a report after each generation; give the best of all."""
    breeding = options.breeding(config.seed)
    done: list[list[Candidate]] = []
    with Progress(breeding.generations * breeding.population) as progress:

        def watched(genes: Genes) -> float:
            reached = score(genes)
            progress.step(reached)
            return reached

        for generation in evolve(space, breeding, limits.allowed, watched):
            done.append(generation)
            progress.generation(done)
            write_report(folder, config, options, space, done)
    best = best_first([c for generation in done for c in generation])[0]
    note(f"best of {sum(map(len, done))} candidates: {best.score:.4f} on the validation images")
    return space.method(best.genes)


def _refuse_unfit(config: RunConfig) -> None:
    """Refuse options of a run that mean nothing to a search, or the wrong thing."""
    config.refuse_crowd()
    if config.train_on_val:
        raise InputError("search compares on the validation images: leave --train-on-val out")
    if config.memory_budget is not None:
        raise InputError("search has its own limit: --most-memory, not --memory-budget")
    if config.cache_features:
        raise InputError("search trains prompts in the first block: leave --cache-features out")


def _refuse_other(folder: Path, config: RunConfig, options: Search) -> None:
    """Refuse to go on with another search; write down what a new one is asked for."""
    asked = {k: v for k, v in config.to_dict().items() if k not in FREE} | asdict(options)
    asked = json.loads(json.dumps(asked))
    path = folder / ASKED
    if not path.is_file():
        write_text(path, json.dumps(asked, indent=2) + "\n")
        return
    kept = read_json(path)
    for name, value in asked.items():
        if kept.get(name) != value:
            raise InputError(
                f"the search there was begun with {name} {shown(kept.get(name))}, not"
                f" {shown(value)}: --output FOLDER begins another"
            )
