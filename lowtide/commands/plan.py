"""`lowtide plan`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from ..arguments import Parser, add_fields, add_method, method_options
from ..checkpoint import construct
from ..errors import InputError, UnknownName
from ..graft import Method, method_name
from ..narrow import FrozenDtype
from ..plan import Plan
from ..plan import plan as foresee
from ..policy import POLICIES
from ..search import free, parse_bytes, search
from ..step import Amp
from ..work import MACHINES
from .console import OUT

SUMMARY = "Say what a training step will need, without running it and without a GPU."


@dataclass(frozen=True)
class PlanOptions:
    """What to plan for.

    Attributes:
        model: timm's name of the backbone.
        num_classes: Classes of the classifier; by default the backbone's own.
        batch_size: Images per update.
        policy: What is kept for backward: exact, tight (lowtide's best) or s2a (the paper's).
        checkpointing: Recompute each block in backward instead of keeping its activations.
        accumulate: Micro-batches a batch is cut into.
        amp: Mixed precision: no, bf16 or fp16.
        frozen_dtype: What frozen weights are kept in: fp32 or bf16; what trains is in fp32.
        opt: timm's name of the optimiser.
        image_size: Side of the square input; by default the model's.
        budget: Most bytes of a step, such as 640MiB: print what fits, fastest first. Policy,
            checkpointing, accumulate and frozen_dtype are searched, save those that are given.
        methods: What to search where no --method is given, with commas between.
        machine: Whose speed orders what fits: cpu or a100.
        json: Print one JSON object, or for a budget one per line.
    """

    model: str
    num_classes: int | None = None
    batch_size: int = 32
    policy: str = "exact"
    checkpointing: bool = False
    accumulate: int = 1
    amp: Amp = "no"
    frozen_dtype: FrozenDtype = "fp32"
    opt: str = "adamw"
    image_size: int | None = None
    budget: str | None = None
    methods: str = "lora,bias,s2a"
    machine: str = "cpu"
    json: bool = False


def plan(args: Sequence[str]) -> None:
    """Run `lowtide plan`.

    Args:
        args: The command's arguments.

    Raises:
        InputError: No model is named.
        UnknownName: There is no such policy.
    """
    parser = Parser("plan", SUMMARY)
    args, name = method_options(args)
    add_fields(parser, PlanOptions)
    add_method(parser, name or "lora")
    given = parser.read(args)
    method = construct(given.pop("method"))
    if given["model"] is None:
        raise InputError("--model is required")
    options = PlanOptions(**given)
    if options.policy not in POLICIES:
        raise UnknownName("policy", options.policy, POLICIES)
    if options.budget is not None:
        told = any(arg.startswith("--method.") for arg in args)
        names = [] if told else options.methods.split(",")
        return _print_choices(options, [construct({"name": n}) for n in names] or [method])
    planned = foresee(
        options.model,
        method,
        num_classes=options.num_classes,
        batch_size=options.batch_size,
        policy=POLICIES[options.policy](),
        checkpointing=options.checkpointing,
        accumulate=options.accumulate,
        amp=options.amp,
        optimizer=options.opt,
        image_size=options.image_size,
        frozen_dtype=options.frozen_dtype,
    )
    if options.json:
        print(json.dumps(planned.to_dict()))
    else:
        _print_plan(planned)


def _print_plan(planned: Plan) -> None:
    table = Table("part", "MiB", title="peak of one training step")
    table.columns[1].justify = "right"
    for part, size in planned.parts.items():
        table.add_row(part, f"{size / 2**20:,.1f}")
    table.add_section()
    table.add_row("peak", f"{planned.peak_bytes / 2**20:,.1f}")
    OUT.print(table)
    share = 100 * planned.trainable_parameters / planned.total_parameters
    OUT.print(
        f"trainable {planned.trainable_parameters:,} of {planned.total_parameters:,} parameters"
        f" ({share:.3f} %)"
    )


def _print_choices(options: PlanOptions, methods: list[Method]) -> None:
    budget = parse_bytes(options.budget or "")
    choices = search(
        options.model,
        *methods,
        budget=budget,
        num_classes=options.num_classes,
        batch_size=options.batch_size,
        amp=options.amp,
        optimizer=options.opt,
        image_size=options.image_size,
        machine=options.machine,
        **free(options.policy, options.checkpointing, options.frozen_dtype, options.accumulate),
    )
    if options.json:
        for choice in choices:
            print(json.dumps(choice.to_dict()))
        return
    columns = ("method", "policy", "checkpointing", "frozen", "micro-batches", "MiB", "time")
    table = Table(*columns, title=f"within {budget / 2**20:,.1f} MiB, fastest first")
    for c in choices:
        s, size = c.setting, -(-options.batch_size // c.accumulate)
        peak, time = c.plan.peak_bytes / 2**20, c.seconds / choices[0].seconds
        again, cut = "yes" if s.checkpointing else "no", f"{c.accumulate} of {size}"
        name = method_name(type(c.method))
        table.add_row(name, s.policy, again, s.frozen_dtype, cut, f"{peak:,.1f}", f"{time:.2f}")
    OUT.print(table)
    OUT.print(f"time, relative: {MACHINES[options.machine]} ({options.machine})")
