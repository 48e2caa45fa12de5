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

THRESHOLDS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975)
RATIOS = (0.4, 0.35, 0.3, 0.25, 0.2, 0.15)


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
    for kind, centre in (("raw", np.zeros(plain.shape[1])), ("centred", plain.mean(0))):
        known = unit(plain - centre)
        product = known @ known.T
        np.fill_diagonal(product, -1)
        nearest = product.max(1)
        usual = float(np.median(1 - np.sort(product)[:, -3]))
        print(f"\n{kind}: median of 1 - cosine of the third nearest picture {usual:.3f}")
        print(" " * 18 + "".join(f"{t:7g}" for t in (*THRESHOLDS, *RATIOS)))
        cosines = {name: (known * unit(values - centre)).sum(1) for name, values in copies.items()}
        for name, found in {**cosines, "others": nearest}.items():
            shares = [(found > limit).mean() for limit in THRESHOLDS]
            shares += [(1 - found < ratio * usual).mean() for ratio in RATIOS]
            print(f"{name:18}" + "".join(f"{share:7.3f}" for share in shares))
    if args.show:
        show(pictures, product, Path(args.show))


def unit(values: np.ndarray) -> np.ndarray:
    """Each row at length 1."""
    lengths: np.ndarray = np.linalg.norm(values, axis=1, keepdims=True)
    return values / lengths


def show(pictures: list[Image.Image], cosines: np.ndarray, path: Path) -> None:
    """The 60 nearest pairs, one above the other."""
    order = zip(
        *np.unravel_index(np.argsort(-cosines, axis=None)[:120], cosines.shape), strict=True
    )
    sheet = Image.new("RGB", (10 * 104, 6 * 220), "white")
    for n, (a, b) in enumerate((a, b) for a, b in order if a < b):
        x, y = n % 10 * 104, n // 10 * 220
        sheet.paste(pictures[a].resize((100, 100)), (x, y))
        sheet.paste(pictures[b].resize((100, 100)), (x, y + 102))
    sheet.save(path)


if __name__ == "__main__":
    main()
