"""A method in a user's own file or package trains, saves, loads, scores and merges."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from tinted import write_tinted

from lowtide import METHODS
from lowtide.cli import main
from lowtide.core import outside

HALVED = '''
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import nn

from lowtide import Graft, Method, Role, Swap, method
from lowtide.core.linear_maps import fold
from lowtide.values import Within


@method
@dataclass(frozen=True)
class Halved(Method):
    """Scale the outputs of MLPs."""

    start: Annotated[float, Within(0, 2)] = 1.0

    @property
    def identity(self):
        return self.start == 1

    def edits(self, sites):
        return [Swap(s, partial(HalvedGraft, site=s, start=self.start)) for s in sites.of(Role.FC2)]


class HalvedGraft(Graft):
    def __init__(self, base, site, start):
        super().__init__(base)
        self.s = nn.Parameter(torch.full((site.dim,), start))

    def forward(self, x):
        return self.base(x) * self.s

    def merged(self):
        return fold(self.base, scale=self.s)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's folder, and no trace of it afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    known, loaded = dict(METHODS), set(sys.modules)
    (tmp_path / "halved.py").write_text(HALVED)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    forget(known, loaded)


def forget(known, loaded):
    for name in set(METHODS) - set(known):
        del METHODS[name]
    for name in set(sys.modules) - loaded:
        if name.rpartition(".")[2] in {"halved", "broken", "empty"}:
            del sys.modules[name]


TRAIN = ["train", "--model", "test_vit", "--data", "images", "--pretrained", "false"]
TRAIN += ["--image-size", "32", "--epochs", "1", "--warmup-epochs", "0", "--device", "cpu"]


@pytest.mark.parametrize("source", ["halved.py", "halved"])
def test_a_run_with_a_users_own_method(own, capsys, source):
    write_tinted(own / "images", {"train": 4, "val": 1, "test": 1})
    known, loaded = dict(METHODS), set(sys.modules)
    given = ["--import", source]
    made = ["--method", "halved", "--method.start", "0.5", "--output", "run"]
    assert main([*TRAIN, *made, *given]) == 0
    assert yaml.safe_load((own / "run/config.yaml").read_text())["method"] == {
        "name": "halved",
        "import": source,
        "start": 0.5,
    }
    for command in (
        ["eval", "run"],
        ["merge", "run", "--output", "m.safetensors"],
        ["train", "--resume", "run"],
        ["train", "--config", "run/config.yaml", "--output", "again"],
    ):
        assert main([*given, *command]) == 0, command
    # In another process nothing has imported it: each command says what is missing.
    forget(known, loaded)
    for command in (["eval", "run"], ["train", "--resume", "run"]):
        capsys.readouterr()
        assert main(command) == 2
        said = capsys.readouterr().err
        assert f"'{source}', which --import takes" in said and said.count("\n") == 1
    assert "halved" not in METHODS


def test_what_cannot_be_imported_is_said_in_one_line(own, capsys):
    (own / "broken.py").write_text("import nothing_of_this_name")
    (own / "empty.py").write_text("x = 1")
    (own / "lora.py").write_text(HALVED)
    for source, said in {
        "missing.py": "no such file",
        "broken.py": "nothing_of_this_name",
        "empty.py": "no class with @lowtide.method",
        "empty": "no class with @lowtide.method",
        "lora.py": "a method lora already",
        "no_such_module": "No module named",
    }.items():
        capsys.readouterr()
        assert main(["methods", "--import", source]) == 2
        assert said in (err := capsys.readouterr().err) and err.count("\n") == 1
    assert main(["methods", "--import"]) == 2


def test_no_file_of_a_run_imports_anything(own):
    (own / "run").mkdir()
    content = {"library": "lowtide", "methods": [{"name": "halved", "import": "halved.py"}]}
    content |= {"base_model_sha256": "ab" * 32, "num_classes": 3, "base_model_name_or_path": "x"}
    (own / "run/adapter_config.json").write_text(json.dumps(content))
    assert main(["eval", "run"]) == 2
    assert not [m for m in sys.modules if m.endswith(".halved")]


def test_an_installed_package_offers_its_methods(own):
    package = own / "site"
    (package / "theirs").mkdir(parents=True)
    (package / "theirs/__init__.py").write_text("")
    (package / "theirs/halved.py").write_text(HALVED)
    info = package / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        f"[{outside.GROUP}]\nhalved = theirs.halved\nbroken = theirs.nothing\n"
    )
    script = f"""
import sys, warnings
sys.path.append({str(package)!r})
with warnings.catch_warnings(record=True) as said:
    import lowtide
assert "halved" in lowtide.METHODS
assert [str(w.message) for w in said if "theirs.nothing fails" in str(w.message)], said
"""
    subprocess.run([sys.executable, "-c", script], check=True)
