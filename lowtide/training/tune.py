"""A short search for a run's options, on the validation images, by Optuna."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args

from ..core.method import method_name
from ..errors import InputError, LowtideError, shown
from ..extras import extra
from ..targets import DENSE
from ..values import Count, Width, Within, hints, read_fields
from .callbacks import Callback
from .config import RunConfig
from .loop import train
from .owner import owned, refuse_run
from .progress import note
from .summary import Epoch

JOURNAL = "trials.jsonl"
TRIAL = "trial"
ASKED = "asked"
SECONDS = "seconds"
SPAN = 8.0
"""How far a learning rate is searched, to both sides of the method's own, as a factor."""
TIMES = (0.5, 1, 2, 4)
"""What a method's width is multiplied by."""

Searched = Literal["lr", "width", "augment"]


@dataclass(frozen=True)
class Search:
    """Options of a tuning search.

    Attributes:
        minutes: Time for all trials together, over every call; the run of the best comes after.
        trials: Most trials.
        over: What is searched: lr (log-uniform around the method's own), width (the method's rank
            or the like: half to four times as wide) and augment (none, flip or crop).
    """

    minutes: Annotated[float, Within(0, 1e6, above=True)] = 30.0
    trials: Count = 30
    over: tuple[Searched, ...] = get_args(Searched)

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in read_fields(type(self), given).items():
            object.__setattr__(self, name, value)
        if not self.over:
            raise InputError("over must name something to search: lr, width or augment")


def tune(config: RunConfig, folder: Path, search: Search = Search()) -> RunConfig:
    """Search, and give the config that was best on the validation images.

    Trials are chosen by Optuna's TPE, the first of them the config as it is, at the method's own
    rate where none is given; Hyperband ends those that fall behind after an epoch. What is known
    of each is a line of JSON in `trials.jsonl`, from which the same call goes on after a kill.
    Test images are left alone.

    Args:
        config: What is asked for; options that are not searched stay.
        folder: Where the trials are recorded.
        search: How long, and over what.

    Returns:
        The best config; with it `train` runs as usual.

    Raises:
        InputError: The folder holds the search of another config, there are no images to validate
            on, or nothing that is to be searched can be.
        LowtideError: No trial ended.
    """
    if not _axes(config, search):
        raise InputError(
            f"{' and '.join(search.over)}: nothing to search, as {method_name(type(config.method))}"
            f" on task {config.task} has none, or other options decide it"
        )
    optuna = extra("optuna", "tune")
    refuse_run(folder)
    with owned(folder):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = _study(optuna, folder / JOURNAL, config.seed)
        _refuse_other(study, config, search)
        _run_trials(optuna, study, config, folder, search)
        shutil.rmtree(folder / TRIAL, ignore_errors=True)
        done = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    if not done:
        raise LowtideError(f"no trial ended within {search.minutes:g} minutes: give more --minutes")
    best = max(done, key=lambda t: t.value)
    reached = f"{best.value:.4f} on the validation images"
    note(f"best of {len(study.trials)} trials: {reached}, {_said(best.params)}")
    return _with(config, best.params)


def _study(optuna: ModuleType, journal: Path, seed: int) -> Any:
    backend = extra("optuna.storages.journal", "tune").JournalFileBackend(str(journal))
    return optuna.create_study(
        study_name="tune",
        storage=optuna.storages.JournalStorage(backend),
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, reduction_factor=3),
        direction="maximize",
        load_if_exists=True,
    )


def _refuse_other(study: Any, config: RunConfig, search: Search) -> None:
    """Refuse to go on with trials of another config; begin the record of a new search."""
    asked = {**config.to_dict(), "over": list(search.over)}
    kept = study.user_attrs.get(ASKED)
    if kept is None:
        study.enqueue_trial(_as_it_is(config, search))
        study.set_user_attr(ASKED, json.loads(json.dumps(asked)))
        return
    for name, value in json.loads(json.dumps(asked)).items():
        if kept.get(name) != value:
            raise InputError(
                f"the search there was begun with {name} {shown(kept.get(name))}, not"
                f" {shown(value)}: --output FOLDER begins another"
            )


def _run_trials(
    optuna: ModuleType, study: Any, config: RunConfig, folder: Path, search: Search
) -> None:
    """Run trials until the time or their number is used up."""
    spent = sum(t.user_attrs.get(SECONDS, 0.0) for t in study.trials)
    ends = time.monotonic() + 60 * search.minutes - spent
    states = optuna.trial.TrialState
    for killed in study.get_trials(states=(states.RUNNING,)):
        study.tell(killed.number, state=states.FAIL)
        study.enqueue_trial(killed.params)
    ended = len(study.get_trials(states=(states.COMPLETE, states.PRUNED)))

    def objective(trial: Any) -> float:
        started = time.monotonic()
        tried = replace(_with(config, _suggested(trial, config, search)), skip_test=True)

        class Pruned(Callback):
            def on_epoch(self, epoch: Epoch) -> None:
                if epoch.validated is None:
                    raise InputError("tune compares on validation images, and there are none")
                trial.report(epoch.validated, epoch.epoch)
                if trial.should_prune() or time.monotonic() > ends:
                    raise optuna.TrialPruned

        try:
            summary = train(tried, folder / TRIAL, overwrite=True, callbacks=[Pruned()])
        except LowtideError as e:
            if ended:
                note(f"trial {trial.number} failed: {e}")
            raise
        finally:
            trial.set_user_attr(SECONDS, time.monotonic() - started)
        reached = float(summary.validated or 0.0)
        note(f"trial {trial.number}: {reached:.4f}, {_said(trial.params)}")
        return reached

    while ended < search.trials and time.monotonic() < ends:
        # What fails in the first trial is the config's fault, and later that of what was chosen.
        study.optimize(objective, n_trials=1, catch=(LowtideError,) if ended else ())
        ended += 1


def _width(config: RunConfig) -> str | None:
    """Name the option that says how wide the method is: the first of the kind."""
    return next((n for n, hint in hints(type(config.method)).items() if hint == Width), None)


def _axes(config: RunConfig, search: Search) -> list[str]:
    """List what is searched of this config."""
    able = {
        "lr": True,
        "width": _width(config) is not None,
        "augment": config.task not in DENSE
        and not (config.cache_features or config.distortion.any or config.repeats > 1),
    }
    return [name for name in search.over if able[name]]


def _as_it_is(config: RunConfig, search: Search) -> dict[str, Any]:
    """Give the config's own values."""
    width = _width(config)
    own = {
        "lr": config.lr or config.method.learning_rate,
        "width": getattr(config.method, width) if width else None,
        "augment": config.augment,
    }
    return {name: own[name] for name in _axes(config, search)}


def _suggested(trial: Any, config: RunConfig, search: Search) -> dict[str, object]:
    """Let Optuna choose."""
    own = _as_it_is(config, search)
    choose: Mapping[str, Callable[[], object]] = {
        "lr": lambda: trial.suggest_float("lr", own["lr"] / SPAN, own["lr"] * SPAN, log=True),
        "width": lambda: trial.suggest_categorical(
            "width", sorted({max(1, int(own["width"] * times)) for times in TIMES})
        ),
        "augment": lambda: trial.suggest_categorical("augment", ["none", "flip", "crop"]),
    }
    return {name: choose[name]() for name in own}


def _with(config: RunConfig, chosen: Mapping[str, Any]) -> RunConfig:
    """Put what was chosen into the config."""
    plain = {name: chosen[name] for name in ("lr", "augment") if name in chosen}
    width = _width(config)
    if "width" in chosen and width:
        plain["method"] = replace(config.method, **{width: chosen["width"]})  # type: ignore[type-var]
    return replace(config, **plain)


def _said(params: Mapping[str, object]) -> str:
    return ", ".join(f"{n} {v:.3g}" if n == "lr" else f"{n} {v}" for n, v in params.items())
