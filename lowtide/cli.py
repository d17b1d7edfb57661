"""The command line: parse, call one verb, print."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from .arguments import Parser, add_fields, add_method, method_options, run_config, value_of
from .backbone import create
from .bench import Suite, read_results, run_suite
from .checkpoint import construct
from .compress import POLICIES
from .data import check
from .data.corruptions import corruptions_in
from .errors import InputError, LowtideError, UnknownName
from .evaluate import predict, score, score_corruptions
from .families import family_of, measure, prepare
from .graft import Method, method_name
from .inside.command import inspect
from .loading import add_loading, open_given, read_samples
from .methods import METHODS
from .narrow import FrozenDtype
from .plan import Plan, plan
from .presets import presets, unknown
from .report.command import report
from .search import free, parse_bytes, search
from .step import Amp
from .train import CONFIG, train
from .work import MACHINES

OUT = Console(highlight=False, soft_wrap=True)


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


def _train(args: Sequence[str]) -> None:
    """Fine-tune a backbone on a folder of images."""
    parser = Parser("train", _summary(_train))
    parser.add_argument("--config", type=str, help="YAML file with any of these options.")
    parser.add_argument(
        "--output", type=str, help="Run folder to make; by default the next free runs/DATA-METHOD."
    )
    parser.add_argument("--resume", type=str, help="Run folder to continue; it knows its options.")
    parser.add_argument("--overwrite", action="store_true", help="Replace the run in --output.")
    resumed = value_of(args, "--resume")
    if resumed is not None:
        if not (Path(resumed) / CONFIG).is_file():
            raise InputError(f"{resumed} holds no run to resume: no {CONFIG} in it")
        args = [*args, "--config", str(Path(resumed) / CONFIG)]
    config, own = run_config(parser, args)
    folder = Path(resumed or own["output"] or _free(config.data, config.method))
    summary = train(config, folder, continues=resumed is not None, overwrite=own["overwrite"])
    state = PartialState()
    if state.is_main_process:
        _print_run(folder, summary)
    state.destroy_process_group()  # or a process that is done early may abort at its exit


def _eval(args: Sequence[str]) -> None:
    """Score a finished run on a split of its data, or of other data."""
    parser = Parser("eval", _summary(_eval))
    parser.add_argument("run", type=str, help="Run folder.")
    parser.add_argument("--data", type=str, help="Other images; by default the run's own.")
    parser.add_argument("--split", type=str, default="test", help="train, val, test or all.")
    parser.add_argument(
        "--over", type=str, default="all", help="Classes to answer from: all, or those present."
    )
    add_loading(parser)
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    given = parser.read(args)
    trained = open_given(given)
    if given["data"] and corruptions_in(Path(given["data"])):
        result = score_corruptions(trained, Path(given["data"]), given["batch_size"])
        return print(json.dumps(result)) if given["json"] else _print_corruptions(result)
    result = score(trained, read_samples(trained, given), given["batch_size"], given["over"])
    if given["json"]:
        print(json.dumps(result))
        return
    table = Table("class", "accuracy")
    for name, accuracy in result["class_accuracy"].items():
        table.add_row(name, f"{accuracy:.3f}")
    OUT.print(table)
    OUT.print(
        f"{result['images']} images: accuracy {result['accuracy']:.4f},"
        f" mean over classes {result['mean_class_accuracy']:.4f}"
    )


def _predict(args: Sequence[str]) -> None:
    """Classify images; one JSON object per line."""
    parser = Parser("predict", _summary(_predict))
    parser.add_argument("run", type=str, help="Run folder.")
    parser.add_argument("images", type=str, nargs="+", help="Image files.")
    parser.add_argument("--top", type=int, default=5, help="How many classes to print.")
    add_loading(parser)
    given = parser.read(args)
    paths = [Path(p) for p in given["images"]]
    for answer in predict(
        open_given(given), paths, top=given["top"], batch_size=given["batch_size"]
    ):
        print(json.dumps(answer), flush=True)


def _merge(args: Sequence[str]) -> None:
    """Fold a run into a plain checkpoint that timm loads."""
    parser = Parser("merge", _summary(_merge))
    parser.add_argument("run", type=str, help="Run folder.")
    parser.add_argument("--output", type=str, required=True, help="Safetensors file to write.")
    add_loading(parser)
    given = parser.read(args)
    output = Path(given["output"])
    if output.suffix != ".safetensors":
        raise InputError(f"{output} must end in .safetensors")
    trained = open_given({**given, "device": "cpu"})
    model = trained.tuned.merge_and_unload()
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, output)
    name, classes = trained.name, trained.tuned.num_classes
    OUT.print(f"wrote {output}; load it with")
    OUT.print(f'timm.create_model("{name}", num_classes={classes}, checkpoint_path="{output}")')


def _plan(args: Sequence[str]) -> None:
    """Say what a training step will need, without running it and without a GPU."""
    parser = Parser("plan", _summary(_plan))
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
    planned = plan(
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


def _data(args: Sequence[str]) -> None:
    """Say what a folder, list or table of images holds, and what is wrong with it."""
    parser = Parser("data", _summary(_data))
    parser.add_argument("action", choices=["check"], help="check: look at every image.")
    parser.add_argument("source", type=str, help="What --data of lowtide train would be given.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    given = parser.read(args)
    found = check(given["source"])
    print(json.dumps(dataclasses.asdict(found)) if given["json"] else "\n".join(found.lines()))


def _methods(args: Sequence[str]) -> None:
    """List the methods and their options."""
    Parser("methods", _summary(_methods)).read(args)
    table = Table("method", "what it trains", "options")
    for name, cls in sorted(METHODS.items()):
        first = (cls.__doc__ or "").strip().split("\n")[0]
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        table.add_row(name, first, ", ".join(f"{f.name}={f.default!r}" for f in fields))
    OUT.print(table)


def _presets(args: Sequence[str]) -> None:
    """List published recipes, all of them or those whose names hold a pattern."""
    parser = Parser("presets", _summary(_presets))
    parser.add_argument(
        "pattern", type=str, nargs="?", default="", help="Part of a name, * for anything."
    )
    pattern = parser.read(args)["pattern"]
    found = {n: o for n, o in presets().items() if fnmatch(n, f"*{pattern}*")}
    if not found:
        raise unknown(pattern)
    columns = ("lr", "weight_decay", "drop_path", "batch_size", "epochs")
    table = Table("preset", *(c.partition("_")[0] for c in columns))
    for name, options in found.items():
        table.add_row(name, *(str(options[c]) for c in columns))
    OUT.print(table)
    OUT.print(f"{len(found)} presets; lowtide train --preset NAME --help shows all options of one")


def _info(args: Sequence[str]) -> None:
    """List the sites of a backbone: where methods can act."""
    parser = Parser("info", _summary(_info))
    parser.add_argument("model", type=str, help="timm's name of the backbone.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object per site.")
    given = parser.read(args)
    with torch.device("meta"):
        model = create(given["model"], pretrained=False)
    family = family_of(model)
    prepare(model)
    sites = measure(model, family)
    if given["json"]:
        for site in sites:
            print(json.dumps({**dataclasses.asdict(site), "layout": site.layout.name.lower()}))
        return
    table = Table("path", "role", "block", "input", "output", "parameters")
    for s in sites:
        shapes = ("x".join(map(str, shape)) for shape in (s.in_shape, s.out_shape))
        depth = str(s.depth) if s.depth >= 0 else ""
        table.add_row(s.path or ".", s.role, depth, *shapes, " ".join(s.params))
    OUT.print(table)
    OUT.print(f"{given['model']}: {family.name} family, {len(sites)} sites")


def _bench(args: Sequence[str]) -> None:
    """Run every row of a suite that is not finished: methods x data sets x seeds."""
    parser = Parser("bench", _summary(_bench))
    parser.add_argument("suite", type=str, help="YAML file, or the folder of a suite begun before.")
    parser.add_argument("--output", type=str, help="Where rows go; by default runs/SUITE.")
    parser.add_argument(
        "--launcher", type=str, default="local", help="local: one row at a time; ray: on a cluster."
    )
    parser.add_argument("--processes", type=int, default=1, help="Processes of each row.")
    given = parser.read(args)
    path = Path(given["suite"])
    suite = Suite.read(path)
    output = Path(given["output"] or (path if path.is_dir() else Path("runs") / suite.name))
    failed = run_suite(suite, output, launcher=given["launcher"], processes=given["processes"])
    table = Table("data", "method", "learning rate", "seeds", "test accuracy")
    for r in read_results(output):
        accuracy = "" if r.accuracy is None else f"{r.accuracy:.4f}"
        spread = "" if r.spread is None else f" ± {r.spread:.4f}"
        rate = "" if r.rate is None else f"{r.rate:g}"
        table.add_row(r.data, r.label, rate, f"{len(r.runs)} of {r.planned}", accuracy + spread)
    OUT.print(table)
    if failed:
        raise LowtideError(
            f"{len(failed)} rows failed, first {failed[0]}: see its failed.txt; the same command"
            " tries them again"
        )


def _inspect(args: Sequence[str]) -> None:
    """Draw what training did: parameters, cka, tsne or attention."""
    inspect(args)


def _report(args: Sequence[str]) -> None:
    """Write what suites and runs reached: one HTML page, Markdown or CSV."""
    report(args)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": _train,
    "bench": _bench,
    "eval": _eval,
    "predict": _predict,
    "merge": _merge,
    "report": _report,
    "inspect": _inspect,
    "plan": _plan,
    "data": _data,
    "methods": _methods,
    "presets": _presets,
    "info": _info,
}


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: Command and arguments; by default those of the process.

    Returns:
        0; 2 for bad input, 1 for a failure, each with one line on standard error.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in {"-h", "--help"}:
        print(_help())
        return 0
    if args[0] not in COMMANDS:
        return _complain(UnknownName("command", args[0], COMMANDS), 2)
    try:
        COMMANDS[args[0]](args[1:])
    except InputError as e:
        return _complain(e, 2)
    except LowtideError as e:
        return _complain(e, 1)
    except KeyboardInterrupt:
        return _complain("interrupted; lowtide train --resume RUN continues", 130)
    except BrokenPipeError:  # the reader, head for one, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _complain(message: object, code: int) -> int:
    print(f"lowtide: {message}", file=sys.stderr)
    return code


def _help() -> str:
    rows = "\n".join(f"  {name:8s} {_summary(run)}" for name, run in COMMANDS.items())
    return (
        "Fine-tune large pre-trained vision backbones in very little memory.\n\n"
        f"usage: lowtide COMMAND ...\n\n{rows}\n\n"
        "lowtide COMMAND --help says more."
    )


def _summary(run: Callable[..., Any]) -> str:
    return run.__doc__ or ""


def _free(data: str, method: object) -> Path:
    """Find the next unused folder name under runs/."""
    stem = f"{Path(data).resolve().stem}-{type(method).__name__.lower()}"
    names = (stem, *(f"{stem}-{i}" for i in range(2, 10_000)))
    return next(Path("runs") / n for n in names if not (Path("runs") / n).exists())


def _print_corruptions(result: dict[str, Any]) -> None:
    table = Table("corruption", "error")
    for name, error in result["errors"].items():
        table.add_row(name, f"{error:.4f}")
    OUT.print(table)
    if result["mce"] is None:
        return OUT.print("no mean: it is defined over all 15 corruptions")
    OUT.print(f"mean error {result['mean']:.4f}, mCE {result['mce']:.4f} (1 is AlexNet)")


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


def _print_run(folder: Path, summary: dict[str, Any]) -> None:
    for split in ("val", "test"):
        if (accuracy := summary[f"{split}_accuracy"]) is not None:
            OUT.print(f"{split} accuracy {accuracy:.4f}")
    planned, measured = summary["planned"]["peak_bytes"], summary["measured_peak_bytes"]
    OUT.print(
        f"trained {summary['trainable_parameters']:,} of {summary['total_parameters']:,}"
        f" parameters; peak planned {planned / 2**20:.1f} MiB"
        + (f", measured {measured / 2**20:.1f} MiB" if measured else "")
    )
    OUT.print(f"run folder {folder}")
