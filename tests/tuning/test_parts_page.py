"""The code of docs/parts.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torchvision.models.detection import FasterRCNN

PAGE = Path(__file__).parents[2] / "docs" / "parts.md"


@pytest.mark.filterwarnings("ignore::lowtide.tuning.left_out.LeftOutWarning")
def test_the_code_of_the_page_of_parts_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not PAGE.is_file():
        pytest.skip("runs in a checkout only")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.+?)```", PAGE.read_text(), re.DOTALL))
    said: dict[str, object] = {}
    exec(compile(code, str(PAGE), "exec"), said)
    assert isinstance(said["plain"], FasterRCNN)
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
