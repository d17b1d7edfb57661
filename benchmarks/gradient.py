"""Compare the gradient under a policy with the exact one, on pre-trained weights and real images.

    python benchmarks/gradient.py --checkpoint WEIGHTS --data VTAB_LIKE/dtd10 VTAB_LIKE/sign_digits
        [--model NAME] [--batches N] [--write docs/compression.md]
    python benchmarks/gradient.py --checkpoint WEIGHTS --data ... --recomputed
        [--image-size SIDE --batch-size B]

Cosine and relative error over all trained parameters but the classifier's, averaged over batches of
images. Two tables: the policies as they are, on every data set; and one op at a time, everything
else exact, on the first, with the bytes the model then keeps for backward. With `--recomputed` the
table of docs/memory.md instead: gradient checkpointing, by how the inputs of blocks are kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from lowtide import METHODS, POLICIES, Policy, apply, compress, create
from lowtide.codecs.affine import Affine
from lowtide.codecs.codebook import Codebook
from lowtide.codecs.sine import Sine
from lowtide.data import Preprocessing, loader, read

RECOMPUTED = ("bias", "lora", "s2a", "ssf")
METHOD_NAMES = ("bias", "lora", "s2a", "ssf", "full")
SINGLE = (
    ("LayerNorm", "layer_norm", (8, 6, 5, 4, 3, 2), "bias"),
    ("attention: q, k, v", "attention", (8, 6, 5, 4, 3), "bias"),
    ("inputs of linear maps", "linear", (8, 4, 2), "full"),
    ("inputs of a trained scale", "mul", (8, 4, 2), "ssf"),
)
BEGIN, END = "<!-- benchmarks/gradient.py -->", "<!-- end -->"


class Row(NamedTuple):
    """One op kept in one way, under the method that makes it matter."""

    op: str
    kept: str
    bits: float
    policy: Policy
    method: str = "bias"


def affine(bits: int, rounding: str = "nearest") -> Affine:
    """Quantise as `tight` does, in other widths."""
    return Affine(bits, 64, rounding, torch.bfloat16)


def rows() -> Iterator[Row]:
    """List what is kept how, one op at a time."""
    yield Row("GELU", "S2A's sine", 4, Policy({"gelu": Sine()}))
    for bits in (4, 3, 2, 1):
        yield Row("GELU", "codebook", bits, Policy({"gelu": Codebook.of("gelu", bits)}))
    for what, op, widths, method in SINGLE:
        for bits in widths:
            policy = Policy({op: affine(bits)})
            yield Row(what, "groups of 64", bits + 0.5, policy, method)
    for what, op, *_ in SINGLE[:2]:
        policy = Policy({op: affine(4, "stochastic")})
        yield Row(what, "groups of 64, stochastic", 4.5, policy)
    for bits in (8, 6, 5, 4, 3):
        of_norm = affine(bits)
        policy = Policy({"layer_norm": of_norm, "attention": of_norm}, recompute=of_norm)
        yield Row("LayerNorm, attention again from it", "groups of 64", bits + 0.5, policy)
    yield Row("softmax", "S2A's rows", 4, Policy({"softmax": Affine(4, "row")}))


class Bench:
    """A tuned model, some batches, and the exact gradient of each."""

    def __init__(self, args: argparse.Namespace, data: Path, method: str) -> None:
        dataset = read(data)
        model = create(args.model, checkpoint=args.checkpoint, image_size=args.image_size)
        transform = Preprocessing.of(model).transform(train=False)
        torch.manual_seed(0)
        batches = loader(dataset.train, transform, args.batch_size, shuffle=True)
        self.batches = list(islice(batches, args.batches))
        torch.manual_seed(0)
        self.tuned = apply(model, METHODS[method](), num_classes=len(dataset.classes)).train()
        plain = [self.gradient(*batch) for batch in self.batches]
        self.exact, self.exact_mib = [g for g, _ in plain], plain[0][1] / 2**20

    def gradient(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Flatten the gradient of one batch, classifier left out; count the bytes kept for it."""
        storages, weights = {}, {p.untyped_storage().data_ptr() for p in self.tuned.parameters()}

        def keep(t: torch.Tensor) -> torch.Tensor:
            storage = t.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return t

        self.tuned.zero_grad()
        torch.manual_seed(0)
        with saved_tensors_hooks(keep, lambda t: t):
            loss = F.cross_entropy(self.tuned(images), labels)
        loss.backward()
        heads = {id(p) for p in self.tuned.backbone.get_classifier().parameters()}
        trained = [p for p in self.tuned.parameters() if p.requires_grad and id(p) not in heads]
        gradient = torch.cat([p.grad.flatten() for p in trained]).double()
        return gradient, sum(storages.values())

    def compare(self, policy: Policy) -> tuple[float, float, float]:
        """Give cosine, relative error and MiB kept under a policy."""
        compress(self.tuned, policy)
        torch.manual_seed(1)
        got = [self.gradient(*batch) for batch in self.batches]
        pairs = [(g, e) for (g, _), e in zip(got, self.exact, strict=True)]
        cosine = mean(F.cosine_similarity(g, e, dim=0).item() for g, e in pairs)
        error = mean(((g - e).norm() / e.norm()).item() for g, e in pairs)
        return cosine, error, got[0][1] / 2**20


def of_policies(args: argparse.Namespace) -> Iterator[str]:
    """Print the table of methods x policies x data sets."""
    yield "| method | policy | " + " | ".join(f"cosine, {d.name}" for d in args.data) + " |"
    yield "|---|---|" + "---|" * len(args.data)
    for method in METHOD_NAMES:
        benches = [Bench(args, data, method) for data in args.data]
        for policy in ("s2a", "tight"):
            cosines = [bench.compare(POLICIES[policy]())[0] for bench in benches]
            yield f"| {method} | {policy} | " + " | ".join(f"{c:.4f}" for c in cosines) + " |"


def of_ops(args: argparse.Namespace) -> Iterator[str]:
    """Print the table of ops x bits."""
    yield "| op | kept | bits per number | cosine | relative error | MiB kept | exact, MiB |"
    yield "|---|---|---|---|---|---|---|"
    benches: dict[str, Bench] = {}
    for row in rows():
        if row.method not in benches:
            benches[row.method] = Bench(args, args.data[0], row.method)
        bench = benches[row.method]
        cosine, error, kept = bench.compare(row.policy)
        yield (
            f"| {row.op} ({row.method}) | {row.kept} | {row.bits:g} | {cosine:.4f} | {error:.3f} |"
            f" {kept:.0f} | {bench.exact_mib:.0f} |"
        )


def of_blocks(args: argparse.Namespace) -> Iterator[str]:
    """Print the table of methods x how blocks' inputs are kept x what is kept within."""
    yield "| method | inputs of blocks | within | " + " | ".join(d.name for d in args.data) + " |"
    yield "|---|---|---|" + "---|" * len(args.data)
    for method in RECOMPUTED:
        benches = [Bench(args, data, method) for data in args.data]
        for bench in benches:
            bench.tuned.checkpointing = True
        for bits in (8, 7, 6):
            for within, name in (("exact", "blocks"), ("`tight`", "tight")):
                policy = replace(POLICIES[name](), block=affine(bits))
                cosines = [bench.compare(policy)[0] for bench in benches]
                kept = " | ".join(f"{c:.4f}" for c in cosines)
                yield f"| {method} | {bits} bits, groups of 64 | {within} | {kept} |"


def main() -> None:
    """Print both tables, and write them where they are shown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, help="by default the model's")
    parser.add_argument("--recomputed", action="store_true")
    parser.add_argument("--write", type=Path, help="a page that has the markers")
    args = parser.parse_args()
    lines = []
    for table in (of_blocks,) if args.recomputed else (of_policies, of_ops):
        for line in table(args):
            print(line, flush=True)
            lines.append(line)
        lines.append("")
    if args.write:
        before, _, rest = args.write.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        text = "\n".join((BEGIN, "", *lines, END))
        args.write.write_text(before + text + after)


if __name__ == "__main__":
    main()
