"""Compare `vit_micro_patch4_32` with its own random weights: linear probes on digits.

Logistic regression on the frozen features of scikit-learn's 1,797 handwritten digits (8 x 8,
enlarged to 32 x 32), over five random splits: half of the digits for testing; from the other half
either all or ten of each digit for training.
"""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import lowtide.zoo

SPLITS = 5


@torch.inference_mode()
def features(model: nn.Module, images: Tensor) -> Tensor:
    """Run the backbone up to its head: (N, 3, 32, 32) -> (N, 192)."""
    model.eval()
    return torch.cat([
        model.forward_head(model.forward_features(x), True) for x in images.split(256)
    ])


def probe(x: Tensor, y: Tensor, per_class: int | None, seed: int) -> float:
    """Fit on one split, return its test accuracy in percent."""
    x_fit, x_test, y_fit, y_test = train_test_split(
        x.numpy(), y.numpy(), test_size=0.5, stratify=y, random_state=seed
    )
    if per_class:
        x_fit, _, y_fit, _ = train_test_split(
            x_fit, y_fit, train_size=10 * per_class, stratify=y_fit, random_state=seed
        )
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    return 100 * classifier.fit(x_fit, y_fit).score(x_test, y_test)


def main() -> None:
    """Print one line per number of labels."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 8 - 1
    images = F.interpolate(images, size=32, mode="bicubic").clamp(-1, 1).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(digits.target)
    trained = features(lowtide.zoo.vit_micro_patch4_32(pretrained=True), images)
    untrained = []
    for seed in range(SPLITS):
        torch.manual_seed(seed)
        untrained.append(features(timm.create_model("vit_micro_patch4_32"), images))
    for name, per_class in {"10 of each digit": 10, "898 digits": None}.items():
        ours = [probe(trained, labels, per_class, seed) for seed in range(SPLITS)]
        theirs = [probe(x, labels, per_class, seed) for seed, x in enumerate(untrained)]
        print(
            f"{name}: pre-trained {sum(ours) / SPLITS:.1f} %, random {sum(theirs) / SPLITS:.1f} %"
        )


if __name__ == "__main__":
    main()
