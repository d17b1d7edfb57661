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
from ..dense.results import Predicted, answer_of, coco_results
from ..errors import InputError
from ..inference.dense import (
    DenseModel,
    open_dense,
    predict_dense,
    score_dense,
    write_merged_dense,
)
from ..inference.places import refuse_replacing
from ..inference.predictions import THRESHOLD, images_in
from ..paths import whole, write_text
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
        InputError: Classes are to be chosen, or answers of mirror images averaged.
    """
    if given["over"] != "all":
        raise InputError("--over is for task classify")
    if given["flip"]:
        raise InputError("--flip is for runs that answer for images")
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
    if given["top"] is not None:
        raise InputError("--top is for runs that answer for images; --threshold is for objects")
    threshold = THRESHOLD if given["threshold"] is None else given["threshold"]
    output = Path(given["output"]) if given["output"] else None
    if output is not None and output.suffix != ".json":
        raise InputError(f"{output} must end in .json: answers of a dense run are COCO's results")
    if output is not None:
        refuse_replacing(output, Path(given["run"]), *map(Path, given["images"]))
    paths, notes = images_in([Path(p) for p in given["images"]])
    pictures = _pictures(Path(given["draw"]), paths) if given["draw"] else {}
    for line in notes:
        note(line)
    opened = _open(given)
    bad: list[UnreadableImage] = []
    numbers = {path: number for number, path in enumerate(paths, start=1)}
    names, results = opened.task.names, []
    for path, image, predicted in predict_dense(opened, paths, given["batch_size"], bad.append):
        if pictures:
            _save(draw(image, predicted, names, threshold), pictures[path])
        if output is not None:
            results += _rows(predicted, numbers[path], path, names)
        else:
            print(json.dumps(answer_of(predicted, str(path), names, threshold)), flush=True)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, json.dumps(results))
        OUT.print(f"wrote {output}: {len(results)} results of {len(paths) - len(bad)} images")
    if pictures:
        note(f"drew {len(paths) - len(bad)} images into {given['draw']}")
    for error in bad[:-1]:
        note(str(error))
    if bad:
        raise bad[-1]


def _pictures(folder: Path, paths: Sequence[Path]) -> dict[Path, Path]:
    """Name each picture after its image; where two share a name, all with the images' numbers."""
    refuse_replacing(folder, folder=True)
    stems = [path.stem for path in paths]
    if len({*stems}) < len(stems):
        stems = [f"{number}-{stem}" for number, stem in enumerate(stems, start=1)]
    found = {path: folder / f"{stem}.png" for path, stem in zip(paths, stems, strict=True)}
    images = {path.resolve() for path in paths}
    for picture in found.values():
        if picture.resolve() in images:
            raise InputError(f"a picture would replace the image {picture}: --draw another folder")
    return found


def _save(picture: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(partial, format="png")


def _rows(
    predicted: Predicted, number: int, path: Path, names: Sequence[str]
) -> list[dict[str, Any]]:
    more = {"file_name": str(path)}
    return [
        {**row, **more, "category": names[row["category_id"] - 1]}
        for row in coco_results(predicted, number)
    ]


def merge_dense(given: dict[str, object], output: Path) -> str:
    """Fold a run of a dense task into one file.

    Args:
        given: Values of the options of `lowtide merge`.
        output: The file to write.

    Returns:
        The command that uses it.
    """
    return write_merged_dense(_open({**given, "device": "cpu"}, original=True), output)
