"""Run the rows of a suite that are not finished."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.formats import named
from ..errors import InputError, UnknownName, printable
from ..extras import extra
from ..paths import located, write_text
from ..planning.search import DECIDED
from ..training.config import RunConfig, read_yaml, write_yaml
from ..training.decided import OPEN
from ..training.loop import CONFIG, SUMMARY, train
from ..training.owner import Busy, refuse_run
from .results import FAILED, chosen_tests, summary_of
from .suite import SUITE, Row, Suite

NEUTRAL = {"data", "checkpoint", "device", "workers", "cache_features"}
"""Options that no result depends on: rows of one suite may differ in them."""

Jobs = Sequence[tuple[Path, RunConfig]]


def run_suite(
    suite: Suite,
    output: Path,
    *,
    launcher: str = "local",
    processes: int = 1,
    keep_features: Path | None = None,
) -> list[Path]:
    """Run every row that is not finished; a row that fails is recorded and the others go on.

    Each row leaves its run folder, or at least `summary.json` or `failed.txt`, under `output`; an
    interrupted row continues at its last finished epoch, a failed one is tried again.

    Args:
        suite: What to run.
        output: Where to leave the rows.
        launcher: `local`, one row after the other, or `ray`, as many at once as the cluster takes.
        processes: Processes of each row, through Accelerate.
        keep_features: Where rows with `cache_features` find the features that an earlier one made
            of the same images with the same frozen layers.

    Returns:
        Folders of the rows that failed.

    Raises:
        InputError: A row there was run with other options; nothing was run.
        UnknownName: There is no such launcher.
    """
    if launcher not in LAUNCHERS:
        raise UnknownName("launcher", launcher, LAUNCHERS)
    _refuse_twice(suite)
    _refuse_others(suite, output)
    for row in suite.rows():
        row.config.refuse_crowd()
        for path in filter(None, (row.config.data, row.config.checkpoint)):
            if not named(path) and not located(path).exists():
                raise InputError(f"{row.folder}: {path} does not exist")
    refuse_run(output)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / SUITE, suite.source)
    launch = LAUNCHERS[launcher]
    searches = [row for cell in suite.cells for row in cell.searches.values()]
    launch(_unfinished(output, searches), processes, keep_features)
    tests = [row for cell in suite.cells for row in chosen_tests(cell, output)]
    launch(_unfinished(output, tests), processes, keep_features)
    return [output / r.folder for r in searches + tests if (output / r.folder / FAILED).exists()]


def _unfinished(output: Path, rows: Sequence[Row]) -> Jobs:
    return [
        ((output / row.folder).resolve(), row.config)
        for row in rows
        if not (output / row.folder / SUMMARY).exists()
    ]


def _refuse_twice(suite: Suite) -> None:
    """Refuse rows that would be counted twice and run once."""
    folders = [str(row.folder) for row in suite.rows()]
    if twice := [f for f in folders if folders.count(f) > 1]:
        raise InputError(f"the suite holds row {twice[0]} twice: give each seed and rate once")


def _refuse_others(suite: Suite, output: Path) -> None:
    """Refuse to mix rows of this suite with rows that were run otherwise."""
    for row in suite.rows():
        folder = output / row.folder
        summary = summary_of(folder)
        if summary is not None:
            kept = summary.config.completed()
        elif (folder / CONFIG).is_file():
            kept = RunConfig.from_dict(read_yaml(folder / CONFIG)).to_dict()
        else:
            continue
        wanted = row.config.to_dict()
        free = NEUTRAL | ({*DECIDED, "memory_budget"} if row.config.memory_budget else set())
        for name, value in wanted.items():
            decided = name in OPEN and value is None
            if name not in free and not decided and _differ(kept[name], value):
                raise InputError(
                    f"{folder} was run with {name} {kept[name]} and the suite says {value}:"
                    " choose another --output, or remove that folder to run it again"
                )


def _differ(one: object, other: object) -> bool:
    """Compare plain data, the order of their names apart."""
    return json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True)


def _local(jobs: Jobs, processes: int, keep: Path | None) -> None:
    """Run one row after the other."""
    for number, (folder, config) in enumerate(jobs, 1):
        print(printable(f"{number} of {len(jobs)}: {folder}"), file=sys.stderr, flush=True)
        _run(folder, config, processes, keep)


def _ray(jobs: Jobs, processes: int, keep: Path | None) -> None:
    """Run rows on a Ray cluster, joined or started here, whose machines share the output folder."""
    ray = extra("ray", "ray")
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    gpus = processes if ray.cluster_resources().get("GPU") else 0
    row: Any = ray.remote(num_cpus=processes, num_gpus=gpus, max_calls=1)(_run)
    waiting: dict[object, Path] = {row.remote(f, config, processes, keep): f for f, config in jobs}
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        ray.get(done)
        print(printable(f"{waiting.pop(done)}; {len(waiting)} to go"), file=sys.stderr, flush=True)


LAUNCHERS: Mapping[str, Callable[[Jobs, int, Path | None], None]] = {"local": _local, "ray": _ray}


def _run(
    folder: Path, config: RunConfig, processes: int = 1, keep_features: Path | None = None
) -> None:
    """Run one row; leave why it failed, if it does."""
    try:
        (folder / FAILED).unlink(missing_ok=True)
        if processes > 1:
            _run_apart(folder, config, processes)
        else:
            keep = keep_features if config.cache_features else None
            begun = (folder / CONFIG).exists()
            train(config, folder, continues=begun, overwrite=True, keep_features=keep)
    except Busy as e:  # it is not this process's row to say anything of
        print(f"lowtide: note: {e}", file=sys.stderr, flush=True)
    except Exception as e:  # whatever stops one row must not stop the others
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / FAILED, f"{type(e).__name__}: {e}\n")


def _run_apart(folder: Path, config: RunConfig, processes: int) -> None:
    """Run one row in several processes, which Accelerate joins."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", "lowtide", "train"]
    with tempfile.TemporaryDirectory() as kept:
        if (folder / CONFIG).exists():
            command += ["--resume", str(folder)]
        else:
            wanted = Path(kept) / CONFIG
            wanted.write_text(write_yaml(config.to_dict()))
            command += ["--config", str(wanted), "--output", str(folder), "--overwrite"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.splitlines()
        ours = [line for line in lines if line.startswith("lowtide: ")]
        raise RuntimeError("\n".join(ours[:1] or lines[-20:]))
