"""The report's numbers against others of the same rows, its words, and what it refuses."""

from __future__ import annotations

import base64
import csv
import html
import io
import itertools
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reported import summary, write_row, write_suite
from scipy import stats

from lowtide import METHODS as METHOD
from lowtide import InputError
from lowtide.bench import Suite
from lowtide.cli import main
from lowtide.data.vtab import GROUPS, TASKS, vtab_averages
from lowtide.methods.lora import LoRA
from lowtide.paths import read_json
from lowtide.report import Section, gather, write_report
from lowtide.report.compare import averages, front, judge, p_value, warnings
from lowtide.report.confusion import (
    MOST,
    class_accuracy,
    class_table,
    confusion,
    heat_map,
    pairs_table,
)
from lowtide.report.plots import Point, pareto
from lowtide.report.provenance import command
from lowtide.report.tables import boards
from lowtide.training.config import RunConfig
from lowtide.training.mistakes import MISTAKES, read_mistakes
from lowtide.training.summary import read_summary

METHODS = ("bias", "LoRA, r=2", "s2a")
DATA = {"dtd": "natural", "svhn": "natural", "kitti": "structured"}


@pytest.fixture
def rights():
    rng = np.random.default_rng(0)
    centre = {m: c for m, c in zip(METHODS, (150, 153, 190), strict=True)}
    return {
        (m, d): [int(v) for v in centre[m] + rng.integers(-5, 6, 3)] for d in DATA for m in METHODS
    }


def report(folder, name, *more):
    """Write a report of a folder; give its text."""
    output = folder.parent / name
    assert main(["report", str(folder), "--output", str(output), *more]) == 0
    return output.read_text()


def markdown_tables(text):
    """Tables by the heading above them, as lists of rows of text."""
    found, heading = {}, ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.strip("# ")
        elif line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            plain = [html.unescape(re.sub(r"\\(.)", r"\1", c.strip())) for c in cells]
            found.setdefault(heading, []).append(plain)
    return {h: [rows[0], *rows[2:]] for h, rows in found.items()}


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of some."""

    def __init__(self, text):
        super().__init__()
        self.found, self.words, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"script", "style"}:
            self.words.append(data)


def test_tables_hold_mean_spread_best_and_marks(tmp_path, rights):
    text = report(write_suite(tmp_path / "suite", rights, DATA), "report.md")
    tables = markdown_tables(text)
    means = {k: np.mean(v) / 2 for k, v in rights.items()}
    for data, group in DATA.items():
        best = max(METHODS, key=lambda m: means[m, data])
        table = tables[f"{data} ({group})"]
        assert [r[0] for r in table[1:]] == sorted(METHODS, key=lambda m: -means[m, data])
        for label, accuracy, trained, planned, measured, time, rate, seeds in table[1:]:
            shown = f"{means[label, data]:.1f} ± {np.std(rights[label, data], ddof=1) / 2:.1f}"
            p = stats.ttest_ind(rights[label, data], rights[best, data], equal_var=False).pvalue
            close = " ≈" if p >= 0.05 else ""
            assert accuracy == (f"**{shown}**" if label == best else shown + close)
            assert (trained, planned, measured) == ("1,040", "6.0", "7.0")
            assert (time, rate, seeds) == ("250.0", "0.001", "3")
    head, *rows = tables["All data sets"]
    assert head[1:] == [
        "natural: dtd",
        "natural: svhn",
        "structured: kitti",
        "averages: mean of groups",
        "averages: mean of data sets",
    ]
    for label, *_, of_groups, of_data in rows:
        dtd, svhn, kitti = (means[label, d] for d in DATA)
        assert of_groups == f"{((dtd + svhn) / 2 + kitti) / 2:.1f}"
        assert of_data == f"{(dtd + svhn + kitti) / 3:.1f}"
        assert not of_data.startswith("**")  # no mean was tested against another


def test_a_method_alone_is_not_the_best_of_several(tmp_path):
    folder = write_suite(tmp_path / "suite", {("LoRA", "dtd"): [150, 151]})
    _, row = markdown_tables(report(folder, "report.md"))["dtd (natural)"]
    assert row[1] == "75.2 ± 0.4"


def test_means_are_of_what_was_tested_everywhere(tmp_path, rights):
    """No mean of groups where a data set is in none; no mean of a method with a gap."""
    rows = {(m, d.replace("kitti", "mine")): right for (m, d), right in rights.items()}
    rows["s2a", "mine"] = []
    folder = write_suite(tmp_path / "suite", rows)  # VTAB-1k's groups need not be given
    head, *rows = markdown_tables(report(folder, "report.md"))["All data sets"]
    assert head[-1] == "averages: mean of data sets" and "mean of groups" not in "".join(head)
    assert [r[-1] == "" for r in rows] == [False, False, True]
    assert rows[-1][0] == "s2a" and rows[-1][3] == "unfinished"


def test_some_methods_are_close_and_some_are_not(tmp_path, rights):
    """The table test sees both kinds of mark."""
    entries = gather([write_suite(tmp_path / "suite", rights, DATA)])
    verdicts = [judge([e for e in entries if e.data == d and e.label != "s2a"]) for d in DATA]
    far = judge([e for e in entries if e.data == "dtd"])
    assert any(v.close for judged in verdicts for v in judged.values())
    assert not far["bias"].close and not far["s2a"].close and far["s2a"].best


def test_both_averages_are_those_of_vtab():
    rng = np.random.default_rng(1)
    values = {t.name: float(rng.random()) for t in TASKS}
    assert averages(values, {t.name: t.group for t in TASKS}) == pytest.approx(
        vtab_averages(values)
    )
    assert {t.group for t in TASKS} == set(GROUPS)


def test_seeds_are_compared_by_welch(tmp_path):
    rows = {("a", "digits"): [120, 160, 140, 131, 155], ("b", "digits"): [160, 161]}
    p, test = p_value(*gather([write_suite(tmp_path / "suite", rows)]))
    a, b = (np.array(r) / 200 for r in rows.values())
    va, vb = a.var(ddof=1) / 5, b.var(ddof=1) / 2
    degrees = (va + vb) ** 2 / (va**2 / 4 + vb**2 / 1)
    assert p == pytest.approx(2 * stats.t.sf(abs(a.mean() - b.mean()) / (va + vb) ** 0.5, degrees))
    assert test.startswith("Welch")


@pytest.mark.parametrize(("one", "other"), [(100, 120), (180, 184), (199, 200)])
def test_one_seed_is_tested_on_its_images(tmp_path, one, other):
    rows = {("a", "digits"): [one], ("b", "digits"): [other]}
    a, b = gather([write_suite(tmp_path / "suite", rows)])
    table = [[one, 200 - one], [other, 200 - other]]
    wanted = stats.chi2_contingency(table, correction=False).pvalue
    p, test = p_value(a, b)
    assert p == pytest.approx(wanted)
    assert "proportions" in test


def test_seeds_that_agree_to_the_image_are_tested_on_the_images(tmp_path):
    rows = {("a", "digits"): [150, 150], ("b", "digits"): [150, 150]}
    a, b = gather([write_suite(tmp_path / "suite", rows)])
    assert p_value(a, b) == (1.0, "z-test of two proportions on the test images")
    assert all(v.best for v in judge([a, b]).values())


def test_the_front_is_what_none_beats():
    rng = np.random.default_rng(2)
    points = [tuple(map(float, p)) for p in rng.integers(0, 12, (40, 2))]
    beaten = {
        i
        for (i, (cost, value)), (other_cost, other_value) in itertools.product(
            enumerate(points), points
        )
        if other_cost <= cost
        and other_value >= value
        and (other_cost, other_value) != (cost, value)
    }
    kept = front(points)
    assert {points[i] for i in kept} == {points[i] for i in range(40) if i not in beaten}
    assert sorted(kept, key=lambda i: points[i]) == kept


def test_confusion_is_summed_over_seeds(tmp_path, rights):
    entries = gather([write_suite(tmp_path / "suite", rights, DATA)])
    for e in entries:
        counts = confusion(e)
        assert sum(counts.values()) == 600
        assert sum(n for (i, j), n in counts.items() if i == j) == sum(rights[e.label, e.data])
        mean = np.mean(list(class_accuracy(counts).values()))
        assert mean == pytest.approx(e.accuracy)  # classes of one size


def test_what_failed_or_is_unfinished_is_shown_with_its_reason(tmp_path):
    rows = {("a", "digits"): [150, 151, 152], ("b", "digits"): [190, None], ("c", "digits"): [120]}
    folder = write_suite(tmp_path / "suite", rows)
    text = report(folder, "report.md")
    table = {r[0]: r for r in markdown_tables(text)["digits"][1:]}
    assert table["a"][-1] == "3" and table["b"][-1] == table["c"][-1] == "1 of 3"
    assert "b: 1 row failed: LowtideError: the loss is nan" in text
    assert "c: 1 of 3 seeds finished" in text
    page = html.unescape(report(folder, "report.html"))
    assert "b: 1 row failed: LowtideError: the loss is nan" in page
    seeds = [r["seeds"] for r in csv.DictReader(report(folder, "r.csv").splitlines())]
    assert seeds == ["3", "3", "3", "1 of 3", "1 of 3"]


def test_a_rate_that_is_not_chosen_yet_is_said(tmp_path):
    rows = {("a", "digits"): [150], ("b", "digits"): [120]}
    folder = write_suite(tmp_path / "suite", rows, lr=[1e-3, 1e-2])
    cell = Suite.read(folder).cells[1]
    shutil.rmtree(folder / cell.searches[1e-2].folder)
    text = report(folder, "report.md")
    assert "b: learning rate not chosen yet, 1 tried" in text
    assert dict(r[:2] for r in markdown_tables(text)["digits"][1:])["b"] == "unfinished"


def test_csv_holds_every_number_in_full(tmp_path, rights):
    folder = write_suite(tmp_path / "suite", rights, DATA, lr=[1e-3, 1e-2])
    lines = list(csv.DictReader(report(folder, "report.csv").splitlines()))
    assert len(lines) == 27
    for line in lines:
        kept = json.loads((Path(line["folder"]) / "summary.json").read_text())
        config = RunConfig.from_dict(kept["config"])
        right = rights[line["method"], line["data"]][int(line["seed"])]
        assert float(line["test_accuracy"]) == right / 200 == kept["test_accuracy"]
        assert float(line["lr"]) == config.lr == 1e-2
        assert int(line["planned_peak_bytes"]) == 6 << 20
        assert json.loads(line["preprocessing"]) == kept["preprocessing"]
        assert json.loads(line["rates_tried"]) == {"0.001": 0.25, "0.01": 0.255}
        assert line["group"] == DATA[line["data"]] and line["commit"] == "0123456789ab"


def rewritten(folder, label, change):
    """Change the summaries of one method."""
    for path in sorted(folder.glob(f"*/{label}/*/summary.json")):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["data"].update(fingerprint="cd" * 32), "data fingerprint"),
        (lambda s: s["preprocessing"].update(size=[64, 64]), "pre-processing"),
        (lambda s: s["environment"].update(threads=8), "threads"),
        (lambda s: s["config"].update(batch_size=64), "batch size"),
    ],
)
def test_rows_that_do_not_compare_are_named(tmp_path, rights, change, said):
    rows = {k: v for k, v in rights.items() if k[1] == "dtd"}
    folder = write_suite(tmp_path / "suite", rows)
    assert not warnings(gather([folder]))
    rewritten(folder, "bias", change)
    (warning,) = warnings(gather([folder]))
    assert said in warning and warning.endswith(": bias")
    assert warning in report(folder, "report.md")
    assert warning in html.unescape(report(folder, "report.html"))


def test_splits_drawn_by_the_seed_are_no_reason_to_warn(tmp_path, rights):
    folder = write_suite(tmp_path / "suite", rights)
    rewritten(folder, "*", lambda s: s["data"].update(fingerprint=f"{s['config']['seed']:064d}"))
    entries = gather([folder])
    assert not [w for d in DATA for w in warnings([e for e in entries if e.data == d])]


def test_methods_of_one_name_are_told_apart(tmp_path, rights):
    first = write_suite(tmp_path / "first", rights)
    second = write_suite(tmp_path / "second", rights)
    assert {e.label for e in gather([first, second])} == {
        f"{m} ({s})" for m in METHODS for s in ("first", "second")
    }
    assert gather([tmp_path]) == gather([first, second])
    for lr, rank in ((1e-3, 2), (1e-2, 2), (1e-3, 4)):
        given = {"name": "lora", "rank": rank}
        config = RunConfig.from_dict({"model": "m", "data": "/d", "method": given, "lr": lr})
        write_row(tmp_path / "loose" / f"{lr}-{rank}", summary(config, 100))
    assert {e.label for e in gather([tmp_path / "loose"])} == {
        "lora (method.rank 2, lr 0.001)",
        "lora (method.rank 2, lr 0.01)",
        "lora (method.rank 4, lr 0.001)",
    }


def test_each_summary_is_read_once(tmp_path, rights, monkeypatch):
    folder = write_suite(tmp_path / "suite", rights, DATA)
    met = Counter()

    def read(path):
        met[path.resolve()] += 1
        return read_json(path)

    monkeypatch.setattr("lowtide.training.summary.read_json", read)
    gather([folder])
    assert met == Counter(path.resolve() for path in folder.glob("**/summary.json"))


def test_what_users_wrote_stays_text(tmp_path):
    bad = '<script>alert(1)</script> | `x` *y* "&'
    rows = {(bad, "</title><img src=x onerror=alert(2)>"): [100, 101], ("b", "b"): [None]}
    folder = write_suite(tmp_path / "suite", rows, classes=50)
    rewritten(folder, "*", lambda s: s["data"].update(classes=[f"<u>{i}" for i in range(50)]))
    text = report(folder, "report.html", "--title", "<h1>'\"</h1>")
    page = Elements(text)
    assert [t for t, _ in page.found].count("script") == 1
    assert not [a for t, a in page.found if t in {"img", "u"} or any(k[:2] == "on" for k in a)]
    assert bad in " ".join(page.words) and "<h1>'\"</h1>" in page.words
    tables = markdown_tables(report(folder, "report.md"))
    assert all(len(row) == len(rows[0]) for rows in tables.values() for row in rows)
    assert any(row[0] == bad for rows in tables.values() for row in rows)


def test_the_page_needs_nothing_else(tmp_path, rights):
    folder = write_suite(tmp_path / "suite", rights, DATA)
    output = tmp_path / "report.html"
    drawn = "<svg xmlns='http://www.w3.org/2000/svg'><script>alert(3)</script></svg>"
    write_report([folder], output, sections=[Section("features", drawn)])
    page = Elements(output.read_text())
    links = [a.get("src") or a.get("href") for _, a in page.found if "src" in a or "href" in a]
    assert links and all(link[:1] == "#" or link[:5] == "data:" for link in links)
    assert not [t for t, _ in page.found if t in {"iframe", "object", "embed", "base", "form"}]
    ids = [a["id"] for _, a in page.found if "id" in a]
    assert len(ids) == len(set(ids)) and {link[1:] for link in links if link[:1] == "#"} <= set(ids)
    (policy,) = (a["content"] for _, a in page.found if "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert not [a for _, a in page.found if "style" in a]


def refused(capsys, *args):
    """Run a report that must fail; give its one line."""
    assert main(["report", *map(str, args)]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("lowtide: ") and err.count("\n") == 1
    return err


def test_folders_with_nothing_in_them_are_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    output = ("--output", tmp_path / "new" / "report.html")
    for name in ("empty", "missing"):
        assert "holds no suite.yaml and no finished run" in refused(
            capsys, tmp_path / name, *output
        )
    folder = write_suite(tmp_path / "suite", {("a", "digits"): []} | {("a", "d"): [1]})
    shutil.rmtree(folder / "d")
    assert "no row of these suites is finished" in refused(capsys, folder, *output)
    assert not (tmp_path / "new").exists()


def test_other_endings_and_figures_that_are_none_are_refused(tmp_path, capsys, rights):
    folder = write_suite(tmp_path / "suite", rights)
    assert ".html or .md or .csv" in refused(capsys, folder, "--output", tmp_path / "r.pdf")
    gone = tmp_path / "gone.svg"
    assert str(gone) in refused(capsys, folder, "--figures", gone)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("config", None),
        ("config.method.name", 3),
        ("config.seed", "0"),
        ("test_accuracy", "0.9"),
        ("test_accuracy", float("nan")),
        ("planned.parts", {"weights": "1"}),
        ("planned", []),
        ("history", [[1]]),
        ("history", [{"train_loss": "1"}]),
        ("test_confusion", [[0, 9, 1]]),
        ("test_confusion", [[0, 1]]),
        ("test_confusion", [[0, 1, -1]]),
        ("data.classes", {}),
    ],
)
def test_damaged_rows_are_refused_by_what_is_wrong(tmp_path, capsys, rights, place, value):
    folder = write_suite(tmp_path / "suite", rights)

    def damage(content):
        *outer, last = place.split(".")
        for key in outer:
            content = content[key]
        content[last] = value

    rewritten(folder, "bias", damage)
    output = tmp_path / "report.html"
    assert str(folder) in refused(capsys, folder, "--output", output)
    assert not output.exists()


def test_rows_of_older_versions_can_be_reported(tmp_path):
    folder = write_suite(tmp_path / "suite", {("a", "digits"): [100, 101]})

    def older(content):
        del content["test_confusion"], content["measured_peak_bytes"], content["step_seconds"]
        content["config"]["forgotten"] = 1

    rewritten(folder, "a", older)
    text = report(folder, "report.md")
    assert "made by another version: unknown option 'forgotten'" in text
    assert "50.2 ± 0.4" in text
    assert "confusion" not in report(folder, "report.html").partition("<body>")[2]


def confused(tmp_path, counts, classes):
    """Report one row with these test images by true and predicted class."""
    content = summary(RunConfig("m", "/data/d", method=LoRA()), 100)
    content["data"]["classes"] = classes
    content["test_confusion"] = [[t, p, n] for (t, p), n in counts.items()]
    write_row(tmp_path / "row", content)
    return gather([tmp_path])


def test_of_many_classes_the_hardest_are_shown(tmp_path):
    names = [f"c{i}" for i in range(MOST + 20)]
    hard = {i for i in range(len(names)) if i % 3 != 1}
    counts = {(i, i): 5 if i in hard else 9 for i in range(len(names))}
    counts |= {(i, (i + 1) % len(names)): 5 if i in hard else 1 for i in range(len(names))}
    (board,) = boards(confused(tmp_path, counts, names))["m"]
    table = class_table(board)
    shown = [c.name for c in table.columns[1:]]
    assert len(shown) == MOST == len(hard)
    assert shown == [names[i] for i in sorted(hard)]
    assert {cell.value for cell in table.rows[0][1:]} == {0.5}


def test_pairs_say_what_is_taken_for_what(tmp_path):
    counts = {(0, 0): 6, (0, 1): 4, (1, 1): 18, (1, 0): 2, (2, 2): 7, (2, 0): 3}
    (entry,) = confused(tmp_path, counts, ["cat", "dog", "elk"])
    table = pairs_table(entry)
    assert [c.name for c in table.columns] == ["is", "taken for", "images", "% of class"]
    rows = [tuple(cell.text for cell in row) for row in table.rows]
    assert rows == [("cat", "dog", "4", "40"), ("elk", "cat", "3", "30"), ("dog", "cat", "2", "10")]


def test_a_heat_map_has_true_classes_down(tmp_path):
    (entry,) = confused(tmp_path, {(0, 0): 1, (0, 2): 3, (1, 1): 4, (2, 2): 4}, ["a", "b", "c"])
    boxes = re.findall(r"<rect ([^>]*)><title>([^<]*)</title>", str(heat_map(entry)))
    at = {}
    for attributes, title in boxes:
        x, y = (float(re.search(rf'\b{k}="([\d.]+)"', attributes)[1]) for k in "xy")
        at[title.partition(":")[0]] = (x, y)
    first, wrong, last = (at[f"{t} taken for {p}"] for t, p in (("a", "a"), ("a", "c"), ("c", "c")))
    assert wrong[0] == last[0] > first[0]  # predicted across
    assert wrong[1] == first[1] < last[1]  # true down


def test_the_time_of_a_step_is_the_median_of_the_rows(tmp_path):
    folder = write_suite(tmp_path / "s", {("x", "d"): [100, 101, 102]})
    paths = sorted(folder.rglob("summary.json"))
    for path, seconds in zip(paths, (0.1, 9.0, 0.3), strict=True):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "step_seconds": seconds}))
    (entry,) = gather([folder])
    assert entry.seconds == 0.3


def test_names_stand_on_no_line_that_joins_the_best():
    draw = np.random.default_rng(1)
    for _ in range(20):
        points = [
            Point(f"method {i}", float(cost), float(value), "")
            for i, (cost, value) in enumerate(draw.uniform(1, 99, (7, 2)))
        ]
        drawn = str(pareto(points, {p.label: i for i, p in enumerate(points)}, "cost", log=False))
        path = re.search(r'class="pareto" d="M([\d.]+) ([\d.]+)([^"]*)"', drawn)
        x, y = float(path[1]), float(path[2])
        lines = []
        for kind, number in re.findall(r"([HV])([\d.]+)", path[3]):
            to = (float(number), y) if kind == "H" else (x, float(number))
            lines.append((min(x, to[0]), min(y, to[1]), max(x, to[0]), max(y, to[1])))
            x, y = to
        names = re.findall(r'<text class="label" x="([\d.]+)" y="([\d.]+)">([^<]*)<', drawn)
        assert names
        for left, base, name in names:
            box = (float(left), float(base) - 8, float(left) + 6 * len(name), float(base))
            assert not [
                line
                for line in lines
                if line[0] < box[2] and line[2] > box[0] and line[1] < box[3] and line[3] > box[1]
            ]


def test_the_command_says_from_where_its_paths_start(tmp_path):
    for data, there, start in (
        ("photos", "/home/me/my work", "cd '/home/me/my work' && lowtide train"),
        ("/photos", "/home/me", "lowtide train"),
        ("hf:a/b", "/home/me", "lowtide train"),
        ("photos", None, "lowtide train"),
    ):
        content = summary(RunConfig("m", data, method=LoRA()), 100)
        if there:
            content["environment"]["folder"] = there
        write_row(tmp_path / "run", content)
        assert command(read_summary(tmp_path / "run/summary.json")).startswith(start)


def test_other_scores_and_errors_are_shown(tmp_path):
    content = summary(RunConfig("m", "/d", method=LoRA()), 100)
    content |= {"test_scores": {"accuracy": 0.5, "macro_f1": 0.4321, "ece": 0.1}, "temperature": 2}
    folder = write_row(tmp_path / "run", content)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    copy = base64.b64encode(file.getvalue()).decode()
    wrong = {"path": "<b>", "true": "cat", "predicted": "<i>dog", "probability": 0.87}
    (folder / MISTAKES).write_text(json.dumps({"mistakes": [{**wrong, "thumbnail": copy}]}))
    page = report(folder, "report.html")
    assert "macro F1" in page and "0.4321" in page and "AUROC" not in page
    assert f"data:image/jpeg;base64,{copy}" in page and "cat taken for &lt;i&gt;dog, 87 %" in page
    for damage in ({"thumbnail": "PHN2Zz4="}, {"probability": 2}, {"thumbnail": copy * 200}):
        content = {"mistakes": [{**wrong, "thumbnail": copy, **damage}]}
        (folder / MISTAKES).write_text(json.dumps(content))
        with pytest.raises(InputError, match="is damaged: "):
            read_mistakes(folder)


def test_other_tasks_are_compared_by_their_metric(tmp_path):
    for name, value in (("lora", 0.8), ("bias", 0.7)):
        content = summary(RunConfig("m", "/d", method=METHOD[name](), task="regress"), 100)
        content |= {"test_accuracy": None, "val_accuracy": None, "test_confusion": None}
        content |= {"metric": "r2", "test_scores": {"r2": value, "mae": 3.25}}
        write_row(tmp_path / "runs" / name, content)
    text = report(tmp_path / "runs", "report.md")
    (table,) = (rows for rows in markdown_tables(text).values() if "test R²" in rows[0][1])
    assert [row[1] for row in table] == ["test R², %", "80.0", "70.0 ≈"]
    assert "MAE" in report(tmp_path / "runs", "report.html")
