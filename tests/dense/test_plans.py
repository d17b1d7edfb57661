"""What a step of a dense task is planned to need, against steps that run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shapes import body

from lowtide.cli import main
from lowtide.dense.options import TaskConfig
from lowtide.dense.plans import plan_task
from lowtide.dense.pyramid import backbone_path
from lowtide.dense.tasks import TASKS
from lowtide.memory import bands
from lowtide.methods import METHODS
from lowtide.ops import bands as cut
from lowtide.ops import conv, fan
from lowtide.planning.loss import of_outputs
from lowtide.planning.meter import footprint
from lowtide.planning.simulate import set_up_step
from lowtide.planning.step import make_optimizer, micro_batches, training_step
from lowtide.tuning.applying import apply

WITHIN = {"segment": 0, "detect": 0.1}
"""How far a plan may be off; a detector's leaves the matching of boxes out."""


@pytest.mark.parametrize("policy", ["exact", "tight"])
@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("segment", {"decoder": "upernet", "accumulate": 2}),
        ("segment", {"decoder": "unet", "dice": 1.0}),
        ("segment", {"decoder": "unet", "opt": "sgdp"}),
        ("segment", {"decoder": "upernet", "dice": 1.0, "chunk": 512}),
        ("detect", {"detector": "fasterrcnn"}),
        ("detect", {"detector": "fcos"}),
    ],
)
def test_a_plan_is_the_step(
    task: str, options: dict[str, Any], policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a chunk of 512 numbers a piece of the loss is ten rows; 2^12 numbers are many."""
    for module, name in ((conv, "SLAB"), (fan, "LARGE"), (bands, "LARGE"), (cut, "BAND")):
        monkeypatch.setattr(module, name, 1 << 12)
    step = TaskConfig(task=task, decoder_channels=32, batch_size=4, policy=policy, **options)
    learnt = TASKS[task](("a", "b", "c"), 64, (0.5,) * 3, (0.5,) * 3, step)
    method = METHODS["lora"]()
    planned = plan_task(learnt, body("swin"), method, step)
    model = learnt.model(body("swin"))
    tuned = apply(model, method, backbone=backbone_path(model))
    optimizer = make_optimizer(set_up_step(tuned, step).train(), step.opt)
    inputs, targets = learnt.example(4, (3, 64, 64))
    batches = micro_batches(inputs, targets, step.accumulate)
    run = footprint(
        lambda: training_step(tuned, optimizer, batches, loss=of_outputs(learnt.loss)),
        tuned,
        optimizer,
    )
    error = abs(planned.peak_bytes - run.peak_bytes) / run.peak_bytes
    assert error <= WITHIN[task]
    assert planned.trainable_parameters == tuned.trainable_counts()[0]


def test_the_command_prints_what_is_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["plan", "--task", "instances", "--model", "vit_micro_patch4_32", "--batch-size", "2"]
    assert main([*given, "--decoder-channels", "32", "--json"]) == 0
    out, err = capsys.readouterr()
    assert '"peak_bytes"' in out and "512 of each image, 128 with a mask" in err
    assert main([*given, "--budget", "1GiB"]) == 2
    assert "searches for task classify" in capsys.readouterr().err
    assert torch.is_grad_enabled()
