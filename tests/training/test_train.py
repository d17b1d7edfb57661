"""A run end to end, on real files: what it leaves, how it resumes, how it fails."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from tinted import write_tinted

from lowtide import METHODS, InputError, LowtideError, StepConfig, load, plan
from lowtide.cli import main
from lowtide.data import read
from lowtide.inference.evaluate import open_run, predict, score
from lowtide.training.config import RunConfig, read_yaml, write_yaml
from lowtide.training.loop import train
from lowtide.training.summary import read_summary

MODEL = "vit_micro_patch4_32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noise with a tint: three classes, 12 images each and split."""
    root = tmp_path_factory.mktemp("images")
    return write_tinted(root, dict.fromkeys(("train", "val", "test"), 12))


@pytest.fixture
def config(folder):
    return RunConfig(
        model=MODEL,
        data=str(folder),
        method=METHODS["lora"](dropout=0.1),
        epochs=2,
        batch_size=8,
        lr=5e-3,
        warmup_epochs=0.0,
        augment="flip",
        device="cpu",
    )


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_learns_and_leaves_a_record(config, tmp_path):
    summary = train(replace(config, epochs=6), tmp_path / "run")
    assert summary.test_accuracy > 0.8
    assert summary.measured_peak_bytes == summary.planned.peak_bytes
    assert summary.history[1].train_loss < summary.history[0].train_loss
    assert json.loads((tmp_path / "run/summary.json").read_text()) == summary.to_dict()
    assert read_summary(tmp_path / "run/summary.json") == summary
    assert not (tmp_path / "run/checkpoint.safetensors").exists()
    size = (tmp_path / "run/adapter_model.safetensors").stat().st_size
    assert size < 200_000
    trained = open_run(tmp_path / "run", device="cpu")
    assert trained.classes == ("blue", "green", "red")


@pytest.mark.parametrize("change", [{}, {"accumulate": 3}, {"amp": "bf16", "policy": "tight"}])
def test_images_held_in_bytes_are_learnt_from_as_floats_are(config, change, tmp_path, monkeypatch):
    config = replace(config, policy="tight", checkpointing=True, augment="crop")
    found = []
    for name, holds in (("bytes", config.holds_pixels), ("floats", False)):
        monkeypatch.setattr(RunConfig, "holds_pixels", holds)
        summary = train(replace(config, **change), tmp_path / name)
        assert change.get("amp") or summary.measured_peak_bytes == summary.planned.peak_bytes
        found.append((weights(tmp_path / name), summary))
    (first, held), (second, floats) = found
    assert equal(first, second) and held.history[-1].train_loss == floats.history[-1].train_loss
    spared = floats.planned.peak_bytes - held.planned.peak_bytes
    assert spared == 3 * config.batch_size * 3 * 32 * 32


@pytest.mark.parametrize("change", [{"mixup": 0.2}, {"augment": "crop", "random_erasing": 0.5}])
def test_images_that_are_changed_as_floats_are_held_so(config, change, tmp_path):
    config = replace(config, epochs=1, **change)
    assert not config.holds_pixels
    summary = train(config, tmp_path)
    assert summary.measured_peak_bytes == summary.planned.peak_bytes


def test_the_confusion_counts_every_test_image_as_score_does(config, tmp_path):
    summary = train(config, tmp_path / "run")
    trained = open_run(tmp_path / "run", device="cpu")
    scored = score(trained, read(config.data).test)
    counts = np.zeros((3, 3), int)
    for truth, predicted, count in summary.test_confusion:
        counts[truth, predicted] = count
    assert counts.sum(1).tolist() == [12, 12, 12]
    by_class = dict(zip(trained.classes, counts.diagonal() / 12, strict=True))
    assert by_class == pytest.approx(scored["class_accuracy"])
    assert summary.test_accuracy == scored["accuracy"]


def test_validation_images_can_be_learnt_from_and_test_images_left_alone(config, tmp_path):
    summary = train(replace(config, train_on_val=True, skip_test=True, epochs=1), tmp_path / "run")
    assert (summary.data.train, summary.data.val) == (72, 0)
    assert summary.val_accuracy is None
    assert summary.test_accuracy is None
    assert summary.test_confusion == ()


def test_the_same_config_repeats_the_run(config, tmp_path, monkeypatch):
    train(config, tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", "a/config.yaml", "--output", "b"]) == 0
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_a_killed_run_continues_to_the_same_weights(config, tmp_path):
    config = replace(config, epochs=3, method=METHODS["s2a"](), policy="tight", drop_path=0.1)
    train(config, tmp_path / "whole")
    code = (
        "import sys; from pathlib import Path;"
        "from lowtide.training.config import RunConfig, read_yaml;"
        "from lowtide.training.loop import train; import torch; torch.set_num_threads(1);"
        "train(RunConfig.from_dict(read_yaml(Path(sys.argv[1]))), Path(sys.argv[2]))"
    )
    killed = tmp_path / "killed"
    args = [sys.executable, "-c", code, str(tmp_path / "whole/config.yaml"), str(killed)]
    with subprocess.Popen(args, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (killed / "log.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert (killed / "checkpoint.safetensors").exists()
    assert not (killed / "summary.json").exists()
    assert main(["train", "--resume", str(killed)]) == 0
    assert equal(weights(tmp_path / "whole"), weights(killed))


@pytest.mark.parametrize("cached", [False, True])
def test_a_last_batch_of_one_image_is_left_out_where_batches_are_normalized(
    config, tmp_path, cached
):
    """36 images in batches of 5 leave one over."""
    config = replace(config, augment="none", batch_size=5, epochs=1, cache_features=cached)
    summary = train(replace(config, method=METHODS["mlp_head"]()), tmp_path / "run")
    assert summary.history[0].train_loss > 0
    assert (tmp_path / "run/summary.json").exists()


def launched(processes, *options):
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    command += ["-m", "lowtide", "train", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_two_processes_train_what_one_would(config, tmp_path):
    """33 images, 10 an update, leave 3 to share; of 21 to validate on, one process has the last."""
    data = write_tinted(tmp_path / "images", {"train": 11, "val": 7, "test": 4})
    config = replace(config, data=str(data), method=METHODS["lora"](), opt="sgd", ema=0.5)
    config = replace(config, batch_size=10)
    train(config, tmp_path / "one")
    (tmp_path / "c.yaml").write_text(write_yaml(replace(config, batch_size=5).to_dict()))
    done = launched(2, "--config", tmp_path / "c.yaml", "--output", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    assert done.stderr.count("2 processes, 10 images per update") == 1
    one, two = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("one", "two"))
    assert two["environment"]["processes"] == 2
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)
    for mine, theirs in zip(one["history"], two["history"], strict=True):
        assert theirs["train_loss"] == pytest.approx(mine["train_loss"], abs=1e-6)
        assert theirs["val_accuracy"] == mine["val_accuracy"]
    assert two["test_confusion"] == one["test_confusion"]


def test_only_trained_state_is_stored(config, tmp_path, monkeypatch):
    monkeypatch.setattr("lowtide.training.loop.finish", lambda *_: {})
    train(replace(config, epochs=1), tmp_path / "run")
    state = load_file(tmp_path / "run/checkpoint.safetensors")
    trained = sum(v.numel() for k, v in state.items() if k.startswith("model/"))
    assert trained == 6 * 2 * 2 * 8 * 192 + 3 * 193
    moments = sum(v.numel() for k, v in state.items() if k.endswith(("exp_avg", "exp_avg_sq")))
    assert moments == 2 * trained


def test_accumulation_gives_the_same_update(config, tmp_path):
    config = replace(config, method=METHODS["bias"](), epochs=1, opt="sgd", augment="none")
    train(config, tmp_path / "whole")
    train(replace(config, accumulate=3), tmp_path / "parts")
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


def test_a_memory_budget_decides_what_is_kept(config, tmp_path):
    whole = plan(MODEL, config.method, num_classes=3, step=StepConfig(batch_size=8)).peak_bytes
    folder, budget = tmp_path / "run", int(whole * 0.6)
    summary = train(replace(config, memory_budget=str(budget), epochs=1), folder)
    assert summary.measured_peak_bytes == summary.planned.peak_bytes <= budget
    chosen = summary.config.to_dict()
    assert chosen["memory_budget"] is None
    assert (chosen["accumulate"], chosen["policy"]) != (1, "exact")
    assert read_yaml(folder / "config.yaml") == chosen
    with pytest.raises(InputError, match="smallest possible peak"):
        train(replace(config, memory_budget="1MiB"), tmp_path / "none")
    with pytest.raises(InputError, match="write 640MiB"):
        replace(config, memory_budget="little")


def test_bf16_autocast_learns(config, tmp_path):
    summary = train(replace(config, epochs=6, amp="bf16", policy="tight"), tmp_path / "run")
    assert summary.test_accuracy > 0.8


@pytest.mark.parametrize("frozen_dtype", ["fp32", "bf16"])
def test_merged_checkpoint_loads_in_plain_timm(config, tmp_path, frozen_dtype):
    summary = train(replace(config, frozen_dtype=frozen_dtype), tmp_path / "run")
    assert summary.measured_peak_bytes == summary.planned.peak_bytes
    out = tmp_path / "merged.safetensors"
    assert main(["merge", str(tmp_path / "run"), "--output", str(out)]) == 0
    plain = timm.create_model(MODEL, num_classes=3, checkpoint_path=str(out)).eval()
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        # The file has the original frozen weights, and not those that were rounded for the run.
        tuned = load(timm.create_model(MODEL, pretrained=True), tmp_path / "run")
        assert torch.allclose(plain(x), tuned(x), atol=1e-5)


def test_a_run_on_random_weights_can_be_opened(config, tmp_path, capsys):
    train(replace(config, pretrained=False, epochs=1), tmp_path / "run")
    torch.manual_seed(7)
    assert main(["eval", str(tmp_path / "run"), "--split", "all", "--device", "cpu"]) == 0


def test_eval_and_predict_agree(config, folder, tmp_path, capsys):
    train(config, tmp_path / "run")
    trained = open_run(tmp_path / "run", device="cpu")
    paths = sorted((folder / "test/red").glob("*.png"))
    answers = list(predict(trained, paths, top=2))
    assert [len(a["probabilities"]) for a in answers] == [2] * 12
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run"), "--json", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    right = sum(a["class"] == "red" for a in answers) / len(answers)
    assert result["class_accuracy"]["red"] == pytest.approx(right)
    assert result["accuracy"] == pytest.approx(sum(result["class_accuracy"].values()) / 3)
    with pytest.raises(InputError, match="no images"):
        score(trained, [])


def test_nothing_is_overwritten_unasked(config, tmp_path):
    config = replace(config, epochs=1)
    train(config, tmp_path / "run")
    before = weights(tmp_path / "run")
    with pytest.raises(InputError, match="already holds a run"):
        train(replace(config, seed=1), tmp_path / "run")
    assert equal(before, weights(tmp_path / "run"))


def test_a_loss_that_is_no_number_stops_the_run(config, tmp_path):
    with pytest.raises(LowtideError, match=r"the loss is (nan|inf) at epoch \d+, step \d+"):
        train(replace(config, lr=1e30, epochs=3, method=METHODS["full"]()), tmp_path / "run")


def test_resume_refuses_changed_data(config, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("lowtide.training.loop.finish", lambda *_: {})
    train(replace(config, epochs=1), tmp_path / "run")
    image = folder / "train/red/0.png"
    kept = image.read_bytes()
    image.write_bytes(kept[:-1] + b"?")  # as long as it was
    with pytest.raises(InputError, match=r"has changed since .*: 1 \(first 'train/red/0.png'\) ch"):
        train(replace(config, epochs=1), tmp_path / "run", continues=True)
    image.write_bytes(kept)
    image.rename(folder / "train/red/zero.png")
    try:
        with pytest.raises(InputError, match="has changed"):
            train(replace(config, epochs=1), tmp_path / "run", continues=True)
    finally:
        (folder / "train/red/zero.png").rename(folder / "train/red/0.png")
