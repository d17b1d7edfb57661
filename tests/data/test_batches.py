"""Order and augmentation are a pure function of (seed, epoch)."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from packaging.version import Version
from PIL import Image

from lowtide import InputError
from lowtide.data import (
    AUGMENTS,
    Cache,
    Distortion,
    Preprocessing,
    Sample,
    UnreadableImage,
    loader,
    read,
)

MADE = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3, "bilinear", 0.875, "center")
CROP = MADE.transform(train=True, augment="crop")
IMAGE_BYTES = 3 * 8 * 8


@pytest.fixture
def samples(cats_and_dogs):
    return read(cats_and_dogs).train


def load(*args, **options):
    images, labels = zip(*loader(*args, **options), strict=True)
    return torch.cat(images), torch.cat(labels)


def same(left, right) -> bool:
    return all(a.equal(b) for a, b in zip(left, right, strict=True))


def test_batches_in_order(samples):
    batches = list(loader(samples, MADE.transform(train=False), 8, shuffle=False))
    assert [tuple(images.shape) for images, _ in batches] == [(8, 3, 8, 8)] * 2 + [(5, 3, 8, 8)]
    labels = torch.cat([labels for _, labels in batches])
    assert labels.dtype == torch.int64 and labels.tolist() == [label for _, label in samples]
    assert batches[0][0].dtype == torch.float32
    short = loader(samples, MADE.transform(train=False), 8, shuffle=False, drop_last=True)
    assert [len(labels) for _, labels in short] == [8, 8]


def test_shuffling_permutes_images_and_labels_together(samples):
    plain, labels = load(samples, MADE.transform(train=False), 8, shuffle=False)
    mixed, mixed_labels = load(samples, MADE.transform(train=False), 8, shuffle=True)
    order = [int((plain == image).flatten(1).all(1).nonzero()) for image in mixed]
    assert sorted(order) == list(range(len(samples))) != order
    assert mixed_labels.equal(labels[order])


@pytest.mark.parametrize("augment", AUGMENTS)
def test_epochs_do_not_depend_on_their_history(samples, augment):
    transform = MADE.transform(train=True, augment=augment)
    whole = [load(samples, transform, 4, shuffle=True, seed=1, epoch=e) for e in range(3)]
    torch.rand(3), random.random()
    resumed = load(samples, transform, 4, shuffle=True, seed=1, epoch=2)
    assert same(resumed, whole[2])
    assert not same(whole[0], whole[1])
    assert not same(load(samples, transform, 4, shuffle=True, seed=2, epoch=2), whole[2])
    again = loader(samples, transform, 4, shuffle=True, seed=1, epoch=2)
    for _ in range(2):
        assert torch.cat([images for images, _ in again]).equal(whole[2][0])


@pytest.mark.parametrize("augment", ["flip", "crop"])
def test_augmentation_ignores_the_global_generators(samples, augment):
    copies = samples[:1] * 30
    transform = MADE.transform(train=True, augment=augment)
    loads = []
    for seed in range(2):
        torch.manual_seed(seed), random.seed(seed)
        loads.append(load(copies, transform, 30, shuffle=False, seed=1))
    assert same(*loads)
    different = len(loads[0][0].unique(dim=0))
    assert different == 2 if augment == "flip" else different > 20


def test_augmentation_differs_by_image_and_epoch_without_shuffling(paint):
    root = paint("a/0.png", "b/0.png")
    twice = (read(root).train[0],) * 2
    one, _ = load(twice, CROP, 2, shuffle=False, seed=0, epoch=0)
    two, _ = load(twice, CROP, 2, shuffle=False, seed=0, epoch=1)
    assert not one[0].equal(one[1]) and not one[0].equal(two[0])


def test_workers_change_nothing(samples):
    options = {"shuffle": True, "seed": 1, "epoch": 2}
    alone = load(samples, CROP, 4, **options)
    assert same(load(samples, CROP, 4, workers=2, **options), alone)


def test_the_global_generators_are_left_alone(samples):
    torch.manual_seed(0), random.seed(0)
    before = torch.get_rng_state(), random.getstate()
    load(samples, CROP, 4, shuffle=True, seed=1)
    assert torch.get_rng_state().equal(before[0]) and random.getstate() == before[1]


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("train", [True, False])
def test_cached_images_are_the_same_images(samples, augment, train):
    transform = MADE.transform(train=train, augment=augment)
    cache = Cache(limit_bytes=10 * IMAGE_BYTES + 1)
    for epoch in range(2):
        options = {"shuffle": True, "seed": 1, "epoch": epoch}
        cached = load(samples, transform, 4, cache=cache, **options)
        assert same(cached, load(samples, transform, 4, **options))
    assert cache.bytes == (0 if train and augment == "crop" else 10 * IMAGE_BYTES)


def test_one_cache_serves_transforms_that_differ(samples):
    cache = Cache()
    others = [
        MADE.transform(train=False),
        MADE.transform(train=False, augment="crop"),
        MADE.transform(train=True, augment="flip"),
        CROP,
        Preprocessing((4, 4), MADE.mean, MADE.std, "bilinear", 1.0, "center").transform(
            train=False
        ),
    ]
    for transform in others:
        cached = load(samples, transform, 8, shuffle=False, cache=cache)
        assert same(cached, load(samples, transform, 8, shuffle=False))


def test_a_full_cache_decodes_nothing(samples):
    cache = Cache()
    first = load(samples, MADE.transform(train=True), 8, shuffle=False, cache=cache)
    assert cache.bytes == len(samples) * IMAGE_BYTES
    for path, _ in samples:
        path.unlink()
    assert same(load(samples, MADE.transform(train=True), 8, shuffle=False, cache=cache), first)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanished_is_one_clear_line(samples, workers):
    samples[3].path.unlink()
    batches = loader(samples, MADE.transform(train=False), 4, shuffle=False, workers=workers)
    with pytest.raises(UnreadableImage) as caught:
        list(batches)
    assert str(caught.value) == f"cannot read image {samples[3].path}: no such file"


def test_repeated_images_are_in_one_batch_and_augmented_apart(tmp_path):
    """An epoch as long as without repeats, so that it sees a third of the images, three times."""
    paths = []
    for i in range(7):
        paths.append(tmp_path / f"{i}.png")
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    samples = [Sample(path, i) for i, path in enumerate(paths)]
    transform = MADE.transform(train=True, augment="crop")
    batches = list(loader(samples, transform, 3, shuffle=True, repeats=3))
    assert [len(labels) for _, labels in batches] == [3, 3, 1]
    for images, labels in batches[:2]:
        assert len(set(labels.tolist())) == 1
        assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])
    assert batches[0][1][0] != batches[1][1][0] != batches[2][1][0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "original", "augmix-m3-w2", None])
def test_distortions_are_timms_drawn_from_the_image_alone(tmp_path, channels, policy):
    """What is drawn before, by whichever of the three generators, changes nothing."""
    path = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    made = replace(MADE, mean=(0.5,) * channels, std=(0.5,) * channels)
    distortion = Distortion(policy, 0.0 if policy else 0.4, 0.5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    try:
        transform = made.transform(train=True, augment="crop", distortion=distortion)
    except InputError as refused:  # older versions of timm cannot mix grey images
        assert Version(timm.__version__) < Version("1.0.31")
        assert (channels, policy) == (1, "augmix-m3-w2") and "of one channel" in str(refused)
        return
    assert before == (random.getstate(), np.random.get_state()[1].tolist())
    seen = []
    for draw in (np.random.rand, random.random, torch.rand):
        draw(1) if draw is torch.rand else draw()
        ((images, _),) = loader([Sample(path, 0)], transform, 1, shuffle=True, seed=5)
        seen.append(images)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    other = made.transform(train=True, augment="crop")
    differ = []
    for seed in range(4):  # a policy may draw what changes nothing
        a, b = (
            next(iter(loader([Sample(path, 0)], t, 1, shuffle=True, seed=seed)))[0]
            for t in (transform, other)
        )
        assert a.shape == b.shape == (1, channels, 8, 8)
        differ.append(not torch.equal(a, b))
    assert any(differ)
