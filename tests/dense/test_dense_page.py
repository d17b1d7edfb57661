"""The code of docs/dense.md runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
PAGE = Path(__file__).parents[2] / "docs" / "dense.md"


@pytest.mark.filterwarnings("ignore::lowtide.tuning.left_out.LeftOutWarning")
def test_a_set_predicting_detector_is_tuned_and_answers_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not PAGE.is_file():
        pytest.skip("runs in a checkout only")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.+?)```", PAGE.read_text(), re.DOTALL))
    said: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), said)
    assert said["tuned"].backbone_path == "model.backbone.model"
    assert torch.isfinite(said["loss"])
    assert len(said["found"]) == 2 and len(said["found"][0]["boxes"]) > 0
    assert said["found"][0]["boxes"].shape[1] == 4
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
