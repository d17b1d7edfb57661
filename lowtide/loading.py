"""What commands about a finished run are given: the run, its images, and how to load both."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from .arguments import Parser
from .config import RunConfig, read_yaml
from .data import Sample, read
from .errors import UnknownName
from .evaluate import Trained, open_run
from .train import CONFIG
from .values import Count

Device = Literal["auto", "cpu"]


def add_loading(parser: Parser) -> None:
    """Add the options every command about a run has.

    Args:
        parser: Gets them.
    """
    parser.add_argument(
        "--checkpoint", type=str, help="Where the backbone's weights are now, if they moved."
    )
    parser.add_argument("--batch-size", type=Count, default=32, help="Images per forward pass.")
    parser.add_argument("--device", type=Device, default="auto", help="auto or cpu.")


def open_given(given: dict[str, Any]) -> Trained:
    """Open the run that is named.

    Args:
        given: Values of `run` and of the options of `add_loading`.

    Returns:
        The run, ready for use.
    """
    checkpoint = Path(given["checkpoint"]) if given["checkpoint"] else None
    return open_run(Path(given["run"]), checkpoint=checkpoint, device=given["device"])


def read_samples(trained: Trained, given: dict[str, Any]) -> list[Sample]:
    """Read a split of the run's data or of other data.

    Args:
        trained: The run.
        given: Values of `run`, `data` (None for the run's own) and `split`.

    Returns:
        The images, their labels in the order of the run's classes.

    Raises:
        UnknownName: There is no such split.
    """
    config = RunConfig.from_dict(read_yaml(Path(given["run"]) / CONFIG))
    dataset = read(
        given["data"] or config.data,
        seed=config.seed,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        skip_bad_images=config.skip_bad_images,
        classes=trained.classes,
    )
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    splits["all"] = dataset.train + dataset.val + dataset.test
    if given["split"] not in splits:
        raise UnknownName("split", given["split"], splits)
    return list(splits[given["split"]])
