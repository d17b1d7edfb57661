"""One command, one file: `SUMMARY` is its line in the help, the function of its name runs it.

Imports errors, versions, paths, extras, values, core, memory, methods, families, tuning, targets,
planning, data, presets, dense, training, evolution, inference, serving, bench, inspect, report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import (
    bench,
    completion,
    data,
    doctor,
    evaluate,
    export,
    import_,
    info,
    inspect,
    merge,
    methods,
    plan,
    predict,
    presets,
    push,
    report,
    search,
    serve,
    train,
    tune,
)

Command = Callable[[Sequence[str]], None]

COMMANDS: dict[str, tuple[Command, str]] = {
    "train": (train.train, train.SUMMARY),
    "tune": (tune.tune, tune.SUMMARY),
    "search": (search.search, search.SUMMARY),
    "bench": (bench.bench, bench.SUMMARY),
    "eval": (evaluate.evaluate, evaluate.SUMMARY),
    "predict": (predict.predict, predict.SUMMARY),
    "serve": (serve.serve, serve.SUMMARY),
    "merge": (merge.merge, merge.SUMMARY),
    "export": (export.export, export.SUMMARY),
    "import": (import_.import_, import_.SUMMARY),
    "push": (push.push, push.SUMMARY),
    "report": (report.report, report.SUMMARY),
    "inspect": (inspect.inspect, inspect.SUMMARY),
    "plan": (plan.plan, plan.SUMMARY),
    "data": (data.data, data.SUMMARY),
    "methods": (methods.methods, methods.SUMMARY),
    "presets": (presets.presets, presets.SUMMARY),
    "info": (info.info, info.SUMMARY),
    "doctor": (doctor.doctor, doctor.SUMMARY),
    "completion": (lambda args: completion.completion(args, COMMANDS), completion.SUMMARY),
}
"""Every command by name: what runs it, and what it is for."""
