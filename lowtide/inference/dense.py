"""Use a finished run of a dense task: open it, score it, ask it about images, fold it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from ..data import Preprocessing, UnreadableImage
from ..data.images import decode
from ..dense.results import Predicted
from ..dense.scores import Scores
from ..dense.tasks import DenseTask
from ..errors import InputError, UnknownName, shown
from ..paths import located
from ..targets import DENSE
from ..training.config import RunConfig, read_yaml
from ..training.dense_data import read_dense
from ..training.dense_run import answers_of, task_of
from ..training.devices import device_of
from ..training.owner import CONFIG, refuse_unfinished
from ..training.split import SPLITS, Split
from ..tuning.adapter_files import CONFIG as ADAPTER
from ..tuning.adapter_files import read_config, read_metadata, read_tensors, write_tensors
from ..tuning.applying import load
from ..tuning.backbone import create
from ..tuning.finite import refuse_infinite
from ..tuning.tuned import set_frozen_dtype

HEADER = "lowtide_dense"
"""Where the header of a merged file holds what its numbers mean."""


@dataclass(frozen=True)
class DenseModel:
    """A finished run of a dense task, ready for use.

    Attributes:
        model: The model, in evaluation.
        task: The task.
        config: The run's options.
        preprocessing: How pixels become inputs.
    """

    model: Any
    task: DenseTask
    config: RunConfig
    preprocessing: Preprocessing


def is_dense(run: Path) -> bool:
    """Tell whether a run is of a dense task.

    Args:
        run: A run folder, or a merged file.

    Returns:
        Whether it is; a folder that holds no run is not.
    """
    if run.is_file():
        return run.suffix == ".safetensors" and HEADER in read_metadata(run)
    path = run / CONFIG
    return path.is_file() and read_yaml(path).get("task") in DENSE


def open_dense(
    run: Path, *, checkpoint: Path | None = None, device: str = "auto", original: bool = False
) -> DenseModel:
    """Load the backbone a run names and the adapter it left, or a merged file.

    Args:
        run: The run folder, or what `write_merged_dense` wrote.
        checkpoint: Where the backbone's weights are now, if not where they were.
        device: `auto`, `cpu`, `cuda:1` and the like.
        original: Whether to leave the frozen weights as they are in the backbone's file, where they
            were kept in few bits in training.

    Returns:
        The run, ready for use.

    Raises:
        InputError: There is no finished run, or its files are damaged.
    """
    wanted = device_of(device)
    if run.is_file():
        if checkpoint:
            raise InputError("a merged file holds its own weights: --checkpoint is for a run")
        opened = _open_merged(run)
    else:
        opened = _open_folder(run, checkpoint, original)
    opened.model.to(wanted).eval()
    return opened


def _open_folder(run: Path, checkpoint: Path | None, original: bool) -> DenseModel:
    refuse_unfinished(run)
    config = RunConfig.from_dict(read_yaml(run / CONFIG))
    known = read_config(run)
    task, preprocessing = _recorded(config, known.get("dense"), run / ADAPTER)
    weights = checkpoint or (Path(config.checkpoint) if config.checkpoint else None)
    torch.manual_seed(config.seed)  # a backbone with random weights is the same one from its seed
    body = create(
        config.model,
        checkpoint=weights,
        pretrained=config.pretrained,
        image_size=config.image_size,
    )
    tuned = load(task.model(body), run)
    if config.frozen_dtype != "fp32" and not original:
        set_frozen_dtype(tuned, config.frozen_dtype)
    return DenseModel(tuned, task, config, preprocessing)


def _recorded(config: RunConfig, given: Any, path: Path) -> tuple[DenseTask, Preprocessing]:
    """Read what a file keeps of a dense task."""
    classes = given.get("classes") if isinstance(given, Mapping) else None
    texts = isinstance(classes, list) and all(isinstance(c, str) for c in classes)
    if not texts or not classes or len(set(classes)) < len(classes):
        raise InputError(f"{path} is damaged: its classes are {shown(classes)}, no list of names")
    if config.task not in DENSE:
        raise InputError(f"{path} is damaged: its task is {config.task}, and that is not dense")
    preprocessing = Preprocessing.from_dict(given.get("preprocessing") or {})
    return task_of(config, tuple(classes), preprocessing), preprocessing


def write_merged_dense(opened: DenseModel, path: Path) -> str:
    """Fold a run into its backbone and write the whole model.

    The header of the file holds the run's options, classes and pre-processing, as JSON.

    Args:
        opened: The run; not to be used again.
        path: The file to write.

    Returns:
        The command that uses it.
    """
    model = opened.model.merge_and_unload()
    header = {
        "config": opened.config.to_dict(),
        "classes": list(opened.task.names),
        "preprocessing": opened.preprocessing.to_dict(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, model.state_dict(), {HEADER: json.dumps(header)})
    return f"lowtide predict {path} IMAGES"


def _open_merged(path: Path) -> DenseModel:
    state = read_tensors(path)
    refuse_infinite(path, state)
    try:
        header = json.loads(read_metadata(path)[HEADER])
        config = RunConfig.from_dict(header["config"])
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as e:
        raise InputError(f"{path} was not written by lowtide merge: its header names no run") from e
    task, preprocessing = _recorded(config, header, path)
    model = task.model(create(config.model, pretrained=False, image_size=config.image_size))
    own = {key: value.shape for key, value in model.state_dict().items()}
    if own != {key: value.shape for key, value in state.items()}:
        raise InputError(f"{path} is damaged: its tensors are not those of {config.model}")
    model.load_state_dict(state)
    return DenseModel(model, task, config, preprocessing)


def score_dense(
    opened: DenseModel, run: Path, data: str | None, which: str, batch_size: int
) -> tuple[Scores, int, list[str]]:
    """Score a split of the run's data as the run split them, or of other data.

    Args:
        opened: The run.
        run: Its folder, or the merged file.
        data: Other data.
        which: `train`, `val`, `test` or `all`.
        batch_size: Images per forward pass.

    Returns:
        The scores, the number of images, and what is to be said of those that were left out.

    Raises:
        InputError: The split has no images, or a merged file is given no data.
        UnknownName: There is no such split.
    """
    own = data is None or located(data).resolve() == located(opened.config.data).resolve()
    if data is None and run.is_file():
        raise InputError(f"{run} is a merged file and names no data: give --data")
    if own and which == "val" and opened.config.train_on_val and not run.is_file():
        raise InputError(
            f"{run} has learnt from its validation images (train_on_val): no image is left to"
            " validate on; --split test, or --data with other images"
        )
    dataset = read_dense(opened.config, data)
    dataset = dataclasses.replace(dataset, folder=dataset.folder.counting(opened.task.names))
    split = None if run.is_file() else Split.read(run)
    if which not in (*SPLITS, "all"):
        raise UnknownName("split", which, (*SPLITS, "all"))
    samples, notes = dataset.samples(which), list[str]()
    if split is not None and own:
        samples, notes = split.select(dataset, which)
    elif split is not None and which != "train":
        samples, learnt = split.unseen(samples)
        if learnt:
            notes = [f"the run has learnt from {len(learnt)} of these images: left out"]
    if not samples:
        raise InputError(f"there are no images in split {which} of {data or opened.config.data}")
    scorer = opened.task.scorer()
    for _, predicted, target in answers_of(
        opened.task, opened.model, dataset, tuple(samples), batch_size
    ):
        scorer.update(predicted, target)
    return scorer.compute(), len(samples), notes


def predict_dense(
    opened: DenseModel,
    paths: Sequence[Path],
    batch_size: int,
    unreadable: Callable[[UnreadableImage], object] | None = None,
) -> Iterator[tuple[Path, Tensor, Predicted]]:
    """Answer for images.

    Args:
        opened: The run.
        paths: Image files.
        batch_size: Images per forward pass.
        unreadable: Told of a file that is missing or no image; the others are answered. By default
            it is refused.

    Yields:
        The path, the image `(3, H, W)` uint8, and the task's prediction.

    Raises:
        UnreadableImage: A file is missing or no image, and nobody is told.
    """
    for start in range(0, len(paths), batch_size):
        read: list[tuple[Path, Tensor]] = []
        for path in paths[start : start + batch_size]:
            try:
                read.append((path, pil_to_tensor(decode(path, bits=opened.preprocessing.bits))))
            except UnreadableImage as e:
                if unreadable is None:
                    raise
                unreadable(e)
        if not read:
            continue
        found = opened.task.predict(opened.model, [image for _, image in read])
        for (path, image), predicted in zip(read, found, strict=True):
            yield path, image, predicted
