"""Ctrl-C while the libraries load, which takes seconds: one line, not a traceback through them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import PurePath


def leave_at_once(number: int, frame: object) -> None:
    """End the process.

    Args:
        number: The signal.
        frame: Where it came.
    """
    os.write(2, b"lowtide: interrupted\n")
    os._exit(130)


def watch() -> None:
    """Leave at the first Ctrl-C, where this process is the command and not somebody's program."""
    started = PurePath(sys.argv[0]).stem if sys.argv else ""
    # `python -m lowtide` is called -m until the package is imported.
    if started in {"lowtide", "-m"} and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, leave_at_once)


watch()
