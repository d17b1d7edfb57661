"""Use a finished run: load it, score it, ask it about images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Augment, Preprocessing, Sample, Transform, UnreadableImage, loader
from ..data.images import look
from ..errors import InputError, LowtideError, UnknownName
from ..memory.frozen_dtype import FrozenDtype
from ..planning.simulate import tune_on_meta
from ..targets import Targets, construct
from ..targets.classify import Classify
from ..training.devices import device_of
from ..training.owner import refuse_unfinished
from ..tuning.adapter_config import AdapterConfig, unfit
from ..tuning.adapter_files import CONFIG, WEIGHTS, read_config, read_shapes
from ..tuning.applying import load
from ..tuning.backbone import create
from ..tuning.tuned import Tuned, set_frozen_dtype
from ..tuning.weights import leaves_frozen
from ..values import read as read_value

OVER = ("all", "present")


@dataclass(frozen=True)
class Trained:
    """A finished run, ready for use.

    Attributes:
        tuned: The model, in eval mode.
        preprocessing: How images become inputs.
        transform: The evaluation transform.
        classes: Class names, in the order of the logits.
        name: timm's name of the backbone.
        targets: What it has learnt.
    """

    tuned: Tuned
    preprocessing: Preprocessing
    transform: Transform
    classes: tuple[str, ...]
    name: str
    targets: Targets


def open_run(
    folder: Path,
    *,
    checkpoint: Path | None = None,
    device: str = "auto",
    original: bool = False,
) -> Trained:
    """Load the backbone a run names and the adapter it left.

    Args:
        folder: The run folder.
        checkpoint: Where the backbone's weights are now, if not where they were.
        device: `auto`, `cpu`, `cuda:1` and the like.
        original: Whether to leave the frozen weights as they are in the backbone's file, where they
            were kept in few bits in training.

    Returns:
        The run, ready for use.

    Raises:
        InputError: The folder holds no finished run.
    """
    where = device_of(device)
    refuse_unfinished(folder)
    config = AdapterConfig.of(read_config(folder), folder)
    if config.preprocessing is None or config.augment is None or config.classes is None:
        raise InputError(unfit(folder))
    preprocessing = Preprocessing.from_dict(config.preprocessing)
    transform = preprocessing.transform(
        train=False, augment=read_value("augment", Augment, config.augment)
    )
    try:
        targets = construct(config.classes, config.targets)
    except InputError as e:
        raise InputError(f"{folder / CONFIG} is damaged: {e}") from e
    seed, options = _origin(config, folder, checkpoint)
    shape = _refuse_misfit(config, options, folder)
    dtype = "fp32" if original or config.frozen_dtype is None else config.frozen_dtype
    if options["checkpoint"] and shape is not None and leaves_frozen(shape):
        options["frozen_dtype"] = dtype
    tuned = load(_make(seed, options), folder)
    if dtype != "fp32":
        set_frozen_dtype(tuned, dtype)
    fits = Preprocessing.of(tuned.backbone)
    if (preprocessing.size, preprocessing.channels) != (fits.size, fits.channels):
        raise InputError(
            f"{folder / CONFIG} is damaged: pre-processing makes {preprocessing.size} with"
            f" {preprocessing.channels} channels and the model takes {fits.size} with"
            f" {fits.channels}"
        )
    return Trained(
        tuned.to(where), preprocessing, transform, config.classes, options["name"], targets
    )


def backbone_of(
    folder: Path, checkpoint: Path | None = None, frozen_dtype: FrozenDtype = "fp32"
) -> nn.Module:
    """Make the backbone a run began with; the generator of a wide one is left as the run's was.

    Args:
        folder: A run folder that `open_run` takes.
        checkpoint: Where the backbone's weights are now, if not where they were.
        frozen_dtype: What to keep its weights in.

    Returns:
        The backbone as pre-trained, with its own classifier.
    """
    seed, options = _origin(AdapterConfig.of(read_config(folder), folder), folder, checkpoint)
    return _make(seed, {**options, "frozen_dtype": frozen_dtype})


def _origin(
    config: AdapterConfig, folder: Path, checkpoint: Path | None
) -> tuple[int, dict[str, Any]]:
    """Read the seed of a run's backbone, and what `create` is given."""
    base = config.backbone
    if base is None:
        raise InputError(unfit(folder))
    weights = checkpoint or (Path(base.checkpoint) if base.checkpoint else None)
    options = {"name": base.name, "pretrained": base.pretrained, "image_size": base.image_size}
    return base.seed, {**options, "checkpoint": weights}


def _refuse_misfit(config: AdapterConfig, options: Mapping[str, Any], folder: Path) -> Tuned | None:
    """Hold the file's shapes against a model without numbers, and give that if it can be made."""
    shapes = read_shapes(folder / WEIGHTS)
    try:
        tuned = tune_on_meta(
            options["name"],
            *config.methods,
            num_classes=config.num_classes,
            image_size=options["image_size"],
        )
    except (NotImplementedError, RuntimeError):  # it cannot be made without weights
        return None
    own = tuned.adapter_state()
    like = {k: own[k].dtype if k in own else torch.float32 for k in shapes}
    tuned.load_adapter_state({
        k: torch.empty(v, device="meta", dtype=like[k]) for k, v in shapes.items()
    })
    return tuned


def _make(seed: int, options: Mapping[str, Any]) -> nn.Module:
    torch.manual_seed(seed)  # a backbone with random weights is the same one only from its seed
    return create(**options)


def score(
    trained: Trained,
    samples: Sequence[Sample],
    batch_size: int = 32,
    over: str = "all",
    flip: bool = False,
) -> dict[str, Any]:
    """Measure how good a model is.

    Args:
        trained: The model.
        samples: Images and labels.
        batch_size: Images per forward pass.
        over: Which classes may be answered: `all` of the model, or those `present` among the
            samples. ImageNet-A and -R hold 200 of 1000: NOAH and DTL score over all, SSF over
            those present.
        flip: Average the probabilities of each image and of its mirror image.

    Returns:
        Number of images, the scores of the run's task by name, and of classes the accuracy of each
        and the images of each true class by the class they were taken for.

    Raises:
        InputError: There are no samples, or classes are to be chosen where there are none.
        UnknownName: `over` is neither.
    """
    if not samples:
        raise InputError("there are no images in this split")
    if over not in OVER:
        raise UnknownName("value of over", over, OVER)
    kind = trained.targets
    if over == "present" and kind.task != "classify":
        raise InputError(f"over is of classes: task {kind.task} has none")
    batches = loader(samples, trained.transform, batch_size, shuffle=False)
    parts = [(_mean_outputs(trained, images, flip), targets) for images, targets in batches]
    outputs, truth = (torch.cat(part) for part in zip(*parts, strict=True))
    if kind.task != "classify":
        return {"images": len(samples), **kind.scores(outputs, truth)}
    present = truth.unique()
    if over == "present":
        kind = Classify(tuple(trained.classes[i] for i in present.tolist()))
        outputs, truth = outputs[:, present], torch.searchsorted(present, truth)
    right = outputs.argmax(-1) == truth
    each = {kind.names[k]: float(right[truth == k].float().mean()) for k in truth.unique().tolist()}
    confused: dict[str, dict[str, int]] = {kind.names[k]: {} for k in truth.unique().tolist()}
    for k, taken in zip(truth.tolist(), outputs.argmax(-1).tolist(), strict=True):
        row = confused[kind.names[k]]
        row[kind.names[taken]] = row.get(kind.names[taken], 0) + 1
    scores = kind.scores(outputs, truth)
    return {"images": len(samples), **scores, "class_accuracy": each, "confusion": confused}


def _stop(error: UnreadableImage) -> None:
    raise error


def predict(
    trained: Trained,
    paths: Sequence[Path],
    *,
    top: int = 5,
    batch_size: int = 32,
    unreadable: Callable[[UnreadableImage], object] = _stop,
) -> Iterator[dict[str, Any]]:
    """Classify images.

    Args:
        trained: The model.
        paths: Image files.
        top: How many names to give, best first.
        batch_size: Images per forward pass.
        unreadable: Told of a file that is missing or no image; by default the error is raised.
            Where it returns, the other images are answered.

    Yields:
        Path, and what `Targets.answer` says: the class and the best classes with their
        probabilities, the labels with theirs, or the value.

    Raises:
        LowtideError: The model's answer is no number.
    """
    for start in range(0, len(paths), batch_size):
        readable, images = [], []
        for path in paths[start : start + batch_size]:
            try:
                images.append(trained.transform(trained.preprocessing.decode(path)))
            except UnreadableImage as e:
                unreadable(e)
            else:
                readable.append(path)
        if not images:
            continue
        for path, output in zip(readable, _outputs(trained, torch.stack(images)), strict=True):
            if not output.isfinite().all():
                raise LowtideError(f"the model's answer to {path} is no number")
            yield {"path": str(path), **trained.targets.answer(output, top)}


def too_deep(trained: Trained, paths: Sequence[Path]) -> list[str]:
    """Say which images use more of their 16 bits than those the run was trained on.

    Args:
        trained: The model.
        paths: Image files.

    Returns:
        A sentence, or none.
    """
    bits = trained.preprocessing.bits
    peaks = {p: found.peak for p, found in look(paths).items()} if bits < 16 else {}
    deep = [path for path, peak in peaks.items() if peak >= 1 << bits]
    return [
        f"{len(deep)} of {len(paths)} images use more than the {bits} bits of those the run was"
        f" trained on, first {str(p)!r}: what is brighter is read as white"
        for p in deep[:1]
    ]


def _mean_outputs(trained: Trained, images: Tensor, flip: bool) -> Tensor:
    """Outputs `(B, K)`, of each image alone or of the mean answer to it and its mirror image."""
    outputs = _outputs(trained, images)
    if not flip:
        return outputs
    return trained.targets.averaged((outputs, _outputs(trained, images.flip(-1))))


@torch.no_grad()
def _outputs(trained: Trained, images: Tensor) -> Tensor:
    device = next(trained.tuned.parameters()).device
    return trained.tuned(images.to(device)).float().cpu()
