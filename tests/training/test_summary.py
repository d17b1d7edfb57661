"""Summaries: what is read is written back, every damage is refused by its path, old files open."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from reported import summary, write_row

from lowtide.errors import InputError
from lowtide.methods import METHODS
from lowtide.training.config import RunConfig
from lowtide.training.loop import SUMMARY
from lowtide.training.summary import SCHEMA, RunSummary, read_summary

COMMITTED = sorted((Path(__file__).parents[2] / "results").glob(f"**/{SUMMARY}"))
FRESH = json.loads(json.dumps(summary(RunConfig("m", "/d", method=METHODS["lora"]()), 100)))
GONE = object()

TEXT, MAPPING, LIST = "text", "a mapping", "a list"
WRONG = {
    TEXT: (3, None, [], True),
    MAPPING: (3, [], "x"),
    LIST: (3, {}, "x"),
    "whole": ("1", None, True, 1.0, -1, 10**19, 1e999),
    "whole?": ("1", True, 1.0, -1, 10**19),
    "rate": ("1", None, True, 0, -1.0, 1e31),
    "number": ("1", None, True, -1.0, 1e19, 10**400),
    "number?": ("1", True, -1.0, 1e40, [1.0]),
    "share?": ("1", True, -0.1, 1.1),
    "truth": ("yes", 1, None),
}
"""What a field of each kind may not be."""
FIELDS = {
    "schema": "whole",
    "config": MAPPING,
    "config.model": TEXT,
    "config.data": TEXT,
    "config.method": MAPPING,
    "config.method.name": TEXT,
    "config.policy": TEXT,
    "config.lr": "rate",
    "config.seed": "whole",
    "config.batch_size": "whole",
    "config.skip_test": "truth",
    "data": MAPPING,
    "data.format": TEXT,
    "data.train": "whole",
    "data.val": "whole",
    "data.test": "whole",
    "data.classes": LIST,
    "data.classes.0": TEXT,
    "data.fingerprint": TEXT,
    "data.notes": LIST,
    "data.skipped": LIST,
    "data.bits": "whole?",
    "preprocessing": MAPPING,
    "trainable_parameters": "whole",
    "total_parameters": "whole",
    "planned": MAPPING,
    "planned.trainable_parameters": "whole",
    "planned.total_parameters": "whole",
    "planned.peak_bytes": "whole",
    "planned.parts": MAPPING,
    "planned.parts.saved": "whole",
    "planned.work": MAPPING,
    "planned.work.flops": "number",
    "planned.notes": LIST,
    "measured_peak_bytes": "whole?",
    "step_seconds": "number?",
    "start_accuracy": "share?",
    "history": LIST,
    "history.1": MAPPING,
    "history.1.epoch": "whole",
    "history.1.train_loss": "number?",
    "history.1.val_accuracy": "share?",
    "history.1.seconds": "number",
    "kept_epoch": "whole?",
    "val_accuracy": "share?",
    "test_accuracy": "share?",
    "test_confusion": LIST,
    "test_confusion.2": LIST,
    "environment": MAPPING,
    "environment.commit": TEXT,
    "environment.threads": "whole?",
    "environment.processes": "whole",
}
YOUNGER = {
    "schema",
    "config.skip_test",
    "data.notes",
    "data.skipped",
    "data.bits",
    "planned.notes",
    "measured_peak_bytes",
    "step_seconds",
    "start_accuracy",
    "kept_epoch",
    "test_confusion",
    "environment.commit",
    "environment.threads",
    "environment.processes",
}
"""Fields that some files are older than."""
ROWS = {"history.1", "test_confusion.2", "planned.parts.saved", "planned.work.flops"}
"""What a file may leave out: one of several."""


def edited(path, value):
    """A fresh summary with one field changed, or without it."""
    content = copy.deepcopy(FRESH)
    *outer, last = (int(key) if key.isdigit() else key for key in path.split("."))
    place = content
    for key in outer:
        place = place[key]
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    return content


def leaves(content, path=""):
    """Every path of a summary down to what is kept as it is, of a list one."""
    for key, value in content.items():
        at = f"{path}.{key}".lstrip(".")
        yield at
        if isinstance(value, dict) and at not in {"preprocessing", "config.method"}:
            yield from leaves(value, at)


def test_the_table_below_names_every_field():
    """Options of a run other than the report's are kept, and not looked at."""
    of_one_kind = ("config.", "planned.parts.", "planned.work.", "environment.")
    for path in leaves(FRESH):
        assert path in FIELDS or path.startswith(of_one_kind)


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_is_held_to_its_kind(path):
    RunSummary.from_dict(FRESH)
    for value in WRONG[FIELDS[path]]:
        if value is None and path in {"test_confusion", "environment.commit"}:
            continue
        with pytest.raises(InputError) as refusal:
            RunSummary.from_dict(edited(path, value))
        assert str(refusal.value).startswith(f"{path} is ")
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("path", sorted(FIELDS.keys() - {"data.classes.0"}))
def test_only_fields_that_files_are_older_than_may_be_missing(path):
    content = edited(path, GONE)
    if path in YOUNGER | ROWS:
        assert RunSummary.from_dict(content).to_dict() == content
    else:
        with pytest.raises(InputError, match=f"^{path} is missing$"):
            RunSummary.from_dict(content)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([0, 0], "test_confusion.2 is [0, 0], not a list of true, predicted, images"),
        ([0, 0, -1], "test_confusion.2.images is -1, not a whole number from 0 to 1e+18"),
        ([0, 5, 1], "test_confusion.2 is [0, 5, 1], not of 5 classes"),
        ([5, 0, 1], "test_confusion.2 is [5, 0, 1], not of 5 classes"),
    ],
)
def test_images_are_of_classes_there_are(row, said):
    with pytest.raises(InputError) as refusal:
        RunSummary.from_dict(edited("test_confusion.2", row))
    assert str(refusal.value) == said


def test_a_damaged_file_is_named(tmp_path):
    path = write_row(tmp_path, edited("planned.peak_bytes", "6")) / SUMMARY
    with pytest.raises(InputError) as refusal:
        read_summary(path)
    said = "planned.peak_bytes is '6', not a whole number from 0 to 1e+18"
    assert str(refusal.value) == f"{path} is damaged: {said}"


def test_a_newer_file_is_refused_as_newer(tmp_path):
    path = write_row(tmp_path, edited("schema", SCHEMA + 1)) / SUMMARY
    with pytest.raises(InputError, match=f"newer lowtide: its schema is {SCHEMA + 1}"):
        read_summary(path)


def test_a_fresh_summary_is_written_as_it_was_read():
    read = RunSummary.from_dict(FRESH)
    assert json.dumps(read.to_dict()) == json.dumps(FRESH)
    assert read.schema == SCHEMA


def test_finished_rows_are_written_as_they_were_read():
    assert len(COMMITTED) > 300
    for path in COMMITTED:
        content = json.loads(path.read_text())
        assert json.dumps(read_summary(path).to_dict()) == json.dumps(content), path


@pytest.mark.parametrize("path", ["", "data", "planned", "history.0", "environment", "config"])
def test_what_a_newer_file_says_beside_is_kept(path):
    content = edited(f"{path}.newer".lstrip("."), {"a": [1, None]})
    assert RunSummary.from_dict(content).to_dict() == content


def test_what_is_said_later_is_written():
    older = RunSummary.from_dict(edited("data.bits", GONE))
    assert older.data.bits is None
    later = replace(older, data=replace(older.data, bits=16))
    assert later.to_dict() == FRESH


def test_options_newer_than_a_run_have_their_defaults():
    content = edited("config.chunk", GONE)
    del content["config"]["method"]["rank"]
    content["config"] |= {"forgotten": 1, "lr": 0.5}
    options = RunSummary.from_dict(content).config
    usual = {**FRESH["config"], "lr": 0.5}
    assert options.completed() == {**json.loads(json.dumps(usual)), "forgotten": 1}
    assert options.to_dict() == content["config"]


def test_runs_that_differ_in_their_seed_alone_are_one():
    def identity(path="config.seed", value=0):
        return RunSummary.from_dict(edited(path, value)).config.identity

    assert identity() == identity(value=7) == identity("config.chunk", GONE)
    assert identity() != identity("config.lr", 0.5)
