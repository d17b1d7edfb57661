"""The command line: find the command, run it, turn errors into one line."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence

import torch
from safetensors import SafetensorError

from .commands import COMMANDS
from .core.outside import import_methods
from .errors import InputError, LowtideError, UnknownName, printable
from .extras import installed
from .interrupt import leave_at_once
from .training.time_limit import OutOfTime
from .tuning.left_out import LeftOutWarning

CONTINUES = dict.fromkeys(("bench", "search", "tune"), "; the same command continues")
EXHAUSTED = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
}
"""What a machine may run out of; any other error of a file is that of the name that was given."""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: Command and arguments; by default those of the process.

    Returns:
        0; 2 for bad input, 1 for a failure, 130 where it was interrupted, 124 where its time limit
        ended it, each with one line on standard error.
    """
    args = list(sys.argv[1:] if args is None else args)
    _open_streams()
    try:
        with warnings.catch_warnings():  # it is among a plan's notes
            warnings.simplefilter("ignore", LeftOutWarning)
            code = _run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except InputError as e:
        return _complain(e, 2)
    except OutOfTime as e:
        return _complain(e, 124)
    except LowtideError as e:
        return _complain(e, 1)
    except KeyboardInterrupt as e:
        said = f"; {e}" if e.args else CONTINUES.get(args[0], "") if args else ""
        return _complain(f"interrupted{said}", 130)
    except BrokenPipeError:  # the reader, head for one, has had enough
        _silence()
        return 0
    except OSError as e:
        _flush_or_silence()
        return _complain(_of_file(e), 1 if e.errno in EXHAUSTED else 2)
    except SafetensorError as e:
        return _complain(f"a safetensors file cannot be read or written: {e}", 1)
    except (MemoryError, torch.OutOfMemoryError) as e:
        reason = str(e).partition(". ")[0] or "the machine has no more"
        return _complain(f"out of memory: {reason}; lowtide plan says what a run needs", 1)


def _run(args: Sequence[str]) -> int:
    if not args or args[0] in {"-h", "--help"}:
        print(_help())
        return 0
    if args[0] == "--version":
        print(f"lowtide {installed('lowtide') or 'from a source tree'}")
        return 0
    args = _with_methods(args)
    if not args or args[0] not in COMMANDS:
        raise UnknownName("command", args[0] if args else "", COMMANDS)
    run, _ = COMMANDS[args[0]]
    run(args[1:])
    return 0


def _with_methods(args: Sequence[str]) -> list[str]:
    """Import what `--import` names, wherever it stands, and give the other arguments."""
    rest, waiting = [], list(args)
    while waiting:
        word = waiting.pop(0)
        flag, equals, source = word.partition("=")
        if flag != "--import":
            rest.append(word)
            continue
        if not equals and not waiting:
            raise InputError("--import needs a value")
        import_methods(source if equals else waiting.pop(0))
    return rest


def _open_streams() -> None:
    """Let any name be printed on any terminal, and Ctrl-C be Python's again."""
    if signal.getsignal(signal.SIGINT) is leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush_or_silence() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _silence()


def _silence() -> None:
    """Send what is still to be printed nowhere, or Python would fail on it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _of_file(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename else reason


def _complain(message: object, code: int) -> int:
    print(f"lowtide: {printable(' '.join(str(message).split()))}", file=sys.stderr)
    return code


def _help() -> str:
    rows = "\n".join(f"  {name:8s} {summary}" for name, (_, summary) in COMMANDS.items())
    return (
        "Fine-tune large pre-trained vision backbones in very little memory.\n\n"
        f"usage: lowtide COMMAND ...\n\n{rows}\n\n"
        "lowtide COMMAND --help says more; lowtide --version says which this is.\n"
        "--import FILE.py or MODULE, with any command, takes a method of your own from there."
    )
