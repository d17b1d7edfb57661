"""Shared by commands about a finished run: open the run, and read its images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data import Dataset, Sample, read
from ..data.formats import named
from ..data.tree import hint
from ..errors import InputError, UnknownName
from ..paths import located
from ..training.config import RunConfig, read_yaml
from ..training.loop import CONFIG, SUMMARY
from ..training.parser import Parser
from ..training.progress import note
from ..training.split import SPLIT, SPLITS, Split
from ..training.summary import read_summary
from ..tuning.adapter_files import CONTENT, read_config
from ..values import Count, Device
from .evaluate import Trained, open_run, too_deep
from .hub import PREFIX, download
from .merged import open_merged


def add_loading(parser: Parser) -> None:
    """Add the options every command about a run has.

    Args:
        parser: Gets them.
    """
    parser.add_argument(
        "--checkpoint", type=str, help="Where the backbone's weights are now, if they moved."
    )
    parser.add_argument("--batch-size", type=Count, default=32, help="Images per forward pass.")
    parser.add_argument("--device", type=Device, default="auto", help="Where to compute.")


def open_given(given: dict[str, Any], original: bool = False) -> Trained:
    """Open the run named on the command line.

    Args:
        given: Values of `run` and of the options of `add_loading`; a run on the hub, `hf:` and its
            name, is downloaded and replaced by its folder.
        original: Whether to leave frozen weights as they are in the backbone's file.

    Returns:
        The run, or the merged file, ready for use.

    Raises:
        InputError: A merged file is given other weights.
    """
    checkpoint = Path(given["checkpoint"]) if given["checkpoint"] else None
    if given["run"].startswith(PREFIX):
        given["run"] = str(download(given["run"].removeprefix(PREFIX)))
    if Path(given["run"]).is_file():
        if checkpoint:
            raise InputError("a merged file holds its own weights: --checkpoint is for a run")
        return open_merged(Path(given["run"]), device=given["device"])
    run, device = Path(given["run"]), given["device"]
    trained = open_run(run, checkpoint=checkpoint, device=device, original=original)
    if CONTENT not in read_config(Path(given["run"])):
        note(f"{given['run']} is of an earlier version, which kept no hash of the weights it saved")
    return trained


def read_samples(trained: Trained, given: dict[str, Any]) -> tuple[list[Sample], list[str]]:
    """Read a split of the run's data, as the run split them, or of other data.

    Args:
        trained: The run.
        given: Values of `run`, `data` (None for the run's own) and `split`.

    Returns:
        The images, their labels in the order of the run's classes, and what is to be said of those
        that were left out: the run's own that are no longer what they were, and of other data those
        it has learnt from, unless `split` asks for them.

    Raises:
        UnknownName: There is no such split.
        InputError: It cannot be told any more which images are in it.
    """
    folder, which = Path(given["run"]), given["split"]
    if which not in (*SPLITS, "all"):
        raise UnknownName("split", which, (*SPLITS, "all"))
    if not (folder / CONFIG).is_file():
        return _read_for_merged(trained, given)
    config = RunConfig.from_dict(read_yaml(folder / CONFIG))
    source = config.data if given["data"] is None else given["data"]
    if given["data"] is None and not (named(source) or located(source).exists()):
        raise InputError(
            f"{source}, which {folder} has learnt from, does not exist{hint(located(source))};"
            f" lowtide eval {folder} --data says where its images are now"
        )
    own = str(source) == config.data or located(source).resolve() == located(config.data).resolve()
    if own and which == "val" and config.train_on_val:
        raise InputError(
            f"{folder} has learnt from its validation images (train_on_val): no image is left to"
            " validate on; --split test, or --data with other images"
        )
    dataset = read(
        source,
        seed=config.seed,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        skip_bad_images=True,
        classes=trained.classes,
        task=config.task,
        target=config.target if own else None,
    )
    split = Split.read(folder)
    moved = not own and split is not None and split.holds(dataset)
    samples, notes = _selected(folder, split, dataset, which, own or moved)
    notes += [f"{source} holds the run's own images, moved: its split is used"] if moved else []
    notes += [] if own or moved else _drawn(dataset, which)
    notes += [f"left out, cannot be read: {skipped}" for skipped in dataset.skipped]
    return samples, notes + too_deep(trained, [s.path for s in samples])


def _read_for_merged(trained: Trained, given: dict[str, Any]) -> tuple[list[Sample], list[str]]:
    """Read a split of other data for a merged file or an adapter alone, which keep no split."""
    if given["data"] is None:
        raise InputError(f"{given['run']} is no run folder and names no data: give --data")
    dataset = read(given["data"], classes=trained.classes, task=trained.targets.task)
    samples = dataset.samples(given["split"])
    return samples, _drawn(dataset, given["split"]) + too_deep(trained, [s.path for s in samples])


def _drawn(dataset: Dataset, which: str) -> list[str]:
    """Say where a split of other data was not declared but drawn."""
    drawn = [
        note for note in dataset.notes if note.startswith(f"{which}: ") and "split off" in note
    ]
    return [f"{note}; --split all scores all" for note in drawn]


def _selected(
    folder: Path, split: Split | None, dataset: Dataset, which: str, own: bool
) -> tuple[list[Sample], list[str]]:
    """Choose a split's images, and say what was left out."""
    if own and split is not None:
        return split.select(dataset, which)
    samples = dataset.samples(which)
    if own:
        _refuse_changed(folder, dataset, which)
    elif split is not None and which != "train":
        unseen, learnt = split.unseen(samples)
        if learnt and which == "all":
            return samples, [
                f"the run has learnt from {len(learnt)} of these {len(samples)} images"
            ]
        if learnt:
            return unseen, [
                f"the run has learnt from {len(learnt)} of the {len(samples)} images of split"
                f" {which}, first {str(learnt[0].path)!r}: left out"
            ]
    return samples, []


def _refuse_changed(folder: Path, dataset: Dataset, which: str) -> None:
    """Refuse to split changed data anew where the run has written down no split."""
    known = read_summary(folder / SUMMARY).data.fingerprint
    if known != dataset.fingerprint and which != "all":
        raise InputError(
            f"the data have changed since the run {folder}, which kept no {SPLIT}: nobody can"
            f" tell which images were its {which} split; --split all scores all images"
        )
