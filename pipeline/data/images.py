"""One image of any mode and size to RGB pixels, and a set of them as tensors.

Out: uint8 RGB. Transparency is laid on white, 16-bit greyscale is scaled (Pillow's own conversion
would clip it), EXIF rotation is applied. Images are resized to cover a square and cropped at its
centre. Not covered: animation (the first frame is taken) and more than three colour channels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

U8Array = NDArray[np.uint8]
IntArray = NDArray[np.int64]


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB, upright, on white where it was transparent."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        top = values.max(initial=0.0)
        if image.mode.startswith("I;16"):
            scale = 1 / 257
        else:  # the depth of I and F is not recorded
            scale = 255.0 if top <= 1.0 and image.mode == "F" else 1.0 if top <= 255 else 1 / 257
        grey = np.clip(np.rint(values * scale), 0, 255)
        key = image.info.get("transparency")
        if isinstance(key, int):
            grey[values == key] = 255
        image = Image.fromarray(grey.astype(np.uint8))
    if image.mode == "La":  # premultiplied: Pillow converts it to LA alone
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


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
    """

    pixels: Tensor
    labels: Tensor
    digests: U8Array

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
        return ImageSet(self.pixels.to(device), self.labels.to(device), self.digests)
