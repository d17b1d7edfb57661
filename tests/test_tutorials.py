"""What the tutorials print runs as it is written, with small stand-ins for large things."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from pages import DOCS, code, run
from served import serving
from tinted import write_tinted

from lowtide.cli import main

ROOT = Path(__file__).parents[1]
if not DOCS.is_dir():
    pytest.skip("runs in a checkout only", allow_module_level=True)
SMALL = {
    "vit_base_patch16_224": "vit_micro_patch4_32",
    "--image-size 1024": "--image-size 64",
    "--epochs 10": "--epochs 1",
    "700MiB": "64MiB",
}
NOTEBOOKS = sorted(path.name for path in DOCS.glob("*.ipynb"))


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tinted(tmp_path / "photos", {"train": 4, "val": 1, "test": 1})
    for name in ("birds", "cars", "ships"):
        shutil.copytree("photos", name)
    Path("new").mkdir()
    shutil.copy("photos/test/red/0.png", "new/1.png")


def small(text):
    for own, stand_in in SMALL.items():
        text = text.replace(own, stand_in)
    return text


def commands(page):
    text = (DOCS / page).read_text().replace("\\\n", " ")
    lines = re.findall(r"^    lowtide (.*?)(?:\s+#.*)?$", text, re.M)
    return [shlex.split(small(line)) for line in lines]


def requests(page):
    lines = re.findall(r"^    (curl .*?)(?:\s+#.*)?$", (DOCS / page).read_text(), re.M)
    return [shlex.split(line) for line in lines]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", ["large-images.md", "one-backbone.md"])
def test_commands_of_a_tutorial_run_in_their_order(page, folders):
    found = [words for words in commands(page) if words[0] != "serve"]
    assert len(found) > 3
    for words in found:
        assert main(words) == 0, " ".join(words)
    for block in code(page):
        names = run(small(block))
        assert names["answers"]["birds"].shape == (1, 3)
        assert names["answers"]["birds"].argmax() == names["birds"].classes.index("red")
        assert set(names["model"].configs) == {"birds", "ships"} and len(names["logits"]) == 3

    for _, *words in (words for words in commands(page) if words[0] == "serve"):
        answer_as_printed(page, words)


def answer_as_printed(page, words):
    at = words.index("--port")
    port = f"localhost:{words[at + 1]}"
    with serving(*words[:at], *words[at + 2 :]) as server:
        lines = [[w.replace(port, f"127.0.0.1:{server.port}") for w in r] for r in requests(page)]
        given = [json.loads(subprocess.check_output([*line, "-sS"])) for line in lines]
    assert given[0]["predictions"][0]["class"] == "red" and "error" not in given[1], given


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_was_run_from_its_first_cell_to_its_last(name):
    text = (DOCS / name).read_text()
    cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert "error" not in kinds and len(text) < 200_000
    assert not re.search(r"/(home|root|work|Users)/", text)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    script = runpy.run_path(str(ROOT / "scripts" / "run_notebooks.py"))
    done = script["execute"](DOCS / name, tmp_path)
    assert all(
        c.get("outputs") or "import" in c.source for c in done.cells if c.cell_type == "code"
    )
