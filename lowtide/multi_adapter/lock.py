"""A lock of which each copy is its own."""

from __future__ import annotations

import threading


class Lock:
    """One thread at a time; the same thread may enter again.

    A model that holds it can be copied, pickled and sent to another process, where it is open.
    """

    def __init__(self) -> None:
        """Make it, open."""
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()
