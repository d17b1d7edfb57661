"""A plan takes three steps of a loop over equal pieces, and says what all of them would."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from nets import tiny
from steps import real_step

from lowtide import METHODS, StepConfig, plan
from lowtide.core.alike import alike, watching_three
from lowtide.planning import watch
from lowtide.planning.cost_model import WorkMeter


class Told:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.steps, self.left_out = 0, []

    def mark(self) -> object:
        return self.steps

    def repeat(self, times: int, since: object) -> None:
        self.left_out.append((times, since))


def test_three_of_those_that_follow_each_other_alike() -> None:
    pieces, told, taken = [7, 7, 7, 7, 7, 3, 7, 7], Told(), []
    assert [*alike(pieces, int)] == pieces
    with watching_three(told):
        for piece in alike(pieces, int):
            taken.append(piece)
            told.steps += 1
    assert taken == [7, 7, 7, 3, 7, 7]
    assert told.left_out == [(2, 1)]
    assert [*alike(pieces, int)] == pieces


@pytest.mark.parametrize(
    ("family", "dtype"), [("vit", "fp32"), ("vit", "nf4"), ("sam", "fp32"), ("convnext", "nf4")]
)
def test_a_plan_of_many_pieces_is_the_real_step(family, dtype, monkeypatch) -> None:
    monkeypatch.setattr("lowtide.ops.attention_chunks.CHUNK", 80)
    monkeypatch.setattr("lowtide.ops.frozen.SLICE", 1 << 10)
    left_out, repeat = [], WorkMeter.repeat

    def noted(meter: WorkMeter, times: int, since: object) -> None:
        left_out.append(times)
        repeat(meter, times, since)

    monkeypatch.setattr(WorkMeter, "repeat", noted)
    step = StepConfig(batch_size=3, policy="tight", checkpointing=True, frozen_dtype=dtype)
    model, method = tiny(family).float(), METHODS["lora"]()
    _, real = real_step(model, method, step)
    assert not left_out
    planned = plan(model, method, step=step)
    assert sum(left_out)
    assert (planned.peak_bytes, planned.parts) == (real.peak_bytes, real.parts)
    monkeypatch.setattr(watch, "watching_three", nullcontext)
    assert planned == plan(model, method, step=step)
