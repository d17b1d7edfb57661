"""`lowtide train`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from ..errors import InputError
from ..paths import refuse_unwritable
from ..targets.words import word
from ..training.loop import CONFIG
from ..training.loop import train as fit
from ..training.options import Parser, run_config, value_of
from ..training.owner import free_folder
from ..training.summary import RunSummary
from .console import OUT

SUMMARY = "Fine-tune a backbone on a folder of images."


def train(args: Sequence[str]) -> None:
    """Run `lowtide train`.

    Args:
        args: The command's arguments.

    Raises:
        InputError: There is no run to resume.
        KeyboardInterrupt: It was interrupted; it says which command goes on.
    """
    parser = _parser()
    resumed = value_of(args, "--resume")
    if resumed is not None:
        _refuse_beside_resume(args)
        if not (Path(resumed) / CONFIG).is_file():
            raise InputError(f"{resumed} holds no run to resume: no {CONFIG} in it")
        args = [*args, "--config", str(Path(resumed) / CONFIG)]
    config, own = run_config(parser, args)
    config.refuse_crowd()
    folder = Path(resumed or own["output"] or free_folder(config.data, config.method))
    refuse_unwritable(folder, folder=True)
    try:
        summary = fit(
            config,
            folder,
            continues=resumed is not None,
            overwrite=own["overwrite"],
            log=own["log"] or (),
            time_limit=own["time_limit"],
            keep_features=Path(own["keep_features"]) if own["keep_features"] else None,
        )
    except KeyboardInterrupt:
        begun = (folder / CONFIG).is_file()
        command = f"lowtide train --resume {shlex.quote(str(folder))} continues"
        raise KeyboardInterrupt(*([command] if begun else [])) from None
    state = PartialState()
    if state.is_main_process:
        print_run(folder, summary)
    state.destroy_process_group()  # or a process that is done early may abort at its exit


def _parser() -> Parser:
    parser = Parser("train", SUMMARY)
    parser.add_argument("--config", type=str, help="YAML file with any of these options.")
    parser.add_argument(
        "--output", type=str, help="Run folder to make; by default the next free runs/DATA-METHOD."
    )
    parser.add_argument("--resume", type=str, help="Run folder to continue; it knows its options.")
    parser.add_argument("--overwrite", action="store_true", help="Replace the run in --output.")
    parser.add_argument(
        "--log",
        type=tuple[str, ...],
        help="Whom to tell the numbers while it lasts, with commas between: csv (metrics.csv in the"
        " run folder), tensorboard, wandb, ...",
    )
    parser.add_argument(
        "--keep-features",
        type=str,
        help="With --cache-features, a folder where later runs on the same images find them.",
    )
    parser.add_argument(
        "--time-limit", type=str, help="Such as 2h or 90m: stop in time, to be continued."
    )
    return parser


def _refuse_beside_resume(args: Sequence[str]) -> None:
    """Refuse what would say a second time which run, or which options."""
    for flag in ("--output", "--overwrite", "--config", "--preset"):
        if flag in args or value_of(args, flag) is not None:
            raise InputError(
                f"--resume continues a run as it began; {flag} cannot be given with it"
            )


def print_run(folder: Path, summary: RunSummary) -> None:
    """Print the scores, the memory and the folder of a finished run.

    Args:
        folder: The run folder.
        summary: What it says of itself.
    """
    for split, score in (("val", summary.validated), ("test", summary.tested)):
        if score is not None:
            OUT.print(f"{split} {word(summary.metric)} {score:.4f}")
    if summary.started is not None:
        OUT.print(f"start val {word(summary.metric)} {summary.started:.4f}")
    if summary.kept_epoch is not None:
        OUT.print(f"kept {_which(summary)}")
    planned, measured = summary.planned.peak_bytes, summary.measured_peak_bytes
    OUT.print(
        f"trained {summary.trainable_parameters:,} of {summary.total_parameters:,}"
        f" parameters; peak planned {planned / 2**20:.1f} MiB"
        + (f", measured {measured / 2**20:.1f} MiB" if measured else "")
    )
    OUT.print(f"run folder {folder}")


def _which(summary: RunSummary) -> str:
    """Say which model a run has kept."""
    if not summary.kept_epoch or not summary.kept_share:
        return f"the start, which none beat of {len(summary.history)} epochs"
    between = "" if summary.kept_share == 1 else f"{summary.kept_share:g} of the way to "
    return f"{between}epoch {summary.kept_epoch} of {len(summary.history)}"
