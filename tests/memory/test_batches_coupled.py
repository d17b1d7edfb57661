"""Where a BatchNorm trains: cutting a batch changes the training, one image has no statistics."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from tinted import write_tinted
from torch import nn

from lowtide import METHODS, InputError, StepConfig, apply, plan
from lowtide.cli import main
from lowtide.planning.search import search
from lowtide.planning.step import make_optimizer, micro_batches, shares_statistics, training_step
from lowtide.training.config import RunConfig
from lowtide.training.loop import train
from lowtide.training.prepare import prepare

NET = "test_resnet"


def tuned(method):
    return apply(timm.create_model(NET, num_classes=3), METHODS[method]()).train()


@pytest.mark.parametrize(("method", "shared"), [("full", True), ("lora", False), ("bias", True)])
def test_it_is_known_where_images_share_their_statistics(method, shared):
    """By its meaning: whether an image's output moves with another image of its batch."""
    model = tuned(method)
    for m in model.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0
    x = torch.randn(2, 3, 64, 64)
    other = torch.stack([x[0], x[1] + 3])
    moved = not torch.allclose(model(x)[0], model(other)[0], atol=1e-5)
    assert shares_statistics(model) == moved
    if method != "bias":
        assert moved == shared


def test_norms_without_statistics_of_their_own_always_share():
    assert shares_statistics(nn.BatchNorm2d(3, track_running_stats=False).eval())
    assert not shares_statistics(nn.BatchNorm2d(3).eval())
    assert not shares_statistics(nn.InstanceNorm2d(3, track_running_stats=True).train())


def test_parts_of_a_batch_differ_by_one_image_and_give_its_gradient():
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.arange(7) % 3
    assert [len(labels) for _, labels in micro_batches(x, y, 4)] == [2, 2, 2, 1]
    model = nn.Linear(4, 3).double()
    grads = []
    for parts, share in ((1, 1.0), (4, 1.0), (3, 0.5)):
        step = make_optimizer(model, "sgd", lr=1e-30)
        kept = []
        training_step(
            model,
            step,
            micro_batches(x, y, parts),
            share=share,
            before_update=lambda kept=kept: kept.append(model.weight.grad.clone()),
        )
        grads += kept
    torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(grads[0] / 2, grads[2])


def test_the_search_never_cuts_where_that_changes_what_trains():
    model = timm.create_model(NET, num_classes=3)
    for name in ("full", "lora"):
        step = StepConfig(batch_size=8)
        whole = plan(model, METHODS[name](), step=step).peak_bytes
        options = {"budget": whole - 1, "vary": {}}
        if name == "lora":
            assert search(model, METHODS[name](), step=step, **options)[0].step.accumulate > 1
            continue
        with pytest.raises(InputError, match="would change what BatchNorm trains on"):
            search(model, METHODS[name](), step=step, **options)
        cut = replace(step, accumulate=2)
        (told,) = search(model, METHODS[name](), step=cut, **options)
        assert told.step == cut


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("shared")
    return write_tinted(root, {"train": 3, "val": 1, "test": 1})


def config(images, **options):
    return RunConfig(
        NET,
        str(images),
        METHODS["full"](),
        pretrained=False,
        image_size=32,
        epochs=1,
        warmup_epochs=0.0,
        device="cpu",
        **options,
    )


def test_cutting_told_is_done_and_said(images, tmp_path, capsys):
    run = prepare(config(images, batch_size=9, accumulate=3), tmp_path / "run")
    assert any("normalized by its own statistics" in line for line in run.notes)
    whole = prepare(config(images, batch_size=9), tmp_path / "run")
    assert not any("statistics" in line for line in whole.notes)
    args = ["plan", "--model", NET, "--method", "full", "--batch-size", "4", "--accumulate", "2"]
    assert main([*args, "--json"]) == 0
    assert "normalized by its own statistics" in capsys.readouterr().err


@pytest.mark.parametrize("policy", ["exact", "tight"])
@pytest.mark.parametrize(("batch", "parts"), [(1, 1), (4, 4), (7, 4)])
def test_one_image_without_statistics_is_refused_at_the_door(
    images, tmp_path, batch, parts, policy
):
    options = {"batch_size": batch, "accumulate": parts, "policy": policy}
    model = "resnet10t"  # 32 pixels end as one
    with pytest.raises(InputError, match="one value per channel"):
        prepare(replace(config(images, **options), model=model), tmp_path / "run")


def test_a_last_batch_is_cut_into_parts_that_have_statistics(images, tmp_path):
    """9 images in batches of 6 leave 3, which three micro-batches would cut to one each."""
    made = replace(config(images, batch_size=6, accumulate=3), model="resnet10t")
    assert train(made, tmp_path / "run").history[0].train_loss > 0
