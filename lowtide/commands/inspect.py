"""`lowtide inspect`: parse, compute, draw, print."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from ..data import Sample
from ..errors import InputError, UnknownName
from ..inference.evaluate import Trained
from ..inference.loading import add_loading, open_given, read_samples
from ..inference.places import refuse_replacing
from ..inspect.attention import attention_maps
from ..inspect.cka import draw_cka, similarity
from ..inspect.distributions import draw_parameters
from ..inspect.drawing import checked, save
from ..inspect.features import block_features, final_features, untouched
from ..inspect.overlay import draw_attention, read_images
from ..inspect.parameters import run_changes
from ..inspect.tsne import PERPLEXITY, draw_tsne, tsne
from ..training.parser import Parser
from ..training.progress import note
from ..values import Count, Seed, Within
from .console import OUT

SUMMARY = "Draw what training did: parameters, cka, tsne or attention."
PRETRAINED = "as pre-trained"
"""Name of a run's backbone before the run."""


def inspect(args: Sequence[str]) -> None:
    """Run `lowtide inspect WHAT ...`.

    Args:
        args: What to look at, and its arguments.

    Raises:
        UnknownName: There is nothing of that name to look at.
    """
    if not args or args[0].startswith("-"):
        parser = Parser("inspect", SUMMARY)
        rows = "; ".join(f"{name}: {run.__doc__}" for name, run in VIEWS.items())
        parser.add_argument("what", type=str, help=rows)
        parser.read(args)
        return
    if args[0] not in VIEWS:
        raise UnknownName("inspection", args[0], VIEWS)
    VIEWS[args[0]](args[1:])


def _parameters(args: Sequence[str]) -> None:
    """Weights before and after training: distributions and relative changes."""
    parser = _parser("parameters", _parameters)
    parser.add_argument("run", type=str, help="Run folder.")
    parser.add_argument("--match", type=str, default="*", help="Which names, * for anything.")
    _add_output(parser)
    parser.add_argument(
        "--checkpoint", type=str, help="Where the backbone's weights are now, if they moved."
    )
    given = _read(parser, args)
    checkpoint = Path(given["checkpoint"]) if given["checkpoint"] else None
    found = run_changes(Path(given["run"]), checkpoint).matching(given["match"])
    numbers = {"unfolded": found.unfolded, "parameters": [c.to_dict() for c in found.items]}
    _give(given, numbers, lambda: draw_parameters(found.items, found.title))


def _cka(args: Sequence[str]) -> None:
    """Similarity of features layer by layer, of two runs or of a run and its backbone."""
    parser = _parser("cka", _cka)
    parser.add_argument("run", type=str, help="Run folder.")
    parser.add_argument(
        "other", type=str, nargs="?", help="Another; by default the first as pre-trained."
    )
    parser.add_argument(
        "--unbiased", action="store_true", help="Estimate without bias, for few images."
    )
    _add_samples(parser)
    given = _read(parser, args)
    first = open_given(given)
    samples = _samples(first, given)
    if given["other"]:
        second, name = open_given({**given, "run": given["other"]}), _name(given["other"])
    else:
        second, name = _untouched(first, given), PRETRAINED
    a, b = (block_features(t, samples, given["batch_size"]) for t in (first, second))
    matrix = similarity(a, b, unbiased=given["unbiased"])
    numbers = {"rows": list(a), "columns": list(b), "images": len(samples), "cka": matrix.tolist()}
    _give(given, numbers, lambda: draw_cka(matrix, _name(given["run"]), name))


def _tsne(args: Sequence[str]) -> None:
    """Features before the classifier on a plane, coloured by class."""
    parser = _parser("tsne", _tsne)
    _add_runs(parser)
    parser.add_argument(
        "--perplexity",
        type=Annotated[float, Within(1, 1e6)],
        default=PERPLEXITY,
        help="About how many neighbours an image has.",
    )
    _add_samples(parser)
    given = _read(parser, args)
    models = _models(given)
    first = next(iter(models.values()))
    if first.targets.task != "classify":
        raise InputError(f"images are coloured by class, and task {first.targets.task} has none")
    samples = _samples(first, {**given, "run": given["runs"][0]})
    points = {
        name: tsne(
            final_features(trained, samples, given["batch_size"]),
            perplexity=given["perplexity"],
            seed=given["seed"],
        )
        for name, trained in models.items()
    }
    labels = [s.label for s in samples if isinstance(s.label, int)]
    numbers = {
        "images": [str(s.path) for s in samples],
        "classes": [first.classes[label] for label in labels],
        "points": {name: xy.tolist() for name, xy in points.items()},
    }
    _give(given, numbers, lambda: draw_tsne(points, labels, first.classes))


def _attention(args: Sequence[str]) -> None:
    """Attention of the class token over images, for backbones with global attention."""
    parser = _parser("attention", _attention)
    _add_runs(parser)
    parser.add_argument("--images", type=str, nargs="+", required=True, help="Image files.")
    parser.add_argument(
        "--blocks",
        type=Annotated[int, Within(-4096, 4096)],
        nargs="+",
        default=[-1],
        help="Which blocks; -1 is the last.",
    )
    parser.add_argument(
        "--kind", type=str, default="mean", help="mean over a block's heads, or rollout up to it."
    )
    _add_output(parser)
    add_loading(parser)
    given = _read(parser, args)
    paths = [Path(p) for p in given["images"]]
    maps: dict[str, torch.Tensor] = {}
    pictures: list[np.ndarray] = []
    for name, trained in _models(given).items():
        inputs, pictures = read_images(trained, paths)
        found = attention_maps(
            trained,
            inputs,
            blocks=given["blocks"],
            kind=given["kind"],
            batch_size=given["batch_size"],
        )
        for i, block in enumerate(given["blocks"]):
            place = "last block" if block == -1 else f"block {block}"
            maps[f"{name}\n{place}, {given['kind']}"] = found[:, i]
    numbers = {
        "images": given["images"],
        "maps": {name.replace("\n", ": "): m.tolist() for name, m in maps.items()},
    }
    _give(given, numbers, lambda: draw_attention(pictures, maps, [p.stem for p in paths]))


VIEWS: dict[str, Callable[[Sequence[str]], None]] = {
    "parameters": _parameters,
    "cka": _cka,
    "tsne": _tsne,
    "attention": _attention,
}


def _parser(name: str, run: Callable[..., None]) -> Parser:
    return Parser(f"inspect {name}", run.__doc__ or "")


def _add_output(parser: Parser) -> None:
    parser.add_argument("--output", type=str, help="Figure to write: FILE.svg or FILE.png.")
    parser.add_argument("--json", action="store_true", help="Print the numbers as one JSON object.")


def _add_runs(parser: Parser) -> None:
    parser.add_argument("runs", type=str, nargs="+", help="Run folders, side by side.")
    parser.add_argument(
        "--untouched", action="store_true", help="Also the first run's backbone as pre-trained."
    )


def _add_samples(parser: Parser) -> None:
    parser.add_argument("--data", type=str, help="Other images; by default the run's own.")
    parser.add_argument("--split", type=str, default="test", help="train, val, test or all.")
    parser.add_argument("--count", type=Count, default=500, help="Images at most, drawn by --seed.")
    parser.add_argument("--seed", type=Seed, default=0, help="Of all that is drawn at random.")
    _add_output(parser)
    add_loading(parser)


def _read(parser: Parser, args: Sequence[str]) -> dict[str, Any]:
    given = parser.read(args)
    if not given["output"] and not given["json"]:
        raise InputError("--output FILE.svg or --json is required")
    if given["output"]:
        single = [given.get(name) for name in ("run", "other", "checkpoint", "data")]
        several = [*given.get("runs", ()), *given.get("images", ())]
        refuse_replacing(checked(given["output"]), *(Path(p) for p in [*single, *several] if p))
    return given


def _samples(trained: Trained, given: dict[str, Any]) -> list[Sample]:
    samples, notes = read_samples(trained, given)
    for line in notes:
        note(line)
    drawn = torch.randperm(len(samples), generator=torch.Generator().manual_seed(given["seed"]))
    return [samples[i] for i in sorted(drawn[: given["count"]].tolist())]


def _models(given: dict[str, Any]) -> dict[str, Trained]:
    """Open every run that is named, and the first one's backbone if that is wanted."""
    folders = given["runs"]
    if len({_name(f) for f in folders}) < len(folders):
        raise InputError(f"two runs have the same folder name: {' '.join(folders)}")
    models = {_name(f): open_given({**given, "run": f}) for f in folders}
    if given["untouched"]:
        first = models[_name(folders[0])]
        models = {PRETRAINED: _untouched(first, {**given, "run": folders[0]}), **models}
    return models


def _untouched(trained: Trained, given: dict[str, Any]) -> Trained:
    checkpoint = Path(given["checkpoint"]) if given["checkpoint"] else None
    return untouched(trained, Path(given["run"]), checkpoint)


def _name(folder: str) -> str:
    return Path(folder).resolve().name


def _give(given: dict[str, Any], numbers: Mapping[str, object], draw: Callable[[], object]) -> None:
    if given["output"]:
        save(draw(), given["output"])
    if given["json"]:
        print(json.dumps(numbers))
    else:
        OUT.print(f"wrote {given['output']}")
