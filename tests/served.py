"""Folders as finished runs leave them, without the training, and a server of runs."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nets import stir

import lowtide
from lowtide.data.preprocessing import Preprocessing

MODEL = "vit_micro_patch4_32"
WAIT = 120


def run_folder(
    folder: Path, method: str = "lora", classes: int = 3, seed: int = 0, backbone_seed: int = 0
) -> Path:
    """Save a stirred adapter on random weights, with what `lowtide train` says of it."""
    torch.manual_seed(backbone_seed)
    backbone = lowtide.create(MODEL, pretrained=False)
    preprocessing = Preprocessing.of(backbone)
    tuned = lowtide.Tuned(backbone)
    torch.manual_seed(seed)
    tuned.add_adapter("a", lowtide.METHODS[method](), num_classes=classes)
    tuned.set_adapter("a")
    stir(tuned)
    tuned.save_pretrained(
        folder,
        backbone={
            "name": MODEL,
            "checkpoint": None,
            "pretrained": False,
            "image_size": None,
            "seed": backbone_seed,
        },
        preprocessing=preprocessing.to_dict(),
        augment="none",
        classes=[f"class{i}" for i in range(classes)],
    )
    return folder


class Served(NamedTuple):
    """A server that runs, and the runs it was given."""

    process: subprocess.Popen[str]
    port: int
    runs: dict[str, Path]

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            reply = connection.getresponse()
            text = reply.read().decode()
        return reply.status, json.loads(text) if text.startswith("{") else text


@contextlib.contextmanager
def serving(*args: str, runs: Mapping[str, Path] | None = None) -> Iterator[Served]:
    """Run `lowtide serve` on a port of its own until it is no longer needed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "lowtide", "serve", *args, "--port", str(port)]
    process = subprocess.Popen(command, text=True)
    found = Served(process, port, dict(runs or {}))
    try:
        _until_healthy(found)
        yield found
    finally:
        process.terminate()
        process.wait(WAIT)


def _until_healthy(server: Served) -> None:
    end = time.monotonic() + WAIT
    while time.monotonic() < end and server.process.poll() is None:
        try:
            if server.ask("GET", "/health")[0] == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")
