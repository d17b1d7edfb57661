"""The code of docs/parts.md runs."""

from __future__ import annotations

from pathlib import Path

import pages
import pytest
from torchvision.models.detection import FasterRCNN


@pytest.mark.filterwarnings("ignore::lowtide.tuning.left_out.LeftOutWarning")
def test_the_code_of_the_page_of_parts_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = pages.run(*pages.code("parts.md"))
    assert isinstance(said["plain"], FasterRCNN)
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
