"""`lowtide train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from ..errors import InputError
from ..paths import refuse_unwritable
from ..training.loop import CONFIG
from ..training.loop import train as fit
from ..training.options import Parser, run_config, value_of
from ..training.summary import RunSummary
from .console import OUT

SUMMARY = "Fine-tune a backbone on a folder of images."


def train(args: Sequence[str]) -> None:
    """Run `lowtide train`.

    Args:
        args: The command's arguments.

    Raises:
        InputError: There is no run to resume.
    """
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
        "--time-limit", type=str, help="Such as 2h or 90m: stop in time, to be continued."
    )
    resumed = value_of(args, "--resume")
    if resumed is not None:
        _refuse_beside_resume(args)
        if not (Path(resumed) / CONFIG).is_file():
            raise InputError(f"{resumed} holds no run to resume: no {CONFIG} in it")
        args = [*args, "--config", str(Path(resumed) / CONFIG)]
    config, own = run_config(parser, args)
    config.refuse_crowd()
    folder = Path(resumed or own["output"] or _free(config.data, config.method))
    refuse_unwritable(folder, folder=True)
    summary = fit(
        config,
        folder,
        continues=resumed is not None,
        overwrite=own["overwrite"],
        log=own["log"] or (),
        time_limit=own["time_limit"],
    )
    state = PartialState()
    if state.is_main_process:
        _print_run(folder, summary)
    state.destroy_process_group()  # or a process that is done early may abort at its exit


def _refuse_beside_resume(args: Sequence[str]) -> None:
    """Refuse what would say a second time which run, or which options."""
    for flag in ("--output", "--overwrite", "--config", "--preset"):
        if flag in args or value_of(args, flag) is not None:
            raise InputError(
                f"--resume continues a run as it began; {flag} cannot be given with it"
            )


def _free(data: str, method: object) -> Path:
    """Find the next unused folder name under runs/."""
    stem = f"{Path(data).resolve().stem}-{type(method).__name__.lower()}"
    names = (stem, *(f"{stem}-{i}" for i in range(2, 10_000)))
    return next(Path("runs") / n for n in names if not (Path("runs") / n).exists())


def _print_run(folder: Path, summary: RunSummary) -> None:
    for split, accuracy in (("val", summary.val_accuracy), ("test", summary.test_accuracy)):
        if accuracy is not None:
            OUT.print(f"{split} accuracy {accuracy:.4f}")
    planned, measured = summary.planned.peak_bytes, summary.measured_peak_bytes
    OUT.print(
        f"trained {summary.trainable_parameters:,} of {summary.total_parameters:,}"
        f" parameters; peak planned {planned / 2**20:.1f} MiB"
        + (f", measured {measured / 2**20:.1f} MiB" if measured else "")
    )
    OUT.print(f"run folder {folder}")
