"""Updates in backward: the same weights, to the bit, and one gradient at a time."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import images, tiny
from steps import real_step
from timm.optim import list_optimizers
from torch import nn

from lowtide import METHODS, InputError, StepConfig, plan
from lowtide.planning.simulate import set_up_step
from lowtide.planning.step import BY_PARAMETER, make_optimizer, training_step
from lowtide.training.config import RunConfig
from lowtide.tuning.applying import apply

KNOWN = ("adamw", "adam", "sgd", "adafactor", "adafactorbv", "lion", "nadamw", "sgdw", "rmsprop")


def trained(model, options, batches):
    """Weights after an update for each batch; how many gradients were there at most."""
    torch.manual_seed(1)  # for drop-path
    model = copy.deepcopy(model)
    early = options.pop("in_backward")
    optimizer = make_optimizer(model, lr=1e-2, weight_decay=0.1, in_backward=early, **options)
    parameters, most = [p for p in model.parameters() if p.requires_grad], 0

    def count(_):
        nonlocal most
        most = max(most, sum(p.grad is not None for p in parameters))

    hooks = [p.register_post_accumulate_grad_hook(count) for p in parameters]
    losses = [training_step(model, optimizer, [b], in_backward=early) for b in batches]
    for hook in hooks:
        hook.remove()
    assert not any(p.grad is not None for p in parameters)
    assert not any(p._post_accumulate_grad_hooks for p in parameters)
    return torch.cat([p.detach().flatten() for p in parameters]), most, losses


@pytest.mark.parametrize("opt", KNOWN)
def test_the_weights_are_those_of_an_update_behind_the_backward(opt):
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 3)
    )
    model[5].weight = model[4].weight = nn.Parameter(torch.randn(8, 8) / 3)  # read twice
    model[5].bias = None
    batches = [(torch.randn(6, 3, 2, 2), torch.arange(6) % 3) for _ in range(4)]
    behind, all_, losses = trained(model, {"name": opt, "in_backward": False}, batches)
    early, one, losses_early = trained(model, {"name": opt, "in_backward": True}, batches)
    assert torch.equal(early, behind) and losses_early == losses
    assert one == 1 < all_ == 6


@pytest.mark.parametrize("policy", ["exact", "s2a", "tight", "blocks"])
@pytest.mark.parametrize("name", ["full", "ssf", "rlrr", "s2a", "dtl"])
@pytest.mark.parametrize("family", ["vit", "swin", "convnext", "resnet"])
def test_every_policy_reads_its_weights_before_they_change(family, name, policy):
    method = METHODS[name]()
    step = StepConfig(policy=policy, batch_size=2)
    model = set_up_step(apply(tiny(family).float(), method), step).train()
    batches = [(images(model.backbone, 2), torch.tensor([0, 3])) for _ in range(2)]
    behind, *_ = trained(model, {"in_backward": False}, batches)
    early, most, _ = trained(model, {"in_backward": True}, batches)
    assert most == 1
    torch.testing.assert_close(early, behind, rtol=0, atol=0)


def test_what_is_not_known_to_treat_each_parameter_alone_is_refused():
    model = nn.Linear(2, 2)
    for opt in {"adan", "lamb", "madgrad"} & {*list_optimizers(with_description=False)}:
        with pytest.raises(InputError, match=f"update_in_backward is for .*; {opt} is not"):
            make_optimizer(model, opt, in_backward=True)
    assert all(type(make_optimizer(model, opt, in_backward=True)) in BY_PARAMETER for opt in KNOWN)


def test_what_needs_all_gradients_is_refused():
    for options in ({"accumulate": 2}, {"amp": "fp16"}):
        with pytest.raises(InputError, match="update_in_backward drops each gradient at once"):
            StepConfig(update_in_backward=True, **options)
    with pytest.raises(InputError, match="clip_grad needs the norm of all"):
        RunConfig("m", "d", update_in_backward=True, clip_grad=1.0)


@pytest.mark.parametrize("policy", ["exact", "tight"])
@pytest.mark.parametrize("family", ["vit", "swin", "convnext", "resnet"])
def test_the_plan_is_that_of_the_real_step(family, policy):
    model, method = tiny(family).float(), METHODS["full"]()
    step = StepConfig(batch_size=3, policy=policy, update_in_backward=True)
    _, real = real_step(model, method, step)
    planned = plan(model, method, step=step)
    assert (planned.peak_bytes, planned.parts) == (real.peak_bytes, real.parts)


def test_a_plan_holds_one_gradient_where_it_held_all():
    early, behind = (
        plan(
            "vit_base_patch16_224",
            METHODS["full"](),
            step=StepConfig(batch_size=1, update_in_backward=early),
        ).parts
        for early in (True, False)
    )
    assert behind["gradients"] > 0.95 * behind["weights"]
    assert early["gradients"] < 0.05 * early["weights"]
    assert sum(early.values()) < 0.85 * sum(behind.values())


def test_a_batch_cut_by_images_holds_all_and_one_run_whole_does_not():
    """A weight's gradient is whole only after the last chunk of the batch."""
    cut, whole = (
        plan(
            "vit_base_patch16_224",
            METHODS["full"](),
            step=StepConfig(
                batch_size=16,
                policy="tight",
                checkpointing=True,
                update_in_backward=True,
                chunk=chunk,
            ),
        )
        for chunk in (None, 16 * 3 * 224**2)
    )
    assert cut.peak_bytes - whole.peak_bytes > 0.6 * cut.parts["weights"]
