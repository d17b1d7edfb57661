"""Load a running server with images of several tasks, some of them bad, and count what it answers.

    lowtide serve RUNS... --port 8000
    python benchmarks/serving.py IMAGE... [--url URL...] [--requests N] [--clients C] [--bad SHARE]
    python benchmarks/serving.py IMAGE... --soak MINUTES --pid PID
    python benchmarks/serving.py IMAGE... --side-by-side TASKS [--model MODEL]
        [--workers W] [--rounds N]

Each client sends one request after another to one of the servers; its tasks take turns. Latencies
are those of answered requests, refusals for overload are counted apart and sent again. A soak goes
on for MINUTES, and
prints once a minute what the server (PID and its children) holds, shared pages counted once.

Side by side: one server of TASKS tasks with one worker and with W, then as many servers of one task
each, the same load on all, N times in turn. The tasks are LoRA on one backbone with random weights.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from statistics import linear_regression, quantiles
from urllib.parse import urlparse

import psutil
import torch

import lowtide
from lowtide.data.preprocessing import Preprocessing

BUSY = {429, 503}


class Load:
    """What all clients share."""

    def __init__(self, urls: list[str], images: list[bytes], requests: float, bad: float) -> None:
        self.hosts = [urlparse(url).netloc for url in urls]
        self.images, self.requests = images, requests
        self.every = round(1 / bad) if bad else math.inf
        self.tasks = [(host, t["name"]) for host in self.hosts for t in listed(host)]
        self.lock, self.next = threading.Lock(), 0
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []

    def client(self, host: str) -> None:
        """Send requests to a server until none are left."""
        tasks = [task for at, task in self.tasks if at == host]
        connection = http.client.HTTPConnection(host, timeout=120)
        while True:
            with self.lock:
                i, self.next = self.next, self.next + 1
            if i >= self.requests:
                return
            bad = i % self.every == self.every - 1
            body = os.urandom(2000) if bad else self.images[i % len(self.images)]
            task = tasks[i % len(tasks)]
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

    def run(self, clients: int, watch: Callable[[], None] = lambda: None) -> None:
        """Send all requests, and print counts, requests per second and latencies."""
        start = time.perf_counter()
        hosts = islice(cycle(self.hosts), clients)
        threads = [threading.Thread(target=self.client, args=(host,)) for host in hosts]
        for thread in threads:
            thread.start()
        watch()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - start
        cuts = quantiles(self.seconds, n=100)
        print(json.dumps(dict(sorted(self.statuses.items()))))
        rate = f"{len(self.seconds) / seconds:.0f} requests/s"
        print(f"{rate} of {clients} clients, {len(self.tasks)} tasks")
        print(f"p50 {1000 * cuts[49]:.0f} ms, p99 {1000 * cuts[98]:.0f} ms", flush=True)


def listed(host: str) -> list[dict]:
    """Ask a server for its tasks."""
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", "/tasks")
    return json.loads(connection.getresponse().read())["tasks"]


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


def task_folders(root: Path, model: str, tasks: int) -> list[Path]:
    """Save as many LoRA adapters of one backbone, none of them trained."""
    torch.manual_seed(0)
    backbone = lowtide.create(model, pretrained=False)
    preprocessing = Preprocessing.of(backbone).to_dict()
    tuned = lowtide.Tuned(backbone)
    known = {"name": model, "checkpoint": None, "pretrained": False, "image_size": None, "seed": 0}
    facts = {"backbone": known, "preprocessing": preprocessing, "augment": "none"}
    classes = [f"class{i}" for i in range(10)]
    for i in range(tasks):
        tuned.add_adapter(f"task{i}", lowtide.METHODS["lora"](), num_classes=len(classes))
        tuned.set_adapter(f"task{i}")
        tuned.save_pretrained(root / f"task{i}", classes=classes, **facts)
    return [root / f"task{i}" for i in range(tasks)]


@contextmanager
def served(groups: list[list[Path]], workers: int) -> Iterator[tuple[list[str], list[int]]]:
    """Start a server for each group of runs; give their addresses and processes."""
    command = (
        sys.executable,
        "-m",
        "lowtide",
        "serve",
        "--device",
        "cpu",
        "--max-waiting",
        "4096",
    )
    ports = [free_port() for _ in groups]
    servers = [
        subprocess.Popen([
            *command,
            *map(str, runs),
            "--port",
            str(port),
            "--workers",
            str(workers),
        ])
        for runs, port in zip(groups, ports, strict=True)
    ]
    try:
        for port in ports:
            wait_for(port)
        yield [f"http://127.0.0.1:{port}" for port in ports], [s.pid for s in servers]
    finally:
        for server in servers:
            server.send_signal(signal.SIGTERM)
        for server in servers:
            server.wait(60)


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    """Wait until a server is ready."""
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"no server on port {port} after two minutes")


def side_by_side(args: argparse.Namespace, images: list[bytes]) -> None:
    """Load one server of all tasks, then one server per task, by turns."""
    with tempfile.TemporaryDirectory() as root:
        folders = task_folders(Path(root), args.model, args.side_by_side)
        for _ in range(args.rounds):
            one, each = [folders], [[folder] for folder in folders]
            for groups, workers in ((one, 1), (one, args.workers), (each, 1)):
                with served(groups, workers) as (urls, pids):
                    print(f"\nservers: {len(groups)}, tasks: {len(groups[0])}, workers: {workers}")
                    Load(urls, images, args.requests, args.bad).run(args.clients)
                    print(f"{sum(map(held, pids)):.0f} MiB", flush=True)


def main() -> None:
    """Print counts, requests per second and latencies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--url", nargs="+", default=["http://127.0.0.1:8000"])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--bad", type=float, default=0.01)
    parser.add_argument("--soak", type=int, help="minutes, in place of --requests")
    parser.add_argument("--pid", type=int, help="process of lowtide serve")
    parser.add_argument("--side-by-side", type=int, metavar="TASKS")
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if (args.soak is None) != (args.pid is None):
        parser.error("--soak and --pid go together")
    images = [path.read_bytes() for path in args.images]
    if args.side_by_side:
        side_by_side(args, images)
    elif args.soak:
        load = Load(args.url, images, math.inf, args.bad)
        load.run(args.clients, lambda: soak(load, args.pid, args.soak))
    else:
        Load(args.url, images, args.requests, args.bad).run(args.clients)


if __name__ == "__main__":
    main()
