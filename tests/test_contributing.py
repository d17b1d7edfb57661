"""The examples of CONTRIBUTING.md: one file each, found and working in a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lowtide

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```\w+ (lowtide/\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLES = dict(BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()))
STEP = "lowtide/planning/step.py"

FOUND = """
import sys
from pathlib import Path
import lowtide
import torch
from PIL import Image
from lowtide import cli, codecs, families, methods, ops
from lowtide.data import read
from lowtide.presets import presets

assert Path(cli.__file__).is_relative_to(Path.cwd()), cli.__file__
assert "norm_bias" in methods.METHODS and "conv_mixer" in families.FAMILIES
assert "atan" in ops.TIGHT and torch.atan in ops.CALLS
assert presets()["norm_bias/vtab/svhn"]["lr"] == 0.01

assert "norms" in lowtide.POLICIES
assert "Zero" in codecs.CODECS

rows = []
for number in range(20):
    Image.new("RGB", (8, 8), (number, 0, 0)).save(f"{number}.png")
    rows.append('{"path": "%d.png", "label": "%s"}' % (number, "ab"[number % 2]))
Path("set.jsonl").write_text("\\n".join(rows))
dataset = read("set.jsonl")
assert dataset.format == "JSON lines" and dataset.classes == ("a", "b")
Path("set.xyz").write_text("")
try:
    read("set.xyz")
except ValueError as error:
    assert "JSON lines (.jsonl)" in str(error)
else:
    raise AssertionError("set.xyz was read")

sys.argv = ["lowtide", "train", "--help"]
cli.main()
"""
"""What is looked for in the copy."""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package and every example in it."""
    home = tmp_path_factory.mktemp("extended")
    package = Path(lowtide.__file__).parent
    shutil.copytree(package, home / "lowtide", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in EXAMPLES.items():
        path = home / name
        if name == STEP:
            before, head, rest = path.read_text().partition("class StepConfig:")
            documented, end, fields = rest.partition('    """\n\n')
            assert end == text[text.index('    """\n\n') :][: len(end)]
            help_line, _, field = text.partition(end)
            path.write_text(before + head + documented + help_line + end + field + fields)
        else:
            assert not path.exists(), f"{name} is no new file"
            path.write_text(text)
    return home


def run(home: Path, *command: str) -> str:
    env = os.environ | {"PYTHONPATH": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *command], cwd=home, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def test_every_kind_of_extension_has_a_short_example() -> None:
    kinds = {Path(name).parent.name for name in EXAMPLES}
    assert kinds == {
        "methods",
        "ops",
        "codecs",
        "families",
        "formats",
        "presets",
        "planning",
        "policies",
    }
    assert all(len(text.split("\n")) - text.count("\n\n") <= 20 for text in EXAMPLES.values())


def test_registries_and_command_line_find_the_examples(extended: Path) -> None:
    helped = run(extended, "-c", FOUND)
    assert "--rounds" in helped and "How often the step is taken" in helped


def test_the_laws_meet_the_examples(extended: Path) -> None:
    tests = ROOT / "tests"
    told = run(
        extended,
        *(
            "-m",
            "pytest",
            "-o",
            "addopts=",
            "-p",
            "no:cacheprovider",
            "-c",
            str(ROOT / "pyproject.toml"),
        ),
        *("--rootdir", str(ROOT), str(tests / "ops/test_ops.py")),
        *(str(tests / "families/test_families.py"), str(tests / "codecs/test_codecs.py")),
        *("-k", "atan or conv_mixer or zero"),
    )
    assert int(re.findall(r"(\d+) passed", told)[0]) >= 50
