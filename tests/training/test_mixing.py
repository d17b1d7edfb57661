"""Mixed images and their targets, against the formula; and a run, its plan and its refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tinted import write_tinted

from lowtide import METHODS, InputError
from lowtide.training.config import RunConfig
from lowtide.training.loop import train
from lowtide.training.mixing import mix


def config(**options):
    return RunConfig("m", "d", **options)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_is_a_weighted_mean_of_two_images_and_of_their_labels(count, smoothing):
    images, labels = torch.rand(count, 3, 8, 8), torch.arange(count) % 3
    before = images.clone()
    given = config(mixup=0.8, smoothing=smoothing)
    mixed, targets = mix(given, images.clone(), labels, 3, seed=4)
    np.random.seed(4)
    np.random.rand()
    share = np.random.beta(0.8, 0.8)
    even = count // 2 * 2
    own = torch.eye(3)[labels] * (1 - smoothing) + smoothing / 3
    wanted = share * before[:even] + (1 - share) * before[:even].flip(0)
    torch.testing.assert_close(mixed[:even], wanted)
    torch.testing.assert_close(
        targets[:even], share * own[:even] + (1 - share) * own[:even].flip(0)
    )
    assert torch.equal(mixed[even:], before[even:])
    torch.testing.assert_close(targets[even:], own[even:])


def test_cutmix_gives_each_target_the_share_of_the_area():
    images = torch.zeros(2, 3, 16, 16)
    images[1] = 1
    for seed in range(8):
        mixed, targets = mix(config(cutmix=1.0), images.clone(), torch.tensor([0, 1]), 2, seed)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets[:, 1])
        assert set(mixed.unique().tolist()) <= {0.0, 1.0}


def test_the_draw_is_the_updates_own_and_nobody_elses():
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4) % 2
    np.random.seed(0)
    wanted = np.random.rand()
    np.random.seed(0)
    given = config(mixup=0.8, cutmix=1.0)
    first, again, other = (mix(given, images.clone(), labels, 2, s)[0] for s in (1, 1, 2))
    assert np.random.rand() == wanted
    assert torch.equal(first, again) and not torch.equal(first, other)
    plain = mix(config(smoothing=0.1), images, labels, 2, 1)
    assert plain[0] is images and plain[1] is labels


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_mixed_run_needs_what_was_planned_and_learns(tmp_path, accumulate):
    data = write_tinted(tmp_path / "data", {"train": 9, "val": 4, "test": 4})
    run = RunConfig(
        "vit_micro_patch4_32",
        str(data),
        METHODS["bias"](),
        epochs=4,
        batch_size=9,
        lr=5e-3,
        head_init="zero",
        augment="crop",
        auto_augment="rand-m5-mstd0.5-inc1",
        random_erasing=0.25,
        repeats=3,
        mixup=0.8,
        cutmix=1.0,
        smoothing=0.1,
        accumulate=accumulate,
        device="cpu",
    )
    summary = train(run, tmp_path / "run")
    assert summary.measured_peak_bytes == summary.planned.peak_bytes
    assert summary.start_accuracy < 0.5 < 0.8 < summary.val_accuracy
    again = train(run, tmp_path / "again")
    assert [e.train_loss for e in again.history] == [e.train_loss for e in summary.history]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mixup": 0.8, "cache_features": True}, "no mixup: a feature is"),
        ({"auto_augment": "rand-m9"}, "give --augment crop as well, not none"),
        ({"random_erasing": 0.1, "augment": "flip"}, "not flip"),
        ({"auto_augment": "rand-x", "augment": "crop"}, "a policy that timm knows.*not rand-x"),
        ({"auto_augment": "best", "augment": "crop"}, "not best"),
        ({"auto_augment": "v0", "color_jitter": 0.4, "augment": "crop"}, "only one"),
        ({"repeats": 3}, "repeats shows each image"),
        ({"mixup": -1}, "mixup must be a number from 0 to 100"),
        ({"random_erasing": 1.5}, "random_erasing must be a number from 0 to 1"),
    ],
)
def test_what_would_not_do_what_it_says_is_refused(options, said):
    with pytest.raises(InputError, match=said):
        replace(config(), **options)
