"""Fashion-MNIST as a folder of PNG files, from the four files that it is published as.

    python benchmarks/fashion_mnist.py --files /usr/share/datasets/fashion-mnist --out FOLDER

Xiao, Rasul & Vollgraf 2017 (arXiv 1708.07747), MIT licence. Debian's package
`dataset-fashion-mnist` puts the files there. The first `--train` and `--test` images of each class
are written.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NAMES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "boot"),
)
HEADERS = {"images-idx3": 16, "labels-idx1": 8}
"""Bytes before the values."""


def read(folder: Path, split: str, kind: str) -> NDArray[np.uint8]:
    """The values of one file, without its header."""
    with gzip.open(folder / f"{split}-{kind}-ubyte.gz") as file:
        return np.frombuffer(file.read(), np.uint8, offset=HEADERS[kind])


def main() -> None:
    """Write both splits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=1000, help="images a class")
    parser.add_argument("--test", type=int, default=200, help="images a class")
    args = parser.parse_args()
    for split, stem, count in (("train", "train", args.train), ("test", "t10k", args.test)):
        images = read(args.files, stem, "images-idx3").reshape(-1, 28, 28)
        labels = read(args.files, stem, "labels-idx1")
        for label, name in enumerate(NAMES):
            folder = args.out / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for row in np.flatnonzero(labels == label)[:count]:
                Image.fromarray(images[row]).save(folder / f"{row:05}.png")


if __name__ == "__main__":
    main()
