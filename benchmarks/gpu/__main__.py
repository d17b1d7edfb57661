"""Measure on a GPU what only a GPU can show, row by row, and write docs/gpu.md.

    python -m benchmarks.gpu [--minutes 8] [--only PART ...] [--data FOLDER]
    python -m benchmarks.gpu --render
    python -m benchmarks.gpu --device cpu --smoke

It needs the repository, torch, timm, torchvision, safetensors and pytest. A row is kept as it ends,
and is not measured again on the same card, so that the same command goes on where the last one
stopped; what failed is tried again, after what was never tried. A row is begun only while there is
time, the most telling first, and cut off where the time ends. Weights are random, but
FOLDER may hold MODEL.safetensors. A smoke runs tiny rows of every part on any device, into
runs/gpu_smoke.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.page import render
from benchmarks.gpu.parts import PARTS, Row, rows_of
from benchmarks.gpu.works import REPOSITORY, Setting

ROWS = REPOSITORY / "results" / "gpu" / "rows.jsonl"
PAGE = REPOSITORY / "docs" / "gpu.md"
SMOKE = REPOSITORY / "runs" / "gpu_smoke"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read what was measured; the last line may have been cut off."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            print(f"skipped a line of {path} that is no JSON")
    return found


def measure(rows: list[Row], setting: Setting, path: Path, seconds: float) -> tuple[int, int]:
    """Measure what is missing while there is time.

    Returns:
        How many rows were measured, and how many are left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    known = {r["row"]: "failed" in r for r in read_rows(path) if r["card"] == setting.card}
    missing = [row for row in rows if known.get(row.name, True)]
    missing.sort(key=lambda row: row.name in known)
    done = 0
    for row in missing:
        if time.monotonic() + row.seconds > end:
            continue
        start = time.monotonic()
        found = attempt(row, setting, end - start)
        took = round(time.monotonic() - start, 2)
        about = {"card": setting.card, "torch": torch.__version__, "part": row.part}
        line = json.dumps({**about, "row": row.name, "took": took, **found})
        with path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)
        done += 1
        setting.clear()
    return done, len(missing) - done


def attempt(row: Row, setting: Setting, seconds: float) -> dict[str, Any]:
    """Measure a row; what it fails on must not stop the others, nor must it take all the time.

    Returns:
        What it found; that a card is too small is no failure.
    """

    def stop(*_: object) -> None:
        raise TimeoutError("cut off at the end of the time")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        return row.run(setting)
    except torch.OutOfMemoryError:
        return {"out of memory": "yes"}
    except Exception as e:
        return {"failed": f"{type(e).__name__}: {str(e).splitlines()[0][:200] if str(e) else ''}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main(given: list[str] | None = None) -> None:
    """Measure what there is time for, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny rows, of every part")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--data", type=Path, help="folder of MODEL.safetensors")
    parser.add_argument("--render", action="store_true", help="write the page only")
    args = parser.parse_args(given)
    path = args.rows or (SMOKE / "rows.jsonl" if args.smoke else ROWS)
    page = args.page or (SMOKE / "gpu.md" if args.smoke else PAGE)
    if args.device == "cpu" and not args.smoke:
        parser.error("a CPU runs --smoke only")
    if not args.render:
        if args.device == "cuda" and not torch.cuda.is_available():
            raise SystemExit("benchmarks.gpu: there is no CUDA card here; nothing was measured")
        rows = [r for r in rows_of(smoke=args.smoke) if r.part in args.only]
        done, left = measure(rows, Setting(args.device, args.data), path, 60 * args.minutes)
        print(f"{done} rows measured, {left} left: the same command goes on")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(read_rows(path)))
    print(f"wrote {page}")


if __name__ == "__main__":
    main()
