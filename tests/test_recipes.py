"""The Python of the docs runs as it is written, on real files, and learns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
from pages import DOCS, code, code_of, run
from tinted import write_tinted

import lowtide
from lowtide import InputError, UnknownName
from lowtide.training.config import read_yaml
from lowtide.training.options import Parser, run_config
from lowtide.tuning.adapter_files import read_adapter

if not DOCS.is_dir():
    pytest.skip("runs in a checkout only", allow_module_level=True)


def recipe(title):
    section = (DOCS / "recipes.md").read_text().partition(f"\n## {title}\n")[2]
    return code_of(section.partition("\n## ")[0])[0]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_tinted(tmp_path / "photos", {"train": 8, "val": 2, "test": 2})


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
    for wrong in (Impatient(), [Impatient], [print], Impatient):
        with pytest.raises(InputError, match="callbacks must be a list of lowtide.Callback"):
            lowtide.fit("vit_micro_patch4_32", "photos", callbacks=wrong, **options)


def test_a_loop_in_pytorch(photos):
    names = run(recipe("A plain PyTorch loop"))
    trained = [p for p in names["tuned"].parameters() if p.requires_grad]
    assert names["loss"].isfinite() and len(trained) > 2
    assert Path("adapter/adapter_config.json").is_file()


@pytest.mark.filterwarnings("ignore")
def test_a_loop_of_transformers(photos):
    pytest.importorskip("transformers")
    names = run(recipe("transformers' Trainer"))
    assert names["result"].global_step == 2
    saved = read_adapter(Path("trainer/checkpoint-2/adapter"))[1]
    assert saved.keys() == names["tuned"].adapter_state().keys()


@pytest.mark.filterwarnings("ignore")
def test_a_loop_of_lightning(photos):
    pytest.importorskip("pytorch_lightning")
    names = run(recipe("Lightning"))
    assert names["trainer"].global_step == 3
    assert Path("adapter/adapter_model.safetensors").is_file()


def test_a_loop_like_timm(photos):
    names = run(recipe("timm's train.py"))
    assert names["loss"].isfinite() and Path("last.pth.tar").is_file()
    assert type(names["plain"]) is type(timm.create_model("vit_micro_patch4_32"))


def test_the_lines_for_timms_script_are_those_of_the_loop():
    diff = re.search(r"^```diff\n(.*?)^```", (DOCS / "recipes.md").read_text(), re.M | re.S)[1]
    added = [line.removeprefix("+    ") for line in diff.splitlines() if line.startswith("+")]
    assert len(added) == 3 and "\n".join(added[1:]) in recipe("timm's train.py")
