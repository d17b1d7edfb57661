"""The space that the registry's options declare, and a search over it."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from tinted import write_tinted

import lowtide
from lowtide import METHODS
from lowtide.evolution import Search, search
from lowtide.evolution.registry import METHOD, axes, every_method
from lowtide.planning.simulate import plan
from lowtide.training.config import RunConfig

MODEL = "vit_micro_patch4_32"
SPACE = every_method()


def test_every_method_is_in_the_space_and_its_options_say_what_is_chosen() -> None:
    assert set(SPACE.methods) == set(METHODS)
    lora = axes(METHODS["lora"])
    assert lora["rank"] == (2, 4, 8, 16, 32)
    assert ["qkv"] in lora["roles"] and ["qkv", "proj", "fc1", "fc2"] in lora["roles"]
    assert axes(METHODS["vpt"])["depth"] == ("deep", "shallow")
    assert axes(METHODS["adapter"])["positions"] == ("mlp", "both")
    assert not {"alpha", "dropout"} & lora.keys()


def test_what_is_drawn_changed_or_crossed_is_a_method_or_is_refused() -> None:
    rng = random.Random(0)
    drawn = [SPACE.draw(rng) for _ in range(400)]
    assert set(Counter(g[METHOD] for g in drawn)) == set(METHODS)
    made = 0
    for one, other in zip(drawn, drawn[1:], strict=False):
        for genes in (one, SPACE.mutate(one, rng), SPACE.cross(one, other, rng)):
            assert genes.keys() == {METHOD, *SPACE.methods[genes[METHOD]]}
            assert all(genes[n] in v for n, v in SPACE.methods[genes[METHOD]].items())
            assert json.loads(json.dumps(genes)) == genes
            try:
                made += isinstance(SPACE.method(genes), METHODS[genes[METHOD]])
            except (ValueError, lowtide.errors.InputError):
                continue
    assert made > 1000


def test_two_of_one_method_share_their_options_out() -> None:
    rng = random.Random(1)
    one = {METHOD: "lora", "rank": 2, "roles": ["qkv"]}
    other = {METHOD: "lora", "rank": 32, "roles": ["fc1"]}
    children = {(c["rank"], *c["roles"]) for c in (SPACE.cross(one, other, rng) for _ in range(50))}
    assert len(children) == 4
    child = SPACE.cross(one, {METHOD: "bias"}, rng)
    assert child in (one, {METHOD: "bias"})


@pytest.mark.slow
def test_a_search_over_methods_stays_within_its_limits_and_goes_on(tmp_path, monkeypatch) -> None:
    data = write_tinted(tmp_path / "d", {"train": 4, "val": 3, "test": 2})
    config = RunConfig(MODEL, str(data), batch_size=6, device="cpu", epochs=1)
    peak = plan(MODEL, METHODS["lora"](), step=config, num_classes=3).peak_bytes
    few = Search(
        over="methods",
        most_trained=50_000,
        most_memory=str(peak),
        generations=2,
        population=3,
        parents=2,
        mutants=1,
        crossovers=1,
        trial_epochs=1,
    )
    found = search(config, tmp_path / "s", few)
    content = json.loads((tmp_path / "s" / "generations.json").read_text())
    every = [c for g in content["generations"] for c in g]
    assert len(every) == 6
    for c in every:
        planned = plan(MODEL, SPACE.method(c["genes"]), step=config, num_classes=3)
        assert c["cost"]["peak_bytes"] == planned.peak_bytes <= peak
        own = c["cost"]["trained"]
        assert own == planned.trainable_parameters - 3 * 193 <= 50_000
    assert found == replace(
        config, method=SPACE.method(content["best"]["genes"]), train_on_val=True, keep="last"
    )
    monkeypatch.setattr(lowtide.evolution.trials, "train", None)  # every score is known
    assert search(config, tmp_path / "s", few) == found
