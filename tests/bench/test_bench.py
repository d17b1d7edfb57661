"""Suites: what is run, what is chosen, what is kept, and what is refused."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from tinted import write_tinted

from lowtide import InputError
from lowtide.bench import Suite, read_results, run_suite
from lowtide.bench.suite import SuiteFile, read_suite_file
from lowtide.cli import main
from lowtide.training import feature_store
from lowtide.training.config import RunConfig, read_yaml

OLD = Path(__file__).parents[2] / "results"

SUITE = {
    "defaults": {
        "model": "vit_micro_patch4_32",
        "epochs": 1,
        "batch_size": 8,
        "warmup_epochs": 0,
        "weight_decay": 1e-4,
        "device": "cpu",
    },
    "data": {"tints": {"data": "$TINTS", "group": "natural"}},
    "methods": {
        "linear": "linear",
        "LoRA, r=2": {"method": {"name": "lora", "rank": 2}, "lr": [1e-3, "1e-2"]},
    },
    "lr": 1e-3,
    "seeds": [0, 1],
}


@pytest.fixture(scope="module")
def tints(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    return write_tinted(root, {"train": 8, "val": 4, "test": 6})


@pytest.fixture
def write(tmp_path, tints, monkeypatch):
    monkeypatch.setenv("TINTS", str(tints))

    def write(**changes):
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({**SUITE, **changes}, sort_keys=False))
        return path

    return write


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tints):
    """A finished suite; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "small.yaml").write_text(yaml.safe_dump(SUITE, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINTS", str(tints))
        assert run_suite(Suite.read(folder / "small.yaml"), folder / "out") == []
    return folder / "out"


def summaries(folder):
    return {
        str(p.parent.relative_to(folder)): json.loads(p.read_text())
        for p in sorted(folder.glob("**/summary.json"))
    }


def test_a_rate_is_chosen_on_val_and_the_result_is_learnt_on_all_but_test(finished):
    rows = summaries(finished)
    searches = {n: s for n, s in rows.items() if "search" in n}
    tests = {n: s for n, s in rows.items() if "search" not in n}
    assert set(searches) == {f"tints/LoRA-r=2/search-lr{lr}-seed0" for lr in ("0.001", "0.01")}
    for summary in searches.values():
        assert summary["test_accuracy"] is None
        assert summary["test_confusion"] == []
        assert (summary["data"]["train"], summary["data"]["val"]) == (24, 12)
    best = max(searches.values(), key=lambda s: s["val_accuracy"])["config"]["lr"]
    assert set(tests) == {
        *(f"tints/linear/lr0.001-seed{s}" for s in (0, 1)),
        *(f"tints/LoRA-r=2/lr{best:g}-seed{s}" for s in (0, 1)),
    }
    for summary in tests.values():
        assert summary["val_accuracy"] is None
        assert (summary["data"]["train"], summary["data"]["val"]) == (36, 0)
        assert sum(count for *_, count in summary["test_confusion"]) == 18


def test_a_row_says_all_that_its_result_depends_on(finished):
    row = summaries(finished)["tints/linear/lr0.001-seed1"]
    assert RunConfig.from_dict(row["config"]).seed == 1
    assert row["config"]["data"] == "$TINTS"
    assert row["environment"].keys() >= {"lowtide", "torch", "timm", "commit", "device", "finished"}
    assert len(row["data"]["fingerprint"]) == 64
    assert row["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert row["planned"]["peak_bytes"] == row["measured_peak_bytes"]
    assert row["step_seconds"] > 0


def test_results_are_read_back_in_the_order_of_the_suite(finished):
    linear, lora = read_results(finished)
    assert (linear.label, lora.label) == ("linear", "LoRA, r=2")
    assert (linear.data, linear.group, linear.suite) == ("tints", "natural", "out")
    rows = summaries(finished)
    each = [rows[f"tints/linear/lr0.001-seed{s}"]["test_accuracy"] for s in (0, 1)]
    assert linear.accuracies == each
    assert linear.accuracy == pytest.approx(np.mean(each))
    assert linear.spread == pytest.approx(np.std(each, ddof=1))
    assert linear.searched == {}
    assert lora.searched == {
        lr: rows[f"tints/LoRA-r=2/search-lr{lr:g}-seed0"]["val_accuracy"] for lr in (1e-3, 1e-2)
    }
    assert lora.rate == max(lora.searched, key=lora.searched.get)


def test_runs_of_no_suite_are_results_too(finished):
    found = read_results(finished / "tints" / "linear")
    assert len(found) == 1
    assert found[0].label == "linear"
    assert len(found[0].runs) == 2


def test_only_what_is_missing_is_run(finished, write, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    gone = out / "tints/LoRA-r=2/search-lr0.01-seed0/summary.json"
    gone.unlink()
    (gone.parent / "config.yaml").unlink()
    before = {p: p.stat().st_mtime_ns for p in out.glob("**/summary.json")}
    methods = {**SUITE["methods"], "bias": "bias"}
    assert main(["bench", str(write(methods=methods)), "--output", str(out)]) == 0
    after = {p: p.stat().st_mtime_ns for p in out.glob("**/summary.json")}
    assert all(after[p] == time for p, time in before.items())
    fresh = {str(p.parent.relative_to(out)) for p in after.keys() - before.keys()}
    assert fresh == {
        "tints/LoRA-r=2/search-lr0.01-seed0",
        *(f"tints/bias/lr0.001-seed{s}" for s in (0, 1)),
    }


def test_rows_find_the_features_of_earlier_ones(write, tmp_path, monkeypatch):
    """Two seeds and two methods on the same features: each image is computed once."""
    counts, computed = [], feature_store.features
    monkeypatch.setattr(
        feature_store, "features", lambda t, n, x: counts.append(len(x)) or computed(t, n, x)
    )
    cached = {name: {"method": name, "cache_features": True} for name in ("linear", "mlp_head")}
    suite = write(methods={**cached, "bias": "bias"})
    out, kept = tmp_path / "out", tmp_path / "kept"
    assert main(["bench", str(suite), "--output", str(out), "--keep-features", str(kept)]) == 0
    (folder,) = kept.iterdir()
    assert sum(counts) == len(json.loads((folder / "index.json").read_text()))
    assert sum(len(r.runs) for r in read_results(out)) == 6


def test_a_row_that_fails_stops_no_other_and_is_tried_again(write, tmp_path, capsys):
    methods = {"DTL": {"method": {"name": "dtl", "start_block": 99}}, "linear": "linear"}
    path, out = write(methods=methods, seeds=[0]), tmp_path / "out"
    assert main(["bench", str(path), "--output", str(out)]) == 1
    assert "1 rows failed, first" in capsys.readouterr().err
    broken, fine = read_results(out)
    assert fine.accuracy is not None
    assert broken.accuracy is None
    (why,) = broken.failed.values()
    assert "dtl starts at block 99" in why
    methods["DTL"]["method"]["start_block"] = 4
    assert main(["bench", str(write(methods=methods, seeds=[0])), "--output", str(out)]) == 0
    assert read_results(out)[0].failed == {}


def test_rows_that_were_run_otherwise_are_not_mixed_in(finished, write):
    suite = Suite.read(write(defaults={**SUITE["defaults"], "batch_size": 4}))
    with pytest.raises(InputError, match="was run with batch_size 8 and the suite says 4"):
        run_suite(suite, finished)


def test_a_row_may_be_older_than_an_option(finished, write, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    for path in out.glob("**/summary.json"):
        summary = json.loads(path.read_text())
        del summary["config"]["ema"]
        path.write_text(json.dumps(summary))
    before = {p: p.stat().st_mtime_ns for p in out.glob("**/summary.json")}
    assert run_suite(Suite.read(write()), out) == []
    assert before == {p: p.stat().st_mtime_ns for p in out.glob("**/summary.json")}
    with pytest.raises(InputError, match=r"was run with ema 0.0 and the suite says 0.5"):
        run_suite(Suite.read(write(defaults={**SUITE["defaults"], "ema": 0.5})), out)


def test_what_a_memory_budget_decided_is_no_other_option(write, tmp_path):
    path = write(methods={"bias": {"method": "bias", "memory_budget": "30MiB"}}, seeds=[0])
    assert run_suite(Suite.read(path), tmp_path / "out") == []
    (result,) = read_results(tmp_path / "out")
    assert result.runs[0].measured_peak_bytes <= 30 * 2**20
    assert run_suite(Suite.read(path), tmp_path / "out") == []


def test_each_row_may_use_several_processes(write, tmp_path):
    path = write(methods={"linear": "linear"}, seeds=[0])
    assert run_suite(Suite.read(path), tmp_path / "out", processes=2) == []
    (result,) = read_results(tmp_path / "out")
    assert result.runs[0].environment.processes == 2
    assert sum(count for *_, count in result.runs[0].test_confusion) == 18


# Ray leaves log files open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_rows_run_on_a_ray_cluster(finished, write, tmp_path):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        suite = Suite.read(write(methods={"linear": "linear"}))
        assert run_suite(suite, tmp_path / "out", launcher="ray") == []
    finally:
        ray.shutdown()
        gc.collect()
    rows = summaries(tmp_path / "out")
    assert set(rows) == {f"tints/linear/lr0.001-seed{s}" for s in (0, 1)}
    for name, row in rows.items():
        alone = summaries(finished)[name]["history"][0]["train_loss"]
        assert row["history"][0]["train_loss"] == pytest.approx(alone, abs=1e-4)


def test_a_preset_may_name_the_data(write):
    methods = {"DTL": {"preset": "dtl/vtab/{data}", "batch_size": 16}}
    path = write(
        methods=methods,
        data={"cifar": "$TINTS", "svhn": "$TINTS"},
        defaults={"model": "vit_base_patch16_224"},
    )
    suite = Suite.read(path)
    configs = [next(iter(cell.tests.values()))[0].config for cell in suite.cells]
    assert [c.preset for c in configs] == ["dtl/vtab/cifar", "dtl/vtab/svhn"]
    assert {(c.epochs, c.batch_size) for c in configs} == {(110, 16)}


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"method": {}}, "unknown key of a suite 'method': did you mean methods"),
        ({"methods": []}, "methods is [], not a mapping"),
        ({"methods": {}}, "methods must map names to options"),
        ({"data": {True: "x"}}, "data must have names of text, not True"),
        ({"data": {"x" * 101: "x"}}, "is longer than 100 bytes"),
        ({"methods": {"x": "lorra"}}, "x on tints: unknown method 'lorra': did you mean lora"),
        ({"methods": {"x": {"rank": 2}}}, "x on tints: unknown option 'rank'"),
        ({"seeds": 3}, "seeds is 3, not a list"),
        ({"seeds": []}, "seeds must hold one whole number at least"),
        ({"seeds": [1, 1]}, "seeds holds 1 twice"),
        ({"seeds": ["a"]}, "seeds.0 is 'a', not a whole number"),
        ({"schema": 2}, "is a suite of schema 2, and this lowtide reads those up to 1"),
        ({"schema": "x"}, "schema is 'x', not a whole number"),
        ({"lr": "fast"}, "lr must be a number above 0"),
        ({"methods": {"a b": "linear", "a, b": "bias"}}, "a b and a, b share a folder name"),
        (
            {"data": {"x": "$NO_SUCH_PLACE/x"}},
            "$NO_SUCH_PLACE/x: the environment variable $NO_SUCH_PLACE is not set",
        ),
    ],
)
def test_a_suite_that_cannot_work_is_refused_before_anything_runs(
    write, tmp_path, capsys, changes, complaint
):
    assert main(["bench", str(write(**changes)), "--output", str(tmp_path / "out")]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", sorted(OLD.glob("*/suite.yaml")), ids=lambda p: p.parent.name)
def test_a_suite_of_an_earlier_version_opens(folder):
    """Those of the committed results were written before files said their schema."""
    content = read_yaml(folder)
    assert "schema" not in content
    suite = read_suite_file(folder)
    assert suite.schema == 1 and suite.to_dict() == content
    assert SuiteFile.from_dict(suite.to_dict()) == suite


def test_an_unknown_launcher_is_named(write, tmp_path):
    with pytest.raises(InputError, match="unknown launcher 'slurm': known: local, ray"):
        run_suite(Suite.read(write()), tmp_path / "out", launcher="slurm")
