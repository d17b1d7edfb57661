"""Two replicas on two workers of a Ray cluster answer as `lowtide predict` does."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from served import run_folder

from lowtide.errors import InputError
from lowtide.inference.evaluate import open_run, predict

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

REPLICA = {"num_cpus": 1}


@pytest.fixture
def port() -> Iterator[int]:
    """A cluster of a head without work and two workers with a processor each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    memory = {"object_store_memory": 80 * 2**20}
    head = {"num_cpus": 0, "include_dashboard": False, **memory}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, **memory)
        ray.init(cluster.address, log_to_driver=False, logging_level="error")
        serve.start(http_options={"host": "127.0.0.1", "port": free})
        yield free
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())


@pytest.mark.slow
def test_two_workers_answer_as_one_and_tasks_come_and_go(
    port: int, tmp_path: Path, paint: Any
) -> None:
    from lowtide.serving.cluster import application

    runs = {
        "birds": run_folder(tmp_path / "birds", "lora", classes=3, seed=1),
        "cars": run_folder(tmp_path / "cars", "ssf", classes=5, seed=2),
    }
    ships = run_folder(tmp_path / "ships", "dtl", classes=2, seed=3)
    told = {"replicas": 2, "batch_size": 4, "max_pixels": 100_000, "actor": REPLICA}
    serve.run(application({"runs": runs, **told}), name="lowtide", route_prefix="/")
    (deployment,) = serve.status().applications["lowtide"].deployments.values()
    assert deployment.replica_states == {"RUNNING": 2}
    nodes = {n["NodeID"]: n for n in ray.nodes() if n["Resources"].get("CPU")}
    assert len(nodes) == 2 and ray.available_resources().get("CPU", 0) == 0

    folder = paint(*(f"{i}.png" for i in range(4)))
    images = [folder / f"{i}.png" for i in range(4)]
    rights = [list(predict(open_run(r, device="cpu"), images)) for r in runs.values()]

    def one(i: int) -> None:
        name, right = list(runs)[i % 2], rights[i % 2][i // 2 % 4]
        status, answer = ask(port, "POST", f"/predict/{name}", images[i // 2 % 4].read_bytes())
        assert status == 200
        (given,) = answer["predictions"]
        assert given["probabilities"] == pytest.approx(right["probabilities"], abs=1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(32)))
    assert ask(port, "POST", "/predict/birds", b"no image")[0] == 400
    status, answer = ask(port, "POST", "/predict/ships", images[0].read_bytes())
    assert status == 404 and "known: birds, cars" in answer["error"]

    now = {"ships": ships, "cars": runs["cars"]}
    serve.run(application({"runs": now, **told}), name="lowtide", route_prefix="/")
    (right,) = predict(open_run(ships, device="cpu"), images[:1])
    for _ in range(8):
        status, answer = ask(port, "POST", "/predict/ships", images[0].read_bytes())
        assert status == 200
        given = answer["predictions"][0]["probabilities"]
        assert given == pytest.approx(right["probabilities"], abs=1e-5)
        assert ask(port, "POST", "/predict/birds", images[0].read_bytes())[0] == 404


def test_arguments_are_read_at_the_door() -> None:
    from lowtide.serving.cluster import application

    runs = {"a": "a"}
    for given, said in (
        ({"replicas": 2}, "expected runs"),
        ({"runs": ["a"]}, "expected runs"),
        ({"runs": runs, "replica": 2}, "replica.*replicas"),
        ({"runs": runs, "replicas": "two"}, "replicas must be a whole number from 1"),
        ({"runs": runs, "replicas": 0}, "replicas must be a whole number from 1"),
        ({"runs": runs, "batch_wait": "soon"}, "batch_wait must be a number"),
        ({"runs": runs, "max_pixels": -1}, "max_pixels must be a whole number from 1"),
        ({"runs": runs, "actor": 1}, "actor must be"),
    ):
        with pytest.raises(InputError, match=said):
            application(given)
