"""LoRA with every other way to need less memory, side by side: bytes, gradient, time.

    python -m benchmarks.rivals [--model vit_small_patch16_224] [--batch-size 16]
        [--image-size SIDE] [--checkpoint WEIGHTS] [--data FOLDER] [--only NAME ...]
        [--rounds R] [--threads T]

All rows but DoRA's and VeRA's train the same: peft's LoRA (rank 8 on qkv, B drawn at random so that
A has a gradient) and a new classifier, in float32. Weights: what stands before the step. Kept: what
is alive after the forward beside the weights. Peak: the most that is alive in a step, optimiser
(AdamW) and all. Of compiled rows both are unknown to a meter of tensors, and kept is what autograd
was given. Cosine: of the whole gradient with that of the first row, mean of two batches. Time: the
median over rounds, in which all rows take turns, of the ratio to the first row of that round.

A row of a library that is not installed (bitsandbytes) is left out, with a word. torchao has NF4 no
more as of 0.18.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from typing import Any

import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._functorch import config as functorch
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from lowtide import POLICIES, Policy, compress, create
from lowtide.codecs import threshold_codes
from lowtide.codecs.affine import Affine
from lowtide.codecs.base import Residue
from lowtide.codecs.exact import Exact
from lowtide.data import Preprocessing, loader, read
from lowtide.families import image_shape
from lowtide.kernels.bits import packed_bytes
from lowtide.kernels.threshold_codes import threshold_pack
from lowtide.memory.frozen_dtype import pack_frozen
from lowtide.ops import NAMES
from lowtide.planning.meter import Meter

MIB = 2**20
CLASSES = 10
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Steps:
    """A slope that is constant between fixed inputs, as that of a sum of shifted ReLUs."""

    edges: tuple[float, ...]
    levels: tuple[float, ...]

    @property
    def bits(self) -> int:
        """Width of a code."""
        return len(self.edges).bit_length()

    def pack(self, residue: Residue) -> tuple[Tensor, ...]:
        """Keep how many edges lie below each input."""
        codes = list(range(len(self.levels)))
        return (threshold_pack(residue.source.detach(), list(self.edges), codes, self.bits),)

    def unpack(self, packed: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Look the slopes up."""
        return threshold_codes.unpack(packed, self.levels, shape, dtype)

    def scale(self, packed: tuple[Tensor, ...], dy: Tensor) -> Tensor:
        """Multiply with the slopes."""
        return threshold_codes.scale(packed, self.levels, dy)

    def nbytes(self, shape: torch.Size, dtype: torch.dtype) -> int:
        """Count the bytes of the codes."""
        return packed_bytes(shape.numel(), self.bits)

    def bound(self, residue: Tensor) -> Tensor:
        """Bound nothing: the slope is another function's."""
        return torch.full_like(residue, torch.inf)


# Yang et al. 2024 (arXiv 2406.16282): ReGELU2 has the slopes 0, a1, a1 + a2, 1 between c1, c2, c3.
# Its norms keep their output, which the linear map behind them shares where that is trained.
LOW_MEMORY_BP = Policy({
    "gelu": Steps(
        (-3.1858810036855245, -0.001178821281161997, 3.190832613414926),
        (0.0, -0.04922261145617846, 1.0487405800900713, 1.0),
    ),
    "layer_norm": Exact(),
})
# As Liu et al. 2022 (GACT, arXiv 2206.11357) at one width: all that an op would save, in groups.
UNIFORM = Policy({name: Affine(4, 256, "stochastic", torch.bfloat16) for name in NAMES})


def lora(backbone: nn.Module, **options: Any) -> nn.Module:
    """Put peft's LoRA on qkv."""
    config = peft.LoraConfig(
        r=8, lora_alpha=8, target_modules=["qkv"], modules_to_save=["head"], **options
    )
    return started(peft.get_peft_model(backbone, config))


def vera(backbone: nn.Module) -> nn.Module:
    """Put peft's VeRA on qkv."""
    config = peft.VeraConfig(r=64, target_modules=["qkv"], modules_to_save=["head"])
    return started(peft.get_peft_model(backbone, config))


def started(model: nn.Module) -> nn.Module:
    """Give every zero that trains a value."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            parameter.data.normal_(0, 0.02, generator=generator)
    return model


def compressed(policy: Policy) -> Callable[[nn.Module], nn.Module]:
    """Make LoRA whose step runs under a policy."""
    return lambda backbone: compress(lora(backbone), policy)


def checkpointed(backbone: nn.Module) -> nn.Module:
    """Make LoRA with timm's gradient checkpointing."""
    backbone.set_grad_checkpointing()
    return lora(backbone)


def compiled(backbone: nn.Module) -> nn.Module:
    """Make LoRA compiled."""
    torch.compiler.reset()
    return torch.compile(lora(backbone), dynamic=False)


def budget(share: float) -> AbstractContextManager[Any]:
    """Tell the partitioner of a compiled model what share of its activations to keep."""
    return functorch.patch(activation_memory_budget=share)


def in_nf4(backbone: nn.Module) -> nn.Module:
    """Make LoRA on NF4 weights of lowtide's, under `tight`."""
    model = lora(backbone)
    pack_frozen(model, "nf4")
    return compress(model, POLICIES["tight"]())


def in_bitsandbytes(backbone: nn.Module) -> nn.Module:
    """Make LoRA on NF4 weights of bitsandbytes', doubly quantised."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for path, module in list(backbone.named_modules()):
        if type(module) is nn.Linear and not path.startswith("head"):
            shape = module.in_features, module.out_features, module.bias is not None
            narrow = Linear4bit(*shape, quant_type="nf4")
            narrow.weight = Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
            narrow.bias = module.bias
            backbone.set_submodule(path, narrow.to("cpu"))
    return lora(backbone)


@dataclass(frozen=True)
class Rival:
    """A row.

    Attributes:
        make: Makes the model from a backbone.
        around: What a forward runs in.
        library: What it needs.
        compiled: Whether a meter of tensors cannot look in.
        same: Whether it trains what the first row trains.
    """

    make: Callable[[nn.Module], nn.Module]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    library: str | None = None
    compiled: bool = False
    same: bool = True


RIVALS = {
    "peft LoRA": Rival(lora),
    "peft DoRA": Rival(lambda b: lora(b, use_dora=True), same=False),
    "peft VeRA, r 64": Rival(vera, same=False),
    "gradient checkpointing": Rival(checkpointed),
    "compiled, budget 0.5": Rival(compiled, partial(budget, 0.5), compiled=True),
    "compiled, budget 0.1": Rival(compiled, partial(budget, 0.1), compiled=True),
    "LowMemoryBP": Rival(compressed(LOW_MEMORY_BP)),
    "4 bits everywhere": Rival(compressed(UNIFORM)),
    "offloaded to host": Rival(lora, around=save_on_cpu),
    "bitsandbytes NF4": Rival(in_bitsandbytes, library="bitsandbytes"),
    "lowtide s2a": Rival(compressed(POLICIES["s2a"]())),
    "lowtide tight": Rival(compressed(POLICIES["tight"]())),
    "lowtide tight, torch's checkpointing": Rival(
        lambda b: compress(checkpointed(b), POLICIES["tight"]())
    ),
    "lowtide tight, NF4": Rival(in_nf4),
}


@dataclass
class Contender:
    """A model of a row, and what it needs."""

    name: str
    rival: Rival
    model: nn.Module

    def __post_init__(self) -> None:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.0)

    def loss(self, batch: Batch) -> Tensor:
        """Run the forward."""
        with self.rival.around():
            return F.cross_entropy(self.model(batch[0]), batch[1])

    def step(self, batch: Batch) -> None:
        """Train on a batch."""
        self.loss(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self, batch: Batch) -> float:
        """Time a step."""
        start = time.perf_counter()
        self.step(batch)
        return time.perf_counter() - start

    def gradient(self, batch: Batch) -> Tensor:
        """Give the gradient of all that trains."""
        self.optimizer.zero_grad()
        torch.manual_seed(0)
        self.loss(batch).backward()
        grads = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        self.optimizer.zero_grad()
        return torch.cat(grads).double()

    def sizes(self, batch: Batch) -> dict[str, float | None]:
        """Count weights, what is kept, and the peak, in MiB."""
        weights = sum(storages(self.model).values()) / MIB
        if self.rival.compiled:
            return {"weights": weights, "kept": self.given(batch) / MIB, "peak": None}
        with Meter(self.model, self.optimizer) as meter:
            loss = self.loss(batch)
            kept = meter.now.peak_bytes - meter.now.parts["weights"]
            del loss
            self.step(batch)
            self.step(batch)
        return {"weights": weights, "kept": kept / MIB, "peak": meter.peak.peak_bytes / MIB}

    def given(self, batch: Batch) -> int:
        """Count what autograd was given to save, weights left out."""
        held = storages(self.model)
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in held:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda t: t):
            self.loss(batch)
        return sum(found.values())


def storages(model: nn.Module) -> dict[int, int]:
    """List the storages of all weights with their bytes."""
    found = {}
    for tensor in (*model.parameters(), *model.buffers()):
        first = getattr(tensor, "quant_state", None)  # of bitsandbytes, and of its scales
        states = [vars(s) for s in (first, getattr(first, "state2", None)) if s is not None]
        scales = [t for state in states for t in state.values() if isinstance(t, Tensor)]
        for part in (tensor.data, *scales):
            storage = part.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def contenders(backbone: nn.Module, names: Iterable[str]) -> list[Contender]:
    """Make the models of the rows whose libraries are here."""
    made = []
    for name in names:
        rival = RIVALS[name]
        if rival.library and find_spec(rival.library) is None:
            print(f"{name}: left out, {rival.library} is not installed")
            continue
        torch.manual_seed(0)
        made.append(Contender(name, rival, rival.make(copy.deepcopy(backbone)).train()))
    return made


def batches(args: argparse.Namespace, backbone: nn.Module) -> list[Batch]:
    """Make two batches: of a folder's images, or of noise."""
    if args.data:
        dataset = read(args.data)
        transform = Preprocessing.of(backbone).transform(train=False)
        torch.manual_seed(0)
        return list(loader(dataset.train, transform, args.batch_size, shuffle=True))[:2]
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch_size, *image_shape(backbone))
    labels = torch.arange(args.batch_size) % CLASSES
    return [(torch.randn(shape, generator=generator), labels) for _ in range(2)]


def table(made: list[Contender], data: list[Batch], rounds: int) -> None:
    """Measure and print."""
    first = made[0]
    exact = [first.gradient(batch) for batch in data]
    for one in made:
        one.step(data[0])
    turns = [{one.name: one.seconds(data[0]) for one in made} for _ in range(rounds)]
    print("| | weights | kept | peak | cosine | time |\n|---|---|---|---|---|---|")
    for one in made:
        sizes = [f"{v:.1f}" if v is not None else "" for v in one.sizes(data[0]).values()]
        cosine = ""
        if one.rival.same:
            pairs = [(one.gradient(b), e) for b, e in zip(data, exact, strict=True)]
            cosine = f"{mean(float(F.cosine_similarity(g, e, dim=0)) for g, e in pairs):.4f}"
        ratio = median(turn[one.name] / turn[first.name] for turn in turns)
        print(f"| {one.name} | {' | '.join(sizes)} | {cosine} | {ratio:.2f} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="+", default=list(RIVALS), choices=list(RIVALS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    pretrained = {"checkpoint": args.checkpoint} if args.checkpoint else {"pretrained": False}
    backbone = create(args.model, image_size=args.image_size, **pretrained)
    data = batches(args, backbone)
    backbone.reset_classifier(CLASSES)
    names = ["peft LoRA", *(name for name in args.only if name != "peft LoRA")]
    print(f"{args.model}, {len(data[0][0])} images of {data[0][0].shape[-1]} pixels, MiB")
    table(contenders(backbone, names), data, args.rounds)


if __name__ == "__main__":
    main()
