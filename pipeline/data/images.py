"""One image of any mode and size to RGB pixels, and a set of them as tensors.

Out: uint8 RGB. Transparency is laid on white, EXIF rotation is applied where it can be read
(damaged metadata beside good pixels is no reason to refuse an image). Images are resized to cover
a square and cropped at its centre. Not covered: animation (the first frame is taken), more than
three colour channels, and 12-bit colour in 16-bit files (Pillow gives the upper 8 of the 16 bits).

Deep greyscale is scaled (Pillow's own conversion would clip it): 16 bits by 257, which is exact.
Where no value is above 4095 the picture is one of 12 bits, as cameras and X-ray devices store them
in 16-bit files, and is scaled by its own depth: by 257 it would be all but black. A 16-bit picture
that never leaves the lowest sixteenth of its range looks the same and is brightened, too;
`grey_depth` says which depth was taken, so that a mixture can be told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

U8Array = NDArray[np.uint8]
IntArray = NDArray[np.int64]


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
TOP_12_BIT = 4095
GREY_DEPTH = "grey_depth"
"""Key of `Image.info`: bits that a deep greyscale image was taken to have, 12 or 16."""


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB, upright, on white where it was transparent."""
    image = _upright(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    depth = None
    if image.mode.startswith("I") or image.mode == "F":
        image, bits = _grey_8_bit(image)
        depth = bits if bits > 8 else None
    if image.mode == "La":  # premultiplied: Pillow converts it to LA alone
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    rgb = image.convert("RGB")
    if depth is not None:
        rgb.info[GREY_DEPTH] = depth
    return rgb


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
    kept = image.info.get("transparency")
    turned.info = {} if kept is None else {"transparency": kept}  # turned once and for all
    return turned


def _grey_8_bit(image: Image.Image) -> tuple[Image.Image, int]:
    """Deep greyscale as 8 bits, and how many bits it was taken to have (see the header).

    The depth of modes I and F is not recorded: up to 255 they are 8-bit values, F up to 1 a share.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    top = values.max(initial=0.0)
    bits = 16 if top > TOP_12_BIT else 12
    scale = 1 / 257 if bits == 16 else 255 / TOP_12_BIT
    if not image.mode.startswith("I;16") and top <= 255:
        bits, scale = 8, 255.0 if image.mode == "F" and top <= 1 else 1.0
    grey = np.clip(np.rint(values * scale), 0, 255)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return Image.fromarray(grey.astype(np.uint8)), bits


def digest_image(rgb: Image.Image) -> bytes:
    """SHA-256 of the size and pixels, before resizing: the same picture in any container."""
    hasher = hashlib.sha256(f"{rgb.width}x{rgb.height}".encode())
    hasher.update(rgb.tobytes())
    return hasher.digest()


def fit_square(rgb: Image.Image, size: int) -> U8Array:
    """The image's central square at `size` pixels a side, as uint8 of shape (3, size, size)."""
    square = ImageOps.fit(rgb, (size, size), method=Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


@dataclass(frozen=True)
class ImageSet:
    """N labelled images, ready to be batched.

    Attributes:
        pixels: uint8, (N, 3, S, S).
        labels: int64, (N,).
        digests: the SHA-256 of each original image, uint8, (N, 32).
        unreadable: images that were asked for and left out, and why, a line each.
        rows: where each stands in the split that it was read from, (N,).
        grey_depths: how many images were deep greyscale of so many bits.
    """

    pixels: Tensor
    labels: Tensor
    digests: U8Array
    unreadable: tuple[str, ...] = ()
    grey_depths: Mapping[int, int] = field(default_factory=dict)
    rows: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def keys(self) -> NDArray[np.uint64]:
        """64 bits of each digest: what seeds an image's augmentation, (N,)."""
        return np.ascontiguousarray(self.digests[:, :8]).view(np.uint64)[:, 0]

    def fingerprint(self) -> str:
        """SHA-256 over every image and label, in order, as 64 hex digits."""
        hasher = hashlib.sha256(self.digests.tobytes())
        hasher.update(self.labels.numpy().tobytes())
        return hasher.hexdigest()

    def to(self, device: torch.device) -> ImageSet:
        """The same set with its tensors on `device`."""
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))
