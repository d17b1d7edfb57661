"""`lowtide info`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from rich.table import Table

from ..families import family_of, measure, prepare
from ..training.parser import Parser
from ..tuning.backbone import create
from ..versions import on_meta
from .console import OUT

SUMMARY = "List the sites of a backbone: where methods can act."


def info(args: Sequence[str]) -> None:
    """Run `lowtide info`.

    Args:
        args: The command's arguments.
    """
    parser = Parser("info", SUMMARY)
    parser.add_argument("model", type=str, help="timm's name of the backbone.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object per site.")
    given = parser.read(args)
    with on_meta():
        model = create(given["model"], pretrained=False)
    family = family_of(model)
    prepare(model)
    sites = measure(model, family)
    if given["json"]:
        for site in sites:
            print(json.dumps({**dataclasses.asdict(site), "layout": site.layout.name.lower()}))
        return
    table = Table("path", "role", "block", "input", "output", "parameters")
    for s in sites:
        shapes = ("x".join(map(str, shape)) for shape in (s.in_shape, s.out_shape))
        depth = str(s.depth) if s.depth >= 0 else ""
        table.add_row(s.path or ".", s.role, depth, *shapes, " ".join(s.params))
    OUT.print(table)
    OUT.print(f"{given['model']}: {family.name} family, {len(sites)} sites")
