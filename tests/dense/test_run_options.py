"""Options of a step in runs of dense tasks: mixed precision, the best epoch, single images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from shapes import write_shapes

from lowtide.errors import InputError
from lowtide.inference.dense import open_dense, score_dense
from lowtide.training.config import RunConfig
from lowtide.training.loop import train

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools 2.0 with numpy 2."""


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images to learn from, so that batches of two leave one alone."""
    return write_shapes(tmp_path_factory.mktemp("data") / "few", train=3, val=2, test=2)


def config(data: Path, task: str, **options: object) -> RunConfig:
    """A short run on images of 32 pixels."""
    given = {
        "model": "vit_micro_patch4_32",
        "data": str(data),
        "task": task,
        "epochs": 2,
        "batch_size": 2,
        "decoder_channels": 32,
        "lr": 2e-3,
        "warmup_epochs": 0,
        "device": "cpu",
        **options,
    }
    return RunConfig(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_mixed_precision_learns_and_keeps_the_best_epoch(
    few: Path, task: str, tmp_path: Path
) -> None:
    options = config(few, task, amp="bf16", keep="best", policy="tight", epochs=4)
    summary = train(options, tmp_path / "run")
    losses = [epoch.train_loss for epoch in summary.history]
    assert losses[-1] < losses[0]
    scores = [epoch.val_score or 0.0 for epoch in summary.history]
    assert (summary.val_score or 0.0) == max(scores)
    opened = open_dense(tmp_path / "run", device="cpu")
    found, _, _ = score_dense(opened, tmp_path / "run", None, "val", 2)
    # A run scores under autocast, and what it left is opened in float32.
    assert found.main == pytest.approx(summary.val_score or 0.0, abs=0.02)
    assert all(p.dtype == torch.float32 for p in opened.model.parameters())


@pytest.mark.parametrize("detector", ["fcos", "retinanet", "fasterrcnn"])
@pytest.mark.parametrize("policy", ["exact", "tight"])
def test_detectors_learn_from_one_image_at_a_time(
    few: Path, detector: str, policy: str, tmp_path: Path
) -> None:
    """FCOS normalises by groups within an image, and no detector here by the batch."""
    given = {"detector": detector, "policy": policy, "decoder_channels": 64, "epochs": 3}
    summary = train(config(few, "detect", batch_size=1, **given), tmp_path / "run")
    losses = [epoch.train_loss for epoch in summary.history]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("segment", {"decoder": "fpn", "decoder_channels": 64}),
        ("detect", {"detector": "fcos", "decoder_channels": 32}),
    ],
)
def test_groups_of_one_number_are_refused(
    few: Path, task: str, options: dict[str, object], tmp_path: Path
) -> None:
    """At 32 pixels the coarsest map has a single one, and 32 channels make 32 groups."""
    with pytest.raises(InputError, match="GroupNorm of 32 groups is given one number a group"):
        train(config(few, task, batch_size=1, **options), tmp_path / "run")


def test_a_batch_norm_is_refused_one_image(few: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one value per channel"):
        train(config(few, "segment", decoder="upernet", batch_size=1), tmp_path / "run")
