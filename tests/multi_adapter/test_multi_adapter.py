"""Many adapters on one backbone answer as each of them alone, and run once what none changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from nets import images, near, stir, tiny
from torch import Tensor, nn

import lowtide
from lowtide import METHODS, InputError, MultiAdapter, Tuned, UnknownName, Unsupported
from lowtide.core.graft import Graft
from lowtide.core.method import Method
from lowtide.families import image_shape
from lowtide.tuning.adapter_files import WEIGHTS, read_shapes
from lowtide.versions import on_meta

FAMILIES = ("vit", "swin", "convnext")
OPTIONS: dict[str, dict[str, object]] = {"lst": {"head_dim": 4}}
"""What the tiny backbones need."""
CLASSES = {"birds": 3, "cars": 5, "plain": 2}


def made(name: str, **options: object) -> Method:
    return METHODS[name](**OPTIONS.get(name, {}), **options)


@cache
def tuned_alone(family: str) -> Tuned:
    """A backbone that has one adapter in place at a time."""
    return Tuned(tiny(family)).eval()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Adapters on disk, stirred, each made once."""

    @cache
    def saved(family: str, *methods: Method, classes: int = 3, seed: int = 0) -> Path:
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("adapter")
        overwrites = any(m.overwrites for m in methods)
        tuned = Tuned(tiny(family)) if overwrites else tuned_alone(family)
        tuned.add_adapter(str(folder), *methods, num_classes=classes)
        tuned.set_adapter(str(folder))
        stir(tuned)
        tuned.save_pretrained(folder)
        return folder

    return saved


def alone(family: str, folder: Path, x: Tensor) -> Tensor:
    """What an adapter answers that is loaded from its files, alone."""
    tuned, name = tuned_alone(family), f"loaded {folder}"
    if name not in tuned.adapters:
        tuned.load_adapter(folder, name)
    tuned.set_adapter(name)
    with torch.no_grad():
        return tuned(x)


def rows_through(model: nn.Module, run: Callable[[], object]) -> list[int]:
    """How many feature maps each block is given."""
    counts = [0] * len(model.blocks)
    hooks = [
        block.register_forward_hook(
            lambda m, given, y, i=i: counts.__setitem__(i, counts[i] + len(given[0]))
        )
        for i, block in enumerate(model.blocks)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return counts


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"full"}))
def test_adapters_of_a_method_answer_as_each_alone(
    name: str, family: str, shelf: Callable[..., Path]
) -> None:
    try:
        folders = {
            "birds": shelf(family, made(name), classes=3, seed=1),
            "cars": shelf(family, made(name), classes=5, seed=2),
            "plain": shelf(family, made("linear"), classes=2),
        }
    except Unsupported as reason:
        pytest.skip(str(reason))
    model = MultiAdapter(tiny(family), folders)
    x = images(model.backbone, 4)
    want = {n: alone(family, f, x) for n, f in folders.items()}
    got = model(x)
    assert list(got) == list(folders)
    for n in folders:
        near(got[n], want[n])
    order = ["cars", "birds", "plain", "cars"]
    for i, (n, row) in enumerate(zip(order, model.mixed(x, order), strict=True)):
        near(row, want[n][i])
    assert not any(isinstance(m, Graft) for m in model.backbone.modules())


MANY = {
    "lora": (made("lora"),),
    "other_rank": (made("lora", rank=2),),
    "on_all": (made("lora", roles=("proj", "fc1")), made("bias")),
    "ssf": (made("ssf"),),
    "fact": (made("fact_tt"),),
    "prompts": (made("vpt", tokens=3),),
    "dtl": (made("dtl"),),
    "top": (made("partial"),),
    "s2a": (made("s2a", reduction=2),),
    "two_sides": (made("dtl"), made("vpt", tokens=3), made("adapter")),
}


@pytest.mark.parametrize("copied", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
@pytest.mark.parametrize("family", ["vit", "swin"])
def test_a_copy_answers_as_the_model_and_is_its_own(
    family: str, copied: Callable[[MultiAdapter], MultiAdapter], shelf: Callable[..., Path]
) -> None:
    kinds = {n: m for n, m in MANY.items() if family == "vit" or n in {"lora", "ssf", "top", "dtl"}}
    folders = {n: shelf(family, *m, classes=2 + i) for i, (n, m) in enumerate(kinds.items())}
    model = MultiAdapter(tiny(family), folders)
    twin, x = copied(model), images(model.backbone, 2)
    want = model(x)
    model.delete_adapter("lora")
    model.to(torch.float32)
    got = twin(x)
    assert all(torch.equal(got[n], want[n]) for n in kinds) and twin.adapters == (*kinds,)
    twin.load_adapter(folders["lora"], "again")
    near(twin(x, "again")["again"], want["lora"])
    assert model.adapters == (*(n for n in kinds if n != "lora"),)


STREAM = {"stream": (made("arc", stream=True),), "other_stream": (made("arc", stream=True),)}
"""What stands between attention and MLP, where a table has a way in."""


@pytest.mark.parametrize("family, more", [("vit", {}), ("swin", STREAM)], ids=["vit", "swin"])
def test_adapters_of_all_kinds_share_a_batch(
    family: str, more: dict[str, tuple[Method, ...]], shelf: Callable[..., Path]
) -> None:
    kinds = {**MANY, **more}
    folders = {n: shelf(family, *m, classes=2 + i) for i, (n, m) in enumerate(kinds.items())}
    model = MultiAdapter(tiny(family), folders)
    x = images(model.backbone, 2)
    want = {n: alone(family, f, x) for n, f in folders.items()}
    for n, logits in model(x).items():
        near(logits, want[n])
    near(model(x, ["ssf"])["ssf"], want["ssf"])
    batch = torch.cat([x] * 8)
    index = torch.tensor([7 * i % len(folders) for i in range(16)])
    for i, row in enumerate(model.mixed(batch, index)):
        near(row, want[model.adapters[index[i]]][i % 2])


def test_blocks_that_no_adapter_changes_run_once(shelf: Callable[..., Path]) -> None:
    def counted(*methods: Method) -> list[int]:
        folders = {f"task{i}": shelf("vit", *methods, seed=i) for i in range(3)}
        model = MultiAdapter(tiny("vit"), folders)
        x = images(model.backbone, 2)
        return rows_through(model.backbone, lambda: model(x))

    assert counted(made("dtl", start_block=2)) == [2, 2, 6, 6]
    assert counted(made("partial")) == [2, 2, 2, 6]
    assert counted(made("lora")) == [6, 6, 6, 6]
    for name in ("linear", "mlp_head", "lst", "unipt"):
        assert counted(made(name)) == [2, 2, 2, 2]


def test_one_kind_runs_the_backbone_once_for_all(shelf: Callable[..., Path]) -> None:
    """No loop over adapters: each map of the backbone is called once, whatever the batch."""
    folders = {f"task{i}": shelf("vit", made("lora"), seed=i) for i in range(3)}
    model = MultiAdapter(tiny("vit"), folders)
    calls: list[int] = []
    model.backbone.blocks[0].attn.qkv.register_forward_hook(lambda m, given, y: calls.append(1))
    x = images(model.backbone, 5)
    model.mixed(x, torch.tensor([2, 0, 1, 1, 0]))
    assert len(calls) == 1


def test_each_adapter_may_want_its_own_images(shelf: Callable[..., Path]) -> None:
    folders = {n: shelf("vit", made("linear"), classes=c) for n, c in CLASSES.items()}
    model = MultiAdapter(tiny("vit"), folders)
    x = images(model.backbone, 2)
    given = {"birds": x, "cars": 2 * x, "plain": x}
    assert rows_through(model.backbone, lambda: model(given)) == [4] * 4
    got = model(given)
    for n in folders:
        near(got[n], alone("vit", folders[n], given[n]))
    with pytest.raises(InputError, match="no images for 'plain'"):
        model({"birds": x}, ["plain"])


def test_bytes_are_one_backbone_and_the_adapters(shelf: Callable[..., Path]) -> None:
    model = MultiAdapter(tiny("vit"))
    plain = sum(t.nbytes for t in model.backbone.state_dict().values())
    assert model.nbytes == model.backbone_nbytes() == plain
    for name, methods in MANY.items():
        folder = shelf("vit", *methods, classes=3)
        model.load_adapter(folder, name)
        numbers = sum(torch.Size(s).numel() for s in read_shapes(folder / WEIGHTS).values())
        assert model.adapter_nbytes(name) == 8 * numbers
    assert model.nbytes == plain + sum(map(model.adapter_nbytes, model.adapters))
    model.float()
    assert model.backbone_nbytes() == plain / 2
    assert model(torch.randn(1, *image_shape(model.backbone)))["lora"].dtype == torch.float32


def test_a_hundred_lora_adapters_add_less_than_120_mib() -> None:
    with on_meta():
        tuned = lowtide.apply(
            lowtide.create("vit_base_patch16_224", pretrained=False), made("lora")
        )
    head = {p for path in tuned.heads for p in tuned.backbone.get_submodule(path).parameters()}
    own = [p for p in tuned.parameters() if p.requires_grad and p not in head]
    assert 100 * sum(p.nbytes for p in own) < 120 << 20


def test_adapters_come_and_go(shelf: Callable[..., Path], tmp_path: Path) -> None:
    a, b = (shelf("vit", made("lora"), seed=s) for s in (1, 2))
    model = MultiAdapter(tiny("vit"), {"a": a})
    weights = {n: p.clone() for n, p in model.backbone.state_dict().items()}
    x = images(model.backbone, 2)
    with pytest.raises(InputError, match="'a' exists"):
        model.load_adapter(b, "a")
    with pytest.raises(InputError, match="holds no adapter"):
        model.load_adapter(tmp_path, "b")
    with pytest.raises(InputError, match="this backbone"):
        model.load_adapter(shelf("swin", made("lora")), "b")
    assert model.adapters == ("a",)
    model.load_adapter(b, "b")
    near(model(x)["b"], alone("vit", b, x))
    model.delete_adapter("a")
    with pytest.raises(UnknownName, match="adapter 'a'"):
        model(x, ["a"])
    model.load_adapter(b, "a")
    near(model(x, ["a"])["a"], alone("vit", b, x))
    for n, p in model.backbone.state_dict().items():
        assert torch.equal(p, weights[n])


def test_what_cannot_be_is_refused_in_one_line(shelf: Callable[..., Path]) -> None:
    with pytest.raises(Unsupported, match="full changes every weight"):
        MultiAdapter(tiny("vit"), {"all": shelf("vit", made("full"))})
    model = MultiAdapter(tiny("vit"), {"a": shelf("vit", made("lora"))})
    x = images(model.backbone, 2)
    for wrong in (lambda: model(x[0]), lambda: model(x[:0]), lambda: model.mixed(x, ["a"])):
        with pytest.raises(InputError):
            wrong()
    with pytest.raises(UnknownName, match="did you mean"):
        model(x, ["aa"])
    with pytest.raises(InputError, match="one by one"):
        model.train()


def test_an_error_on_the_way_leaves_the_backbone_plain(shelf: Callable[..., Path]) -> None:
    folders = {f"task{i}": shelf("vit", made("lora"), made("bias"), seed=i) for i in range(2)}
    model = MultiAdapter(tiny("vit"), folders)
    x = images(model.backbone, 2)
    want = model(x)
    before = dict(model.backbone.named_modules())
    with pytest.raises(RuntimeError):
        model(x.to(torch.complex128))
    assert dict(model.backbone.named_modules()) == before
    near(model(x)["task1"], want["task1"])
