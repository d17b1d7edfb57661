"""The README's commands on a user's own images run in the order they are printed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from pages import code_of, run
from tinted import write_tinted

from lowtide.cli import main
from lowtide.methods import METHODS

README = Path(__file__).parents[1] / "README.md"
SMALL = {
    "vit_base_patch16_224": "vit_micro_patch4_32",
    "--epochs 10": "--epochs 2",
    "new/*.jpg": "photos/test/red/0.png photos/test/blue/0.png",
    "640MiB": "64MiB",
    "--minutes 30": "--minutes 9 --trials 2 --epochs 1",
}
"""What stands in for a pre-trained ViT-B, ten epochs and a folder of photographs."""
ELSEWHERE = ("vtab-1k", "serve ")
"""Of data that must be downloaded, and a server, which never ends."""


def commands():
    section = README.read_text().partition("## On your own images")[2].partition("\n## ")[0]
    text = section.replace("\\\n", " ")
    lines = re.findall(r"^    lowtide (.*?)(?:\s+#.*)?$", text, re.MULTILINE)
    return [line for line in lines if not any(word in line for word in ELSEWHERE)]


@pytest.mark.filterwarnings("ignore")
def test_the_readmes_commands_run_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tinted(tmp_path / "photos", {"train": 4, "val": 1, "test": 1})
    shutil.copytree(tmp_path / "photos/test/red", tmp_path / "new")
    assert len(commands()) > 8
    for line in commands():
        for own, small in SMALL.items():
            line = line.replace(own, small)
        assert main(shlex.split(line)) == 0, line


def code(section):
    text = README.read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    (block,) = code_of(text)
    for own, small in SMALL.items():
        block = block.replace(own, small)
    return block


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(code("In Python"))
    plain = names["timm"].create_model("vit_micro_patch4_32", pretrained=True)
    assert names["lowtide"].load(plain, "adapter").num_classes == 10


@pytest.mark.filterwarnings("ignore")
def test_the_readmes_method_is_a_file_that_trains_and_merges(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tinted(tmp_path / "photos", {"train": 4, "val": 1, "test": 1})
    Path("ia3.py").write_text(code("Adding a method"))
    words = "train --import ia3.py --method ia3 --model vit_micro_patch4_32 --data photos/"
    try:
        assert main([*words.split(), "--epochs", "1", "--output", "run"]) == 0
        assert main("merge run --import ia3.py --output merged.safetensors".split()) == 0
    finally:
        METHODS.pop("ia3", None)
