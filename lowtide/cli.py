"""The command line: find the command, run it, turn errors into one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .commands import COMMANDS
from .environment import installed
from .errors import InputError, LowtideError, UnknownName


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
    if args[0] == "--version":
        print(f"lowtide {installed('lowtide') or 'from a source tree'}")
        return 0
    if args[0] not in COMMANDS:
        return _complain(UnknownName("command", args[0], COMMANDS), 2)
    try:
        run, _ = COMMANDS[args[0]]
        run(args[1:])
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
    rows = "\n".join(f"  {name:8s} {summary}" for name, (_, summary) in COMMANDS.items())
    return (
        "Fine-tune large pre-trained vision backbones in very little memory.\n\n"
        f"usage: lowtide COMMAND ...\n\n{rows}\n\n"
        "lowtide COMMAND --help says more; lowtide --version says which this is."
    )
