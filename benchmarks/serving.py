"""Load a running server with images of several tasks, some of them bad, and count what it answers.

    lowtide serve RUNS... --port 8000
    python benchmarks/serving.py IMAGE... [--url URL] [--requests N] [--clients C] [--bad SHARE]
    python benchmarks/serving.py IMAGE... --soak MINUTES --pid PID

Each client sends one request after another; the tasks take turns. Latencies are those of answered
requests, refusals for overload are counted apart and sent again. A soak goes on for MINUTES, and
prints once a minute what the server (PID and its children) holds, shared pages counted once.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import linear_regression, quantiles
from urllib.parse import urlparse

import psutil

BUSY = {429, 503}


class Load:
    """What all clients share."""

    def __init__(self, url: str, images: list[bytes], requests: float, bad: float) -> None:
        self.host = urlparse(url).netloc
        self.images, self.requests = images, requests
        self.every = round(1 / bad) if bad else math.inf
        self.tasks = [t["name"] for t in self.get("/tasks")["tasks"]]
        self.lock, self.next = threading.Lock(), 0
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []

    def get(self, path: str) -> dict:
        """Ask for JSON."""
        connection = http.client.HTTPConnection(self.host, timeout=60)
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())

    def client(self) -> None:
        """Send requests until none are left."""
        connection = http.client.HTTPConnection(self.host, timeout=120)
        while True:
            with self.lock:
                i, self.next = self.next, self.next + 1
            if i >= self.requests:
                return
            bad = i % self.every == self.every - 1
            body = os.urandom(2000) if bad else self.images[i % len(self.images)]
            task = self.tasks[i % len(self.tasks)]
            status, answer, seconds = 503, {}, 0.0
            while status in BUSY:
                start = time.perf_counter()
                connection.request("POST", f"/predict/{task}", body)
                reply = connection.getresponse()
                status, answer = reply.status, json.loads(reply.read())
                seconds = time.perf_counter() - start
                if status in BUSY:
                    self.note("refused, sent again", None)
                    time.sleep(0.05)
            right = status == 400 if bad else status == 200 and answer["task"] == task
            self.note(f"{'bad' if bad else 'good'}, {status}{'' if right else ' WRONG'}", seconds)

    def note(self, what: str, seconds: float | None) -> None:
        """Count an answer."""
        with self.lock:
            self.statuses[what] += 1
            self.seconds += [] if seconds is None else [seconds]


def held(pid: int) -> float:
    """Count the MiB of a process and all below it."""
    top = psutil.Process(pid)
    return sum(p.memory_full_info().pss for p in (top, *top.children(recursive=True))) / 2**20


def soak(load: Load, pid: int, minutes: int) -> None:
    """Watch the server's memory once a minute, then let the clients end."""
    start, seen = time.monotonic(), []
    for minute in range(minutes + 1):
        time.sleep(max(0.0, start + 60 * minute - time.monotonic()))
        seen.append(held(pid))
        answered = sum(load.statuses.values())
        print(f"minute {minute}: {seen[-1]:.1f} MiB, {answered} answers", flush=True)
    load.requests = 0
    later = seen[len(seen) // 3 :]
    slope = linear_regression(range(len(later)), later).slope
    print(f"after a third of the time: {min(later):.1f} to {max(later):.1f} MiB", end="")
    print(f", {slope:+.3f} MiB a minute")


def main() -> None:
    """Print counts, requests per second and latencies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--bad", type=float, default=0.01)
    parser.add_argument("--soak", type=int, help="minutes, in place of --requests")
    parser.add_argument("--pid", type=int, help="process of lowtide serve")
    args = parser.parse_args()
    if (args.soak is None) != (args.pid is None):
        parser.error("--soak and --pid go together")
    requests = math.inf if args.soak else args.requests
    load = Load(args.url, [p.read_bytes() for p in args.images], requests, args.bad)
    start = time.perf_counter()
    threads = [threading.Thread(target=load.client) for _ in range(args.clients)]
    for thread in threads:
        thread.start()
    if args.soak:
        soak(load, args.pid, args.soak)
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    cuts = quantiles(load.seconds, n=100)
    print(json.dumps(dict(sorted(load.statuses.items()))))
    rate = f"{len(load.seconds) / seconds:.0f} requests/s"
    print(f"{rate} of {args.clients} clients, {len(load.tasks)} tasks")
    print(f"p50 {1000 * cuts[49]:.0f} ms, p99 {1000 * cuts[98]:.0f} ms")


if __name__ == "__main__":
    main()
