"""What a dense run leaves to look at, and the report that shows it."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import browsers
import pytest
import torch
from PIL import Image
from torch import Tensor

from lowtide.dense.drawing import draw, shrunk
from lowtide.dense.scores import ObjectScore
from lowtide.errors import InputError
from lowtide.report import write_report
from lowtide.training.config import RunConfig
from lowtide.training.examples import EXAMPLES, MOST, SIDE, ends, read_examples
from lowtide.training.loop import train

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools 2.0 with numpy 2."""


@pytest.fixture(scope="module")
def runs(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of segments and one of instances, an epoch each."""
    folder = tmp_path_factory.mktemp("looked") / "runs"
    for task in ("segment", "instances"):
        config = RunConfig(
            model="vit_micro_patch4_32",
            data=str(shapes),
            task=task,  # type: ignore[arg-type]
            epochs=1,
            batch_size=4,
            decoder_channels=32,
            warmup_epochs=0,
            device="cpu",
        )
        train(config, folder / task)
    return folder


def test_the_best_and_the_worst_images_are_kept_and_none_twice() -> None:
    ranked = [(i / 100, Path(str(i))) for i in range(20)]
    best, worst = ends(ranked[::-1])
    assert best == ranked[::-1][:MOST] and worst == ranked[:MOST]
    best, worst = ends(ranked[:3])
    assert [score for score, _ in (*worst, *best[::-1])] == [0.0, 0.01, 0.02]
    assert ends([]) == ([], [])


@pytest.mark.parametrize("task", ["segment", "instances"])
def test_a_run_keeps_pictures_of_truth_and_prediction(runs: Path, task: str) -> None:
    kept = read_examples(runs / task)
    shown = [*kept.best, *kept.worst]
    assert 2 <= len({e.path for e in shown}) == len(shown) <= 3
    assert [e.score for e in kept.best] == sorted((e.score for e in kept.best), reverse=True)
    for text in (shown[0].truth, shown[0].predicted):
        with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
            assert max(picture.size) <= SIDE
    assert set(kept.curves) == ({"box", "mask"} if task == "instances" else set())


def test_damaged_examples_are_refused_by_their_path(runs: Path, tmp_path: Path) -> None:
    content = json.loads((runs / "segment" / EXAMPLES).read_text())
    content["best"][0]["truth"] = "PHN2Zz4="
    (tmp_path / EXAMPLES).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"examples.json is damaged: truth of .* is no JPEG"):
        read_examples(tmp_path)


def test_the_mean_of_the_curves_is_the_average_precision_at_half() -> None:
    torch.manual_seed(0)
    score = ObjectScore(["a", "b", "c"], masks=False)
    for _ in range(6):
        corners = torch.rand(8, 2) * 50
        boxes = torch.cat([corners, corners + 20], 1)
        labels = torch.randint(0, 2, (8,))  # nothing is of class c
        moved = boxes + torch.randn(8, 4) * 4
        found = {"boxes": moved, "labels": labels, "scores": torch.rand(8)}
        score.update(found, {"boxes": boxes, "labels": labels})
    scores = score.compute()
    assert set(scores.curves["box"]) == {"a", "b"}
    means = [sum(c) / len(c) for c in scores.curves["box"].values()]
    assert 0.1 < sum(means) / 2 < 1
    assert sum(means) / 2 == pytest.approx(scores.metrics["box_map_50"], abs=1e-6)


def test_a_shrunk_image_keeps_what_is_in_it_in_its_place() -> None:
    image = torch.zeros(3, 64, 128, dtype=torch.uint8)
    mask = torch.zeros(1, 64, 128, dtype=torch.bool)
    mask[:, 16:48, 32:64] = True
    found = {"boxes": torch.tensor([[32.0, 16, 64, 48]]), "labels": torch.tensor([0])}
    small, inside = shrunk(image, {**found, "masks": mask}, 32)
    assert small.shape == (3, 16, 32)
    assert inside["boxes"].tolist() == [[8, 4, 16, 12]]
    assert torch.equal(inside["masks"], mask[:, ::4, ::4])
    classes = torch.full((64, 128), 255)
    classes[mask[0]] = 1
    small, inside = shrunk(image, classes, 32)
    drawn: Tensor = draw(small, inside, ["background", "thing"])
    assert torch.equal(drawn.sum(0) > 0, mask[0, ::4, ::4])  # no class is not drawn


def test_the_report_of_dense_runs_shows_images_curves_sizes_and_classes(
    runs: Path, tmp_path: Path
) -> None:
    entries = write_report([runs], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert {e.metric for e in entries} == {"miou", "mask_map"}
    kept = [read_examples(runs / t) for t in ("segment", "instances")]
    pictures = sum(len(k.best) + len(k.worst) for k in kept)
    assert page.count('<ul class="pairs">') == 4
    assert page.count("data:image/jpeg") == 2 * pictures
    for said in ("Precision against recall, masks", "small", "medium", "mIoU", "IoU of each class"):
        assert said in page
    write_report([runs], tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "boxes: small" in text and "masks: large" in text
    assert "temperature" not in text


def test_pictures_and_curves_are_seen_in_a_browser(runs: Path, tmp_path: Path) -> None:
    write_report([runs], tmp_path / "report.html")
    said: list[str] = []
    with browsers.chromium() as browser:
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.on("console", lambda m: said.append(m.text))
        page.on("pageerror", lambda e: said.append(str(e)))
        page.goto((tmp_path / "report.html").as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        images = page.locator(".pairs img")
        assert images.count() >= 4
        for image in images.all():
            box = image.bounding_box()
            assert image.evaluate("i => i.naturalWidth > 0") and box["width"] > 100
        for plot in page.locator("svg[aria-label^='Precision against recall']").all():
            assert plot.bounding_box()["width"] > 250
            assert plot.locator(".curve").count() >= 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert said == []
