"""The Python of the docs runs as it is written, on real files, and learns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tinted import write_tinted

import lowtide
from lowtide import InputError, UnknownName
from lowtide.training.config import read_yaml
from lowtide.training.options import Parser, run_config

DOCS = Path(__file__).parents[1] / "docs"
if not DOCS.is_dir():
    pytest.skip("runs in a checkout only", allow_module_level=True)


def code(page):
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_tinted(tmp_path / "photos", {"train": 8, "val": 2, "test": 2})


def run(text):
    names = {}
    exec(compile(text, "a page of docs/", "exec"), names)
    return names


def test_fit_and_its_callbacks(photos, capsys):
    (text,) = code("python.md")
    names = run(text)
    found, seen = names["run"], names["losses"].seen
    assert len(seen) == 2 and found.summary.history[1].train_loss == pytest.approx(seen[1])
    assert capsys.readouterr().out.count("epoch ") == 2
    answers = found.predict(sorted((photos / "test").glob("*/*.png")))
    right = sum(a["class"] == Path(a["path"]).parent.name for a in answers)
    assert right / len(answers) == found.summary.tested
    with pytest.raises(InputError, match="already holds a run"):
        lowtide.fit("vit_micro_patch4_32", photos, output="runs/photos")


def test_fit_takes_the_options_of_the_command_line(photos):
    words = "--model vit_micro_patch4_32 --data photos --method bias --epochs 1 --warmup-epochs 0"
    words += " --head-init zero --lr 1e-3 --head-lr-scale 1 --keep last"
    command, _ = run_config(Parser("train", ""), words.split())
    method = lowtide.METHODS["bias"]()
    options = {"epochs": 1, "warmup_epochs": 0, "head_init": "zero", "lr": 1e-3}
    options |= {"head_lr_scale": 1, "keep": "last"}
    found = lowtide.fit("vit_micro_patch4_32", "photos", method, output="run", **options)
    assert read_yaml(found.folder / "config.yaml") == command.to_dict()
    again = lowtide.fit(
        "vit_micro_patch4_32", "photos", method, output="run", resume=True, **options
    )
    assert again.summary == found.summary
    for wrong, error in (({"epoch": 1}, UnknownName), ({"resume": True}, InputError)):
        with pytest.raises(error):
            lowtide.fit("vit_micro_patch4_32", photos, **wrong)
    with pytest.raises(InputError, match="timm's name"):
        lowtide.fit(found.model, photos)


def test_a_callback_may_end_a_run_which_goes_on_later(photos):
    class Impatient(lowtide.Callback):
        def on_epoch(self, epoch):
            raise StopAsyncIteration

    options = {"output": "run", "epochs": 2, "warmup_epochs": 0, "head_init": "zero"}
    with pytest.raises(StopAsyncIteration):
        lowtide.fit("vit_micro_patch4_32", "photos", callbacks=[Impatient()], **options)
    found = lowtide.fit("vit_micro_patch4_32", "photos", resume=True, **options)
    assert len(found.summary.history) == 2


@pytest.mark.parametrize("number", range(3), ids=["pytorch", "trainer", "timm"])
def test_a_recipe_runs(photos, number):
    if number == 1:
        pytest.importorskip("transformers")
    blocks = code("recipes.md")
    assert len(blocks) == 3
    names = run(blocks[number])
    if number == 1:
        assert names["result"].global_step == 2
    else:
        assert names["loss"].isfinite()
        trained = [p for p in names["tuned"].parameters() if p.requires_grad]
        assert number == 2 or (len(trained) > 2 and Path("adapter/adapter_config.json").is_file())
