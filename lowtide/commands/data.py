"""`lowtide data`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Literal

from ..data import check, dense
from ..dense.tasks import TASKS
from ..targets import DENSE, refuse_unknown
from ..training.parser import Parser
from .console import OUT

SUMMARY = "Say what a folder, list or table of images holds, and what is wrong with it."


def data(args: Sequence[str]) -> None:
    """Run `lowtide data`.

    Args:
        args: The command's arguments.
    """
    parser = Parser("data", SUMMARY)
    parser.add_argument("action", type=Literal["check"], help="check: look at every image.")
    parser.add_argument("source", type=str, help="What --data of lowtide train would be given.")
    parser.add_argument("--task", type=str, default="classify", help="As for lowtide train.")
    parser.add_argument("--target", type=str, help="As for lowtide train.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    given = parser.read(args)
    refuse_unknown(given["task"], None, "none")
    source, task = given["source"], given["task"]
    objects = task == "classify" and given["target"] is None and dense.recognised(source)
    if task in DENSE or objects:
        found: Any = dense.check(source, TASKS[task].kind if task in DENSE else None)
    else:
        found = check(source, task=task, target=given["target"])
    if given["json"]:
        print(json.dumps(dataclasses.asdict(found)))
        return
    for line in found.lines():
        OUT.print(line)
