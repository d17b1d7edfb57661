"""The search: what it offers fits, is the most that fits, and is refused in one line."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch
from nets import tiny

from lowtide import METHODS, InputError, StepConfig, plan
from lowtide.cli import main
from lowtide.planning.cost_model import MACHINES, Work, WorkMeter, _flops
from lowtide.planning.search import parse_bytes, search

STEP = StepConfig(batch_size=5)
CUTS = (1, 2, 3, 5)


@pytest.fixture(scope="module")
def every():
    """The plan of every step, by brute force."""
    options = itertools.product(("exact", "blocks", "tight"), (False, True), ("fp32", "bf16"), CUTS)
    names = ("policy", "checkpointing", "frozen_dtype", "accumulate")
    steps = {replace(STEP, **dict(zip(names, four, strict=True))) for four in options}
    return {step: plan(tiny("vit").float(), METHODS["bias"](), step=step) for step in steps}


@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
def test_the_search_finds_what_trying_everything_finds(every, share):
    peaks = sorted({p.peak_bytes for p in every.values()})
    budget = peaks[int(share * (len(peaks) - 1))]
    seconds = {key: MACHINES["cpu"].seconds(p.work) for key, p in every.items()}
    fitting = {key: s for key, s in seconds.items() if every[key].peak_bytes <= budget}
    choices = search(tiny("vit").float(), METHODS["bias"](), budget=budget, step=STEP)
    assert choices[0].seconds <= min(fitting.values())
    assert [c.seconds for c in choices] == sorted(c.seconds for c in choices)
    assert choices[0].plan == plan(tiny("vit").float(), METHODS["bias"](), step=choices[0].step)
    for c in choices:
        assert c.plan.peak_bytes <= budget
        if c.step.recomputed_blocks is not None:
            assert c.seconds < seconds[replace(c.step, recomputed_blocks=None)]
            if (count := c.step.recomputed_blocks) > 1:
                fewer = replace(c.step, recomputed_blocks=count - 1)
                peak = plan(tiny("vit").float(), METHODS["bias"](), step=fewer).peak_bytes
                assert peak > budget
            continue
        assert c.plan == every[c.step]
        cut = c.step.accumulate
        larger = [s for s in fitting if s.accumulate < cut and replace(s, accumulate=cut) == c.step]
        assert not larger


def test_what_one_step_lower_takes_is_said(every, capsys):
    budget = max(p.peak_bytes for p in every.values())
    first, *others = search(tiny("vit").float(), METHODS["bias"](), budget=budget, step=STEP)
    assert first.lower.plan == every[first.lower.step]
    assert first.lower.plan.peak_bytes <= 0.95 * first.plan.peak_bytes
    assert all(c.lower is None for c in others)
    assert main("plan --model vit_micro_patch4_32 --batch-size 8 --budget 1GiB".split()) == 0
    assert capsys.readouterr().out.count("one step lower: ") == 1


def test_nothing_fits_is_one_line_with_the_smallest_peak(every, capsys):
    least = min(every.values(), key=lambda p: p.peak_bytes).peak_bytes
    with pytest.raises(InputError, match=f"smallest possible peak is {least / 2**20:.1f} MiB"):
        search(tiny("vit").float(), METHODS["bias"](), budget=least - 1, step=STEP)


def test_what_is_given_is_kept():
    budget = 100 * 2**20
    given = replace(STEP, policy="tight", checkpointing=True, accumulate=3, frozen_dtype="bf16")
    choices = search(tiny("vit").float(), METHODS["bias"](), budget=budget, step=given)
    assert [c.step for c in choices] == [given]
    choices = search(tiny("vit").float(), METHODS["bias"](), budget=budget, step=STEP, vary={})
    assert [c.step for c in choices] == [STEP]


def test_methods_that_cannot_live_there_are_left_out():
    model, methods = tiny("resnet").float(), [METHODS[n]() for n in ("dtl", "bias")]
    step = StepConfig(batch_size=2)
    found = search(model, *methods, budget=2**30, step=step)
    assert {c.method for c in found} <= set(methods)
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4))
    flat.pretrained_cfg = {"input_size": (3, 8, 8)}
    with pytest.raises(InputError, match="Sequential has no part"):
        again = replace(step, checkpointing=True)
        search(flat, METHODS["linear"](), budget=2**30, step=again)
    assert search(flat, METHODS["linear"](), budget=2**30, step=step)
    with pytest.raises(InputError, match="no table"):
        search("davit_tiny", METHODS["s2a"](), budget=2**30)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1GiB", 2**30),
        ("640MiB", 640 * 2**20),
        ("2e9", 2_000_000_000),
        ("1.5GB", 1_500_000_000),
        ("512 kib", 2**19),
        ("3M", 3_000_000),
        ("1000", 1000),
    ],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "1Gii", "-1MiB", "0", "1iB", "12 parsecs", "1..5GB"])
def test_no_sizes(text):
    with pytest.raises(InputError, match="write 640MiB"):
        parse_bytes(text)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_work_counts_products_bytes_and_kernels(dtype, size):
    a, b = torch.randn(3, 4, dtype=dtype), torch.randn(4, 5, dtype=dtype)
    with WorkMeter(torch.nn.Identity()) as meter:
        (a @ b).t().neg()
    flops, moved = 2 * 3 * 4 * 5, size * (12 + 20 + 15) + size * 2 * 15
    assert meter.work == Work(flops, flops if size == 2 else 0, moved, 2)
    slow, fast = (replace(MACHINES["cpu"], low_flops_per_s=rate) for rate in (1e3, 1e6))
    assert (slow.seconds(meter.work) > fast.seconds(meter.work)) == (size == 2)


def test_a_fused_attention_in_two_bytes_counts_as_such():
    q, k, v = (torch.randn(1, 2, 64, 16, dtype=torch.bfloat16, requires_grad=True) for _ in "qkv")
    with WorkMeter(torch.nn.Identity()) as meter:
        torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()
    assert meter.work.low_flops == meter.work.flops > 0


def attention_kernels():
    """Every fused attention of this torch, on whatever device."""
    for schema in torch._C._jit_get_all_schemas():
        names = {a.name for a in schema.arguments}
        fused = schema.name.startswith("aten::_scaled_dot_product") and "math" not in schema.name
        if fused and {"query", "key", "value"} <= names and "_quantized" not in schema.name:
            packet = getattr(torch.ops.aten, schema.name.split("::")[1])
            if not schema.overload_name:
                yield packet.default


def test_every_fused_attention_is_counted():
    q, k, v = torch.empty(2, 3, 7, 4), torch.empty(2, 3, 9, 4), torch.empty(2, 3, 9, 8)
    pairs, found = 2 * 3 * 7 * 9, list(attention_kernels())
    assert len(found) >= 8
    y = torch.empty(2, 3, 7, 8)
    for kernel in found:
        given = {"query": q, "key": k, "value": v, "grad_out": y, "grad_out_": y, "out": y}
        names = [a.name for a in kernel._schema.arguments]
        backward = any(n.startswith("grad_out") for n in names)
        args = [given.get(n) for n in names]
        expected = 2 * pairs * ((3 * 4 + 2 * 8) if backward else 4 + 8)
        assert _flops(kernel, args, {}, (y,)) == expected, kernel


def test_a_product_of_unknown_work_is_said_and_guessed():
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    with pytest.warns(UserWarning, match="_addmm_activation.default computes is not known"):
        with WorkMeter(torch.nn.Identity()) as meter:
            torch._addmm_activation(torch.zeros(5), a, b)
    assert meter.work.flops == pytest.approx(2 * 3 * 4 * 5)
    for vector in (lambda: a @ b[:, 0], lambda: a[0] @ b[:, 0]):
        with WorkMeter(torch.nn.Identity()) as meter:
            y = vector()
        assert meter.work.flops == pytest.approx(2 * 4 * y.numel())
    with WorkMeter(torch.nn.Identity()) as meter:
        torch.ones(3, 3).addmm_(a, a.T)
        torch.nn.functional.interpolate(torch.ones(1, 2, 4), scale_factor=2.0, mode="linear")
    assert meter.work.flops == 2 * 3 * 4 * 3


def test_the_command_prints_what_fits(capsys):
    args = ["plan", "--model", "vit_micro_patch4_32", "--batch-size", "8", "--budget"]
    assert main([*args, "400MiB", "--methods", "bias,lora", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {r["method"]["name"] for r in rows} == {"bias", "lora"}
    assert all(r["plan"]["peak_bytes"] <= 400 * 2**20 for r in rows)
    assert main([*args, "400MiB", "--method", "lora"]) == 0
    out = capsys.readouterr().out
    assert "lora" in out and "bias" not in out and "flops / " in out
    assert main([*args, "400MiB", "--method.rank", "2", "--json"]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["method"]["name"] == "lora" and row["method"]["rank"] == 2
    for bad, said in (("1MiB", "smallest possible peak"), ("lots", "write 640MiB")):
        assert main([*args, bad, "--method", "lora"]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1


def test_a_step_that_looks_at_numbers_is_not_searched():
    step = replace(STEP, opt="adamp")
    with pytest.raises(InputError, match="optimiser adamp, or the model, chooses by numbers"):
        search(tiny("vit").float(), METHODS["bias"](), budget=2**30, step=step)
