"""Write scikit-learn's digits, 1,797 scans of 8 x 8 pixels, as PNG files in split folders.

    python scripts/write_digits.py runs/digits

They come with scikit-learn: nothing is downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def write_digits(folder: Path) -> None:
    """Write 1,197 training, 100 validation and 500 test images."""
    digits = load_digits()
    pixels = (digits.images * 255 / 16).astype("uint8")
    rest, test = train_test_split(
        range(len(pixels)), test_size=500, stratify=digits.target, random_state=0
    )
    train_, val = train_test_split(
        rest, test_size=100, stratify=digits.target[rest], random_state=0
    )
    for split, indices in (("train", train_), ("val", val), ("test", test)):
        for i in indices:
            path = folder / split / str(digits.target[i]) / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[i]).save(path)


def main() -> None:
    """Write them where the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_digits(parser.parse_args().folder)


if __name__ == "__main__":
    main()
