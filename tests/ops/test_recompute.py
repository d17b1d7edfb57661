"""What follows from something kept costs nothing, and attention runs again from its input."""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F
from kept import bytes_besides, keeping
from nets import images, tiny
from timm.models.eva import EvaAttention
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lowtide
from lowtide.codecs.affine import Affine
from lowtide.codecs.exact import Exact
from lowtide.core.method import METHODS
from lowtide.memory.compress import compress
from lowtide.memory.policies import POLICIES
from lowtide.memory.policy import Policy
from lowtide.ops.again import Again, Derived
from lowtide.ops.attention_recompute import recompute
from lowtide.ops.lineage import derived

SIX, EIGHT = Affine(6, 64), Affine(8, 64)
ROWS, WIDTH = (4, 9), 64


class Block(nn.Module):
    """A norm, something between, and a trained linear map."""

    def __init__(self, between: Callable[[Tensor, nn.Parameter], Tensor], width: int) -> None:
        super().__init__()
        self.norm, self.between = nn.LayerNorm(WIDTH), between
        self.scale = nn.Parameter(torch.randn(WIDTH))
        self.map = nn.Linear(width, 5)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(self.between(self.norm(x), self.scale))


FOLLOWED: dict[str, tuple[Callable[[Tensor, nn.Parameter], Tensor], int]] = {
    "nothing": (lambda y, g: y, WIDTH),
    "scale": (lambda y, g: y * g, WIDTH),
    "shift": (lambda y, g: y + g, WIDTH),
    "both, relu": (lambda y, g: F.relu(y * g + g), WIDTH),
    "part": (lambda y, g: y[:, 1:], WIDTH),
    "transposed": (lambda y, g: y.mT.unflatten(2, (3, 3)).flatten(2), 9),
    "windows": (lambda y, g: F.pad(torch.roll(y, 1, 1), (0, 0, 0, 3)).view(8, -1, WIDTH), WIDTH),
}


def gradients(model: nn.Module, x: Tensor, seed: int = 1) -> list[Tensor]:
    torch.manual_seed(seed)
    y = model(x)
    parameters = [p for p in model.parameters() if p.requires_grad]
    torch.manual_seed(seed + 1)
    return list(torch.autograd.grad(y, (*parameters, x), torch.randn_like(y), allow_unused=True))


def near(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        if b is None:
            assert a is None
        else:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("between", FOLLOWED)
def test_what_follows_from_a_norm_is_not_kept_again(between: str) -> None:
    model = Block(*FOLLOWED[between])
    x = torch.randn(*ROWS, WIDTH, requires_grad=True)
    compress(model, Policy(dict.fromkeys(("layer_norm", "linear", "mul", "relu"), SIX)))
    with keeping() as kept:
        model(x)
    slope = SIX.nbytes(x.shape, x.dtype) if "relu" in between else 0
    most = SIX.nbytes(x.shape, x.dtype) + 4 * 36 + slope
    assert bytes_besides(kept, list(model.parameters())) == most


@pytest.mark.parametrize("between", FOLLOWED)
def test_what_follows_is_computed_again(between: str) -> None:
    model = Block(*FOLLOWED[between]).double()
    x = torch.randn(*ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    plain = gradients(model, x)
    exact = Policy(dict.fromkeys(("layer_norm", "linear", "mul"), Exact()))
    near(gradients(compress(model, exact), x), plain)


def test_what_is_written_to_follows_no_more() -> None:
    def between(y: Tensor, g: nn.Parameter) -> Tensor:
        return y.add_(torch.ones(WIDTH))

    model = Block(between, WIDTH).double()
    x = torch.randn(*ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    plain = gradients(model, x)
    exact = Policy(dict.fromkeys(("layer_norm", "linear"), Exact()))
    near(gradients(compress(model, exact), x), plain)


class Layer(nn.Module):
    """A norm and an attention, as in a transformer's block."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(WIDTH), attention

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.norm(x))


class Written(nn.Module):
    """What a user may write around torch's module."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x, x, x, need_weights=False)[0]


INSIDES: dict[str, Callable[[], nn.Module]] = {
    "timm": lambda: Attention(WIDTH, 2, qkv_bias=True, qk_norm=True, norm_layer=nn.LayerNorm),
    "timm, dropout": lambda: Attention(WIDTH, 2, attn_drop=0.3, proj_drop=0.2),
    "torch": Written,
}


@pytest.mark.parametrize("outside", ["plain", "checkpoint"])
@pytest.mark.parametrize("inside", INSIDES)
def test_attention_runs_again_to_the_exact_gradient(inside: str, outside: str) -> None:
    """Under an exact codec, with the same noise in both runs, and inside a checkpointed block."""
    model = Layer(INSIDES[inside]()).double()
    x = torch.randn(*ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    plain = gradients(model, x)
    compress(model, Policy({"layer_norm": Exact()}, recompute=Exact()))
    if outside == "checkpoint":

        class Checkpointed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, x: Tensor) -> Tensor:
                return checkpoint(self.model, x, use_reentrant=False)

        near(gradients(Checkpointed(), x), plain)
    else:
        near(gradients(model, x), plain)


@pytest.mark.parametrize("inside", INSIDES)
def test_of_an_attention_only_its_input_is_kept(inside: str) -> None:
    model = Layer(INSIDES[inside]()).requires_grad_(False)
    x = torch.randn(*ROWS, WIDTH, requires_grad=True)
    for codec in (SIX, Exact()):
        compress(model, Policy({"layer_norm": codec}, recompute=EIGHT))
        with keeping() as kept:
            model(x)
        # A norm beside an attention is kept as the attention needs it.
        of_norm = codec if inside == "torch" else EIGHT
        declared = of_norm.nbytes(x.shape, x.dtype) + 4 * 36
        assert bytes_besides(kept, [*model.parameters()]) == declared
    compress(model.attn, Policy(recompute=EIGHT))
    with keeping() as kept:
        model.attn(x)
    assert bytes_besides(kept, [*model.parameters()]) == EIGHT.nbytes(x.shape, x.dtype)


QKV = {"layer_norm": Exact(), "attention": Affine(1, 8)}
"""One bit, so that a gradient is exact only if q, k and v are computed again."""


class Factors(nn.Module):
    """What grafts do with weights and parts of the map of an attention module."""

    def __init__(self, map: nn.Linear) -> None:
        super().__init__()
        self.map = map
        self.a, self.b = nn.Parameter(torch.randn(9, 3)), nn.Parameter(torch.randn(3, WIDTH))
        self.down, self.up = nn.Linear(WIDTH, 2), nn.Linear(2, WIDTH)
        self.scale, self.drop = nn.Parameter(torch.randn(3 * WIDTH)), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.map(x + self.a @ self.b).split(WIDTH, -1)
        y = torch.cat((q, k - 0.5 * self.up(self.down(self.drop(x))), v), -1)
        return y * self.scale


class Unforeseen(nn.Module):
    """A map whose result no one can follow."""

    def __init__(self, map: nn.Linear) -> None:
        super().__init__()
        self.map = map

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.map(x))


def attention(graft: Callable[[nn.Linear], nn.Module]) -> Layer:
    module = Attention(WIDTH, 2, qkv_bias=True)
    module.qkv = graft(module.qkv)
    return Layer(module)


@pytest.mark.parametrize("graft", [lambda map: map, Factors, Unforeseen])
def test_q_k_and_v_are_made_again_to_the_exact_gradient(graft) -> None:
    model = attention(graft).double()
    x = torch.randn(*ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    plain = gradients(model, x)
    compress(model, Policy(QKV | dict.fromkeys(("linear", "mul"), Exact()), recompute=Exact()))
    for _ in range(2):  # what cannot be followed is found out in the first
        near(gradients(model, x), plain)


@pytest.mark.parametrize("graft", [lambda map: map, Factors, Unforeseen])
def test_beside_the_input_nothing_is_kept_of_q_k_and_v(graft) -> None:
    model = attention(graft)
    x = torch.randn(*ROWS, WIDTH, requires_grad=True)
    codecs = {"layer_norm": SIX, "attention": SIX, "linear": SIX, "mul": SIX}
    compress(model, Policy(codecs, recompute=EIGHT))
    model(x)  # what cannot be followed is found out
    with keeping() as kept:
        model(x)
    # The map behind the attention trains here, and reads what does not follow from the norm.
    behind = 0 if graft is Unforeseen else SIX.nbytes(x.shape, x.dtype)
    # What is 16 times narrower than the output stays as it is.
    low_rank = Exact().nbytes(torch.Size((*ROWS, 2)), x.dtype) if graft is Factors else 0
    declared = EIGHT.nbytes(x.shape, x.dtype) + 4 * 36 + behind + low_rank
    assert bytes_besides(kept, [*model.parameters()]) == declared


@dataclass(frozen=True)
class Counting(Exact):
    """Counts how often something is unpacked."""

    unpacked: list[torch.Size] = field(default_factory=list, compare=False)

    def unpack(self, packed: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        self.unpacked.append(shape)
        return super().unpack(packed, shape, dtype)


@pytest.mark.parametrize("graft", [lambda map: map, Factors])
def test_all_readers_of_a_norm_unpack_it_once(graft) -> None:
    model, codec = attention(graft).double(), Counting()
    x = torch.randn(*ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    compress(model, Policy(QKV | dict.fromkeys(("linear", "mul"), Exact()), recompute=codec))
    inputs, notes = [*model.parameters(), x], []
    model.norm.register_forward_hook(lambda module, args, y: notes.append(derived(y)[0].shared))
    y = model(x)
    once = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    assert len(codec.unpacked) == 2  # and the norm itself
    assert not notes[0].waiting and not notes[0].memo  # nothing outlives its last reader
    near(torch.autograd.grad(y.sum(), inputs), once)


@pytest.mark.parametrize("large", [False, True])
def test_a_large_map_is_made_again_for_its_next_reader_and_a_product_is_held(large, monkeypatch):
    x, weight = torch.randn(*ROWS, WIDTH, dtype=torch.float64), torch.randn(3, WIDTH).double()
    monkeypatch.setattr("lowtide.ops.again.LARGE", x.numel() if large else x.numel() + 1)
    cheap = Again(torch.exp, (Again(),), uses=2)
    product = Again(F.linear, (cheap, weight), costly=True)
    view = Again(torch.Tensor.flatten, (product,))
    readers = [Derived(Exact(), x.shape, x.dtype, call) for call in (view, cheap, product)]
    shared = readers[0].shared
    readers = [replace(reader, shared=shared) for reader in readers]
    shared.waiting.update(reader.call for reader in readers)
    packed, expected = (x,), (F.linear(x.exp(), weight).flatten(), x.exp())
    assert torch.equal(readers[0].read(packed, {}), expected[0])
    assert shared.memo.keys() == ({product} if large else {cheap, product})
    assert torch.equal(readers[1].read(packed, {}), expected[1])
    assert torch.equal(readers[2].read(packed, {}).flatten(), expected[0])
    assert not shared.memo


@pytest.mark.parametrize("given", [{}, {"is_causal": True}, {"attn_mask": True}])
def test_q_k_and_v_are_gone_when_attention_projects(given) -> None:
    if given and "attn_mask" not in inspect.signature(Attention.forward).parameters:
        pytest.skip("timm's attention takes no mask")
    model, x = Attention(WIDTH, 2, qkv_bias=True), torch.randn(*ROWS, WIDTH, requires_grad=True)
    if "attn_mask" in given:
        given = {"attn_mask": torch.rand(1, 1, 9, 9) < 0.8}
    plain, maps, gone = model(x, **given), [], []
    model.qkv.register_forward_hook(
        lambda module, args, y: maps.append(weakref.ref(y.untyped_storage()))
    )
    model.proj.register_forward_pre_hook(lambda *_: gone.append(maps[-1]() is None))
    model(x, **given)
    compress(model, Policy(QKV | {"linear": Exact()}, recompute=Exact()))
    for _ in range(2):
        assert torch.equal(model(x, **given), plain)
    assert not gone[0] and all(gone[1:])


def test_products_of_what_is_made_again_are_coarse_at_most() -> None:
    model = attention(lambda map: map)
    x = torch.randn(*ROWS, WIDTH, requires_grad=True)
    plain = gradients(model, x)
    ours = gradients(compress(model, Policy(QKV, recompute=Exact())), x)
    for a, b in zip(ours, plain, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).norm() <= 0.02 * b.norm()


@pytest.mark.parametrize("which", ["norm.weight", "norm.bias", "attn.qkv.weight"])
@pytest.mark.parametrize("inside", ["made again", "run again"])
def test_a_weight_that_was_written_to_is_refused(inside: str, which: str) -> None:
    """Backward computes with it again; torch refuses the same of what it saved."""
    model = attention(lambda map: map)
    model.attn.fused_attn = inside == "made again"
    codecs = dict.fromkeys(("layer_norm", "linear", "attention"), Exact())
    compress(model, Policy(codecs, recompute=Exact()))
    y = model(torch.randn(*ROWS, WIDTH, requires_grad=True))
    with torch.no_grad():
        model.get_parameter(which).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an in-?place operation"):
        torch.autograd.grad(y.sum(), model.attn.qkv.weight)


def test_dropout_inside_draws_what_it_would_have_drawn() -> None:
    model = attention(lambda map: nn.Sequential(nn.Dropout(0.4), map)).double()
    x = torch.randn(*ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    plain = gradients(model, x)
    compress(model, Policy(QKV, recompute=Exact()))
    for _ in range(2):
        near(gradients(model, x), plain)


def test_noise_that_no_module_announces_is_not_drawn_again() -> None:
    class Noisy(nn.Module):
        def __init__(self, map: nn.Linear) -> None:
            super().__init__()
            self.map = map

        def forward(self, x: Tensor) -> Tensor:
            return self.map(F.dropout(x, 0.4))

    model = attention(Noisy).double()
    x = torch.randn(*ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    plain = gradients(model, x)
    compress(model, Policy(QKV | {"linear": Exact()}, recompute=Exact()))
    for _ in range(2):
        near(gradients(model, x), plain)


@pytest.mark.parametrize("fused", [True, False])
def test_a_mask_that_was_computed_keeps_its_gradient(fused: bool) -> None:
    """An attention runs again from its input alone: not where something else has a history."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = EvaAttention(WIDTH, 2, norm_layer=nn.LayerNorm)
            self.attn.fused_attn = fused
            self.bias = nn.Parameter(torch.randn(1, 2, 9, 9))

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x, attn_mask=self.bias.tanh())

    model = Masked().double()
    x = torch.randn(*ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    plain = gradients(model, x)
    exact = dict.fromkeys(("layer_norm", "attention", "softmax", "matmul", "linear"), Exact())
    near(gradients(compress(model, Policy(exact, recompute=Exact())), x), plain)


@pytest.mark.parametrize("shape", [(1, 2, 9, 9), (4, 1, 9, 9), (2, 9, 9), (9, 9)])
def test_a_masks_gradient_adds_up_over_chunks(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowtide.ops.attention_chunks.CHUNK", 1)  # every row by itself

    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(shape, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            q = x.unflatten(2, (2, -1)).transpose(1, 2)
            return F.scaled_dot_product_attention(q, q, q, self.bias)

    model = Biased()
    x = torch.randn(*ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    plain = gradients(model, x)
    near(gradients(compress(model, Policy({"attention": Exact()})), x), plain)


def test_what_several_read_is_multiplied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[object] = []
    value = Again.value

    def counted(self: Again, kept, memo, waiting):
        if self.function is F.linear and self not in memo:
            products.append(self)
        return value(self, kept, memo, waiting)

    monkeypatch.setattr(Again, "value", counted)
    model = attention(Factors).double()
    x = torch.randn(*ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    compress(model, Policy(QKV | dict.fromkeys(("linear", "mul"), Exact()), recompute=Exact()))
    torch.autograd.grad(model(x).sum(), [*model.parameters(), x])
    assert len(products) == len(set(products)) == 3  # the map, down and up, for all their readers


def test_the_input_is_not_held() -> None:
    x = torch.randn(*ROWS, WIDTH, requires_grad=True)
    made: list[Tensor] = []

    def run(y: Tensor) -> Tensor:
        made.append(y)
        return y.exp()

    y = x * 2
    z = recompute(run, EIGHT, y)
    z.backward(torch.ones_like(z))
    first, second = made
    assert first.data_ptr() == y.data_ptr() != second.data_ptr()
    half_step = EIGHT.bound(y.detach())
    assert ((first - second).abs() <= half_step).all() and not torch.equal(first, second)
    torch.testing.assert_close(x.grad, 2 * second.exp())


def test_an_op_of_a_graft_inside_runs_again_as_it_ran() -> None:
    """What a norm's output follows from is known in the first run alone, and must not be used."""
    model = tiny("vit")
    x = images(model).requires_grad_()
    tuned = lowtide.apply(model, METHODS["rlrr"](), num_classes=4).eval()
    plain = gradients(copy.deepcopy(tuned), x)
    near(gradients(compress(tuned, Policy({"layer_norm": Exact()}, recompute=Exact())), x), plain)


class Recurrent(nn.Module):
    """A norm and a recurrent layer behind it, as Sequencer has them."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.rnn = kind(WIDTH, 16, num_layers=2, bidirectional=True, batch_first=True, dropout=0.2)

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        y, last = self.rnn(self.norm(x), state)
        return torch.cat((y.flatten(), *(t.flatten() for t in last)))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_runs_again_and_keeps_nothing(kind: type[nn.RNNBase]) -> None:
    model, x = Recurrent(kind), torch.randn(*ROWS, WIDTH, requires_grad=True)
    wanted, found = [x, *model.parameters()], []
    for policy in (Policy(), Policy(dict(POLICIES["tight"]().codecs), recompute=Affine(8, 64))):
        compress(model, policy)
        torch.manual_seed(1)
        with keeping() as kept:
            y = model(x)
        torch.manual_seed(2)
        bytes_kept = bytes_besides(kept, wanted)
        found.append((y.detach(), torch.autograd.grad(y, wanted, torch.randn_like(y)), bytes_kept))
    (y, theirs, _), (z, ours, kept_bytes) = found
    assert torch.equal(y, z)
    for a, b in zip(ours, theirs, strict=True):
        assert F.cosine_similarity(a.flatten(), b.flatten(), 0) > 0.999
    # x^ of the norm, a byte each with two statistics per 64, and a factor per row.
    assert kept_bytes <= Affine(8, 64).nbytes(x.shape, x.dtype) + 4 * ROWS[0] * ROWS[1] + 64


def test_a_state_with_a_history_gets_its_gradient() -> None:
    model, x = Recurrent(nn.GRU), torch.randn(*ROWS, WIDTH)
    model.rnn.dropout = 0.0
    start = torch.randn(4, ROWS[0], 16, requires_grad=True)
    dy = torch.randn_like(model(x))
    theirs = torch.autograd.grad(model(x, start * 2), start, dy)[0]
    compress(model, Policy({"layer_norm": Exact()}, recompute=Exact()))
    ours = torch.autograd.grad(model(x, start * 2), start, dy)[0]
    torch.testing.assert_close(ours, theirs)


class Attending(nn.Module):
    """A norm and an attention that reads it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.attention = norm, Attention(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.norm(x))


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_any_norm_in_front_of_an_attention_is_kept_as_finely(norm: type[nn.Module]) -> None:
    model, x = Attending(norm(WIDTH)), torch.randn(*ROWS, WIDTH, requires_grad=True)
    policy = Policy(dict(POLICIES["tight"]().codecs), recompute=SIX)
    with keeping() as kept:
        compress(model, policy)(x)
    codes = [t.numel() for t in kept if t.dtype == torch.uint8]
    assert x.numel() * 6 // 8 in codes
    assert x.numel() // 2 not in codes
