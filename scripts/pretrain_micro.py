"""Pre-train `vit_micro_patch4_32` on CIFAR-100 and write its fp16 weights.

What makes a small ViT learn quickly from 24,000 images on a CPU: Muon for the matrices; half of
the tokens dropped for most of the run (twice the images per second, and a strong regulariser);
augmentation as a few tensor operations on a whole batch; bf16 autocast; a position table that
starts with the geometry in it. The run resumes from its last epoch when it was killed.

The data folder holds `cifar100_train.npz` and `cifar100_test.npz`: `webp` (the bytes of all
images, lossless WebP, end to end), `offsets` (N + 1), `labels` (N).
"""

from __future__ import annotations

import argparse
import io
import math
import os
import time
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from timm.layers import PatchDropout, build_sincos2d_pos_embed, set_fused_attn
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import lowtide.zoo  # noqa: F401  (registers the model)

NAME = "vit_micro_patch4_32"


def read(path: Path) -> tuple[Tensor, Tensor]:
    """Decode a whole split: images (N, 3, 32, 32) uint8 and labels (N,)."""
    with np.load(path, allow_pickle=False) as file:
        webp, offsets, labels = file["webp"].tobytes(), file["offsets"], file["labels"]
    images = [
        np.asarray(Image.open(io.BytesIO(webp[start:stop])).convert("RGB"))
        for start, stop in zip(offsets, offsets[1:], strict=False)
    ]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.from_numpy(labels).long()


def normalise(images: Tensor) -> Tensor:
    """Map bytes to [-1, 1]: mean and std of 0.5, as the model's configuration says."""
    return images.float() / 127.5 - 1


def augment(images: Tensor) -> Tensor:
    """Resize, turn, shift, flip and recolour each image by its own random amounts."""
    n = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(n).uniform_(low, high)

    zoom = uniform(0.6, 1.05)
    angle = uniform(-0.2, 0.2)
    flip = torch.randint(2, (n,)) * 2.0 - 1
    room = (1 - zoom).abs() + 0.1
    rows = [
        torch.stack([flip * zoom * angle.cos(), -zoom * angle.sin(), room * uniform(-1, 1)], 1),
        torch.stack([flip * zoom * angle.sin(), zoom * angle.cos(), room * uniform(-1, 1)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    colour, contrast, light = uniform(0.2, 1.4), uniform(0.7, 1.3), uniform(-0.2, 0.2)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * colour.view(-1, 1, 1, 1)
    return images * contrast.view(-1, 1, 1, 1) + light.view(-1, 1, 1, 1)


def cutmix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Paste one random box of the next image into each (https://arxiv.org/abs/1905.04899)."""
    side = images.shape[-1]
    length = round(side * math.sqrt(torch.rand(()).item()))
    top, left = torch.randint(side - length + 1, (2,)).tolist()
    box = (..., slice(top, top + length), slice(left, left + length))
    images = images.clone()
    images[box] = images.roll(1, 0)[box]
    share = (length / side) ** 2
    return images, targets * (1 - share) + targets.roll(1, 0) * share


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Score top-1 accuracy in percent, in fp32, without augmentation."""
    model.eval()
    batches = zip(images.split(250), labels.split(250), strict=True)
    hits = sum(int((model(normalise(x)).argmax(1) == y).sum()) for x, y in batches)
    return 100 * hits / len(labels)


def build() -> nn.Module:
    """Make the network, its position table the sines and cosines of its grid, still learnt."""
    model = timm.create_model(NAME)
    table = build_sincos2d_pos_embed(model.patch_embed.grid_size, dim=model.embed_dim)
    model.pos_embed.data.copy_(0.1 * table)  # scaled down so as not to drown the pixels
    return model


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    args: argparse.Namespace,
    epoch: int,
) -> float:
    """Train once through the images; the order and all draws depend on (seed, epoch) alone."""
    torch.manual_seed(1000 * args.seed + epoch)
    model.train()
    steps, classes = len(images) // args.batch_size, 100
    order = torch.randperm(len(images))
    total = 0.0
    for step in range(steps):
        done = (epoch + step / steps) / args.epochs
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(done / args.warmup, (1 - done) / (1 - args.warmup))
        index = order[step * args.batch_size : (step + 1) * args.batch_size]
        x = augment(normalise(images[index]))
        y = F.one_hot(labels[index], classes).float()
        if torch.rand(()) < args.cutmix:
            x, y = cutmix(x, y)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=args.smoothing)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
    return total / steps


def train(model: nn.Module, images: Tensor, labels: Tensor, args: argparse.Namespace) -> None:
    """Train for `args.epochs`, from the last finished epoch if there is a checkpoint."""
    optimizer = create_optimizer_v2(
        model,
        opt="muon",
        lr=args.lr,
        weight_decay=args.weight_decay,
        # Muon orthogonalises what maps features to features; the ends of the network use AdamW.
        fallback_list=["patch_embed.*", "pos_embed", "head.*"],
    )
    first = 0
    if args.checkpoint.exists():
        saved = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["epoch"] + 1
    run: nn.Module = torch.compile(model) if args.compile else model
    for epoch in range(first, args.epochs):
        start = time.time()
        sparse = epoch < args.epochs * args.sparse_share
        model.patch_drop = PatchDropout(0.5, num_prefix_tokens=0) if sparse else nn.Identity()
        loss = train_epoch(run, optimizer, images, labels, args, epoch)
        seconds = time.time() - start
        print(f"epoch {epoch + 1}/{args.epochs} loss {loss:.3f} {seconds:.0f} s", flush=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        partial = args.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, args.checkpoint)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the two npz files")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--checkpoint", type=Path, help="state to resume from (OUTPUT.ckpt)")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--sparse-share", type=float, default=0.92, help="run on half the tokens")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--warmup", type=float, default=0.04, help="part of the run")
    parser.add_argument("--cutmix", type=float, default=0.4, help="share of mixed batches")
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="faster; needs a C++ compiler")
    parser.add_argument("--holdout", type=int, default=0, help="score on so many training images")
    args = parser.parse_args()
    args.checkpoint = args.checkpoint or args.output.with_suffix(".ckpt")
    return args


def main() -> None:
    """Train, round to fp16, score what was rounded, write it."""
    args = parse()
    set_fused_attn(False)  # the fused CPU kernel's backward is 3 times slower at 64 tokens
    images, labels = read(args.data / "cifar100_train.npz")
    if args.holdout:  # every recipe is chosen on held-out training images, never on the test set
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        held, kept = order.split([args.holdout, len(images) - args.holdout])
        split, test = "held-out", (images[held], labels[held])
        images, labels = images[kept], labels[kept]
    else:
        split, test = "test", read(args.data / "cifar100_test.npz")
    torch.manual_seed(args.seed)
    model = build()
    train(model, images, labels, args)
    weights = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    save_file(weights, args.output, metadata={"format": "pt"})
    model.load_state_dict(weights)
    args.checkpoint.unlink()
    top1 = accuracy(model, *test)
    print(f"{split} accuracy {top1:.2f} % of {len(test[1])} images (fp16 weights)")


if __name__ == "__main__":
    main()
