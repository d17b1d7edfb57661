"""`lowtide serve`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

from ..errors import InputError
from ..extras import extra
from ..serving.limits import NAMES, Limits
from ..serving.tasks import Tasks, named_runs
from ..training.parser import Parser
from ..values import Count, Ratio, Within, hints

SUMMARY = "Serve runs of one backbone over HTTP; requests of different tasks share a batch."

Host = Literal["127.0.0.1", "0.0.0.0", "::"]
Port = Annotated[int, Within(1024, 65535)]
Batch = Annotated[int, Within(2, 4096)]
HELP = {
    "max_bytes": "Most bytes of a request.",
    "max_pixels": "Most pixels of an image.",
    "max_images": "Most images of a request.",
    "max_waiting": "Most images that wait; more are refused with status 503.",
}


def serve(args: Sequence[str]) -> None:
    """Run `lowtide serve`.

    Args:
        args: The command's arguments.

    Raises:
        InputError: A run cannot be served, or `--adapters` is no folder.
    """
    given = _parser().read(args)
    extra("litserve", "serve")
    app = extra("lowtide.serving.app", "serve")
    root = Path(given["adapters"]) if given["adapters"] else None
    if root is not None and not root.is_dir():
        raise InputError(f"--adapters {root} is no folder")
    runs = {name: folder.resolve() for name, folder in named_runs(given["runs"]).items()}
    checkpoint = Path(given["checkpoint"]).resolve() if given["checkpoint"] else None
    worker = app.AdapterWorker(
        runs,
        checkpoint,
        given["top"],
        max_batch_size=given["batch_size"],
        batch_timeout=given["batch_wait"],
    )
    front = app.Front(
        worker,
        Tasks(runs, root),
        Limits(**{name: given[name] for name in NAMES}),
        accelerator=given["device"],
        workers_per_device=given["workers"],
    )
    print(f"serving {', '.join(runs)} on http://{given['host']}:{given['port']}", flush=True)
    app.serve(front, given["host"], given["port"])


def _parser() -> Parser:
    parser = Parser("serve", SUMMARY)
    parser.add_argument("runs", type=str, nargs="+", help="Run folders, RUN or NAME=RUN.")
    parser.add_argument("--host", type=Host, default="127.0.0.1", help="Address to listen on.")
    parser.add_argument("--port", type=Port, default=8000, help="Port to listen on.")
    parser.add_argument("--workers", type=Count, default=1, help="Processes with a backbone each.")
    parser.add_argument("--batch-size", type=Batch, default=32, help="Most images of a batch.")
    parser.add_argument(
        "--batch-wait", type=Ratio, default=0.005, help="Seconds to wait for a batch to fill."
    )
    parser.add_argument("--top", type=Count, default=5, help="How many classes to answer.")
    parser.add_argument(
        "--adapters", type=str, help="Folder whose runs may be added while it serves."
    )
    parser.add_argument(
        "--checkpoint", type=str, help="Where the backbone's weights are now, if they moved."
    )
    parser.add_argument(
        "--device", type=Literal["auto", "cpu"], default="auto", help="auto or cpu."
    )
    for field in fields(Limits):
        name = f"--{field.name.replace('_', '-')}"
        kind = hints(Limits)[field.name]
        parser.add_argument(name, type=kind, default=field.default, help=HELP[field.name])
    return parser
