"""What a run promises of its updates, its averages, its images and its numbers."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform
from tinted import write_tinted

import lowtide.training.loop
from lowtide import METHODS, InputError
from lowtide.data import Sample, read
from lowtide.inference.evaluate import open_run, score
from lowtide.planning.step import make_optimizer
from lowtide.training import resume
from lowtide.training.config import RunConfig
from lowtide.training.loop import train
from lowtide.training.prepare import prepare
from lowtide.training.summary import Epoch
from lowtide.tuning.applying import apply

MODEL = "vit_micro_patch4_32"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_tinted(tmp_path_factory.mktemp("laws"), {"train": 6, "val": 5, "test": 4})


@pytest.fixture
def config(images):
    return RunConfig(
        MODEL,
        str(images),
        METHODS["linear"](),
        epochs=1,
        batch_size=6,
        weight_decay=0.0,
        warmup_epochs=0.0,
        head_init="trunc_normal",
        keep="last",
        device="cpu",
    )


def trained_by(config, folder, monkeypatch):
    """What trained, before and after a run."""
    before = {k: v.clone() for k, v in prepare(config, folder).tuned.adapter_state().items()}
    kept = []
    monkeypatch.setattr(lowtide.training.loop, "finish", lambda run, *_: kept.append(run) or {})
    train(config, folder)
    return before, kept[0].tuned.adapter_state()


def test_clipping_bounds_how_far_an_update_goes(config, tmp_path, monkeypatch):
    """Nesterov's first step goes 1.9 lr |g|."""
    config = replace(config, opt="sgd", lr=0.1, batch_size=18, keep="last")
    gone = {}
    for clip in (0.0, 1e-2, 1e-3):
        run = replace(config, clip_grad=clip)
        before, after = trained_by(run, tmp_path / str(clip), monkeypatch)
        gone[clip] = math.sqrt(sum(float((after[k] - v).pow(2).sum()) for k, v in before.items()))
    assert gone[0.0] > 10 * gone[1e-2]
    for clip in (1e-2, 1e-3):
        assert gone[clip] == pytest.approx(1.9 * 0.1 * clip, rel=1e-2)


def test_the_time_of_a_step_is_the_median_of_those_without_the_meter(config, tmp_path, monkeypatch):
    seconds, step = iter([100, 1, 2, 4, 30, 60]), lowtide.training.loop.training_step
    now = [0.0]

    def slowly(*args, **options):
        now[0] += next(seconds)
        return step(*args, **options)

    monkeypatch.setattr(lowtide.training.loop, "METERED_STEPS", 1)
    monkeypatch.setattr(lowtide.training.loop, "training_step", slowly)
    monkeypatch.setattr(lowtide.training.loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert train(replace(config, epochs=2), tmp_path / "run").step_seconds == 4


def test_every_update_has_its_own_learning_rate(config, tmp_path, monkeypatch):
    """3 updates an epoch, 2 epochs: lr (1 + cos(pi t / 6)) / 2 at update t."""
    rates, step = [], lowtide.training.loop.training_step

    def spy(model, optimizer, *args, **options):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(model, optimizer, *args, **options)

    monkeypatch.setattr(lowtide.training.loop, "training_step", spy)
    train(replace(config, epochs=2, lr=0.01), tmp_path / "run")
    assert rates == pytest.approx([0.005 * (1 + math.cos(math.pi * t / 6)) for t in range(6)])


def test_what_is_validated_is_what_is_saved(config, images, tmp_path):
    """An average that hardly moves answers as at the start, and the weights do not."""
    config = replace(config, epochs=3, lr=0.05)
    averaged = train(replace(config, ema=0.9999), tmp_path / "averaged")
    plain = train(config, tmp_path / "plain")
    val = read(images).val
    for name, summary in (("averaged", averaged), ("plain", plain)):
        saved = score(open_run(tmp_path / name, device="cpu"), val)
        assert summary.history[-1].val_accuracy == saved["accuracy"]
    assert averaged.val_accuracy < plain.val_accuracy


def test_the_loss_of_an_epoch_is_that_of_all_its_batches(config, images, tmp_path):
    """Where nothing moves: the mean over the images, of equal batches."""
    config = replace(config, lr=1e-12)
    summary = train(config, tmp_path / "run")
    run = prepare(config, tmp_path / "again")
    run.tuned.eval()
    with torch.no_grad():
        losses = [
            F.cross_entropy(run.tuned(x), y, reduction="none")
            for x, y, *_ in run.batches(run.dataset.train)
        ]
    mean = float(torch.cat(losses).mean())
    assert summary.history[0].train_loss == pytest.approx(mean, rel=1e-5)
    assert float(losses[-1].mean()) != pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize("augment", ["crop", "none"])
def test_a_run_sees_images_as_it_was_validated(config, tmp_path, augment):
    """A run that crops is evaluated by timm's own crop, any other by squashing."""
    train(replace(config, augment=augment), tmp_path / "run")
    trained = open_run(tmp_path / "run", device="cpu")
    made = trained.preprocessing
    noise = torch.randint(0, 256, (48, 80, 3), dtype=torch.uint8)
    image = Image.fromarray(noise.numpy())
    squash = {"crop_pct": 1.0, "crop_mode": "squash"}
    crop = {"crop_pct": made.crop_pct, "crop_mode": made.crop_mode}
    wanted = create_transform(
        made.size,
        interpolation=made.interpolation,
        mean=made.mean,
        std=made.std,
        **(crop if augment == "crop" else squash),
    )
    torch.testing.assert_close(trained.transform(image), wanted(image), rtol=0, atol=1e-5)


def test_a_backbone_of_random_weights_is_drawn_from_its_seed_again(config, images, tmp_path):
    summary = train(replace(config, pretrained=False, seed=3), tmp_path / "run")
    torch.manual_seed(11)
    scored = score(open_run(tmp_path / "run", device="cpu"), read(images, seed=3).test)
    assert scored["accuracy"] == summary.test_accuracy


def test_the_mean_over_classes_is_of_classes(config, images, tmp_path, monkeypatch):
    train(config, tmp_path / "run")
    trained = open_run(tmp_path / "run", device="cpu")
    first = F.one_hot(torch.zeros(1, dtype=torch.long), 3).float()
    monkeypatch.setattr("lowtide.inference.evaluate._outputs", lambda _, x: first.expand(len(x), 3))
    path = next((images / "test").rglob("*.png"))
    scored = score(trained, [Sample(path, label) for label in (0, 0, 0, 1)])
    assert (scored["accuracy"], scored["mean_class_accuracy"]) == (0.75, 0.5)


EMPTY = resume.TrainingRecord(history=(), measured_bytes=0, data="")
OLD = Path(__file__).parent / "old/checkpoint.safetensors"
"""A training checkpoint of lowtide 0.1: no version, no `processes`, one epoch of `linear`."""


def test_a_checkpoint_of_an_earlier_version_opens() -> None:
    header = resume.read_header(OLD)
    assert header.version == 1
    assert header.record == resume.TrainingRecord(
        history=(Epoch(epoch=1, train_loss=1.25, val_accuracy=0.5, seconds=2.5),),
        measured_bytes=1234567,
        data="ab" * 32,
    )
    tuned = apply(timm.create_model(MODEL, num_classes=3), METHODS["linear"](), num_classes=3)
    optimizer, trained = make_optimizer(tuned), [p for p in tuned.parameters() if p.requires_grad]
    averages = [torch.zeros_like(p) for p in trained]
    resume.read(OLD, tuned, optimizer, None, averages)
    stored = load_file(OLD)
    for key, value in tuned.adapter_state().items():
        assert torch.equal(value, stored[f"model/{key}"])
    assert all(bool((a == 0.5).all()) for a in averages)
    assert all(int(optimizer.state[p]["step"]) == 1 for p in trained)


def test_a_checkpoints_header_is_plain_data_and_back() -> None:
    header = resume.Header(record=EMPTY, plain={"optimiser/0/x": 1}, scaler=None)
    assert resume.Header.from_dict(header.to_dict()) == header
    assert header.to_dict()["version"] == resume.VERSION


def test_a_checkpoint_puts_the_loss_scaler_back(tmp_path):
    tuned = apply(timm.create_model(MODEL, num_classes=3), METHODS["linear"]())
    optimizer = make_optimizer(tuned)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    path = tmp_path / "c.safetensors"
    resume.write(path, tuned, optimizer, scaler, EMPTY)
    fresh = torch.amp.GradScaler("cpu", init_scale=2.0)
    resume.read(path, tuned, optimizer, fresh)
    assert fresh.state_dict() == scaler.state_dict()
    assert fresh.state_dict()["scale"] == 8.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(config, tmp_path, value):
    state = copy.deepcopy(timm.create_model(MODEL).state_dict())
    state["blocks.1.attn.qkv.weight"][3, 4] = value
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="blocks.1.attn.qkv.weight' holds NaN or infinity"):
        prepare(replace(config, checkpoint=str(tmp_path / "w.safetensors")), tmp_path / "run")


def test_weights_of_a_byte_each_are_read_and_looked_at(config, tmp_path):
    file = tmp_path / "w.safetensors"
    state = {k: v.to(torch.float8_e4m3fn) for k, v in timm.create_model(MODEL).state_dict().items()}
    save_file(state, file)
    run = prepare(replace(config, checkpoint=str(file)), tmp_path / "run")
    wide = state["blocks.1.mlp.fc2.bias"].float()
    assert torch.equal(run.tuned.backbone.blocks[1].mlp.fc2.bias.cpu(), wide)
    state["norm.weight"] = (state["norm.weight"].float() * float("nan")).to(torch.float8_e4m3fn)
    save_file(state, file)
    with pytest.raises(InputError, match="norm.weight' holds NaN or infinity$"):
        prepare(replace(config, checkpoint=str(file)), tmp_path / "run")


def test_a_run_that_is_all_warm_up_says_so(config, tmp_path):
    for warm, said in ((1.0, True), (0.5, False)):
        run = prepare(replace(config, warmup_epochs=warm), tmp_path / "run")
        assert any("all warm-up" in line for line in run.notes) == said


def test_what_was_ignored_of_the_data_is_said_before_training(images, tmp_path, capsys):
    data = write_tinted(tmp_path / "data", {"all": 8}) / "all"
    (data / "red/notes.docx").write_bytes(b"?")
    (data / "red/0.png").write_bytes(b"no image")
    config = RunConfig(MODEL, str(data), METHODS["linear"](), epochs=1, skip_bad_images=True)
    train(replace(config, device="cpu", warmup_epochs=0.0), tmp_path / "run")
    err = capsys.readouterr().err
    before = err[: err.index("epoch")]
    assert "split off" in before and "0.png" in before and "notes.docx" in before
