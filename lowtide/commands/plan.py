"""`lowtide plan`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from ..core.method import Method, method_name
from ..dense.options import TaskConfig
from ..dense.plans import plan_dense
from ..errors import InputError, UnknownName
from ..planning.cost_model import MACHINES
from ..planning.search import parse_bytes, search
from ..planning.simulate import Plan
from ..planning.simulate import plan as foresee
from ..targets import DENSE
from ..training.options import USUAL, Parser, add_fields, add_method, method_options
from ..training.progress import note
from ..tuning.adapter_files import construct
from ..values import Count, Side
from .console import OUT

SUMMARY = "Say what a training step will need, without running it and without a GPU."
SEARCHED = ("lora", "bias", "s2a")


@dataclass(frozen=True)
class PlanOptions(TaskConfig):
    """Options of `lowtide plan`.

    Attributes:
        model: timm's name of the backbone.
        num_classes: Classes of the classifier, by default the backbone's own; of pixels or objects
            for a dense task, by default 2.
        image_size: Side of the square input; by default the model's.
        budget: Most bytes of a step, such as 640MiB: print what fits, fastest first. Policy,
            checkpointing and of how many blocks, accumulate and frozen_dtype are searched, save
            those that are given.
        methods: What to search within a budget where no --method is given, with commas between;
            by default lora,bias,s2a.
        machine: Whose speed orders what fits a budget: cpu, which is the default, or a100.
        json: Print one JSON object, or for a budget one per line.
    """

    model: str
    num_classes: Count | None = None
    image_size: Side | None = None
    budget: str | None = None
    methods: tuple[str, ...] | None = None
    machine: str | None = None
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
    add_method(parser, name or str(USUAL["name"]))
    given = parser.read(args, {} if name else {"method": USUAL})
    method = construct(given.pop("method"))
    if given["model"] is None:
        raise InputError("--model is required")
    options = PlanOptions(**given)
    told = any(arg.startswith("--method.") for arg in args)
    methods = _searched(options, told)
    if options.budget is not None and options.task in DENSE:
        raise InputError(f"--budget searches for task classify, not {options.task}")
    if options.budget is not None:
        return _print_choices(options, methods or [method])
    planned = _foreseen(options, method)
    for line in planned.notes:
        note(line)
    if options.json:
        print(json.dumps(planned.to_dict()))
    else:
        _print_plan(planned)


def _foreseen(options: PlanOptions, method: Method) -> Plan:
    plan_of = plan_dense if options.task in DENSE else foresee
    return plan_of(
        options.model,
        method,
        step=options,
        num_classes=options.num_classes,
        image_size=options.image_size,
    )


def _searched(options: PlanOptions, told: bool) -> list[Method]:
    """Make the methods to search; none where one is told. Refuse options that would do nothing."""
    if options.machine not in {None, *MACHINES}:
        raise UnknownName("machine", options.machine, MACHINES)
    names = options.methods or (() if told else SEARCHED)
    if twice := [n for n in names if names.count(n) > 1]:
        raise InputError(f"--methods names {twice[0]} twice")
    methods = [construct({"name": n}) for n in names]
    for flag, value in (("--methods", options.methods), ("--machine", options.machine)):
        if value is not None and options.budget is None:
            raise InputError(f"{flag} is for a search: give --budget as well")
    if options.methods and told:
        raise InputError("--methods and --method: give one of them")
    return methods


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
        step=options,
        num_classes=options.num_classes,
        image_size=options.image_size,
        machine=options.machine or "cpu",
    )
    for line in dict.fromkeys(line for choice in choices for line in choice.plan.notes):
        note(line)
    if options.json:
        for choice in choices:
            print(json.dumps(choice.to_dict()))
        return
    columns = ("method", "policy", "checkpointing", "frozen", "micro-batches", "MiB", "time")
    table = Table(*columns, title=f"within {budget / 2**20:,.1f} MiB, fastest first")
    for c in choices:
        s, peak, time = c.step, c.plan.peak_bytes / 2**20, c.seconds / choices[0].seconds
        again = f"first {s.recomputed_blocks}" if s.recomputed_blocks else "all blocks"
        again, cut = again if s.checkpointing else "no", f"{s.accumulate} of {s.micro_batch}"
        name = method_name(type(c.method))
        table.add_row(name, s.policy, again, s.frozen_dtype, cut, f"{peak:,.1f}", f"{time:.2f}")
    OUT.print(table)
    if (lower := choices[0].lower) is not None:
        peak, time = lower.plan.peak_bytes / 2**20, lower.seconds / choices[0].seconds
        OUT.print(f"one step lower: {peak:,.1f} MiB, time {time:.2f}: {lower.describe()}")
    machine = options.machine or "cpu"
    OUT.print(f"time, relative: {MACHINES[machine]} ({machine})")
