"""One image of any mode and size to RGB pixels, and a set of them as tensors.

Out: uint8 RGB, and float32 as networks take it. Transparency is laid on white, EXIF rotation is
applied where it can be read, and damaged metadata beside good pixels is passed over.
Images are resized to cover a square and cropped at its centre. Not covered: animation (the first
frame is taken), more than three colour channels, and, where Pillow gives the upper 8 bits alone,
16-bit greyscale with transparency, premultiplied colours, TIFF with a plane a colour, and a single
transparent colour of a 16-bit PNG.

Deep images (more than 8 bits a channel) are scaled from one range for a whole data set, which
`range_of` finds from the values of its training images: files of 16 bits hold 8, 10, 12 or 16 of
them, and floating-point numbers lie where their author wants them. One value far from all
others of its image (a marker, padding, `no data`) sets no range. A picture that goes far beyond
the range, or of which it leaves next to nothing, says so in `Image.info` under `DOUBT`.
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

U8Array = NDArray[np.uint8]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, from 0 to 1, by channel: what the published weights were trained with."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets an image of this EXIF orientation upright."""
Range = tuple[float, float]
Ranges = Mapping[str, Range]
"""The values that become black and white, by the first letter of a deep image's mode."""
DEEP_KINDS = {"I": "whole numbers", "F": "floating point", "R": "16-bit colour"}
TOPS = (255, 1023, 4095, 65535)
"""Largest values of 8, 10, 12 and 16 bits."""
_FEWEST_LEVELS = 16
"""An image of fewer different values is a mask or a drawing: none of them is a stray."""
DOUBT = "unfreeze: doubt"
"""Key of `Image.info`: what may have been lost when a deep image became one of 8 bits."""
_OPPOSITE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Big-endian, little-endian, and this machine's order, in which compressed TIFF is read."""
_LOW_BYTES = {
    f"{bands};16{order}": f"{bands};16{opposite}"
    for bands in ("RGB", "RGBX", "RGBA")
    for order, opposite in _OPPOSITE.items()
}
"""For the layout of a 16-bit file, the layout by which Pillow reads the lower 8 bits."""


def to_rgb(image: Image.Image, ranges: Ranges | None = None) -> Image.Image:
    """The image as 8-bit RGB, upright, on white where it was transparent.

    `ranges`: those of the data set; a deep image of a kind that has none is scaled by its own.
    """
    image, deep = deep_values(image)
    doubt = ""
    if deep is not None:
        image, doubt = _eight_bits(image, deep, ranges)
    elif image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "La":  # premultiplied: Pillow converts it to LA alone
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    rgb = image.convert("RGB")
    if doubt:
        rgb.info[DOUBT] = doubt
    return rgb


def deep_values(image: Image.Image) -> tuple[Image.Image, FloatArray | None]:
    """The image upright, and its values where they have more than 8 bits, (H, W) or (H, W, 3)."""
    twin = _twin_of_low_bytes(image)
    image = _upright(image)
    if image.mode[0] in "IF":
        return image, np.asarray(image, dtype=np.float64)
    if twin is None:
        return image, None
    high = np.asarray(image, dtype=np.float64)[..., :3]
    if high.max(initial=0) > TOPS[2] >> 8:
        return image, high * 257
    deep = np.asarray(image, dtype=np.float64) * 256 + np.asarray(_upright(twin))
    top = range_of("R", 0, deep.max())[1]
    if image.mode == "RGBA" and top < TOPS[-1]:  # as deep as the colours
        image.putalpha(Image.fromarray(np.rint(deep[..., 3] * (255 / top)).astype(np.uint8)))
    return image, deep[..., :3]


def _twin_of_low_bytes(image: Image.Image) -> Image.Image | None:
    """The same picture, of which the lower bytes will be read; None: it has 8 bits a channel."""
    low = _LOW_BYTES.get(_layout(image))
    if low is None:
        return None
    file = getattr(image, "fp")  # noqa: B009 - of an `ImageFile`, which is not loaded yet
    file.seek(0)
    twin: Any = Image.open(io.BytesIO(file.read()))
    twin.tile = [
        tile._replace(args=low if isinstance(tile.args, str) else (low, *tile.args[1:]))
        for tile in twin.tile
    ]
    return twin  # type: ignore[no-any-return]


def _layout(image: Image.Image) -> str:
    """How the pixels of an image that is not loaded yet lie in its file, in Pillow's words."""
    args = [tile[3] for tile in getattr(image, "tile", [])]
    return str(args[0] if isinstance(args[0], str) else args[0][0]) if args and args[0] else ""


def is_deep(image: Image.Image) -> bool:
    """Whether an image that is not loaded yet has more than 8 bits a channel."""
    return image.mode[0] in "IF" or _layout(image) in _LOW_BYTES


def range_of(kind: str, low: float, high: float) -> Range:
    """The range of a data set whose finite values lie between these.

    Whole numbers fill 8, 10, 12 or 16 bits. Floating-point ones lie in 0 to 1, -1 to 1, or are
    whole numbers; interpolation leads a little beyond. All others are taken as they are, and so
    are those that would fill less than a 16th of such a range (kelvins, reflectances).
    """
    slack = 0.02 if kind == "F" else 0.0
    if kind == "F" and -1 - slack <= low < -0.1 and high <= 1 + slack:
        return -1, 1
    if low < -0.05 * high:
        return low, max(high, low + 1)
    tops = (1, *TOPS) if kind == "F" else TOPS
    top = next((top for top in tops if high <= top * (1 + slack)), high)
    return (low, high) if kind == "F" and 0 < (high - low) * 16 < top else (0, top)


def without_strays(values: FloatArray) -> FloatArray:
    """The finite values, sorted, less the largest and the smallest where far from all others.

    Far: four times as far as the others lie from each other. A tail of many values stays, as of
    stars, and so do the values of a mask.
    """
    finite = np.sort(values[np.isfinite(values)])
    levels = finite[np.diff(finite, prepend=-np.inf) > 0]
    if len(levels) < _FEWEST_LEVELS:
        return finite
    far = 4 * (levels[-2] - levels[1])
    low = levels[int(levels[1] - levels[0] > far)]
    high = levels[-1 - int(levels[-1] - levels[-2] > far)]
    return finite[np.searchsorted(finite, low) : np.searchsorted(finite, high, "right")]


def _eight_bits(
    image: Image.Image, values: FloatArray, ranges: Ranges | None
) -> tuple[Image.Image, str]:
    """A deep image as one of 8 bits, and what may have been lost; not a number is black."""
    kind, usual = image.mode[0], without_strays(values)
    own = range_of(kind, usual.min(), usual.max()) if usual.size else (0.0, 1.0)
    low, high = (ranges or {}).get(kind, own)
    shown = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    grey = np.clip(np.rint((shown - low) * (255 / (high - low))), 0, 255).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    doubt = _doubt(usual, (low, high))
    if ranges is not None and kind not in ranges and usual.size:
        doubt = f"scaled by its own values, {low:g} to {high:g}, as no training image is deep"
    if values.ndim == 3 and high == TOPS[-1]:
        return image, doubt  # its upper bytes are what Pillow gives
    scaled = Image.fromarray(grey)
    if image.mode == "RGBA":
        scaled.putalpha(image.getchannel("A"))
    return scaled, doubt


def _doubt(values: FloatArray, known: Range) -> str:
    """What the range may have cost the middle 98% of an image's sorted values."""
    if not values.size:
        return "holds no finite value"
    low, high = known
    slack = 0.02 * (high - low)
    beyond = (values < low - slack) | (values > high + slack)
    if beyond.mean() > 0.01:
        return (
            f"holds values from {values.min():g} to {values.max():g}, the training images "
            f"{low:g} to {high:g}"
        )
    tail = len(values) // 100
    middle = values[tail : len(values) - tail]
    scaled = np.rint((middle.clip(low, high) - low) * (255 / (high - low)))
    left, levels = (int(np.count_nonzero(np.diff(of))) + 1 for of in (scaled, middle))
    levels = min(levels, 256)  # 12 bits in a range of 16 are 17 of them
    return f"{left} of {levels} levels are left" if left * 15 < levels else ""


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF says; as it is stored where that cannot be read."""
    image.load()
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - each format of Pillow raises its own
        return image
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = {key: image.info[key] for key in ("transparency",) if key in image.info}
    return turned


def digest_image(rgb: Image.Image) -> bytes:
    """SHA-256 of the size and pixels, before resizing: the same picture in any container."""
    hasher = hashlib.sha256(f"{rgb.width}x{rgb.height}".encode())
    hasher.update(rgb.tobytes())
    return hasher.digest()


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How a picture becomes what a network is fed with.

    Attributes:
        interpolation: `bilinear`, `bicubic` or `lanczos`.
        crop: the share of the central square, a side, that is kept.
        mean: of each channel, values from 0 to 1.
        std: standard deviation of each channel.
    """

    interpolation: str = "bilinear"
    crop: float = 1.0
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def fit_square(self, rgb: Image.Image, size: int) -> U8Array:
        """The picture's central square at `size` pixels a side, uint8, (3, size, size)."""
        method = Image.Resampling[self.interpolation.upper()]
        square = ImageOps.fit(rgb, (size, size), method=method, bleed=(1 - self.crop) / 2)
        return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) to float32."""
        mean, std = (_of_channels(v, pixels.device) * 255 for v in (self.mean, self.std))
        normalised: Tensor = (pixels.float() - mean) / std
        return normalised


def _of_channels(values: Sequence[float], device: torch.device) -> Tensor:
    """A number for each channel, (1, 3, 1, 1); filled in on a device, which waits for no copy."""
    if device.type == "cpu":
        return torch.tensor(values).view(1, 3, 1, 1)
    return torch.stack([torch.full((), v, device=device) for v in values]).view(1, 3, 1, 1)


USUAL = Preparation()


def unusual(preparation: Preparation) -> dict[str, object]:
    """What a key names of a preparation: nothing of the usual one, which earlier keys have."""
    return {} if preparation == USUAL else {"preparation": asdict(preparation)}
