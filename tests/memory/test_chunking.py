"""A batch is cut where a module is known to treat images one by one, and nowhere else."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from nets import cotangent, images, tiny, wake
from timm import layers
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import lowtide
from lowtide.core.method import METHODS
from lowtide.core.site import Role
from lowtide.families import FAMILIES
from lowtide.memory import chunking
from lowtide.memory.chunking import by_tokens, is_imagewise, sizes
from lowtide.memory.compress import compress
from lowtide.memory.policy import Policy

CHUNKS = Policy(chunk=1)
"""Every image by itself, where a batch may be cut at all."""
VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "num_heads": 2, "depth": 2}


def vit(kind: type[nn.Module] = VisionTransformer, **options: object) -> nn.Module:
    return wake(kind(**VIT, num_classes=4, **options).double())


class Rows(TorchFunctionMode):
    """Notes how many rows linear maps are given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is nn.functional.linear:
            self.seen.append(len(args[0]))
        return func(*args, **(kwargs or {}))


def same(model: nn.Module, x: Tensor, cut: bool) -> None:
    """Compare outputs, buffers and gradients of whole and cut; say whether it was cut at all."""
    results = []
    for policy in (Policy(), CHUNKS):
        torch.manual_seed(3)
        one = compress(copy.deepcopy(model), policy)
        with Rows() as rows:
            y = one(x)
        tensors = [y] if isinstance(y, Tensor) else list(y.values() if isinstance(y, dict) else y)
        tensors = [t for t in tensors if isinstance(t, Tensor)]
        sum((t * cotangent(t, i)).sum() for i, t in enumerate(tensors)).backward()
        results.append([*tensors, *one.buffers(), *(p.grad for p in one.parameters())])
    assert (max(rows.seen) < len(x)) == cut
    assert len(results[0]) == len(results[1])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_treats_images_one_by_one(name: str) -> None:
    """What `declare` says of it; without statistics of the batch."""
    model = tiny(name).eval()
    x = images(model, 5)
    assert is_imagewise(model)
    y = model(x)
    for policy in (CHUNKS, Policy(chunk=2 * x[0].numel())):
        assert not torch.equal(y[0], y[1])
        torch.testing.assert_close(compress(model, policy)(x), y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["bias", "lora", "s2a", "vpt"])
def test_a_tuned_model_is_cut(method: str) -> None:
    tuned = lowtide.apply(tiny("vit"), METHODS[method](), num_classes=4).eval()
    x = images(tuned.backbone)
    assert is_imagewise(tuned)
    y = tuned(x)
    torch.testing.assert_close(compress(tuned, CHUNKS)(x), y, rtol=1e-9, atol=1e-9)


class Around(nn.Module):
    """What a user may make of what a backbone gives."""

    def __init__(self, body: nn.Module, end: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.body, self.end = body, end

    def forward(self, x: Tensor) -> object:
        return self.end(self.body(x))


ENDS: dict[str, Callable[[Tensor], object]] = {
    "similarity": lambda z: z @ z.T,
    "centred": lambda z: z - z.mean(0),
    "tokens first": lambda z: z.unflatten(1, (2, 2)).transpose(0, 1),
    "loss": lambda z: z.square().mean(),
    "dict": lambda z: {"loss": z.square().mean(), "logits": z, "count": len(z)},
    "softmax": lambda z: z.softmax(0),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_stands_around_a_model_is_not_cut(end: str) -> None:
    x = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    same(Around(vit(), ENDS[end]), x, cut=True)  # the model inside is
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 4)).double()
    same(Around(plain, ENDS[end]), x, cut=False)


class Centred(VisionTransformer):
    """The best known model, and one line more."""

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z - z.mean(0)


class Whitened(VisionTransformer):
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return super().forward_head(x - x.mean(0), pre_logits)


class Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Namesake(nn.Module):
    """Nothing but a name."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) - x.mean(0)


Namesake.__name__ = "LayerNorm"


def hooked(model: nn.Module) -> nn.Module:
    model.blocks[0].register_forward_hook(lambda m, args, y: y - y.mean(0))
    return model


def before(model: nn.Module) -> nn.Module:
    model.blocks[1].mlp.register_forward_pre_hook(lambda m, args: (args[0] - args[0].mean(0),))
    return model


def put(path: str, made: Callable[[], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def change(model: nn.Module) -> nn.Module:
        model.set_submodule(path, made())
        return model

    return change


def patched(model: nn.Module) -> nn.Module:
    head = model.forward_head
    model.forward_head = lambda x, pre_logits=False: head(x - x.mean(0), pre_logits)
    return model


CHANGED: dict[str, Callable[[], nn.Module]] = {
    "subclass": lambda: vit(Centred),
    "subclass, inside": lambda: vit(Whitened),
    "hook": lambda: hooked(vit()),
    "hook before": lambda: before(vit()),
    "unknown inside": lambda: put("blocks.0.mlp.drop1", Mixing)(vit()),
    "namesake": lambda: put("blocks.0.norm1", Namesake)(vit()),
    "softmax of images": lambda: put("blocks.0.mlp.act", lambda: nn.Softmax(0))(vit()),
    "softmax of whatever": lambda: put("blocks.0.mlp.act", lambda: nn.Softmax(-3))(vit()),
    "batch norm": lambda: put("blocks.0.mlp.norm", lambda: nn.BatchNorm1d(5).double())(vit()),
    "no statistics": lambda: put(
        "blocks.0.mlp.norm", lambda: nn.BatchNorm1d(5, track_running_stats=False).double().eval()
    )(vit()),
    "dropout": lambda: vit(proj_drop_rate=0.5),
    "dropout in front": lambda: vit(pos_drop_rate=0.5),
    "stochastic depth": lambda: vit(drop_path_rate=0.5),
    "patches dropped": lambda: vit(patch_drop_rate=0.5),
}


@pytest.mark.parametrize("change", CHANGED)
def test_what_is_not_known_is_not_cut(change: str) -> None:
    model = CHANGED[change]()
    assert not is_imagewise(model)
    x = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    results = []
    for policy in (Policy(), CHUNKS):
        torch.manual_seed(3)
        results.append(compress(copy.deepcopy(model), policy)(x))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_a_function_put_in_the_place_of_its_own_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_imagewise(vit())
    assert not is_imagewise(patched(vit()))
    monkeypatch.setattr(layers.Mlp, "forward", lambda self, x: x - x.mean(0))
    assert not is_imagewise(vit())
    monkeypatch.undo()
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, y: None)
    assert not is_imagewise(vit())
    handle.remove()
    assert is_imagewise(vit())


def test_noise_in_a_mode_that_draws_none() -> None:
    model = vit(proj_drop_rate=0.5, drop_path_rate=0.5, patch_drop_rate=0.5)
    assert is_imagewise(model.eval())
    x = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    same(model, x, cut=True)


@pytest.mark.parametrize(("count", "rows"), [(10, [4, 4, 2]), (3, [3])])
def test_chunks_are_made_equal(count: int, rows: list[int]) -> None:
    """Four images fit into one chunk."""
    model, x = vit(), torch.randn(count, 3, 16, 16, dtype=torch.float64)
    compress(model, Policy(chunk=4 * x[0].numel()))
    seen: list[int] = []

    class Heads(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is nn.functional.linear and args[1] is model.head.weight:
                seen.append(len(args[0]))
            return func(*args, **(kwargs or {}))

    with Heads():
        model(x)
    assert seen == rows


def test_an_mlp_inside_the_unknown_is_cut() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = layers.Mlp(8, 16).double()

        def forward(self, x: Tensor) -> Tensor:
            y = self.mlp(x)
            return y - y.mean(0)

    same(Own(), torch.randn(4, 5, 8, dtype=torch.float64), cut=True)
    own = Own()
    own.mlp.norm = nn.BatchNorm1d(5).double()
    same(own, torch.randn(4, 5, 8, dtype=torch.float64), cut=False)


def test_one_image_without_its_axis_is_not_cut() -> None:
    model = layers.ConvMlp(4, 8).double()
    x = torch.randn(4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(compress(copy.deepcopy(model), CHUNKS)(x), model(x))


TOKENS = 150
MLPS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "mlp": (lambda: layers.Mlp(6, 12, norm_layer=nn.LayerNorm), True),
    "glu": (lambda: layers.GluMlp(6, 12), True),
    "swiglu": (lambda: layers.SwiGLU(6, 12, norm_layer=nn.LayerNorm), True),
    "norm over tokens": (lambda: layers.Mlp(6, 12, norm_layer=_over_tokens), False),
    "batch norm": (lambda: layers.Mlp(6, 12, norm_layer=_of_tokens).eval(), False),
    "shifts tokens": (lambda: layers.Mlp(6, 12, act_layer=_Shifting), False),
    "hooked": (lambda: _hooked(layers.Mlp(6, 12)), False),
}


def _over_tokens(width: int, **placement: object) -> nn.Module:
    return nn.LayerNorm((TOKENS, width))


def _of_tokens(width: int, **placement: object) -> nn.Module:
    norm = nn.BatchNorm1d(TOKENS)
    nn.init.uniform_(norm.running_mean)
    return norm


class _Shifting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.roll(1, 1)


def _hooked(module: nn.Module) -> nn.Module:
    module.fc1.register_forward_hook(lambda m, args, y: y - y.mean(1, keepdim=True))
    return module


@pytest.mark.parametrize("name", MLPS)
def test_an_mlp_is_cut_by_tokens_where_they_do_not_meet(name: str) -> None:
    """Into at most 64 and what is left: 150 tokens of an image are 64, 64 and 22."""
    make, cut = MLPS[name]
    model, x = make().double(), torch.randn(2, TOKENS, 6, dtype=torch.float64)
    results = []
    for policy in (Policy(), CHUNKS):
        one = compress(copy.deepcopy(model), policy)
        given = x.clone().requires_grad_()
        with Rows() as rows:
            y = one(given)
        of = (given, *one.parameters())
        results.append([y, *torch.autograd.grad(y, of, cotangent(y, 0), allow_unused=True)])
    assert (rows.seen[0] == 64) == cut
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


class _Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ahead, self.gate, self.behind = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.ahead(x) * self.gate(x).sigmoid())


def test_an_mlp_that_a_family_names_is_cut_by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _Gated().double(), torch.randn(2, TOKENS, 6, dtype=torch.float64)
    y = model(x)
    assert sizes(model, 6 * 128, (x,), {}) is None
    monkeypatch.setattr(chunking, "_token_mlps", set())
    chunking.declare_mlps((_Gated,))
    assert sizes(model, 6 * 128, (x,), {}) == [64, 64, 64, 64, 44]
    torch.testing.assert_close(compress(model, CHUNKS)(x), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["lora", "ssf", "rlrr", "arc", "fact_tt"])
def test_an_adapted_mlp_is_cut_by_tokens(method: str) -> None:
    options = {"roles": (Role.FC1, Role.FC2)} if method == "lora" else {}
    tuned = lowtide.apply(vit(), METHODS[method](**options), num_classes=4).eval()
    mlp = next(m for m in tuned.modules() if isinstance(m, layers.Mlp))
    x = torch.randn(2, TOKENS, VIT["embed_dim"], dtype=torch.float64)
    assert by_tokens(mlp, x, 1) == [64, 64, 64, 64, 44]
    y = mlp(x)
    torch.testing.assert_close(compress(mlp, CHUNKS)(x), y, rtol=1e-12, atol=1e-12)
