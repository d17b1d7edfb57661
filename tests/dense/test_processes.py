"""Dense runs shared by several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shapes import write_shapes

from lowtide.inference.dense import open_dense, score_dense
from lowtide.tuning.adapter_files import read_tensors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

PROGRAM = Path(__file__).with_name("without_dropout.py")
OPTIONS = "--model vit_micro_patch4_32 --epochs 1 --decoder-channels 64 --lr 2e-3 --recipe none"
STEP = "--image-size 64 --warmup-epochs 0 --keep last --device cpu"


def run(folder: Path, data: Path, processes: int, *more: str) -> Path:
    """Train on four images an update, whoever has them; five test images are no multiple of two."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    start = start if processes > 1 else []
    options = [*OPTIONS.split(), *STEP.split(), "--batch-size", str(4 // processes), *more]
    command = [sys.executable, *start, str(PROGRAM), "train", *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    given = ["--data", str(data), "--output", str(folder)]
    done = subprocess.run([*command, *given], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=4, val=3, test=5)


def test_two_processes_segment_as_one_does(data: Path, tmp_path: Path) -> None:
    options = ("--task", "segment", "--decoder", "fpn")  # which has no BatchNorm
    folders = [run(tmp_path / str(n), data, n, *options) for n in (1, 2)]
    one, two = (read_tensors(f / "adapter_model.safetensors") for f in folders)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
    scores = [json.loads((f / "summary.json").read_text())["test_scores"] for f in folders]
    assert scores[1] == pytest.approx(scores[0], abs=2e-3)


def test_two_processes_score_every_image_and_keep_pictures_of_all(
    data: Path, tmp_path: Path
) -> None:
    options = ("--task", "detect", "--detector", "fcos")
    folder = run(tmp_path / "run", data, 2, *options)
    summary = json.loads((folder / "summary.json").read_text())
    opened = open_dense(folder, device="cpu")
    found, images, _ = score_dense(opened, folder, None, "test", 1)
    assert images == 5
    known = {k: v for k, v in found.metrics.items() if v is not None}
    assert known == pytest.approx(summary["test_scores"], abs=1e-6)
    kept = json.loads((folder / "examples.json").read_text())
    assert len({e["path"] for e in (*kept["best"], *kept["worst"])}) == 5
