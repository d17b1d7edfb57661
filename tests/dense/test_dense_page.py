"""The code of docs/dense.md runs."""

from __future__ import annotations

from pathlib import Path

import pages
import pytest
import torch

pytest.importorskip("transformers")


@pytest.mark.filterwarnings("ignore::lowtide.tuning.left_out.LeftOutWarning")
def test_a_set_predicting_detector_is_tuned_and_answers_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = pages.run(*pages.code("dense.md"))
    assert said["tuned"].backbone_path == "model.backbone.model"
    assert torch.isfinite(said["loss"])
    assert len(said["found"]) == 2 and len(said["found"][0]["boxes"]) > 0
    assert said["found"][0]["boxes"].shape[1] == 4
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
