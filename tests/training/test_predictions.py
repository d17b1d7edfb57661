"""A run keeps its answer for each test image, the same that its score was taken of."""

from __future__ import annotations

import pytest
from tinted import write_tinted

from lowtide import METHODS
from lowtide.training.config import RunConfig
from lowtide.training.loop import train
from lowtide.training.predictions import PREDICTIONS, read_predictions
from lowtide.training.summary import Confused, read_summary


def run(images, folder, **options):
    config = RunConfig(
        "test_vit",
        str(images),
        METHODS["linear"](),
        pretrained=False,
        epochs=1,
        batch_size=6,
        image_size=64,
        lr=0.01,
        device="cpu",
        **options,
    )
    train(config, folder)
    return folder


def test_answers_are_those_of_the_score(tmp_path):
    images = write_tinted(tmp_path / "images", {"train": 4, "val": 1, "test": 3})
    folders = [run(images, tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    first, second = map(read_predictions, folders)
    assert first.images == second.images and len(first.true) == 9
    for folder, kept in zip(folders, (first, second), strict=True):
        summary = read_summary(folder / "summary.json")
        assert kept.right.float().mean().item() == pytest.approx(summary.test_accuracy)
        pairs = list(zip(kept.true.tolist(), kept.predicted.tolist(), strict=True))
        counted = {Confused(t, p, pairs.count((t, p))) for t, p in pairs}
        assert counted == set(summary.test_confusion)


def test_without_a_test_there_are_none(tmp_path):
    images = write_tinted(tmp_path / "images", {"train": 4, "val": 1, "test": 1})
    folder = run(images, tmp_path / "run", skip_test=True)
    assert not (folder / PREDICTIONS).exists() and read_predictions(folder) is None
