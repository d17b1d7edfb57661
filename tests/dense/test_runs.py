"""A run of each dense task: it learns, scores, resumes, opens again, answers and folds."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowtide.cli import main
from lowtide.dense.tasks import TASKS
from lowtide.errors import InputError
from lowtide.inference.dense import open_dense, score_dense
from lowtide.inference.fit import FitResult
from lowtide.methods import METHODS
from lowtide.training import loop
from lowtide.training.config import RunConfig
from lowtide.training.dense_data import read_dense
from lowtide.training.loop import train
from lowtide.training.summary import read_summary
from lowtide.tuning.adapter_files import read_tensors

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools 2.0 with numpy 2."""

FILES = ["adapter_config.json", "adapter_model.safetensors", "config.yaml", "log.jsonl"]


def config(shapes: Path, task: str, **options: object) -> RunConfig:
    """Two epochs of two updates on images of 32 pixels."""
    given = {
        "model": "vit_micro_patch4_32",
        "data": str(shapes),
        "task": task,
        "epochs": 2,
        "batch_size": 4,
        "decoder_channels": 32,
        "lr": 2e-3,
        "warmup_epochs": 0,
        "keep": "last",
        "device": "cpu",
        **options,
    }
    return RunConfig(**given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def runs(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each task."""
    folders = {task: tmp_path_factory.mktemp(task) / "run" for task in TASKS}
    for task, folder in folders.items():
        train(config(shapes, task, epochs=3), folder)
    return folders


@pytest.mark.parametrize("task", TASKS)
def test_a_run_learns_and_says_what_it_scored(runs: dict[str, Path], task: str) -> None:
    summary = read_summary(runs[task] / "summary.json")
    losses = [epoch.train_loss for epoch in summary.history]
    assert losses[-1] < losses[0]
    assert summary.metric == TASKS[task].metric
    assert summary.history[-1].val_score == summary.val_score
    assert summary.test_scores is not None and summary.metric in summary.test_scores
    assert summary.data.classes[-2:] == ("square", "disc")
    assert summary.val_accuracy is summary.test_accuracy is None
    assert set(FILES) < {p.name for p in runs[task].iterdir()}


def test_the_plan_of_a_segmentation_is_the_run(runs: dict[str, Path]) -> None:
    summary = read_summary(runs["segment"] / "summary.json")
    assert summary.planned.peak_bytes == summary.measured_peak_bytes


@pytest.mark.parametrize("task", TASKS)
def test_a_run_opens_again_and_scores_the_same(runs: dict[str, Path], task: str) -> None:
    opened = open_dense(runs[task], device="cpu")
    found, images, notes = score_dense(opened, runs[task], None, "test", 2)
    summary = read_summary(runs[task] / "summary.json")
    defined = {k: v for k, v in found.metrics.items() if v is not None}
    assert (images, notes) == (3, [])
    assert defined == pytest.approx(summary.test_scores)


@pytest.mark.parametrize("task", ["segment", "instances"])
def test_a_killed_run_continues_to_the_same_weights(
    shapes: Path, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = config(shapes, task, ema=0.9)
    train(options, tmp_path / "whole")
    save, saved = loop.save, []

    def die(*given: object) -> None:
        save(*given)  # type: ignore[arg-type]
        saved.append(True)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save", die)
    with pytest.raises(KeyboardInterrupt):
        train(options, tmp_path / "killed")
    monkeypatch.setattr(loop, "save", save)
    train(options, tmp_path / "killed", continues=True)
    one, other = (read_tensors(tmp_path / n / FILES[1]) for n in ("whole", "killed"))
    assert saved and one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    scores = [read_summary(tmp_path / n / "summary.json").test_scores for n in ("whole", "killed")]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("task", "method"),
    [
        ("segment", "full"),
        ("segment", "linear"),
        ("segment", "ssf"),
        ("segment", "s2a"),
        ("detect", "bias"),
    ],
)
def test_methods_train_their_part_and_the_rest_whole(
    shapes: Path, tmp_path: Path, task: str, method: str
) -> None:
    options = config(shapes, task, epochs=1, method=METHODS[method](), policy="tight", accumulate=2)
    summary = train(options, tmp_path / "run")
    opened = open_dense(tmp_path / "run", device="cpu")
    trained, _ = opened.model.trainable_counts()
    assert trained == summary.trainable_parameters
    body = sum(p.numel() for p in opened.model.backbone.parameters() if p.requires_grad)
    assert (body > 0) is (method != "linear")
    assert summary.history[-1].train_loss < 10


def test_predictions_are_drawn_and_written(
    runs: dict[str, Path], shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for task, folder in runs.items():
        given = ["predict", str(folder), str(shapes / "test"), "--device", "cpu"]
        drawn, output = tmp_path / task, tmp_path / f"{task}.json"
        assert (
            main([*given, "--draw", str(drawn), "--output", str(output), "--threshold", "0"]) == 0
        )
        assert sorted(p.name for p in drawn.iterdir()) == ["0.png", "1.png", "2.png"]
        with Image.open(drawn / "0.png") as picture, Image.open(shapes / "test/0.png") as image:
            assert picture.size == image.size
        rows = json.loads(output.read_text())
        assert {row["image_id"] for row in rows} <= {1, 2, 3}
        assert rows or task != "segment"
        capsys.readouterr()
        assert main(given) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert len(lines) == 3 and lines[0].keys() == {"path", *lines[0].keys() - {"path"}}


def test_a_folded_run_answers_as_the_run_does(
    runs: dict[str, Path], tmp_path: Path, shapes: Path
) -> None:
    for task, folder in runs.items():
        merged = tmp_path / f"{task}.safetensors"
        assert main(["merge", str(folder), "--output", str(merged)]) == 0
        one, other = open_dense(folder, device="cpu"), open_dense(merged, device="cpu")
        found = [
            score_dense(o, p, str(shapes), "test", 2)[0]
            for o, p in ((one, folder), (other, merged))
        ]
        assert found[1].main == pytest.approx(found[0].main, abs=0.02)


def test_windows_learn_from_crops_and_score_at_the_images_own_size(
    shapes: Path, tmp_path: Path
) -> None:
    summary = train(config(shapes, "segment", window_stride=16, recipe="none"), tmp_path / "run")
    losses = [epoch.train_loss for epoch in summary.history]
    assert losses[1] < losses[0]


REFUSED = {
    "decoder is for task segment, not detect": {"task": "detect", "decoder": "fpn"},
    "detector fcos finds boxes alone": {"task": "instances", "detector": "fcos"},
    "detector maskrcnn finds masks as well": {"task": "detect", "detector": "maskrcnn"},
    "recipe is for task segment and detect and instances, not classify": {
        "task": "classify",
        "recipe": "lsj",
    },
    "loss is for": {"task": "segment", "loss": "bce"},
    "balance is for": {"task": "detect", "balance": "weights"},
    "augment is not for task segment: --recipe": {"task": "segment", "augment": "flip"},
    "smoothing is of class scores": {"task": "detect", "smoothing": 0.1},
    "unknown task 'segmentation'": {"task": "segmentation"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_options_that_would_do_nothing_are_refused(shapes: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(shapes, **{"task": "segment", **REFUSED[message]})  # type: ignore[arg-type]


def test_sizes_and_windows_that_do_not_fit_are_refused(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="multiple of 32 for the maps of vit_micro.*not 40"):
        train(config(shapes, "segment", image_size=40), tmp_path / "a")
    with pytest.raises(InputError, match=r"window_stride must be at most image_size \(32\)"):
        train(config(shapes, "segment", window_stride=48), tmp_path / "b")
    with pytest.raises(InputError, match="multiple of 64 for fpn, not 32"):
        train(config(shapes, "segment", decoder="fpn"), tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_old_configs_are_of_the_task_classify() -> None:
    old = {f.name: f.default for f in dataclasses.fields(RunConfig)}
    assert old["task"] == "classify"
    assert RunConfig.from_dict({"model": "m", "data": "d"}).task == "classify"


def test_other_data_are_scored_by_the_names_of_classes(
    runs: dict[str, Path], shapes: Path, tmp_path: Path
) -> None:
    opened = open_dense(runs["segment"], device="cpu")
    wanted = score_dense(opened, runs["segment"], str(shapes), "test", 2)[0].metrics
    own = read_dense(opened.config)
    order = ["disc", "background", "square"]  # the run counts background, square, disc
    (tmp_path / "masks").mkdir()
    (tmp_path / "images").mkdir()
    for sample in own.test:
        _, target = own.item(sample.path)
        values = [order.index(name) for name in opened.task.names]
        mask = np.append(np.array(values + [0] * 252, np.uint8), np.uint8(255))[target["mask"]]
        Image.fromarray(mask).save(tmp_path / "masks" / sample.path.name)
        shutil.copy(sample.path, tmp_path / "images")
    (tmp_path / "classes.txt").write_text("\n".join(order))
    found = score_dense(opened, runs["segment"], str(tmp_path), "all", 2)[0].metrics
    assert found == pytest.approx(wanted, abs=1e-12)
    (tmp_path / "classes.txt").write_text("disc\nbackground\ncircle")
    with pytest.raises(InputError, match="has classes"):
        score_dense(opened, runs["segment"], str(tmp_path), "all", 2)


WRONG = [
    ("eval RUN --split nope", "unknown split 'nope'"),
    ("eval RUN --flip", "--flip is for runs that answer for images"),
    ("eval RUN --device cuda:7", "is not on this machine"),
    ("predict RUN DATA/test --top 3", "--top is for runs that answer for images"),
    ("predict RUN DATA/test --draw DATA/test", "would replace the image"),
    ("predict RUN DATA/test --draw RUN", "belongs to the run"),
    ("predict RUN DATA/test --output RUN/summary.json", "belongs to the run"),
    ("export RUN --format onnx --output OUT/x.onnx", "answers for pixels or objects"),
    ("serve RUN", "answers for pixels or objects"),
    ("push RUN me/x --output OUT/card", "answers for pixels or objects"),
    ("inspect cka RUN --output OUT/x.svg", "answers for pixels or objects"),
]


@pytest.mark.parametrize(("line", "said"), WRONG, ids=lambda given: given[:24])
def test_what_a_dense_run_cannot_do_is_refused(
    runs: dict[str, Path],
    shapes: Path,
    tmp_path: Path,
    line: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"RUN": runs["segment"], "DATA": shapes, "OUT": tmp_path}
    for name, place in places.items():
        line = line.replace(name, str(place))
    assert main(line.split()) == 2
    assert said in capsys.readouterr().err


def test_pictures_of_images_of_one_name_stay_apart(
    runs: dict[str, Path], shapes: Path, tmp_path: Path
) -> None:
    for folder in ("a/c", "b/c"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(shapes / "test/0.png", tmp_path / folder / "x.png")
    shutil.copy(shapes / "test/1.png", tmp_path / "a/c/2-x.png")
    given = ["--draw", str(tmp_path / "drawn"), "--output", str(tmp_path / "new/rows.json")]
    assert (
        main(["predict", str(runs["segment"]), str(tmp_path / "a"), str(tmp_path / "b"), *given])
        == 0
    )
    assert len(list((tmp_path / "drawn").iterdir())) == 3
    assert (tmp_path / "new/rows.json").is_file()


def test_fit_answers_for_pixels_and_objects(
    runs: dict[str, Path], shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for task, folder in runs.items():
        done = FitResult(folder, read_summary(folder / "summary.json"))
        found = done.predict(shapes / "test", threshold=0.25, batch_size=2)
        given = ["predict", str(folder), str(shapes / "test"), "--threshold", "0.25"]
        assert main([*given, "--batch-size", "2"]) == 0
        assert found == [json.loads(line) for line in capsys.readouterr().out.splitlines()], task
        assert done.model is done.trained.model
