"""`lowtide inspect` on real runs: the numbers, the pictures, and what it refuses."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from lowtide import METHODS, create
from lowtide.cli import main
from lowtide.inference.evaluate import open_run
from lowtide.inspect import run_changes
from lowtide.training.config import RunConfig
from lowtide.training.loop import train
from lowtide.tuning.adapter_files import read_config

MODEL = "vit_micro_patch4_32"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One epoch of a method that folds, of one that does not, and of one that never moves."""
    root = tmp_path_factory.mktemp("inside")
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for channel, name in enumerate(("red", "green", "blue")):
            (root / "images" / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 190, (32, 32, 3))
                pixels[..., channel] += 60
                file = root / "images" / split / name / f"{i}.png"
                Image.fromarray(pixels.astype("uint8")).save(file)
    config = RunConfig(
        model=MODEL,
        data=str(root / "images"),
        method=METHODS["lora"](),
        epochs=1,
        batch_size=4,
        lr=1e-2,
        warmup_epochs=0.0,
        keep="last",
        device="cpu",
    )
    train(config, root / "lora")
    train(replace(config, method=METHODS["vpt"](tokens=2)), root / "vpt")
    still = replace(
        config, method=METHODS["vpt"](tokens=2), head_init="own", lr=1e-30, weight_decay=0.0
    )
    train(still, root / "still")
    train(replace(config, method=METHODS["linear"]()), root / "linear")
    return root


def said(capsys, *args):
    assert main(["inspect", *map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *args):
    assert main(["inspect", *map(str, args)]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("lowtide: ") and err.count("\n") == 1 and not out
    return err


def test_changes_of_a_run_that_folds_are_those_of_the_merged_weights(runs, capsys):
    found = said(capsys, "parameters", runs / "lora")
    assert found["unfolded"] == ""
    before = dict(create(MODEL).named_parameters())
    after = dict(open_run(runs / "lora", device="cpu").tuned.merge_and_unload().named_parameters())
    by_name = {p["name"]: p for p in found["parameters"]}
    moved = {k for k in after if k in before and after[k].shape == before[k].shape}
    moved = {k for k in moved if not torch.equal(after[k], before[k])}
    assert by_name.keys() - {"head.weight", "head.bias"} == moved
    assert len(moved) == 6 and all(k.endswith("attn.qkv.weight") for k in moved)
    for name in moved:
        old, new = before[name].detach().numpy(), after[name].detach().numpy()
        relative = np.sqrt(((new - old) ** 2).sum() / (old**2).sum())
        assert by_name[name]["relative_change"] == pytest.approx(relative, rel=1e-4)
        wanted = np.quantile(new, by_name[name]["quantiles"], method="nearest")
        np.testing.assert_allclose(by_name[name]["after"], wanted, atol=1e-4)
        assert by_name[name]["values"] == new.size


def test_changes_of_a_run_that_does_not_fold_start_at_its_initialisation(runs):
    found = run_changes(runs / "vpt")
    assert found.unfolded.startswith("vpt: ")
    prompts = [c for c in found.items if "vpt" in c.name]
    assert [c.depth for c in prompts] == list(range(6)) and len({c.part for c in prompts}) == 1
    state = open_run(runs / "vpt", device="cpu").tuned.adapter_state()
    bound = (6 / (3 * 4 * 4 + 192)) ** 0.5
    for c in found.items:
        assert torch.equal(c.after, state[c.name]) and (c.relative is None or 0 < c.relative < 2)
    assert all(0.5 * bound < c.before.abs().max() <= bound for c in prompts)


def test_the_initialisation_is_the_run_s_own(runs):
    """A run that stood still is, to the last bit, what it is compared with."""
    assert read_config(runs / "still")["backbone"]["head_init"] == "own"
    assert not run_changes(runs / "still").items
    head = open_run(runs / "still", device="cpu").tuned.backbone.head
    assert 0 < head.bias.abs().max() <= 192**-0.5


def test_similarity_to_the_backbone_is_one_where_nothing_trained(runs, capsys):
    same = said(capsys, "cka", runs / "linear", "--split", "all")
    assert same["images"] == 36 and same["rows"] == [f"blocks.{i}" for i in range(6)]
    matrix = np.array(same["cka"])
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-9)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-9)
    assert matrix[0, 5] < 0.99
    moved = np.array(said(capsys, "cka", runs / "lora", "--split", "all")["cka"])
    assert np.diag(moved)[-1] < np.diag(moved)[0] < 1 - 1e-9
    against = np.array(said(capsys, "cka", runs / "lora", runs / "linear", "--split", "all")["cka"])
    np.testing.assert_allclose(against, moved, atol=1e-9)
    fewer = said(capsys, "cka", runs / "lora", "--split", "all", "--count", "5", "--unbiased")
    assert fewer["images"] == 5


def test_tsne_of_several_runs_shows_the_same_images(runs, capsys):
    args = ("tsne", runs / "lora", runs / "vpt", "--untouched", "--split", "all")
    found = said(capsys, *args)
    assert list(found["points"]) == ["as pre-trained", "lora", "vpt"]
    assert sorted(set(found["classes"])) == ["blue", "green", "red"]
    assert np.array(found["points"]["vpt"]).shape == (len(found["images"]), 2) == (36, 2)
    assert found == said(capsys, *args)


def test_attention_of_several_runs(runs, capsys):
    image = runs / "images/test/red/0.png"
    args = ("attention", runs / "vpt", "--untouched", "--images", image, "--blocks", "0", "-1")
    maps = said(capsys, *args)["maps"]
    assert len(maps) == 4
    values = {name: np.array(m) for name, m in maps.items()}
    assert all(m.shape == (1, 8, 8) and 0 < m.sum() < 1 + 1e-6 for m in values.values())
    first, last = "block 0, mean", "last block, mean"
    shares = [values[f"{run}: {first}"].sum() for run in ("vpt", "as pre-trained")]
    assert shares[0] < shares[1]  # prompts take some
    assert not np.allclose(values[f"vpt: {first}"], values[f"vpt: {last}"])


def pictures(runs):
    image = runs / "images/test/red/0.png"
    return {
        "parameters": [runs / "lora"],
        "parameters-unfolded": [runs / "vpt"],
        "cka": [runs / "lora", runs / "vpt"],
        "tsne": [runs / "lora", "--untouched", "--split", "all"],
        "attention": [runs / "lora", "--images", image, "--kind", "rollout"],
    }


@pytest.mark.parametrize("name", ["parameters", "parameters-unfolded", "cka", "tsne", "attention"])
def test_pictures_are_drawn_and_are_the_same_every_time(name, runs, tmp_path, capsys):
    args = [name.partition("-")[0], *map(str, pictures(runs)[name])]
    for file in ("a.svg", "b.svg", "new/a.png"):
        assert main(["inspect", *args, "--output", str(tmp_path / file)]) == 0
        assert capsys.readouterr().out == f"wrote {tmp_path / file}\n"
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert text.startswith("<svg") and "<dc:date>" not in text
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert np.asarray(Image.open(tmp_path / "new/a.png").convert("L")).std() > 10


def test_bad_requests_get_one_line(runs, tmp_path, capsys, monkeypatch):
    run, out = runs / "lora", ("--output", tmp_path / "a.svg")
    assert "did you mean cka" in refused(capsys, "ckaa", run, *out)
    assert "what" in refused(capsys)
    assert "--output FILE.svg or --json" in refused(capsys, "cka", run)
    assert "must end in .svg or .png" in refused(capsys, "cka", run, "--output", "a.gif")
    assert "holds no adapter" in refused(capsys, "parameters", tmp_path, *out)
    assert "'nothing*'" in refused(capsys, "parameters", run, "--match", "nothing*", *out)
    assert "--count must be" in refused(capsys, "cka", run, "--count", "0", *out)
    assert "same folder name" in refused(capsys, "tsne", run, run, *out)
    image = runs / "images/test/red/0.png"
    attention = ("attention", run, *out, "--images")
    assert "no such file" in refused(capsys, *attention, tmp_path / "none.png")
    assert "expected 0 to 5" in refused(capsys, *attention, image, "--blocks", "6")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert 'pip install "lowtide[plots]"' in refused(capsys, "cka", run, *out)
    assert not list(tmp_path.iterdir())


def test_every_view_explains_itself(capsys):
    for view in ("parameters", "cka", "tsne", "attention"):
        with pytest.raises(SystemExit) as stop:
            main(["inspect", view, "--help"])
        assert stop.value.code == 0
        assert f"lowtide inspect {view}" in capsys.readouterr().out
