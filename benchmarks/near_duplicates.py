"""How well the cosine of frozen features tells copies of a picture from other pictures.

`python benchmarks/near_duplicates.py DATA BACKBONE WEIGHTS SIZE [--images 1000]` prints, for the
cosine of raw and of centred features: by transform, the share of pictures whose transformed copy
lies above each threshold (hits), and the share of pictures whose nearest other picture does (false
alarms, unless the data holds near duplicates itself: `--show FILE` writes the nearest pairs).
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from pipeline.data.base import preparation_of
from pipeline.data.open import open_source
from pipeline.model.backbones import build_backbone
from pipeline.settings.layers import COMMAND_LINE, Layer, preset_layer, resolve
from pipeline.training.device import run_segments
from pipeline.weights.pretrained import read_weights

THRESHOLDS = (0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    """Encoding as JPEG of that quality."""

    def encode(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return encode


def halved(image: Image.Image) -> Image.Image:
    """Half as many pixels a side, and back."""
    return image.resize((image.width // 2, image.height // 2)).resize(image.size)


def cropped(image: Image.Image) -> Image.Image:
    """The central 90% a side."""
    x, y = round(image.width * 0.05), round(image.height * 0.05)
    return image.crop((x, y, image.width - x, image.height - y))


TRANSFORMS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 75": jpeg(75),
    "JPEG 40": jpeg(40),
    "half size": halved,
    "crop 90%": cropped,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "brighter 20%": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker 20%": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "turned 5 degrees": lambda image: image.rotate(5, Image.Resampling.BILINEAR),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "backbone", "weights", "size"):
        parser.add_argument(name)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--show", default="")
    args = parser.parse_args()
    values = {"data": args.data, "backbone": args.backbone, "weights": args.weights}
    options = Layer(source=COMMAND_LINE, values={**values, "image_size": args.size})
    settings = resolve([preset_layer("images"), options])
    source = open_source(args.data, Path("/tmp"))
    backbone = build_backbone(args.backbone, len(source.class_names), settings.image_size, 0)
    pretrained = read_weights(args.weights, args.backbone, settings.image_size).fitted(backbone)
    backbone.put({**backbone.model.state_dict(), **pretrained.tensors})
    backbone.model.eval()
    segments = backbone.segments[: backbone.frozen_segments(("head",))]
    rows = np.random.default_rng(0).permutation(len(source.pool.labels))[: args.images]
    pictures = [
        image for image in source.pool.read(rows.tolist()) if isinstance(image, Image.Image)
    ]
    prepared = preparation_of(settings)

    @torch.no_grad()
    def features(images: list[Image.Image]) -> np.ndarray:
        found = []
        for start in range(0, len(images), 64):
            batch = [
                prepared.fit_square(i, settings.image_size) for i in images[start : start + 64]
            ]
            pixels = prepared.normalise(torch.from_numpy(np.stack(batch)))
            out = run_segments(segments, pixels, torch.float32)
            found.append((out.mean((2, 3)) if out.ndim == 4 else out).numpy())
        return np.concatenate(found)

    plain = features(pictures)
    copies = {name: features([make(i) for i in pictures]) for name, make in TRANSFORMS.items()}
    print(
        f"{source.name}, {args.backbone}, {args.weights}, {args.size} px, {len(pictures)} pictures"
    )
    print(" " * 26 + "".join(f"{t:>7}" for t in THRESHOLDS))
    mean, size = plain.mean(0), plain.shape[1]
    values, vectors = np.linalg.eigh(np.cov((plain - mean).T))
    whiten = vectors / np.sqrt(values.clip(0) + values.mean())
    same = np.eye(size)
    for kind, centre, turn in (
        ("raw", 0.0, same),
        ("centred", mean, same),
        ("whitened", mean, whiten),
    ):

        def unit(values: np.ndarray, centre: object = centre, turn: object = turn) -> np.ndarray:
            moved = (values - centre) @ turn
            return moved / np.linalg.norm(moved, axis=1, keepdims=True)

        known = unit(plain)
        for name, values in copies.items():
            cosines = (known * unit(values)).sum(1)
            shares = "".join(f"{(cosines > t).mean():7.3f}" for t in THRESHOLDS)
            print(f"{kind:8}{name:18}{shares}")
        product = known @ known.T
        np.fill_diagonal(product, -1)
        nearest = product.max(1)
        print(
            f"{kind:8}{'others':18}" + "".join(f"{(nearest > t).mean():7.3f}" for t in THRESHOLDS)
        )
        if args.show and kind == "centred":
            order = [
                (a, b)
                for a, b in zip(
                    *np.unravel_index(np.argsort(-product, axis=None)[:120], product.shape),
                    strict=True,
                )
                if a < b
            ]
            sheet = Image.new("RGB", (10 * 104, 6 * 220), "white")
            for n, (a, b) in enumerate(order[:60]):
                x, y = n % 10 * 104, n // 10 * 220
                sheet.paste(pictures[a].resize((100, 100)), (x, y))
                sheet.paste(pictures[b].resize((100, 100)), (x, y + 102))
            sheet.save(args.show)
            print("shown:", " ".join(f"{product[a, b]:.3f}" for a, b in order[:60]))


if __name__ == "__main__":
    main()
