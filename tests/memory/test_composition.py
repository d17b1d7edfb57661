"""compress beside everything else a training loop may do: it adds nothing and leaves nothing."""

from __future__ import annotations

import copy
import io
import os
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from kept import kept_bytes
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from lowtide import METHODS, POLICIES, Policy, apply, compress, decompress, set_frozen_dtype
from lowtide.codecs.exact import Exact
from lowtide.errors import Unsupported
from lowtide.ops import NAMES

EVERYTHING = Policy({name: Exact() for name in NAMES})
"""Every op answered, none of them changed: whatever differs is a mistake of the mechanism."""
IN_CHUNKS = Policy({name: Exact() for name in NAMES}, chunk=1)
TIGHT = POLICIES["tight"]()
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2}


def awake(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, p[0].numel() ** -0.5) if p.ndim > 1 else p.add_(torch.randn_like(p) * 0.3)
    return model


def vit(**options: object) -> nn.Module:
    torch.manual_seed(1)
    return awake(timm.create_model("vit_tiny_patch16_224", num_classes=4, **SMALL | options))


def batch(count: int = 4) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 4, (count,), generator=noise)
    return torch.randn(count, 3, 32, 32, generator=noise), labels


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def learn(model: nn.Module, call: Callable[..., Tensor] | None = None) -> Tensor:
    """Give the gradient of a loss over the batch, in one row."""
    model.zero_grad()
    x, labels = batch()
    F.cross_entropy((model if call is None else call)(x).float(), labels).backward()
    return gradient(model)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * b.abs().max().item())


def cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a.double(), b.double(), dim=0).item()


@pytest.fixture(autouse=True)
def _no_mode_is_left_behind():
    yield
    assert torch._C._len_torch_function_stack() == 0


@pytest.mark.parametrize("policy", [EVERYTHING, IN_CHUNKS], ids=["whole", "chunks"])
def test_bf16_autocast(policy: Policy) -> None:
    def call(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    model = vit()
    exact = learn(model)
    expected = learn(model, call)
    got = learn(compress(model, policy), call)
    # As close to autocast's gradient as that is to the exact one.
    assert (got - expected).norm() < 2 * (expected - exact).norm()
    assert cosine(got, exact) > 0.999 * cosine(expected, exact)


@pytest.mark.parametrize("policy", [EVERYTHING, TIGHT], ids=["everything", "tight"])
def test_fp16_with_a_loss_scaler(policy: Policy) -> None:
    model = vit()
    exact = learn(model)
    compress(model, policy)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x, labels = batch()
    model.zero_grad()
    with torch.autocast("cpu", torch.float16):
        loss = F.cross_entropy(model(x).float(), labels)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    assert cosine(gradient(model), exact) > (0.99 if policy is EVERYTHING else 0.97)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**10


def test_an_overflow_is_seen_by_the_loss_scaler() -> None:
    model = compress(vit(), TIGHT)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x, labels = batch()
    x[0, 0, 0, 0] = torch.inf
    with torch.autocast("cpu", torch.float16):
        loss = F.cross_entropy(model(x).float(), labels)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("policy", [EVERYTHING, TIGHT], ids=["everything", "tight"])
def test_micro_batches_add_up(policy: Policy) -> None:
    model = compress(vit(), policy)
    x, labels = batch()
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):
        model.zero_grad()
        F.cross_entropy(model(x[rows]), labels[rows], reduction="sum").backward()
        parts.append(gradient(model))
    model.zero_grad()
    # Both graphs are alive before either is used.
    losses = [
        F.cross_entropy(model(x[rows]), labels[rows], reduction="sum")
        for rows in (slice(0, 1), slice(1, 4))
    ]
    for loss in losses:
        loss.backward()
    close(gradient(model), parts[0] + parts[1])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("policy", [EVERYTHING, TIGHT], ids=["everything", "tight"])
def test_checkpointing_of_the_whole_model(policy: Policy, reentrant: bool) -> None:
    model = compress(vit(), policy)
    expected = learn(model)

    def call(x: Tensor) -> Tensor:
        return checkpoint(model, x.requires_grad_(reentrant), use_reentrant=reentrant)

    close(learn(model, call), expected)


@pytest.mark.parametrize("dtype", ["bf16", "nf4"])
@pytest.mark.parametrize("method", ["bias", "lora"])
def test_everything_at_once_compiles_without_a_break(method: str, dtype: str) -> None:
    tuned = set_frozen_dtype(apply(vit(depth=1), METHODS[method](), num_classes=4), dtype)
    exact = learn(tuned)
    for policy in (EVERYTHING, TIGHT):
        # Under a compiler attention is not differentiated from the norm before it.
        eager = cosine(learn(compress(tuned, replace(policy, recompute=None))), exact)
        compress(tuned, policy)
        compiled = torch.compile(tuned, fullgraph=True, backend="aot_eager")
        # A compiler may share less of what is kept, so that rounding falls elsewhere.
        assert 1 - cosine(learn(tuned, compiled), exact) < 1.5 * (1 - eager) + 1e-6


def _replica(rank: int, port: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    model = compress(vit(), EVERYTHING)
    replica = nn.parallel.DistributedDataParallel(model)
    x, labels = batch()
    F.cross_entropy(replica(x[rank::2]), labels[rank::2]).backward()
    if rank == 0:
        torch.save(gradient(model), f"{folder}/gradient.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path) -> None:
    torch.multiprocessing.spawn(_replica, ("29511", str(tmp_path)), nprocs=2)
    close(torch.load(tmp_path / "gradient.pt"), learn(vit()))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_transformers_vit(attention: str) -> None:
    transformers = pytest.importorskip("transformers", reason="in the dev extra; not installed")

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = transformers.ViTConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                image_size=32,
                patch_size=8,
                num_labels=4,
                attn_implementation=attention,
            )
            self.model = transformers.ViTForImageClassification(config)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x).logits

    torch.manual_seed(0)
    model = awake(Logits())
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("bias"))
    x, _ = batch()
    expected, exact = learn(model), kept_bytes(model, x)
    close(learn(compress(model, EVERYTHING)), expected)
    assert cosine(learn(compress(model, TIGHT)), expected) > 0.97
    assert kept_bytes(model, x) < 0.5 * exact


def test_transformers_trainer_with_its_defaults(tmp_path) -> None:
    """It reads from the forward which columns to keep, and whether there is a loss."""
    transformers = pytest.importorskip("transformers", reason="in the dev extra; not installed")
    pytest.importorskip("accelerate")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        num_labels=4,
    )
    x, labels = batch(8)
    rows = [{"pixel_values": a, "labels": b, "name": "n"} for a, b in zip(x, labels, strict=True)]

    def losses(policy: Policy) -> list[float]:
        torch.manual_seed(0)
        model = compress(transformers.ViTForImageClassification(config), policy)
        arguments = transformers.TrainingArguments(
            str(tmp_path), max_steps=2, per_device_train_batch_size=4, use_cpu=True, report_to=[]
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
        assert trainer.label_names == ["labels"]
        return [trainer.train().training_loss, trainer.evaluate()["eval_loss"]]

    exact = losses(Policy())
    assert losses(EVERYTHING) == pytest.approx(exact, rel=1e-5)
    assert losses(TIGHT) == pytest.approx(exact, rel=1e-2)


def test_a_peft_model() -> None:
    peft = pytest.importorskip("peft", reason="in the dev extra; not installed")
    model = vit()
    config = peft.LoraConfig(r=4, target_modules=["qkv"], modules_to_save=["head"])
    model = peft.get_peft_model(model, config)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)
    x, _ = batch()
    y, expected, exact = model(x), learn(model), kept_bytes(model, x)
    close(learn(compress(model, EVERYTHING)), expected)
    compress(model, TIGHT)
    torch.testing.assert_close(model(x), y)
    assert cosine(learn(model), expected) > 0.97
    assert kept_bytes(model, x) < 0.6 * exact
    with model.disable_adapter():
        assert not torch.equal(model(x), y)
    merged = decompress(model).merge_and_unload()
    close(merged(x), y)


class Twice(nn.Module):
    """One block that is used two times, and a dropout between the uses."""

    def __init__(self) -> None:
        super().__init__()
        self.model = vit()
        self.block = self.model.blocks[0]

    def forward(self, x: Tensor) -> Tensor:
        x = self.model._pos_embed(self.model.patch_embed(x))
        x = F.dropout(self.block(x), 0.1)
        return self.model.forward_head(self.block(self.block(x)))


@pytest.mark.parametrize("policy", [EVERYTHING, IN_CHUNKS], ids=["whole", "chunks"])
def test_a_module_used_twice(policy: Policy) -> None:
    model = Twice()
    torch.manual_seed(3)
    expected = learn(model)
    compress(model, policy)
    torch.manual_seed(3)
    close(learn(model), expected)


def test_without_gradients_nothing_is_kept() -> None:
    model, (x, _) = vit(), batch()
    y = model(x)
    compress(model, TIGHT)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(model(x), y)
            assert kept_bytes(model, x) == 0
    with torch.no_grad(), torch.enable_grad():
        assert model(x).requires_grad
    x.requires_grad_()
    for p in model.parameters():
        p.requires_grad_(False)
    assert kept_bytes(model, x) > 0
    assert kept_bytes(model, x.detach()) == 0


def test_a_part_without_gradients() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = vit()

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.model.blocks[0](self.model._pos_embed(self.model.patch_embed(x)))
            return self.model.forward_head(self.model.blocks[1](x))

    model = Half()
    expected = learn(model)
    close(learn(compress(model, EVERYTHING)), expected)


@pytest.mark.parametrize("policy", [EVERYTHING, IN_CHUNKS], ids=["whole", "chunks"])
def test_an_exception_leaves_the_mode(policy: Policy) -> None:
    model, (x, _) = compress(vit(), policy), batch()
    expected = learn(model)
    handle = model.blocks[1].mlp.fc2.register_forward_pre_hook(lambda m, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(x)
    assert torch._C._len_torch_function_stack() == 0
    handle.remove()
    node = F.gelu(torch.randn(3, requires_grad=True)).grad_fn
    assert type(node).__name__ == "GeluBackward0"
    close(learn(model), expected)


def test_threads_with_policies_of_their_own() -> None:
    policies = [EVERYTHING, TIGHT, Policy(), IN_CHUNKS]
    models = [compress(vit(), p) for p in policies]
    expected = [learn(m) for m in models]
    found: dict[int, Tensor] = {}
    gate = threading.Barrier(len(models))

    def work(i: int) -> None:
        gate.wait()
        for _ in range(3):
            found[i] = learn(models[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(models))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i, row in enumerate(expected):
        close(found[i], row)


@pytest.mark.parametrize("dtype", ["bf16", "nf4"])
@pytest.mark.parametrize("verb", ["deepcopy", "pickle", "torch.save"])
def test_copies_learn_alike(verb: str, dtype: str) -> None:
    tuned = set_frozen_dtype(apply(vit(), METHODS["lora"](), num_classes=4), dtype)
    expected = learn(compress(tuned, TIGHT))
    if verb == "deepcopy":
        other = copy.deepcopy(tuned)
    elif verb == "pickle":
        other = pickle.loads(pickle.dumps(tuned))
    else:
        file = io.BytesIO()
        torch.save(tuned, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert torch.equal(learn(other), expected)
    assert not {id(p) for p in other.parameters()} & {id(p) for p in tuned.parameters()}
    decompress(other)
    assert kept_bytes(tuned, batch()[0]) < kept_bytes(other, batch()[0])


def test_a_graph_can_be_used_twice_and_not_differentiated_twice() -> None:
    model, (x, labels) = compress(vit(), TIGHT), batch()
    parameters = list(model.parameters())
    loss = F.cross_entropy(model(x), labels)
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(Unsupported, match="create_graph=True asks for a second derivative"):
        torch.autograd.grad(loss, parameters, create_graph=True)


@pytest.mark.parametrize("policy", ["s2a", "tight", "codes"])
def test_a_gradient_penalty_is_refused_and_not_halved(policy: str) -> None:
    """Its incoming gradient has no graph, so that torch itself would leave terms out in silence."""
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3)).double()
    x = torch.randn(4, 6, 8, dtype=torch.float64, requires_grad=True)
    compress(model, policy)
    with pytest.raises(Unsupported, match="create_graph=True asks for a second derivative"):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)
    assert torch.autograd.grad(model(x).sum(), x)[0].isfinite().all()


def test_what_trains_may_change_after_compress() -> None:
    model = vit()
    expected = {}
    for trained in ("bias", "weight", ""):
        for name, p in model.named_parameters():
            p.requires_grad_(name.endswith(trained))
        expected[trained] = learn(model)
    compress(model, EVERYTHING)
    for trained, row in expected.items():
        for name, p in model.named_parameters():
            p.requires_grad_(name.endswith(trained))
        close(learn(model), row)


def test_functional_calls_and_hooks() -> None:
    model, (x, labels) = vit(), batch()
    other = {k: v.detach() * 1.1 for k, v in model.named_parameters()}
    seen: list[Tensor] = []
    model.blocks[1].register_full_backward_hook(lambda m, dx, dy: seen.append(dx[0]))

    def both() -> Tensor:
        leaves = {k: v.clone().requires_grad_() for k, v in other.items()}
        loss = F.cross_entropy(torch.func.functional_call(model, leaves, (x,)), labels)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(leaves.values()))])

    expected = both()
    compress(model, EVERYTHING)
    close(both(), expected)
    close(seen[1], seen[0])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_convnext"])
def test_autocast_keeps_no_cast_copy_of_a_frozen_weight(name: str) -> None:
    options = SMALL if name.startswith("vit") else {}
    model = awake(timm.create_model(name, num_classes=4, **options))
    for key, p in model.named_parameters():
        p.requires_grad_(key.endswith("bias"))
    compress(model, IN_CHUNKS)
    maps = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    shapes = {tuple(w.shape) for w in maps} | {tuple(w.mT.shape) for w in maps}
    own, copies = {p.data_ptr() for p in model.parameters()}, []

    def pack(t: Tensor) -> Tensor:
        if tuple(t.shape) in shapes and t.data_ptr() not in own:
            copies.append(t)
        return t

    with saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        model(batch()[0])
    assert not copies
