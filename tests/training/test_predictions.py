"""A run keeps its answer for each test image, the same that its score was taken of."""

from __future__ import annotations

import pytest
import torch
from tinted import write_tinted

from lowtide import METHODS, InputError
from lowtide.training.config import RunConfig
from lowtide.training.loop import train
from lowtide.training.predictions import (
    PREDICTIONS,
    Predictions,
    read_predictions,
    write_predictions,
)
from lowtide.training.summary import Confused, read_summary
from lowtide.tuning.adapter_files import write_tensors


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


def test_an_answer_that_was_changed_on_the_disk_is_seen(tmp_path):
    kept = Predictions("images", torch.tensor([0, 1, 2]).int(), torch.tensor([0, 1, 1]).int())
    write_predictions(kept, tmp_path)
    content = bytearray((tmp_path / PREDICTIONS).read_bytes())
    content[-12] ^= 1
    (tmp_path / PREDICTIONS).write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        read_predictions(tmp_path)
    write_tensors(tmp_path / PREDICTIONS, {"true": kept.true}, {"images": "images"})
    with pytest.raises(InputError, match="is damaged: it holds no 'predicted'"):
        read_predictions(tmp_path)
