"""Compare the gradient under a policy with the exact one, on pre-trained weights and real images.

    python benchmarks/gradient.py --data VTAB_LIKE/dtd10 --checkpoint WEIGHTS [--model NAME]

Cosine and relative error over all trained parameters but the classifier's, averaged over batches.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F

from lowtide import METHODS, POLICIES, apply, compress, create
from lowtide.data import Preprocessing, loader, read

METHOD_NAMES = ("bias", "lora", "s2a", "ssf", "full")


def gradient(tuned, images, labels):
    """Flatten the gradient of one batch, classifier left out."""
    tuned.zero_grad()
    torch.manual_seed(0)
    F.cross_entropy(tuned(images), labels).backward()
    heads = {id(p) for p in tuned.backbone.get_classifier().parameters()}
    trained = [p for p in tuned.parameters() if p.requires_grad and id(p) not in heads]
    return torch.cat([p.grad.flatten() for p in trained])


def main() -> None:
    """Print one row per method and policy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=2)
    args = parser.parse_args()
    dataset = read(args.data)
    print("| method | policy | cosine | relative error |\n|---|---|---|---|")
    for name in METHOD_NAMES:
        model = create(args.model, checkpoint=args.checkpoint)
        transform = Preprocessing.of(model).transform(train=False)
        batches = list(loader(dataset.train, transform, 16, shuffle=True))[: args.batches]
        torch.manual_seed(0)
        tuned = apply(model, METHODS[name](), num_classes=len(dataset.classes)).train()
        exact = [gradient(tuned, *batch) for batch in batches]
        for policy in ("s2a", "tight"):
            compress(tuned, POLICIES[policy]())
            got = [gradient(tuned, *batch) for batch in batches]
            pairs = list(zip(got, exact, strict=True))
            cosine = mean(F.cosine_similarity(g, e, dim=0).item() for g, e in pairs)
            error = mean(((g - e).norm() / e.norm()).item() for g, e in pairs)
            print(f"| {name} | {policy} | {cosine:.4f} | {error:.3f} |", flush=True)


if __name__ == "__main__":
    main()
