"""Use a finished run: load it, score it, ask it about images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import accuracy_score, recall_score
from torch import Tensor, nn

from ..data import Augment, Preprocessing, Sample, Transform, UnreadableImage, loader, read
from ..data.formats.corruptions import corruption_error, severities_in
from ..data.images import look
from ..errors import InputError, LowtideError, UnknownName
from ..planning.simulate import tune_on_meta
from ..training.devices import device_of
from ..training.owner import refuse_unfinished
from ..tuning.adapter_config import AdapterConfig
from ..tuning.adapter_files import CONFIG, WEIGHTS, read_config, read_shapes
from ..tuning.backbone import create
from ..tuning.tuned import Tuned, load, set_frozen_dtype
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
    """

    tuned: Tuned
    preprocessing: Preprocessing
    transform: Transform
    classes: tuple[str, ...]
    name: str


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
        raise InputError(_foreign(folder))
    preprocessing = Preprocessing.from_dict(config.preprocessing)
    transform = preprocessing.transform(
        train=False, augment=read_value("augment", Augment, config.augment)
    )
    seed, options = _origin(config, folder, checkpoint)
    _refuse_misfit(config, options, folder)
    tuned = load(_make(seed, options), folder)
    if config.frozen_dtype not in (None, "fp32") and not original:
        set_frozen_dtype(tuned, config.frozen_dtype)
    fits = Preprocessing.of(tuned.backbone)
    if (preprocessing.size, preprocessing.channels) != (fits.size, fits.channels):
        raise InputError(
            f"{folder / CONFIG} is damaged: pre-processing makes {preprocessing.size} with"
            f" {preprocessing.channels} channels and the model takes {fits.size} with"
            f" {fits.channels}"
        )
    return Trained(tuned.to(where), preprocessing, transform, config.classes, options["name"])


def backbone_of(folder: Path, checkpoint: Path | None = None) -> nn.Module:
    """Make the backbone a run began with; the generator is left as the run's was then.

    Args:
        folder: A run folder that `open_run` takes.
        checkpoint: Where the backbone's weights are now, if not where they were.

    Returns:
        The backbone as pre-trained, with its own classifier.
    """
    return _make(*_origin(AdapterConfig.of(read_config(folder), folder), folder, checkpoint))


def _foreign(folder: Path) -> str:
    return (
        f"{folder} was not left by lowtide train: its {CONFIG} names no backbone, classes or"
        " pre-processing; load it in Python with lowtide.load"
    )


def _origin(
    config: AdapterConfig, folder: Path, checkpoint: Path | None
) -> tuple[int, dict[str, Any]]:
    """Read the seed of a run's backbone, and what `create` is given."""
    base = config.backbone
    if base is None:
        raise InputError(_foreign(folder))
    weights = checkpoint or (Path(base.checkpoint) if base.checkpoint else None)
    options = {"name": base.name, "pretrained": base.pretrained, "image_size": base.image_size}
    return base.seed, {**options, "checkpoint": weights}


def _refuse_misfit(config: AdapterConfig, options: Mapping[str, Any], folder: Path) -> None:
    """Hold the file's shapes against those of the model, before the model takes any memory."""
    shapes = read_shapes(folder / WEIGHTS)
    try:
        tuned = tune_on_meta(
            options["name"],
            *config.methods,
            num_classes=config.num_classes,
            image_size=options["image_size"],
        )
    except (NotImplementedError, RuntimeError):  # it cannot be made without weights
        return
    own = tuned.adapter_state()
    like = {k: own[k].dtype if k in own else torch.float32 for k in shapes}
    tuned.load_adapter_state({
        k: torch.empty(v, device="meta", dtype=like[k]) for k, v in shapes.items()
    })


def _make(seed: int, options: Mapping[str, Any]) -> nn.Module:
    torch.manual_seed(seed)  # a backbone with random weights is the same one only from its seed
    return create(**options)


def score(
    trained: Trained, samples: Sequence[Sample], batch_size: int = 32, over: str = "all"
) -> dict[str, Any]:
    """Measure how often a model is right.

    Args:
        trained: The model.
        samples: Images and labels.
        batch_size: Images per forward pass.
        over: Which classes may be answered: `all` of the model, or those `present` among the
            samples. ImageNet-A and -R hold 200 of 1000: NOAH and DTL score over all, SSF over
            those present.

    Returns:
        Number of images, top-1 accuracy, mean accuracy over classes, accuracy by class name.

    Raises:
        InputError: There are no samples.
        UnknownName: `over` is neither.
    """
    if not samples:
        raise InputError("there are no images in this split")
    if over not in OVER:
        raise UnknownName("value of over", over, OVER)
    truth = [s.label for s in samples]
    present = sorted(set(truth))
    answers = torch.tensor(present if over == "present" else range(len(trained.classes)))
    batches = loader(samples, trained.transform, batch_size, shuffle=False)
    logits = (_logits(trained, images)[:, answers] for images, _ in batches)
    predicted = [p for part in logits for p in answers[part.argmax(-1)].tolist()]
    recalls = recall_score(truth, predicted, labels=present, average=None, zero_division=0)
    return {
        "images": len(samples),
        "accuracy": float(accuracy_score(truth, predicted)),
        "mean_class_accuracy": float(sum(recalls) / len(recalls)),
        "class_accuracy": {
            trained.classes[i]: float(r) for i, r in zip(present, recalls, strict=True)
        },
    }


def score_corruptions(trained: Trained, folder: Path, batch_size: int = 32) -> dict[str, Any]:
    """Measure how often a model is wrong on ImageNet-C.

    Args:
        trained: The model.
        folder: A folder `corruption/severity/class/...`.
        batch_size: Images per forward pass.

    Returns:
        Top-1 error by `corruption/severity` and by corruption, their mean over the 15, and mCE.
    """
    errors = {}
    for key, path in severities_in(folder).items():
        data = read(path, classes=trained.classes, val_fraction=0, test_fraction=0)
        errors[key] = 1 - score(trained, data.train, batch_size)["accuracy"]
    each = {f"{name}/{severity}": error for (name, severity), error in errors.items()}
    return {"each": each, **asdict(corruption_error(errors))}


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
        top: How many classes to give, best first.
        batch_size: Images per forward pass.
        unreadable: Told of a file that is missing or no image; by default the error is raised.
            Where it returns, the other images are answered.

    Yields:
        Path, class, and the best classes with their probabilities.

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
        best = (
            _logits(trained, torch.stack(images)).softmax(-1).topk(min(top, len(trained.classes)))
        )
        for path, values, labels in zip(readable, best.values, best.indices, strict=True):
            if not values.isfinite().all():
                raise LowtideError(f"the model's answer to {path} is no number")
            names = [trained.classes[i] for i in labels.tolist()]
            yield {
                "path": str(path),
                "class": names[0],
                "probabilities": dict(zip(names, values.tolist(), strict=True)),
            }


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


@torch.no_grad()
def _logits(trained: Trained, images: Tensor) -> Tensor:
    device = next(trained.tuned.parameters()).device
    return trained.tuned(images.to(device)).float().cpu()
