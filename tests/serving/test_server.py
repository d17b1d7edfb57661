"""A server as clients find it: tasks in one batch, refusals, changes while it runs, and its end."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import browsers
import pytest
from served import WAIT, Served, run_folder, serving

from lowtide.inference.evaluate import open_run, predict

pytest.importorskip("litserve")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("shelf")
    runs = {
        "birds": run_folder(root / "birds", "lora", classes=3, seed=1),
        "cars": run_folder(root / "cars", "ssf", classes=5, seed=2),
        "ships": run_folder(root / "ships", "dtl", classes=2, seed=3),
    }
    first = [str(runs["birds"]), f"cars={runs['cars']}"]
    limits = ["--max-pixels", "100000", "--max-bytes", "1000000", "--max-waiting", "8"]
    with serving(*first, "--adapters", str(root), *limits, runs=runs) as found:
        yield found


def want(run: Path, image: Path) -> dict[str, Any]:
    (answer,) = predict(open_run(run, device="cpu"), [image])
    return answer


def test_a_person_drops_an_image_and_picks_a_task(server: Served, paint: Any) -> None:
    image = paint("0.png") / "0.png"
    with browsers.chromium() as browser:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.wait_for_selector("#task option", state="attached")
        assert page.locator("#task option").all_text_contents() == ["birds", "cars"]
        page.set_input_files("#file", str(image))
        for task, classes in (("birds", 3), ("cars", 5)):
            page.select_option("#task", task)
            page.wait_for_function(f"document.querySelectorAll('.bar').length === {classes}")
            shown = page.locator(".bar").first.inner_text().split()
            right = want(server.runs[task], image)
            best = max(right["probabilities"], key=right["probabilities"].get)
            assert shown[0] == best == right["class"]
            assert float(shown[1]) == pytest.approx(100 * right["probabilities"][best], abs=0.06)
        page.evaluate(
            "for (let i = 0; i < 3; i++) ask()"
        )  # Only the last question's answer is shown.
        page.wait_for_load_state("networkidle")
        page.wait_for_function("document.querySelectorAll('.bar').length === 5")
        page.set_input_files("#file", __file__)
        page.wait_for_function("document.getElementById('error').textContent !== ''")
        assert page.locator(".bar").count() == 0


def test_a_server_from_start_to_end(server: Served, paint: Any) -> None:
    folder = paint(*(f"{i}.png" for i in range(4)))
    images = [folder / f"{i}.png" for i in range(4)]
    _answers_are_those_of_predict(server, images)
    _bad_requests_are_one_line(server)
    _tasks_come_and_go(server, images[0])
    _too_many_are_refused_and_the_others_answered(server, images[0])
    _what_is_in_flight_is_answered_at_the_end(server, images[0])


def _answers_are_those_of_predict(server: Served, images: list[Path]) -> None:
    rights = [want(server.runs[("birds", "cars")[i % 2]], image) for i, image in enumerate(images)]

    def one(i: int) -> None:
        name, right = ("birds", "cars")[i % 2], rights[i]
        status, answer = server.ask("POST", f"/predict/{name}", images[i].read_bytes())
        (given,) = answer["predictions"]
        assert status == 200 and given["class"] == right["class"]
        assert given["probabilities"] == pytest.approx(right["probabilities"], abs=1e-5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(4)))
    status, page = server.ask("GET", "/")
    assert status == 200 and "<!doctype html>" in page
    status, listed = server.ask("GET", "/tasks")
    assert [t["name"] for t in listed["tasks"]] == ["birds", "cars"]
    assert len(listed["tasks"][1]["classes"]) == 5


def _bad_requests_are_one_line(server: Served) -> None:
    for path, body, status in (
        ("/predict/birds", b"no image", 400),
        ("/predict/birds", b"", 400),
        ("/predict/bird", b"x", 404),
        ("/predict/birds", bytes(1_000_001), 413),
        ("/internal", b"{}", 404),
    ):
        got, answer = server.ask("POST", path, body)
        assert got == status, path
        assert "\n" not in answer.get("error", "")


def _tasks_come_and_go(server: Served, image: Path) -> None:
    assert server.ask("PUT", "/tasks/x", b'{"folder": "../.."}')[0] == 403
    assert server.ask("PUT", "/tasks/x", b"[]")[0] == 400
    assert server.ask("PUT", "/tasks/ships")[0] == 201
    status, answer = server.ask("POST", "/predict/ships", image.read_bytes())
    right = want(server.runs["ships"], image)
    assert answer["predictions"][0]["probabilities"] == pytest.approx(
        right["probabilities"], abs=1e-5
    )
    assert server.ask("DELETE", "/tasks/ships")[0] == 200
    assert server.ask("POST", "/predict/ships", image.read_bytes())[0] == 404


def _too_many_are_refused_and_the_others_answered(server: Served, image: Path) -> None:
    body = image.read_bytes()
    with ThreadPoolExecutor(24) as pool:
        got = [
            s for s, _ in pool.map(lambda _: server.ask("POST", "/predict/cars", body), range(72))
        ]
    assert set(got) == {200, 503}
    _, text = server.ask("GET", "/metrics")
    assert "lowtide_waiting_images 0" in text
    assert int(re.search(r'status="503"} (\d+)', text)[1]) == got.count(503)


def _what_is_in_flight_is_answered_at_the_end(server: Served, image: Path) -> None:
    """Requests that were sent whole before the signal are answered."""
    body, address = image.read_bytes(), ("127.0.0.1", server.port)
    sent = []
    for _ in range(6):
        connection = http.client.HTTPConnection(*address, timeout=WAIT)
        connection.request("POST", "/predict/birds", body)
        sent.append(connection)
    first = sent[0].getresponse()  # by now the others have been read
    os.kill(server.process.pid, signal.SIGTERM)
    replies = [first, *(c.getresponse() for c in sent[1:])]
    assert [r.status for r in replies] == [200] * 6
    for closing in (*replies, *sent):
        closing.close()
    assert server.process.wait(WAIT) == 0
    with pytest.raises(OSError):
        socket.create_connection(address, timeout=1)
