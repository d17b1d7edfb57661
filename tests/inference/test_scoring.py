"""Sets that a run is scored on: shifted test sets over all or present classes, ImageNet-C."""

from __future__ import annotations

import itertools
import json
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from PIL import Image

from lowtide.cli import main
from lowtide.data import decode, read
from lowtide.data.formats.corruptions import (
    ALEXNET,
    EXTRA,
    corruption_error,
    corruptions_in,
    severities_in,
)
from lowtide.errors import InputError, UnknownName
from lowtide.inference.evaluate import open_run, score
from lowtide.methods import METHODS
from lowtide.training.config import RunConfig
from lowtide.training.loop import train

COLOURS = ((220, 30, 30), (30, 220, 30), (30, 30, 220), (200, 200, 30))


def noisy(path: Path, label: int, spread: int, *, weight: float = 1.0) -> None:
    """A square of its class's colour, or of it and the next class's, under noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32("/".join(path.parts[-4:]).encode())
    noise = np.random.default_rng(seed).normal(0, spread, (32, 32, 3))
    colour = weight * np.array(COLOURS[label]) + (1 - weight) * np.array(COLOURS[(label + 1) % 4])
    pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def listed(
    root: Path, name: str, labels: tuple[int, ...], count: int, *, weight: float = 1.0
) -> None:
    rows = []
    for label, n in itertools.product(labels, range(count)):
        file = f"n{label}/image of {name} {n}.png"
        noisy(root / "images" / file, label, 20, weight=weight)
        rows.append(f"{file} {label}\n")
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / name).write_text("".join(rows))


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    """A run trained on few-shot lists of four classes, and a shifted set of two."""
    root = tmp_path_factory.mktemp("shift")
    listed(root / "imagenet", "train_meta.list.num_shot_16.seed_0", (0, 1, 2, 3), 4)
    listed(root / "imagenet", "val_meta.list", (0, 1, 2, 3), 2)
    listed(root / "imagenet-adversarial", "val_meta.list", (1, 3), 8, weight=0.4)
    config = RunConfig(
        model="vit_micro_patch4_32",
        data=str(root / "imagenet/annotations/train_meta.list.num_shot_16.seed_0"),
        method=METHODS["bias"](),
        epochs=4,
        batch_size=8,
        lr=5e-3,
        warmup_epochs=0.0,
        device="cpu",
    )
    train(config, root / "run")
    yield root


def evaluate(home: Path, capsys, *args: str) -> dict:
    assert main(["eval", str(home / "run"), "--json", "--device", "cpu", *args]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_shifted_set_is_scored_over_all_or_over_the_present_classes(home, capsys):
    target = str(home / "imagenet-adversarial")
    trained = open_run(home / "run", device="cpu")
    assert trained.classes == ("0", "1", "2", "3")
    samples = read(target, classes=trained.classes).val
    assert sorted({s.label for s in samples}) == [1, 3] and len(samples) == 16
    images = torch.stack([trained.transform(decode(s.path)) for s in samples])
    with torch.no_grad():
        logits = trained.tuned(images)
    truth = torch.tensor([s.label for s in samples])
    over_all = (logits.argmax(-1) == truth).double().mean().item()
    over_two = ((logits[:, 3] > logits[:, 1]) == (truth == 3)).double().mean().item()
    assert over_all < over_two  # or the two could not be told apart
    options = ("--data", target, "--split", "val")
    assert evaluate(home, capsys, *options)["accuracy"] == pytest.approx(over_all)
    found = evaluate(home, capsys, *options, "--over", "present")
    assert found["accuracy"] == pytest.approx(over_two)
    assert set(found["class_accuracy"]) == {"1", "3"}
    assert score(trained, samples, over="present") == found


def test_a_wrong_choice_of_classes_is_refused(home, capsys):
    args = ["eval", str(home / "run"), "--split", "val", "--over", "presents"]
    assert main(args) == 2
    assert "did you mean present" in capsys.readouterr().err


def test_a_set_to_score_has_the_classes_of_the_model(home, paint):
    target = home / "imagenet-adversarial"
    with pytest.raises(InputError, match=r"has nothing to train on, only val \(few-shot lists"):
        read(target)
    assert "should have 7500 images in val, found 16" in read(target, classes="0123").notes[0]
    with pytest.raises(InputError, match=r"val_meta.list:9: class '3' of val is not known to the"):
        read(target, classes=("0", "1"))
    folders = read(paint("train/3/a.png", "train/1/b.png"), classes=("1", "2", "3"))
    assert [s.label for s in folders.train + folders.val] == [0, 2]


def test_ids_of_imagenet_meet_its_folder_names(paint):
    wnids = tuple(f"n{number:08}" for number in range(1000))
    root = paint("a.png", "b.png")
    (root / "test.txt").write_text("a.png 999\nb.png 3\n")
    data = read(root, classes=wnids)
    assert [s.label for s in data.test] == [999, 3]
    assert "labels 0 to 999 are WordNet ids in order" in data.notes
    (root / "test.txt").write_text("a.png 1000\nb.png 3\n")
    with pytest.raises(InputError, match="class '1000' of test is not known to the run"):
        read(root, classes=wnids)
    with pytest.raises(InputError, match="class '3' of test is not known to the run"):
        (root / "test.txt").write_text("a.png 3\n")
        read(root, classes=wnids[:999])


# ImageNet-C


def test_mce_is_that_of_its_definition():
    draw = random.Random(0)
    errors = {(name, s): draw.random() for name in (*ALEXNET, "spatter") for s in range(1, 6)}
    found = corruption_error(dict(sorted(errors.items(), key=lambda _: draw.random())))
    ratios, means = [], []
    for name, alexnet in ALEXNET.items():
        total = sum(errors[name, s] for s in range(1, 6))
        ratios.append(total / (5 * alexnet))
        means.append(total / 5)
    assert found.mce == pytest.approx(fmean(ratios))
    assert found.mean == pytest.approx(fmean(means))
    assert list(found.errors) == [*ALEXNET, "spatter"]
    assert found.errors["fog"] == pytest.approx(fmean(errors["fog", s] for s in range(1, 6)))


def test_alexnet_has_an_mce_of_one_and_the_published_errors():
    errors = {(name, s): e for name, e in ALEXNET.items() for s in range(1, 6)}
    found = corruption_error(errors)
    assert found.mce == pytest.approx(1)
    published = "88.6 89.4 92.3 82.0 82.6 78.6 79.8 86.7 82.7 81.9 56.5 85.3 64.6 71.8 60.7"
    assert list(found.errors.values()) == pytest.approx(
        [float(error) / 100 for error in published.split()], abs=6e-4
    )
    del errors["fog", 1], errors["fog", 2], errors["fog", 3], errors["fog", 4], errors["fog", 5]
    assert corruption_error(errors).mce is None


def test_errors_that_are_no_imagenet_c_are_refused():
    with pytest.raises(UnknownName, match="unknown corruption 'fogg': did you mean fog"):
        corruption_error({("fogg", 1): 0.5})
    with pytest.raises(InputError, match=r"fog has severities \[1, 2\], expected 1 to 5"):
        corruption_error({("fog", 2): 0.5, ("fog", 1): 0.5})


def corrupt(root: Path, names: tuple[str, ...], within: str = "") -> Path:
    for name, severity, label in itertools.product(names, range(1, 6), (0, 2)):
        path = root / within / name / str(severity) / str(label)
        noisy(path / "ILSVRC2012_val_00000001.png", label, 40 * severity)
    return root


def test_imagenet_c_is_scored_and_not_trained_on(home, tmp_path, capsys):
    root = corrupt(tmp_path, tuple(ALEXNET))
    result = evaluate(home, capsys, "--data", str(root))
    trained = open_run(home / "run", device="cpu")
    wrong = {}
    for name, severity in itertools.product(ALEXNET, range(1, 6)):
        home_of = root / name / str(severity)
        samples = read(home_of, classes=trained.classes, val_fraction=0, test_fraction=0).train
        images = torch.stack([trained.transform(decode(s.path)) for s in samples])
        with torch.no_grad():
            answers = trained.tuned(images).argmax(-1).tolist()
        wrong[name, severity] = fmean(a != s.label for a, s in zip(answers, samples, strict=True))
    assert 0 < fmean(wrong.values()) < 1
    assert result["each"] == {f"{name}/{s}": e for (name, s), e in wrong.items()}
    assert result["mce"] == pytest.approx(corruption_error(wrong).mce)
    assert main(["eval", str(home / "run"), "--data", str(root), "--device", "cpu"]) == 0
    assert f"mCE {result['mce']:.4f} (1 is AlexNet)" in capsys.readouterr().out
    with pytest.raises(InputError, match="corrupted images to score a run on: lowtide eval RUN"):
        read(root)


def test_imagenet_c_as_its_archives_unpack(home, tmp_path, capsys):
    corrupt(tmp_path, ("fog",), "weather")
    corrupt(tmp_path, (EXTRA[0],), "extra")
    assert set(corruptions_in(tmp_path)) == {"fog", EXTRA[0]}
    assert severities_in(tmp_path)["fog", 5] == tmp_path / "weather/fog/5"
    assert main(["eval", str(home / "run"), "--data", str(tmp_path), "--device", "cpu"]) == 0
    assert "no mean: it is defined over all 15" in capsys.readouterr().out
    (tmp_path / "weather/fog/3").rename(tmp_path / "weather/fog/6")
    args = ["eval", str(home / "run"), "--data", str(tmp_path), "--device", "cpu"]
    assert main(args) == 2
    assert "fog/3 does not exist; expected severities 1 to 5" in capsys.readouterr().err


def test_imagenets_flat_validation_images_are_refused(paint):
    root = paint("train/n01440764/1.JPEG", "train/n01443537/1.JPEG")
    data = read(paint("val/n01440764/2.JPEG", "val/n01443537/2.JPEG"))
    assert data.classes == ("n01440764", "n01443537")
    assert (len(data.train), len(data.val), data.test) == (2, 2, ())
    for file in list((root / "val").rglob("*.JPEG")):
        file.unlink()
    paint("val/ILSVRC2012_val_00000001.JPEG")
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text("490\n")
    with pytest.raises(InputError, match="ImageNet's validation images lie flat") as caught:
        read(root)
    assert "\n" not in str(caught.value)


def test_a_flipped_image_is_answered_with_its_mirror_image(home, capsys):
    """The mean of both images' probabilities decides."""
    target = str(home / "imagenet-adversarial")
    trained = open_run(home / "run", device="cpu")
    samples = read(target, classes=trained.classes).val
    images = torch.stack([trained.transform(decode(s.path)) for s in samples])
    with torch.no_grad():
        shares = [trained.tuned(x).softmax(-1) for x in (images, images.flip(-1))]
    assert not torch.allclose(*shares, atol=1e-3)
    right = sum(shares).argmax(-1) == torch.tensor([s.label for s in samples])
    found = evaluate(home, capsys, "--data", target, "--split", "val", "--flip")
    assert found["accuracy"] == pytest.approx(right.double().mean().item())
