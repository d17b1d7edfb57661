"""Laws of every method on every family. A pair may refuse, and then leaves the backbone alone."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
from functools import cache

import pytest
import torch
from nets import COMBINATIONS, FEW, TABLES, backward, images, near, stir, tiny
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import lowtide
from lowtide.core.graft import Graft
from lowtide.core.method import METHODS, Beside, Method, Swap, Thaw
from lowtide.core.site import Sites
from lowtide.errors import InputError, Unsupported
from lowtide.families import classifiers, family_of, measure, prepare
from lowtide.memory.compress import compress
from lowtide.tuning.adapter import STATISTICS
from lowtide.tuning.tuned import Tuned


def _refusal(name: str, family: str) -> str:
    """Why a method cannot live on a family; docs/methods.md pins where, and is checked."""
    try:
        list(METHODS[name]().edits(_sites(family)))
    except Unsupported as reason:
        return str(reason)
    return ""


@cache
def _sites(family: str) -> Sites:
    model = tiny(family)
    prepare(model)
    return measure(model, family_of(model))


REFUSALS = {c: reason for c in COMBINATIONS if (reason := _refusal(*c))}
PAIRS = [c for c in COMBINATIONS if c not in REFUSALS]

TAKEN_AWAY = {"efficientnet": "bn3.bias", "maxvit": "pre_norm.bias"}
"""Shifts that statistics of the batch, taken right behind them, take away again."""

over_pairs = pytest.mark.parametrize("name, family", PAIRS, ids=lambda v: v)
over_families = pytest.mark.parametrize("family", sorted(TABLES))


def apply(model: nn.Module, *names: str, **options: object) -> Tuned:
    return lowtide.apply(model, *(METHODS[n]() for n in names), **options)


def declared(model: nn.Module, method: Method) -> set[str]:
    """Read what should train off the edits, on a backbone nothing was ever applied to."""
    prepare(model)
    names, shared = set(), set()
    for edit in method.edits(measure(model, family_of(model))):
        match edit:
            case Thaw(site, own):
                names |= {f"model.{site.path}.{n}".replace("..", ".") for n in own}
            case Swap(site, build):
                graft = build(model.get_submodule(site.path))
                own = {n: p for n, p in graft.own() if isinstance(p, nn.Parameter)}
                names |= {f"model.{site.path}.{n}" for n, p in own.items() if p not in shared}
                shared |= set(own.values())
            case Beside(build):
                kind = type(method).__module__.rpartition(".")[2]
                names |= {f"sides.{kind}.{n}" for n, _ in build(FEW).named_parameters()}
    heads = [f"model.{p}.{n}" for p in classifiers(model) for n in ("weight", "bias")]
    return names | set(heads)


def bare(name: str) -> str:
    """The name a parameter has without grafts around its module."""
    return re.sub(r"(\.base)+\.", ".", name)


def leaf(key: str) -> str:
    """The tensor's own name in a key of the adapter's state."""
    return key.replace("/", ".").rpartition(".")[2]


def gradients(tuned: Tuned) -> dict[str, Tensor]:
    """Every gradient of the model, frozen or not, under the name it has without grafts."""
    found = {bare(n): p.grad for n, p in tuned.named_parameters()}
    return {n: g for n, g in found.items() if g is not None}


@pytest.mark.parametrize("name, family", sorted(REFUSALS))
def test_refusal_says_why_and_changes_nothing(name: str, family: str) -> None:
    model = tiny(family).eval()
    before, x = dict(model.named_modules()), images(model)
    answer, flags = model(x), [p.requires_grad for p in model.parameters()]
    with pytest.raises(Unsupported) as refusal:
        apply(model, name, num_classes=FEW)
    assert name in str(refusal.value).lower().replace("-", "_") and "\n" not in str(refusal.value)
    assert dict(model.named_modules()) == before
    near(model(x), answer)
    assert [p.requires_grad for p in model.parameters()] == flags


@over_pairs
def test_starts_at_the_backbone_or_declares_not(name: str, family: str) -> None:
    model = tiny(family).eval()
    x = images(model)
    before = model(x)
    assert before.std(0).mean() > 0.05, "the backbone is asleep"
    off = (apply(model, name).eval()(x) - before).abs().max()
    assert off < 1e-9 or not METHODS[name]().identity


@pytest.mark.parametrize("name", [n for n in sorted(METHODS) if not METHODS[n]().identity])
def test_what_promises_no_start_at_the_backbone_has_none_somewhere(name: str) -> None:
    """And where a method offers `init="identity"`, that is a promise, kept on every family."""
    offs = []
    for family in (f for n, f in PAIRS if n == name):
        model = tiny(family).eval()
        x = images(model)
        before = model(x)
        offs.append((apply(model, name).eval()(x) - before).abs().max())
        if any(f.name == "init" for f in dataclasses.fields(METHODS[name])):
            model = tiny(family).eval()
            exact = METHODS[name](init="identity")
            assert exact.identity
            near(lowtide.apply(model, exact).eval()(x), before)
    assert max(offs) > 1e-3


@over_pairs
def test_exactly_what_is_declared_gets_gradients(name: str, family: str) -> None:
    model = tiny(family)
    expected = declared(copy.deepcopy(model), METHODS[name]())
    tuned = apply(model, name, num_classes=FEW).train()
    backward(tuned, images(model))
    assert gradients(tuned).keys() == expected
    trained, total = tuned.trainable_counts()
    sizes = {bare(n): p.numel() for n, p in tuned.named_parameters()}
    assert trained == sum(sizes[n] for n in expected)
    assert total == sum(sizes.values())


@over_pairs
def test_nothing_is_dead(name: str, family: str) -> None:
    """At the start one factor of every pair moves; after one step every tensor does."""
    model = tiny(family)
    x = images(model)
    # A start of this size shows in one step; one of 0.02 moves a gated branch below rounding.
    tuned = apply(model, name, num_classes=FEW, head_init="own").train()
    backward(tuned, x)
    for path, graft in tuned.named_modules():
        if isinstance(graft, Graft):
            grads = [p.grad for _, p in graft.own() if isinstance(p, nn.Parameter)]
            assert any(g.abs().max() > 1e-9 for g in grads), path
    trained = [p for p in tuned.parameters() if p.requires_grad]
    torch.optim.SGD(trained, lr=0.1).step()
    tuned.zero_grad()
    backward(tuned, x, seed=2)
    dead = [n for n, g in gradients(tuned).items() if g.abs().max() < 1e-12]
    assert not [n for n in dead if not n.endswith(TAKEN_AWAY.get(family, "-"))]


@over_pairs
def test_merged_equals_tuned_and_is_plain(name: str, family: str) -> None:
    model = tiny(family)
    plain = copy.deepcopy(model).eval()
    plain.reset_classifier(FEW)
    plain.double()
    x = images(model)
    tuned = apply(model, name, num_classes=FEW).eval()
    stir(tuned)
    expected = tuned(x)
    modules = dict(tuned.named_modules())
    try:
        merged = tuned.merge_and_unload()
    except Unsupported as refusal:
        assert re.match(f"cannot merge {name}.*: .+", str(refusal))
        assert dict(tuned.named_modules()) == modules
        near(tuned(x), expected)
        return
    assert not [m for m in merged.modules() if isinstance(m, Graft)]
    assert all(p.requires_grad for p in merged.parameters())
    near(merged.eval()(x), expected)
    plain.load_state_dict(merged.state_dict())
    near(plain(x), expected)


@over_pairs
def test_taking_out_gives_the_same_objects_back(name: str, family: str) -> None:
    model = tiny(family)
    modules, x = dict(model.named_modules()), images(model)
    parameters, before = dict(model.named_parameters()), model.eval()(x)
    tuned = apply(model, name).eval()
    if METHODS[name].overwrites:
        with pytest.raises(InputError, match="in place"), tuned.disable_adapter():
            pass
        assert tuned.active
        return
    stir(tuned)
    after = tuned(x)
    assert (after - before).abs().max() > 1e-3
    with tuned.disable_adapter():
        assert all(model.get_submodule(p) is m for p, m in modules.items())
        assert dict(model.named_modules()).keys() == modules.keys()
        assert all(p is parameters[n] for n, p in model.named_parameters())
        near(tuned(x), before)
        near(model(x), before)
    near(tuned(x), after)


@over_pairs
def test_state_round_trips_and_refuses_what_does_not_fit(name: str, family: str) -> None:
    model = tiny(family)
    twin = copy.deepcopy(model)
    x = images(model)
    tuned = apply(model, name, num_classes=FEW).train()
    stir(tuned)
    tuned(x)  # moves statistics where they may move
    state = {k: v.clone() for k, v in tuned.adapter_state().items()}
    trained = {k: v for k, v in state.items() if leaf(k) not in STATISTICS}
    assert sum(v.numel() for v in trained.values()) == tuned.trainable_counts()[0]
    torch.manual_seed(7)
    other = apply(twin, name, num_classes=FEW)
    untouched = {k: v.clone() for k, v in other.adapter_state().items()}
    key = next(iter(state))
    wrong = {**{k: v for k, v in state.items() if k != key}, "nowhere/x/y": state[key]}
    bad_shape = {**state, key: torch.zeros(1, 2, 3)}
    for given, said in ((wrong, "nowhere/x/y"), (bad_shape, r"\(1, 2, 3\)")):
        with pytest.raises(InputError, match=said) as refusal:
            other.load_adapter_state(given)
        assert key in str(refusal.value) and "\n" not in str(refusal.value)
        assert all(torch.equal(v, untouched[k]) for k, v in other.adapter_state().items())
    other.load_adapter_state(state)
    near(other.eval()(x), tuned.eval()(x))


@over_pairs
def test_frozen_buffers_and_parameters_do_not_move(name: str, family: str) -> None:
    model = tiny(family)
    tuned = apply(model, name, num_classes=FEW).train()
    frozen = {n: p for n, p in tuned.named_parameters() if not p.requires_grad}
    before = {n: t.clone() for n, t in (*tuned.named_buffers(), *frozen.items())}
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
    for seed in range(2):
        backward(tuned, images(model), seed)
        optimizer.step()
    moved = {
        n for n, t in (*tuned.named_buffers(), *frozen.items()) if not torch.equal(t, before[n])
    }
    following = {
        f"{path}.{n}"
        for path, m in tuned.named_modules()
        if isinstance(m, _BatchNorm) and m.weight.requires_grad
        for n in STATISTICS
    }
    assert moved == following
    saved = {leaf(k) for k in tuned.adapter_state()}
    assert not following or {n.rpartition(".")[2] for n in following} <= saved


@over_pairs
def test_what_no_gradient_passes_keeps_nothing(name: str, family: str) -> None:
    """Below the first trained or perturbed tensor there is no graph, whatever the policy."""
    tuned = apply(tiny(family), name, num_classes=FEW).train()
    compress(tuned, "tight")
    kept: list[int] = []
    before: dict[nn.Module, int] = {}

    def enter(block: nn.Module, args: object) -> None:
        before[block] = len(kept)

    def leave(block: nn.Module, args: object, y: Tensor) -> None:
        assert y.requires_grad or len(kept) == before[block]

    for path in tuned.family.chain(tuned.backbone):
        block = tuned.backbone.get_submodule(path)
        block.register_forward_pre_hook(enter)
        block.register_forward_hook(leave)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.nbytes) or t, lambda t: t
    ):
        tuned(images(tuned.backbone))


@over_pairs
def test_recomputing_blocks_gives_the_same_gradients(name: str, family: str) -> None:
    model = tiny(family)
    x = images(model)
    tuned = apply(model, name, num_classes=FEW).train()
    stir(tuned)
    twin = copy.deepcopy(tuned)
    twin.checkpointing = True
    near(backward(twin, x), backward(tuned, x))
    recomputed, kept = gradients(twin), gradients(tuned)
    assert recomputed.keys() == kept.keys()
    for n, g in kept.items():
        near(recomputed[n], g)
    for (n, buffer), again in zip(tuned.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, again), n


@over_families
def test_recomputing_keeps_less(family: str) -> None:
    tuned = apply(tiny(family), "bias")
    x, kept = images(tuned.backbone), []
    for tuned.checkpointing in (False, True):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.nbytes) or t, lambda t: t
        ):
            tuned(x)
        kept.append(sum(sizes))
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.parametrize(
    "names, family",
    [
        (("ssf", "lora"), "vit"),
        (("s2a", "lora"), "vit"),
        (("s2a",), "swin"),
        (("s2a",), "convnext"),
        (("bias",), "resnet"),
        (("lora",), "generic"),
    ],
    ids=str,
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiles_without_a_break(names: tuple[str, ...], family: str, checkpointing: bool) -> None:
    model = tiny(family)
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    tuned = apply(model, *names, num_classes=FEW).train()
    tuned.checkpointing = checkpointing
    stir(tuned)
    x = images(tuned.backbone)
    twin = copy.deepcopy(tuned)
    torch.compiler.reset()
    near(backward(torch.compile(tuned, fullgraph=True, backend="eager"), x), backward(twin, x))
    compiled, eager = gradients(tuned), gradients(twin)
    assert compiled.keys() == eager.keys()
    for n, g in eager.items():
        near(compiled[n], g)


@pytest.mark.parametrize(
    "names",
    [("ssf", "lora"), ("lora", "ssf"), ("bias", "lora"), ("s2a", "lora"), ("bias", "vpt")],
    ids=str,
)
@over_families
def test_two_methods_compose(names: tuple[str, str], family: str) -> None:
    if any((n, family) in REFUSALS for n in names):
        with pytest.raises(Unsupported):
            apply(tiny(family), *names)
        return
    model = tiny(family)
    expected = set().union(*(declared(copy.deepcopy(model), METHODS[n]()) for n in names))
    x = images(model)
    tuned = apply(model, *names, num_classes=FEW).eval()
    backward(tuned, x)
    assert gradients(tuned).keys() == expected
    stir(tuned)
    y = tuned(x)
    state = tuned.adapter_state()
    assert {k.split("/")[1] for k in state} == {*names, "head"}
    try:
        near(tuned.merge_and_unload().eval()(x), y)
    except Unsupported:
        near(tuned(x), y)


WORKING = set(itertools.permutations(("bias", "full", "linear", "lora", "s2a", "ssf"), 2))


@pytest.mark.parametrize("first", sorted(METHODS))
@pytest.mark.parametrize("second", sorted(METHODS))
def test_every_pair_runs_or_refuses(first: str, second: str) -> None:
    model = tiny("vit")
    try:
        tuned = apply(model, first, second, num_classes=FEW)
    except InputError as refusal:
        assert first in str(refusal) or second in str(refusal)
        assert (first, second) not in WORKING
        return
    expected = declared(tiny("vit"), METHODS[first]()) | declared(tiny("vit"), METHODS[second]())
    backward(tuned, images(model))
    assert gradients(tuned).keys() == expected


def test_a_dead_adapter_is_refused() -> None:
    """A backbone that reads `weight` past the module cannot train what stands there."""
    model = tiny("vit")

    class Deaf(Graft):
        def __init__(self, base: nn.Module) -> None:
            super().__init__(base)
            self.extra = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x)

    class Hopeless(METHODS["linear"]):  # type: ignore[misc]
        def edits(self, sites):
            return [Swap(sites.of("qkv")[0], Deaf)]

    with pytest.raises(Unsupported, match="no gradient reaches .*extra"):
        lowtide.apply(model, Hopeless())


def test_a_broken_promise_is_refused() -> None:
    class Liar(METHODS["ssf"]):  # type: ignore[misc]
        identity = True

    with pytest.raises(lowtide.LowtideError, match="promise"):
        lowtide.apply(tiny("vit"), Liar())
