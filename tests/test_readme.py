"""The README's commands on a user's own images run in the order they are printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tinted import write_tinted

from lowtide.cli import main

README = Path(__file__).parents[1] / "README.md"
SMALL = {
    "vit_base_patch16_224": "vit_micro_patch4_32",
    "--epochs 10": "--epochs 2",
    "new/*.jpg": "photos/test/red/0.png photos/test/blue/0.png",
    "640MiB": "64MiB",
}
"""What stands in for a pre-trained ViT-B, ten epochs and a folder of photographs."""


def commands():
    section = README.read_text().partition("## On your own images")[2].partition("\n## ")[0]
    text = section.replace("\\\n", " ")
    lines = re.findall(r"^    lowtide (.*?)(?:\s+#.*)?$", text, re.MULTILINE)
    return [line for line in lines if "vtab-1k" not in line]  # data that must be downloaded


@pytest.mark.filterwarnings("ignore")
def test_the_readmes_commands_run_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tinted(tmp_path / "photos", {"train": 4, "val": 1, "test": 1})
    assert len(commands()) > 8
    for line in commands():
        for own, small in SMALL.items():
            line = line.replace(own, small)
        assert main(shlex.split(line)) == 0, line
