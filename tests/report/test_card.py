"""A run goes to a hub with a card that tells it, and comes back: over HTTP, on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import ModelCard, constants, file_download
from tinted import write_tinted

import lowtide
from lowtide.cli import main
from lowtide.inference.evaluate import open_run
from lowtide.tuning.adapter_files import CONFIG, WEIGHTS

SHA = "a" * 40
NAME = "someone/shades"


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as uploads and downloads of small files ask for."""

    files: dict[str, bytes] = {}

    def log_message(self, *args):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), "X-Repo-Commit": SHA, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        if (found := re.search(r"/resolve/[^/]+/(.+)$", self.path)) and found[1] in self.files:
            content = self.files[found[1]]
            return self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')
        if "/tree/" in self.path:
            rows = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in self.files.items()
            ]
            return self.answer(rows)
        if self.path.startswith(f"/api/models/{NAME}"):
            listed = [{"rfilename": name} for name in self.files]
            return self.answer({"id": NAME, "sha": SHA, "siblings": listed})
        return self.answer({"error": "no such repository"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            return self.answer({"url": f"{self.server.address}/{NAME}"})
        if "/preupload/" in self.path:
            named = [f["path"] for f in json.loads(body)["files"]]
            plain = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in named]
            return self.answer({"files": plain})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            return self.answer({
                "success": True,
                "commitOid": SHA,
                "commitUrl": f"{self.server.address}/{NAME}/commit/{SHA}",
            })
        return self.answer({})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    Hub.files = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    # As the variable does at import.
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_uploaded_with_its_card_and_comes_back(hub, tmp_path, capsys, monkeypatch):
    images = write_tinted(tmp_path / "secret" / "shades", {"train": 4, "val": 1, "test": 1})
    run = tmp_path / "run"
    words = ["train", "--model", "vit_micro_patch4_32", "--data", str(images), "--epochs", "1"]
    words += ["--warmup-epochs", "0", "--batch-size", "6", "--device", "cpu", "--output", str(run)]
    assert main(words) == 0
    assert main(["push", str(run), NAME]) == 0
    assert set(hub.files) == {CONFIG, WEIGHTS, "README.md"}
    assert b"secret" not in b"".join(hub.files.values())

    card = ModelCard(hub.files["README.md"].decode())
    summary = json.loads((run / "summary.json").read_text())
    told = {
        r.metric_type: r.metric_value for r in card.data.eval_results if r.dataset_split == "test"
    }
    assert told["accuracy"] == summary["test_accuracy"]
    assert card.data.pipeline_tag == "image-classification" and "lora" in card.data.tags
    for said in (
        "lowtide train --model vit_micro_patch4_32 --data shades",
        f"{summary['measured_peak_bytes'] / 2**20:.1f} MiB",
        f"{summary['trainable_parameters']:,}",
        "12 train, 3 val, 3 test",
    ):
        assert said in card.text, said

    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = open_run(run, device="cpu").tuned(x)
        assert torch.equal(lowtide.from_hub(NAME, device="cpu").tuned(x), expected)
    capsys.readouterr()
    assert main(["eval", f"hf:{NAME}", "--data", str(images), "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == summary["test_accuracy"]
    assert main(["eval", f"hf:{NAME}"]) == 2
    assert "give --data" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["push", "run", "name"], ["eval", "hf:no/where"]])
def test_what_the_hub_refuses_is_one_line(hub, tmp_path, capsys, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert main(words) in {1, 2}
    assert capsys.readouterr().err.count("\n") == 1
