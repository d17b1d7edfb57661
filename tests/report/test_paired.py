"""Paired statistics against scipy's, independent statements and published examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reported import write_suite
from scipy import stats

from lowtide import InputError
from lowtide.report import gather, write_report
from lowtide.report.paired import bootstrap, differences, holm, mcnemar, paired_table
from lowtide.report.tables import boards
from lowtide.training.predictions import (
    PREDICTIONS,
    Predictions,
    read_predictions,
    write_predictions,
)


def disagreeing(b: int, c: int, both: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Answers of which b are right of the first alone, and c of the second alone."""
    one = np.array([True] * b + [False] * c + [True] * both)
    other = np.array([False] * b + [True] * c + [True] * both)
    return one, other


@pytest.mark.parametrize("b, c", [(0, 0), (1, 0), (5, 5), (3, 12), (40, 17)])
def test_mcnemar_is_the_sum_of_binomial_terms(b: int, c: int) -> None:
    n = b + c
    tail = sum(stats.binom.pmf(k, n, 0.5) for k in range(min(b, c) + 1))
    one, other = disagreeing(b, c)
    assert mcnemar(one, other) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(one, other) == mcnemar(other, one)


def test_mcnemar_by_hand() -> None:
    """1 against 9: twice the chance of at most one head in ten, (1 + 10) / 1024."""
    assert mcnemar(*disagreeing(1, 9)) == pytest.approx(22 / 1024)


def test_holm_of_known_examples() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([
        0.03,
        0.06,
        0.06,
        0.02,
    ])  # Holm's paper
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
    ps = np.random.default_rng(0).random(20) ** 3
    order = np.argsort(ps)
    stepwise = np.minimum(1, np.maximum.accumulate(ps[order] * np.arange(20, 0, -1)))
    assert np.allclose(np.array(holm(list(ps)))[order], stepwise)


def test_one_seed_varies_as_a_paired_mean_does() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.random((1, 400)) < 0.8, rng.random((1, 400)) < 0.7
    drawn = bootstrap({"a": one, "b": other}, 20_000)
    apart = one.astype(float) - other
    moved = drawn["a"] - drawn["b"]
    assert moved.mean() == pytest.approx(apart.mean(), abs=1e-3)
    assert moved.std() == pytest.approx(apart.std() / np.sqrt(400), rel=0.03)


def test_seeds_vary_as_their_unbiased_variance_says() -> None:
    """Seeds that have all images right or none: what is left is the variance over seeds."""
    right = np.repeat([[True], [False], [True]], 50, axis=1)
    drawn = bootstrap({"a": right}, 40_000)["a"]
    assert drawn.var() == pytest.approx(np.var([1, 0, 1], ddof=1) / 3, rel=0.03)


def test_two_seeds_that_say_the_opposite_tell_nothing() -> None:
    better = np.array([[True] * 100, [False] * 100])
    (found,) = differences({"a": better, "b": ~better ^ np.eye(2, 100, dtype=bool)})
    assert not found.holds and found.p > 0.5


def test_no_difference_is_found_too_often() -> None:
    """Equal methods on 60 images: at 5 % about one in twenty is told apart."""
    rng, told = np.random.default_rng(2), 0
    for _ in range(200):
        easy = rng.random(60)
        a, b = (rng.random((2, 60)) < 0.3 + 0.5 * easy for _ in "ab")
        told += differences({"a": a, "b": b})[0].holds
    assert told <= 24  # 10 are expected, 24 or more have a chance of one in 10,000


def answer(folder, right: np.ndarray, images: str = "same") -> None:
    true = torch.arange(len(right), dtype=torch.int32) % 5
    wrong = torch.from_numpy(~right).int()
    write_predictions(Predictions(images, true, (true + wrong) % 5), folder)


@pytest.fixture
def suite(tmp_path):
    """Three methods with three seeds: the first is better on the same images, two are alike."""
    rng, folder = np.random.default_rng(3), tmp_path / "suite"
    write_suite(folder, {(m, "dtd"): [150, 151, 152] for m in "abc"}, {"dtd": "natural"})
    base = rng.random(200) < 0.7
    for entry in gather([folder]):
        for at in entry.result.folders:
            noise = rng.random(200) < 0.02
            answer(at, (base ^ noise) | (entry.label == "a") & (rng.random(200) < 0.6))
    return folder


def test_the_report_says_which_differences_hold(suite, tmp_path) -> None:
    (board,) = next(iter(boards(gather([suite])).values()))
    table = paired_table(board)
    held = {(row[0].text, row[1].text): row[-1].text for row in table.rows}
    assert held["a", "b"] == held["a", "c"] == "yes" and sorted(held.values()) == [
        "no",
        "yes",
        "yes",
    ]
    assert table.notes[0].startswith("2 of 3 differences hold")
    rights = {
        e.label: np.stack([read_predictions(f).right.numpy() for f in e.result.folders])
        for e in board.entries
    }
    points = 100 * (rights["a"].mean() - rights["b"].mean())
    row = next(r for r in table.rows if (r[0].text, r[1].text) == ("a", "b"))
    assert row[2].text == f"{points:+.2f}"
    for name in ("r.md", "r.html"):
        write_report([suite], tmp_path / name)
        assert "which differences hold" in (tmp_path / name).read_text() or name == "r.md"
    assert "McNemar's p by seed" in (tmp_path / "r.md").read_text()


def test_rows_without_answers_open_and_say_so(suite, tmp_path) -> None:
    for entry in gather([suite]):
        if entry.label == "c":
            (entry.result.folders[1] / PREDICTIONS).unlink()
    write_report([suite], tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text()
    assert "1 of 1 differences hold" in text and "c: kept no answers for each test image" in text


def test_other_images_are_not_paired(suite, tmp_path) -> None:
    answer(gather([suite])[0].result.folders[0], np.ones(200, bool), "others")
    write_report([suite], tmp_path / "r.md")
    assert "the rows saw other test images" in (tmp_path / "r.md").read_text()


def test_damaged_answers_are_refused(suite, tmp_path) -> None:
    path = gather([suite])[0].result.folders[0] / PREDICTIONS
    path.write_bytes(b"no file of tensors")
    with pytest.raises(InputError, match="predictions.safetensors is damaged"):
        write_report([suite], tmp_path / "r.md")
