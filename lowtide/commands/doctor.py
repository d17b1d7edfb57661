"""`lowtide doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..training.environment import diagnosis
from ..training.parser import Parser
from .console import OUT

FOREMOST = ("torch", "torchvision", "timm")
"""Libraries with a line of their own."""
SUMMARY = "Say what lowtide runs with here: versions, devices, kernels."


def doctor(args: Sequence[str]) -> None:
    """Run `lowtide doctor`.

    Args:
        args: The command's arguments.
    """
    parser = Parser("doctor", SUMMARY)
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    asked = parser.read(args)
    found = diagnosis()
    if asked["json"]:
        print(json.dumps(found, indent=2))
        return
    for subject, line in _lines(found):
        OUT.print(f"{subject:12s} {line}", markup=False)


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    commit = f", commit {found['commit']}" if found["commit"] else ""
    yield "lowtide", f"{found['packages']['lowtide'] or 'not installed'}{commit}"
    yield "python", f"{found['python']}, {found['platform']}"
    held = {name: version or "not installed" for name, version in found["packages"].items()}
    for name in FOREMOST:
        yield name, held.pop(name)
    yield "and", ", ".join(f"{n} {v}" for n, v in held.items() if n != "lowtide")
    for device in found["devices"]:
        yield "device", device
    yield "threads", f"{found['threads']} of {found['cores']} cores"
    yield "CPU kernels", found["cpu_kernels"] or f"none: {found['cpu_kernels_absent']}"
    if found["cuda"]:
        yield "GPU kernels", found["gpu_kernels"] or "none"
    compiler, about = found["compiler"], found["compiler_version"]
    yield "compiler", f"{compiler} ({about})" if compiler else "none"
    yield "cache", found["cpu_kernels_file"] or f"{found['cache'] or 'none'} (not used)"
    for name, libraries in found["extras"].items():
        row = ", ".join(f"{n} {v or 'not installed'}" for n, v in libraries.items())
        yield "extra", f"{name}: {row}"
    for warning in found["warnings"]:
        yield "warning", warning
    if not found["warnings"]:
        yield "all well", "nothing to mend"
