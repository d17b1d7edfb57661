"""The transforms are timm's, from the checkpoint's own configuration."""

from __future__ import annotations

import json
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torchvision.transforms import functional as F

from lowtide.data import AUGMENTS, Distortion, Preprocessing
from lowtide.errors import InputError

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
MADE = Preprocessing((32, 48), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic", 0.8, "center")


def normalised(image: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).double() / 255
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in (MADE.mean, MADE.std))
    return ((pixels - mean) / std).float()


def test_configuration_is_the_models(monkeypatch):
    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    assert Preprocessing.of(model) == Preprocessing(
        (224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, "center"
    )
    small = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=96)
    assert Preprocessing.of(small).size == (96, 96)
    model = timm.create_model("resnet18")
    assert Preprocessing.of(model).mean == (0.485, 0.456, 0.406)


def test_grey_models_get_one_mean(tmp_path):
    made = Preprocessing.of(timm.create_model("resnet18", in_chans=1))
    assert made.channels == 1
    assert made.mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    output = made.transform(train=False)(IMAGE.convert("L"))
    assert output.shape == (1, 224, 224)
    with pytest.raises(InputError, match="the model takes 4 channels"):
        Preprocessing.of(timm.create_model("resnet18", in_chans=4))


def test_round_trip_through_json():
    assert Preprocessing.from_dict(json.loads(json.dumps(MADE.to_dict()))) == MADE


@pytest.mark.parametrize(
    "change",
    [
        {"size": 224},
        {"mean": [0.5, 0.5]},
        {"mean": ["x"] * 3},
        {"std": None},
        {"crop_pct": "most"},
        {"extra": 1},
        {"size": [0, 224]},
        {"interpolation": "bicubical"},
        {"interpolation": ["bicubic"]},
        {"crop_mode": "middle"},
    ],
)
def test_a_broken_record_is_refused(change):
    with pytest.raises(InputError, match="pre-processing|unknown (interpolation|crop mode)"):
        Preprocessing.from_dict(MADE.to_dict() | change)


@pytest.mark.parametrize("auto", [None, "rand-m9-mstd0.5-inc1"])
@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_normalised_by_whoever_takes_them_are_the_same_to_the_bit(augment, auto, channels):
    made = replace(MADE, mean=MADE.mean[:channels], std=MADE.std[:channels])
    image = IMAGE if channels == 3 else IMAGE.convert("L")
    distortion = Distortion(auto if augment == "crop" and channels == 3 else None)
    found = []
    for pixels in (False, True):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        given = {"train": True, "augment": augment, "distortion": distortion}
        found.append(made.transform(**given, pixels=pixels)(image))
    wanted, bytes_ = found
    assert bytes_.dtype == torch.uint8 and bytes_.shape == wanted.shape
    assert torch.equal(made.normalise(bytes_), wanted)
    with pytest.raises(InputError, match="random_erasing changes normalised images"):
        made.transform(
            train=True, augment="crop", distortion=Distortion(random_erasing=0.1), pixels=True
        )
    assert torch.equal(made.normalise(bytes_[None])[0], wanted)
    assert bytes_.dtype == torch.uint8


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_transform_that_was_used_can_be_given_to_another_process(augment):
    transform = MADE.transform(train=False, augment=augment)
    wanted = transform(IMAGE)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(IMAGE), wanted)


@pytest.mark.parametrize("augment", ["none", "flip"])
def test_evaluation_squeezes_the_whole_image(augment):
    expected = normalised(IMAGE.resize((48, 32), Image.Resampling.BICUBIC))
    output = MADE.transform(train=False, augment=augment)(IMAGE)
    torch.testing.assert_close(output, expected)


def test_none_trains_on_what_it_evaluates_on():
    assert MADE.transform(train=True)(IMAGE).equal(MADE.transform(train=False)(IMAGE))


def test_flip_mirrors_half_of_them():
    plain = MADE.transform(train=False)(IMAGE)
    flip = MADE.transform(train=True, augment="flip")
    torch.manual_seed(0)
    mirrored = [flip(IMAGE).equal(F.hflip(plain)) for _ in range(60)]
    torch.manual_seed(0)
    assert [flip(IMAGE).equal(plain) for _ in range(60)] == [not m for m in mirrored]
    assert 15 < sum(mirrored) < 45


def test_crop_evaluates_as_timm_does():
    model = timm.create_model("resnet18")
    expected = create_transform(**resolve_model_data_config(model))(IMAGE)
    output = Preprocessing.of(model).transform(train=False, augment="crop")(IMAGE)
    torch.testing.assert_close(output, expected)


def test_crop_trains_as_timm_does():
    theirs = create_transform(
        (3, 32, 48), is_training=True, color_jitter=0, interpolation="bicubic",
        mean=MADE.mean, std=MADE.std,
    )  # fmt: skip
    ours = MADE.transform(train=True, augment="crop")
    outputs = []
    for transform in (ours, theirs, ours):
        random.seed(5), torch.manual_seed(5)
        outputs.append(transform(IMAGE))
    assert outputs[0].equal(outputs[1]) and not outputs[2].equal(ours(IMAGE))
    assert outputs[0].shape == (3, 32, 48)


def test_only_augmented_training_is_random():
    for train in (True, False):
        for augment in AUGMENTS:
            assert MADE.transform(train=train, augment=augment).random == (
                train and augment != "none"
            )


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(InputError, match="unknown augmentation 'flop': did you mean flip"):
        MADE.transform(train=True, augment="flop")


def test_pixels_can_be_normalised_as_a_recipe_does():
    assert MADE.normalized("checkpoint") is MADE
    half = MADE.normalized("inception")
    assert half.transform(train=False)(Image.new("RGB", (9, 9), (255, 255, 255))).unique() == 1.0
    made = MADE.normalized("imagenet")
    assert (made.mean, made.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert Preprocessing.from_dict(made.to_dict()) == made
    assert (made.size, made.interpolation) == (MADE.size, MADE.interpolation)
    grey = Preprocessing((32, 48), (0.1,), (0.4,), "bicubic", 0.8, "center")
    assert grey.normalized("imagenet").mean == pytest.approx([0.449])
    with pytest.raises(InputError, match="unknown normalize 'imagnet': did you mean imagenet"):
        MADE.normalized("imagnet")
