"""Suites whose rows are written, not trained: the numbers to report are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

from lowtide.bench import Suite
from lowtide.bench.results import FAILED
from lowtide.bench.suite import SUITE
from lowtide.training.config import RunConfig
from lowtide.training.decided import decide
from lowtide.training.loop import SUMMARY

CLASSES = 5
Accuracy = Callable[[str, str, int], float | None]


def summary(config: RunConfig, right: int, images: int = 200, classes: int = CLASSES) -> dict:
    """What a run leaves that got so many of its test images right."""
    each = images // classes
    counts = np.diag(np.full(classes, each))
    for i in range(images - right):  # spread the mistakes over the classes
        counts[i % classes, i % classes] -= 1
        counts[i % classes, (i + 1) % classes] += 1
    validated = None if config.train_on_val else right / images
    tested = not config.skip_test
    return {
        "schema": 1,
        "config": decide(config, updates=2, validated=True).to_dict(),
        "data": {
            "format": "folders",
            "train": 40,
            "val": 10,
            "test": images,
            "classes": [f"class {i}" for i in range(classes)],
            "fingerprint": "ab" * 32,
            "notes": [],
            "skipped": [],
            "bits": 16,
        },
        "preprocessing": {"size": [32, 32], "mean": [0.5] * 3, "interpolation": "bicubic"},
        "trainable_parameters": 1000 + 10 * len(config.method.__class__.__name__),
        "total_parameters": 10_000,
        "planned": {
            "trainable_parameters": 1040,
            "total_parameters": 10_000,
            "peak_bytes": 6 << 20,
            "parts": {"weights": 1 << 20, "saved": 3 << 20, "temporaries": 2 << 20},
            "work": {"flops": 1e9, "low_flops": 0.0, "bytes": 1e8, "calls": 100.0},
            "notes": [],
        },
        "measured_peak_bytes": 7 << 20,
        "step_seconds": 0.25,
        "start_accuracy": validated and validated / 4,
        "history": [
            {
                "epoch": e,
                "train_loss": 2 / e,
                "val_accuracy": validated and validated * e / 3,
                "seconds": 1.5,
            }
            for e in (1, 2, 3)
        ],
        "kept_epoch": 3,
        "val_accuracy": validated,
        "test_accuracy": right / images if tested else None,
        "test_confusion": [
            [int(i), int(j), int(counts[i, j])] for i, j in zip(*counts.nonzero(), strict=True)
        ]
        if tested
        else [],
        "environment": {
            "python": "3.11.7",
            "lowtide": "0.1.0",
            "torch": "2.13.0",
            "timm": "1.0.31",
            "commit": "0123456789ab",
            "machine": "x86_64",
            "device": "cpu",
            "device_name": "cpu",
            "threads": 1,
            "processes": 1,
            "finished": "2026-01-01T00:00:00+00:00",
        },
    }


def write_row(folder: Path, content: dict) -> Path:
    """Leave a summary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMMARY).write_text(json.dumps(content))
    return folder


def write_suite(
    folder: Path,
    rows: dict[tuple[str, str], list[int | None]],
    groups: dict[str, str] | None = None,
    *,
    lr: float | list[float] = 1e-3,
    images: int = 200,
    classes: int = CLASSES,
) -> Path:
    """Leave a suite: for each method and data set, images right by seed; None failed."""
    data = dict.fromkeys(d for _, d in rows)
    labels = list(dict.fromkeys(label for label, _ in rows))
    seeds = max(len(r) for r in rows.values())
    folder.mkdir(parents=True)
    (folder / SUITE).write_text(
        yaml.safe_dump(
            {
                "defaults": {"model": "vit_micro_patch4_32", "epochs": 3, "device": "cpu"},
                "data": {
                    d: {"data": f"/data/{d}", "group": (groups or {}).get(d, "")} for d in data
                },
                "methods": {
                    label: {"method": {"name": "lora", "rank": i + 1}}
                    for i, label in enumerate(labels)
                },
                "lr": lr,
                "seeds": list(range(seeds)),
            },
            sort_keys=False,
        )
    )
    for cell in Suite.read(folder).cells:
        known = rows.get((cell.label, cell.data), [])
        for i, row in enumerate(cell.searches.values()):
            write_row(folder / row.folder, summary(row.config, 50 + i, images, classes))
        tests = list(cell.tests.values())[-1]
        for right, row in zip(known, tests, strict=False):
            if right is None:
                (folder / row.folder).mkdir(parents=True)
                (folder / row.folder / FAILED).write_text("LowtideError: the loss is nan\n")
            else:
                write_row(folder / row.folder, summary(row.config, right, images, classes))
    return folder
