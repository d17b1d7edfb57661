"""A plan equals the real step it stands for, to the byte, and the published table to the MiB."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections import namedtuple

import pytest
import timm
import torch
from nets import tiny
from steps import real_step
from timm.optim import list_optimizers
from torch import nn

from lowtide import METHODS, InputError, StepConfig, apply, compress, footprint, plan
from lowtide.families import FAMILIES, image_shape
from lowtide.planning.simulate import set_up_step
from lowtide.planning.step import make_optimizer, training_step
from lowtide.training.ema import WeightAverage

MIB = 2**20
VIT_B = {
    ("full", False): 4653,
    ("bias", False): 2735,
    ("linear", False): 568,
    ("full", True): 1696,
    ("lora", True): 923,
}
"""MiB of one AdamW step, 224 px, batch 32, 100 classes, as measured with PyTorch's allocator."""


def vit_b(name, **options):
    """The plan of ViT-B/16 with 100 classes."""
    step = StepConfig(**options)
    return plan("vit_base_patch16_224", METHODS[name](), step=step, num_classes=100)


EVERYWHERE = itertools.product(sorted(FAMILIES), ("full", "lora", "s2a"), ("exact", "tight"))
ON_VIT = itertools.product(["vit"], ("linear", "bias", "ssf", "s2a"), ("exact", "s2a", "tight"))


@pytest.mark.parametrize(("family", "name", "policy"), sorted({*EVERYWHERE, *ON_VIT}))
def test_plan_equals_the_real_step(family, name, policy):
    model = tiny(family).float()
    method = METHODS[name](init="identity") if name == "ssf" else METHODS[name]()
    step = StepConfig(batch_size=3, policy=policy)
    tuned, real = real_step(model, method, step)
    planned = plan(model, method, step=step)
    assert planned.peak_bytes == real.peak_bytes
    assert planned.parts == real.parts
    assert planned.peak_bytes == sum(planned.parts.values())
    assert (planned.trainable_parameters, planned.total_parameters) == tuned.trainable_counts()


@pytest.mark.parametrize("policy", ["exact", "s2a", "tight"])
@pytest.mark.parametrize("name", ["lora", "s2a"])
@pytest.mark.parametrize("family", ["vit", "swin", "convnext", "resnet"])
def test_plan_is_close_in_mixed_precision(family, name, policy):
    # For real bfloat16 tensors a CPU picks kernels of its own, which keep a little more.
    model, method = tiny(family).float(), METHODS[name]()
    step = StepConfig(batch_size=3, policy=policy, amp="bf16")
    _, real = real_step(model, method, step)
    planned = plan(model, method, step=step)
    assert planned.peak_bytes == pytest.approx(real.peak_bytes, rel=0.03)
    if family != "as_mlp":  # a real group norm of bfloat16 gives float32 statistics, a fake one not
        assert policy != "tight" or planned.parts == real.parts


@pytest.mark.parametrize("policy", ["exact", "tight"])
@pytest.mark.parametrize("name", ["bias", "lora"])
@pytest.mark.parametrize("family", ["vit", "swin", "convnext", "resnet"])
@pytest.mark.parametrize("dtype", ["bf16", "int8", "nf4", "int4"])
def test_plan_equals_the_real_step_with_frozen_weights_in_few_bits(dtype, family, name, policy):
    model, step = tiny(family).float(), StepConfig(batch_size=3, policy=policy, frozen_dtype=dtype)
    _, real = real_step(model, METHODS[name](), step)
    planned = plan(model, METHODS[name](), step=step)
    assert planned == dataclasses.replace(planned, peak_bytes=real.peak_bytes, parts=real.parts)


def test_frozen_weights_in_bf16_take_half():
    wide, narrow = (
        vit_b("bias", policy="tight", frozen_dtype=dtype).parts for dtype in ("fp32", "bf16")
    )
    maps = 12 * (3 + 1 + 4 + 4) * 768**2 + 768 * 3 * 16**2
    assert wide["weights"] - narrow["weights"] == 2 * maps
    assert sum(narrow.values()) <= 420 * MIB
    assert narrow["temporaries"] <= wide["temporaries"] + 4 * 2**19  # a slab, widened


@pytest.mark.parametrize(("accumulate", "checkpointing"), [(2, False), (5, False), (1, True)])
def test_plan_follows_micro_batches_and_checkpointing(accumulate, checkpointing):
    model = tiny("vit").float()
    step = StepConfig(batch_size=8, accumulate=accumulate, checkpointing=checkpointing)
    _, real = real_step(model, METHODS["bias"](), step)
    planned = plan(model, METHODS["bias"](), step=step)
    whole = plan(model, METHODS["bias"](), step=StepConfig(batch_size=8))
    assert planned.peak_bytes == real.peak_bytes
    assert planned.parts["saved"] < 0.7 * whole.parts["saved"]


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(
    ("name", "policy", "count"),
    [("lora", "blocks", None), ("full", "tight", None), ("lora", "tight", 2), ("s2a", "blocks", 1)],
)
def test_plan_equals_the_real_step_that_recomputes_blocks(family, name, policy, count):
    model, method = tiny(family).float(), METHODS[name]()
    step = StepConfig(batch_size=3, policy=policy, checkpointing=True, recomputed_blocks=count)
    _, real = real_step(model, method, step)
    planned = plan(model, method, step=step)
    assert planned.peak_bytes == real.peak_bytes
    assert planned.parts == real.parts


@pytest.mark.parametrize(("name", "checkpointing"), sorted(VIT_B))
def test_published_table(name, checkpointing):
    planned = vit_b(name, checkpointing=checkpointing)
    assert abs(planned.peak_bytes / MIB - VIT_B[name, checkpointing]) < 1


@pytest.mark.parametrize(("name", "limit"), [("bias", 600), ("s2a", 630), ("lora", 620)])
def test_tight_stays_below_its_promise(name, limit):
    planned = vit_b(name, policy="tight")
    assert planned.peak_bytes / MIB <= limit


@pytest.mark.parametrize(("policy", "limit"), [("tight", 500), ("blocks", 520)])
def test_blocks_that_are_recomputed_from_8_bits_stay_below_their_promise(policy, limit):
    planned = vit_b("lora", policy=policy, checkpointing=True)
    assert 0.9 * limit < planned.peak_bytes / MIB <= limit


def test_frozen_prefix_keeps_nothing():
    saved = vit_b("linear").parts["saved"]
    assert saved < MIB


def test_work_is_that_of_the_formulas():
    n, c, depth = 197, 768, 12
    maps = 32 * depth * 2 * n * 12 * c * c
    attention = 32 * depth * 2 * 2 * n * n * c
    stem, head = 32 * 2 * 196 * c * 768, 32 * 2 * c * 100
    forward = stem + maps + attention + head
    plain, parts, again, tight, codes = (
        vit_b("bias", **options).work
        for options in (
            *({}, {"accumulate": 8}, {"checkpointing": True}),
            *({"policy": "tight", "chunk": 0}, {"policy": "codes"}),
        )
    )
    # Back through the blocks; attention is computed once more by the fused kernel.
    assert plain.flops == 2 * forward - stem + head + 1.5 * attention
    assert parts.flops == plain.flops and parts.calls > 4 * plain.calls
    # Recomputation stops where nothing more was saved: before fc2, a third of the maps.
    assert again.flops == plain.flops + maps * 2 // 3 + attention
    # Queries, keys and values are made again, once, or are there; P is made again in any case.
    assert tight.flops == plain.flops + maps // 4
    assert codes.flops == plain.flops


@pytest.mark.parametrize(("name", "optimizer"), [("bias", "adamw"), ("full", "sgd")])
def test_plan_counts_the_running_average(name, optimizer):
    """As train does it: made before the first step, moved after each update."""
    model, method = tiny("vit").float(), METHODS[name]()
    tuned = set_up_step(apply(copy.deepcopy(model), method), StepConfig()).train()
    opt, average = make_optimizer(tuned, optimizer), WeightAverage(tuned, 0.9)
    batch = [(torch.randn(3, *image_shape(model)), torch.zeros(3, dtype=torch.long))]

    def step():
        training_step(tuned, opt, batch)
        average.update()

    real = footprint(step, tuned, opt, steps=3)
    plain_step = StepConfig(batch_size=3, opt=optimizer)
    planned = plan(model, method, step=dataclasses.replace(plain_step, ema=0.9))
    plain = plan(model, method, step=plain_step)
    assert planned.peak_bytes == real.peak_bytes
    trained = 4 * planned.trainable_parameters
    assert planned.peak_bytes - plain.peak_bytes == trained
    assert planned.parts["optimiser"] - plain.parts["optimiser"] == trained


def test_plan_leaves_the_model_alone():
    model = tiny("vit").float()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plan(model, METHODS["s2a"](), num_classes=7, step=StepConfig(batch_size=2))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("policy", ["exact", "tight"])
@pytest.mark.parametrize("name", ["linear", "lora", "s2a", "full"])
def test_a_model_that_is_tuned_already_is_planned_as_it_is(name, policy):
    step = StepConfig(batch_size=3, policy=policy)
    wanted = plan(tiny("vit").float(), METHODS[name](), step=step)
    tuned = apply(tiny("vit").float(), METHODS[name]())
    assert plan(tuned, step=step) == wanted
    assert plan(compress(tuned, "tight"), step=step) == wanted
    with pytest.raises(InputError, match="tuned already: its add_adapter"):
        plan(tuned, METHODS["bias"](), step=step)
    with pytest.raises(InputError, match="num_classes, backbone and head were for"):
        plan(tuned, step=step, num_classes=7)


def test_a_backbone_that_is_compressed_already_is_planned_with_the_step_s_policy():
    step = StepConfig(batch_size=3)
    wanted = plan(tiny("vit").float(), METHODS["lora"](), step=step)
    assert plan(compress(tiny("vit").float(), "tight"), METHODS["lora"](), step=step) == wanted


class Giving(nn.Module):
    """A classifier that gives its logits in a form of its own."""

    def __init__(self, form):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)
        self.num_classes, self.form = 5, form

    def forward(self, x):
        return self.form(self.head(self.body(x).mean((2, 3)).relu()))


TwoHeads = namedtuple("TwoHeads", ("logits", "aux"))


@pytest.mark.parametrize(
    "form", [lambda y: {"logits": y, "n": 3}, lambda y: TwoHeads(y, [y])], ids=["dict", "tuple"]
)
def test_logits_are_found_among_what_a_model_gives(form):
    step = StepConfig(batch_size=3)
    wanted = plan(Giving(lambda y: y), METHODS["full"](), step=step)
    assert plan(Giving(form), METHODS["full"](), step=step).parts == wanted.parts


def test_a_model_without_logits_is_no_classifier():
    with pytest.raises(InputError, match="gives a list, and nothing tells its logits: give ex"):
        plan(Giving(lambda y: [y]), METHODS["full"](), step=StepConfig(batch_size=3))


def test_more_micro_batches_than_images_are_refused():
    with pytest.raises(InputError, match="5 cannot be cut into 6"):
        StepConfig(batch_size=5, accumulate=6)


@pytest.mark.parametrize("optimizer", ["muon", "adamp", "novograd", "adafactor", "lion"])
def test_plan_counts_an_optimiser_that_reads_its_own_numbers(optimizer):
    if optimizer not in list_optimizers():
        pytest.skip(f"timm {timm.__version__} has no {optimizer}")
    model, step = tiny("vit").float(), StepConfig(batch_size=3, opt=optimizer)
    _, real = real_step(model, METHODS["lora"](), step)
    planned = plan(model, METHODS["lora"](), step=step)
    assert (planned.peak_bytes, planned.parts) == (real.peak_bytes, real.parts)
    looks = optimizer in {"muon", "adamp", "novograd"}
    assert any("chooses by its numbers" in note for note in planned.notes) == looks


@pytest.mark.filterwarnings("ignore::UserWarning:timm")
@pytest.mark.parametrize(("optimizer", "kind"), [("kron", "Kron"), ("adahessian", "Adahessian")])
def test_an_update_that_no_meter_can_follow_is_refused(optimizer, kind):
    with pytest.raises(InputError, match=f"the update of {kind} is none that a meter can follow"):
        plan(tiny("vit").float(), METHODS["lora"](), step=StepConfig(opt=optimizer))
