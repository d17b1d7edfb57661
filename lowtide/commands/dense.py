"""`lowtide eval`, `predict` and `merge` of runs of dense tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table
from torch import Tensor

from ..data import UnreadableImage
from ..dense.drawing import draw
from ..dense.results import Predicted, coco_results
from ..errors import InputError
from ..inference.dense import (
    DenseModel,
    open_dense,
    predict_dense,
    score_dense,
    write_merged_dense,
)
from ..inference.predictions import images_in
from ..paths import refuse_unwritable, write_text
from ..training.progress import note
from .console import OUT


def _open(given: dict[str, Any], original: bool = False) -> DenseModel:
    weights = Path(given["checkpoint"]) if given["checkpoint"] else None
    device = given["device"]
    return open_dense(Path(given["run"]), checkpoint=weights, device=device, original=original)


def evaluate_dense(given: dict[str, Any]) -> None:
    """Score a run of a dense task and print it.

    Args:
        given: Values of the options of `lowtide eval`.

    Raises:
        InputError: Classes are to be chosen.
    """
    if given["over"] != "all":
        raise InputError("--over is for task classify")
    opened = _open(given)
    found, images, notes = score_dense(
        opened, Path(given["run"]), given["data"], given["split"], given["batch_size"]
    )
    for line in notes:
        note(line)
    if given["json"]:
        print(json.dumps({"images": images, **found.metrics, **found.by_class}))
        return
    names = list(found.by_class)
    table = Table("class", *names)
    for name in opened.task.names:
        table.add_row(name, *(_number(found.by_class[metric].get(name)) for metric in names))
    OUT.print(table)
    said = ", ".join(f"{name} {_number(value)}" for name, value in found.metrics.items())
    OUT.print(f"{images} images: {said}", highlight=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def predict_images(given: dict[str, Any]) -> None:
    """Answer for images; draw them and write COCO's results where that is asked.

    Args:
        given: Values of the options of `lowtide predict`.

    Raises:
        InputError: A folder has no images, or a file cannot be read; the others were answered.
    """
    drawn = Path(given["draw"]) if given["draw"] else None
    output = Path(given["output"]) if given["output"] else None
    for path, folder in ((drawn, True), (output, False)):
        if path is not None:
            refuse_unwritable(path, folder=folder)
    if output is not None and output.suffix != ".json":
        raise InputError(f"{output} must end in .json: answers of a dense run are COCO's results")
    paths, notes = images_in([Path(p) for p in given["images"]])
    for line in notes:
        note(line)
    opened = _open(given)
    bad: list[UnreadableImage] = []
    numbers = {path: number for number, path in enumerate(paths, start=1)}
    names, results = opened.task.names, []
    for path, image, predicted in predict_dense(opened, paths, given["batch_size"], bad.append):
        if drawn is not None:
            _save(draw(image, predicted, names, given["threshold"]), drawn, path, paths)
        if output is not None:
            results += _rows(predicted, numbers[path], path, names)
        else:
            print(json.dumps(_answer(predicted, path, names, given["threshold"])), flush=True)
    if output is not None:
        write_text(output, json.dumps(results))
        OUT.print(f"wrote {output}: {len(results)} results of {len(paths) - len(bad)} images")
    if drawn is not None:
        note(f"drew {len(paths) - len(bad)} images into {drawn}")
    for error in bad[:-1]:
        note(str(error))
    if bad:
        raise bad[-1]


def _save(picture: Tensor, folder: Path, path: Path, paths: Sequence[Path]) -> None:
    """Write a picture under the image's name; where two share it, under their folders' as well."""
    alike = [p for p in paths if p.stem == path.stem]
    stem = path.stem if len(alike) == 1 else "-".join([*path.parts[-3:-1], path.stem])
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{stem}.png")


def _rows(
    predicted: Predicted, number: int, path: Path, names: Sequence[str]
) -> list[dict[str, Any]]:
    more = {"file_name": str(path)}
    return [
        {**row, **more, "category": names[row["category_id"] - 1]}
        for row in coco_results(predicted, number)
    ]


def _answer(
    predicted: Predicted, path: Path, names: Sequence[str], threshold: float
) -> dict[str, object]:
    """Say what was predicted: the share of each class among pixels, or each object's box."""
    if isinstance(predicted, Tensor):
        counts = predicted.flatten().bincount(minlength=len(names)).tolist()
        whole = predicted.numel()
        return {
            "path": str(path),
            "pixels": {name: n / whole for name, n in zip(names, counts, strict=True) if n},
        }
    rows = zip(
        predicted["labels"].tolist(),
        predicted["scores"].tolist(),
        predicted["boxes"].tolist(),
        strict=True,
    )
    return {
        "path": str(path),
        "objects": [
            {"class": names[i], "score": score, "box": [round(n, 2) for n in box]}
            for i, score, box in rows
            if score >= threshold
        ],
    }


def merge_dense(given: dict[str, object], output: Path) -> str:
    """Fold a run of a dense task into one file.

    Args:
        given: Values of the options of `lowtide merge`.
        output: The file to write.

    Returns:
        The command that uses it.
    """
    return write_merged_dense(_open({**given, "device": "cpu"}, original=True), output)
