"""The one command for a GPU, as far as it goes without one: its rows, its time, its page."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
if not (ROOT / "benchmarks" / "gpu").is_dir():
    pytest.skip("runs in a checkout only", allow_module_level=True)
sys.path.insert(0, str(ROOT))
from benchmarks.gpu import count, page, works  # noqa: E402
from benchmarks.gpu.__main__ import PAGE, ROWS, main, measure, read_rows  # noqa: E402
from benchmarks.gpu.parts import PARTS, Row, files_with_gpu_tests, rows_of  # noqa: E402
from benchmarks.gpu.works import Setting  # noqa: E402
from lowtide.ops import attention  # noqa: E402


def counted(calls: list[str], part: str, name: str, seconds: float = 0.0) -> Row:
    return Row(part, name, seconds, lambda setting: calls.append(name) or {"ms": 1.0})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_smoke_really_runs_rows_of_every_part(tmp_path, capsys) -> None:
    given = ["--device", "cpu", "--smoke", "--rows", str(tmp_path / "r.jsonl")]
    given += ["--page", str(tmp_path / "gpu.md")]
    main(given)
    rows = read_rows(tmp_path / "r.jsonl")
    assert {r["part"] for r in rows} == set(PARTS)
    assert not [r for r in rows if "failed" in r]
    by_name = {r["row"]: r for r in rows}
    for name in ("affine, 4 bits", "gelu and its codes, bf16", "a weight in nf4"):
        assert by_name[name]["same bits"]
    assert by_name["layer norm, fp32"]["difference"] < 1e-5
    assert by_name["attention, heads of 8, plain, fp32"]["kernel"] == "FLASH_ATTENTION"
    assert "3 passed" in by_name["tests/gpu/test_on_a_card.py"]["passed"]
    assert by_name["gradients of tight"]["cosine to the CPU"] == pytest.approx(1, abs=1e-5)
    text = (tmp_path / "gpu.md").read_text()
    assert "Machine(" in text and "to exact" in text and "Not measured" not in text
    capsys.readouterr()
    main(given)
    assert "0 rows measured, 0 left" in capsys.readouterr().out
    assert read_rows(tmp_path / "r.jsonl") == rows


def test_rows_are_kept_as_they_end_and_not_measured_again(tmp_path) -> None:
    calls: list[str] = []
    rows = [counted(calls, "steps", n) for n in "abc"]

    def stopped(setting: Setting) -> dict:
        raise KeyboardInterrupt

    path, setting = tmp_path / "r.jsonl", Setting("cpu")
    with pytest.raises(KeyboardInterrupt):
        measure([rows[0], Row("steps", "b", 0, stopped), rows[2]], setting, path, 60)
    assert [r["row"] for r in read_rows(path)] == ["a"]
    with path.open("a") as file:
        file.write('{"card": "cpu", "row": "b", "ha')  # a line that a kill cut off
        file.write("\n")
    assert measure(rows, setting, path, 60) == (2, 0)
    assert calls == ["a", "b", "c"]


def test_a_row_is_begun_only_if_its_time_is_left_and_a_failure_stops_no_other(tmp_path) -> None:
    calls: list[str] = []
    path = tmp_path / "r.jsonl"

    def bad(setting: Setting) -> dict:
        raise ValueError("out of luck\nand more")

    rows = [counted(calls, "steps", "long", 600), Row("steps", "bad", 0, bad)]
    rows.append(counted(calls, "steps", "short", 1))
    assert measure(rows, Setting("cpu"), path, 60) == (2, 1)
    assert calls == ["short"]
    assert read_rows(path)[0]["failed"] == "ValueError: out of luck"


def test_what_failed_is_tried_again_last_and_what_is_too_large_is_not(tmp_path) -> None:
    calls: list[str] = []
    path, setting = tmp_path / "r.jsonl", Setting("cpu")

    def unlucky(setting: Setting) -> dict:
        calls.append("unlucky")
        if len(calls) == 1:
            raise ValueError("out of luck")
        return {"ms": 2.0}

    def large(setting: Setting) -> dict:
        calls.append("large")
        raise torch.OutOfMemoryError("CUDA out of memory")

    rows = [Row("steps", "unlucky", 0, unlucky), Row("steps", "large", 0, large)]
    assert measure(rows, setting, path, 60) == (2, 0)
    assert measure([*rows, counted(calls, "steps", "new")], setting, path, 60) == (2, 0)
    assert calls == ["unlucky", "large", "new", "unlucky"]
    assert measure(rows, setting, path, 60) == (0, 0)
    text = page.render(read_rows(path))
    assert "out of luck" not in text and text.count("| unlucky |") == 1 and "| large |" in text


def test_a_row_that_takes_longer_than_there_is_time_is_cut_off(tmp_path) -> None:
    slow = Row("steps", "slow", 0, lambda setting: time.sleep(60) or {})
    start = time.monotonic()
    assert measure([slow], Setting("cpu"), tmp_path / "r.jsonl", 0.2) == (1, 0)
    assert time.monotonic() - start < 30
    failed = read_rows(tmp_path / "r.jsonl")[0]["failed"]
    assert failed == "TimeoutError: cut off at the end of the time"


def test_tests_that_need_a_card_are_rows_and_a_fault_in_one_is_named(tmp_path, monkeypatch) -> None:
    files = files_with_gpu_tests()
    assert {"tests/gpu/test_on_a_card.py", "tests/kernels/test_triton.py"} <= set(files)
    assert {r.name for r in rows_of() if r.part == "tests"} == set(files)
    monkeypatch.setattr(works, "REPOSITORY", tmp_path)
    (tmp_path / "test_a.py").write_text("def test_cpu():\n    assert False, 'broken'\n")
    with pytest.raises(AssertionError, match=r"FAILED test_a\.py::test_cpu"):
        works.tests("test_a.py", Setting("cpu"))


def test_every_row_has_a_name_of_its_own_and_parts_take_turns() -> None:
    rows = rows_of()
    assert len({r.name for r in rows}) == len(rows)
    assert [r.part for r in rows[: len(PARTS)]] == list(PARTS)
    first = next(r for r in rows if r.part == "steps")
    assert first.name == "vit_base_patch16_224, lora, batch 32, bf16: exact"


def test_without_a_card_it_refuses_and_the_page_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="there is no CUDA card here; nothing was measured"):
        main(["--rows", str(tmp_path / "r.jsonl"), "--page", str(tmp_path / "gpu.md")])
    assert not (tmp_path / "gpu.md").exists()
    assert "Nothing on this page was measured" in page.render([])


def test_a_step_is_counted_as_a_gpu_runs_it_and_nothing_stays_so() -> None:
    ways = {n: count.row("vit_micro_patch4_32", 4, "no", count.WAYS[n]) for n in ("exact", "codes")}
    assert ways["codes"]["peak MiB"] < ways["exact"]["peak MiB"]
    assert ways["codes"]["TFLOP"] < 1.1 * ways["exact"]["TFLOP"]
    assert ways["exact"]["ms of the card"] < ways["exact"]["ms"]
    with count.as_on_a_gpu():
        assert attention.FUSED == {"cpu"}
    assert attention.FUSED == {"cuda"}


def test_the_page_is_that_of_the_rows() -> None:
    assert PAGE.read_text() == page.render(read_rows(ROWS))


def test_ratios_are_to_the_exact_step_of_the_same_card() -> None:
    def row(card: str, name: str, ms: float) -> dict:
        return {"card": card, "torch": "2", "part": "steps", "row": f"m, batch 1: {name}", "ms": ms}

    rows = [row("x", "exact", 10.0), row("x", "tight", 11.0), row("y", "tight", 50.0)]
    text = page.render(json.loads(json.dumps(rows)))
    assert "| m, batch 1: tight | 11 | 1.10 |" in text and "5.00" not in text
