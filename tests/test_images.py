"""Any image becomes upright RGB on white; digests and fingerprints follow the pixels."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from zlib import compress, crc32

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.base import Split
from pipeline.data.images import DOUBT, ImageSet, digest_image, fit_square, to_rgb
from pipeline.data.reading import read_images
from tests.conftest import class_image

WHITE, BLACK, RED, GREY = (255, 255, 255), (0, 0, 0), (255, 0, 0), (120, 120, 120)


def reopened(image: Image.Image, kind: str = "PNG", **options: object) -> Image.Image:
    """The image as a file of this kind gives it back."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def colour(image: Image.Image) -> tuple[int, ...]:
    return tuple(np.asarray(to_rgb(image))[0, 0].tolist())


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, WHITE),
        ("L", 120, GREY),
        ("LA", (120, 255), GREY),
        ("LA", (120, 0), WHITE),
        ("PA", (0, 255), BLACK),
        ("PA", (0, 0), WHITE),
        ("RGB", RED, RED),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 127), (255, 128, 128)),
        ("RGBa", (0, 0, 0, 0), WHITE),
        ("CMYK", (0, 255, 255, 0), RED),
        ("YCbCr", (76, 85, 255), (254, 0, 0)),
        ("HSV", (0, 255, 255), RED),
        ("I;16", 120 * 257, GREY),
        ("I;16B", 120 * 257, GREY),
        ("I", 120, GREY),
        ("I", 120 * 257, GREY),
        ("F", 120.0, GREY),
        ("F", 120 / 255, GREY),
    ],
)
def test_every_mode_becomes_rgb(
    mode: str, value: int | float | tuple[int, ...], expected: tuple[int, int, int]
) -> None:
    image = Image.new(mode, (3, 2), value)
    rgb = to_rgb(image)
    assert (rgb.mode, rgb.size) == ("RGB", (3, 2))
    assert np.asarray(rgb).reshape(-1, 3).tolist() == [list(expected)] * 6


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_is_looked_up(kind: str) -> None:
    image = Image.new("P", (3, 2), 1)
    image.putpalette([*BLACK, *RED])
    opened = reopened(image, kind)
    assert opened.mode == "P"
    assert colour(opened) == RED


@pytest.mark.parametrize(
    ("kind", "transparency"),
    [("PNG", 1), ("GIF", 1), ("PNG", b"\xff\x00")],
    ids=["png", "gif", "png with an alpha a colour"],
)
def test_a_transparent_palette_entry_is_laid_on_white(
    kind: str, transparency: int | bytes
) -> None:
    image = Image.new("P", (2, 1), 1)
    image.putpalette([*BLACK, *RED])
    image.putpixel((1, 0), 0)
    opened = reopened(image, kind, transparency=transparency)
    assert opened.mode == "P"
    assert np.asarray(to_rgb(opened)).tolist() == [[list(WHITE), list(BLACK)]]


@pytest.mark.parametrize(
    ("mode", "key", "other"), [("RGB", RED, GREY), ("L", 7, 120), ("1", 0, 1), ("I;16", 7, 30840)]
)
def test_a_transparent_colour_is_laid_on_white(
    mode: str, key: int | tuple[int, ...], other: int | tuple[int, ...]
) -> None:
    image = Image.new(mode, (2, 1), key)
    image.putpixel((1, 0), other)
    opened = reopened(image, transparency=key)
    assert opened.mode == mode
    left, right = np.asarray(to_rgb(opened))[0].tolist()
    assert left == list(WHITE)
    assert right == list(WHITE if mode == "1" else GREY)


def test_16_bit_greyscale_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 120 * 257, 65535]], dtype=np.uint16)
    opened = reopened(Image.fromarray(values))
    assert opened.mode == "I;16"
    assert np.asarray(to_rgb(opened))[0, :, 0].tolist() == [0, 1, 120, 255]


def grey(values: list[int], kind: str = "PNG") -> list[int]:
    """What becomes of these values in a 16-bit file."""
    image = reopened(Image.fromarray(np.array([values], dtype=np.uint16)), kind)
    assert image.mode == "I;16"
    return np.asarray(to_rgb(image))[0, :, 0].tolist()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_12_bit_picture_in_a_16_bit_file_is_not_black(kind: str) -> None:
    """By 257, as 16 bits are scaled, its brightest pixel would be 16 of 255."""
    assert grey([0, 16, 2048, 4095], kind) == [0, 1, 128, 255]


def test_a_dark_picture_stays_dark_whatever_its_brightest_pixel_is() -> None:
    """Depths are 8, 10, 12 or 16 bits: a brightest pixel that is there by chance sets no scale."""
    assert grey([0, 16, 300]) == [0, 4, 75]
    assert grey([0, 257, 4096]) == [0, 1, 16]


def test_16_bits_are_exact_over_their_range() -> None:
    values = list(range(0, 65536, 257))
    assert grey(values) == list(range(256))


@pytest.mark.parametrize("top", [255, 1023, 4095, 65535])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_8_to_16_bits_of_grey_are_the_same_picture(top: int, dtype: type) -> None:
    values = np.array([[0, top // 5, top]], dtype=dtype)
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 51, 255]


def png_of_16_bits(values: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow reads and cannot write; `values`: (H, W, C)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("top", [255, 1023, 4095, 65535])
@pytest.mark.parametrize("alpha", [False, True])
def test_8_to_16_bits_of_colour_are_the_same_picture(top: int, alpha: bool) -> None:
    """Pillow gives the upper 8 bits, which are 0 where a file holds 8."""
    pixels = [[0, top // 5, top, 65535], [top, 0, top // 5, 65535]]
    values = np.array([[pixel if alpha else pixel[:3] for pixel in pixels]])
    image = Image.open(io.BytesIO(png_of_16_bits(values, 6 if alpha else 2)))
    assert np.asarray(to_rgb(image)).tolist() == [[[0, 51, 255], [255, 0, 51]]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-5.0, 300.0], [0, 75]),
        ([-5.0, 30000.0], [0, 117]),
        ([-5.0, 0.0, 5.0], [0, 128, 255]),
        ([0.0, 1.0], [0, 255]),
        ([0.0, 0.5, 1.002], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 51.0, 255.0], [0, 51, 255]),
        ([0.0, 65535.0], [0, 255]),
        ([0.0, 1e5, 5e5], [0, 51, 255]),
        ([float("nan"), 1.0], [0, 255]),
        ([float("-inf"), 0.5, 1.0, float("inf")], [0, 128, 255, 255]),
        ([float("nan")], [0]),
    ],
)
def test_floating_point_greyscale_is_brought_into_range(
    values: list[float], expected: list[int]
) -> None:
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert image.mode == "F"
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "ranges", "doubt"),
    [
        (range(4000), {"I": (0, 65535)}, ""),
        (range(0, 8000, 8), {"I": (0, 4095)}, "holds values from 0 to 7992, the training images"),
        (range(256), {"I": (0, 65535)}, "2 of 256 levels are left"),
        (range(256), {}, "scaled by its own values, 0 to 255"),
        ([0] * 9, {"I": (0, 65535)}, ""),
    ],
)
def test_a_picture_that_the_data_sets_range_does_not_show_is_doubted(
    values: Sequence[int], ranges: dict[str, tuple[float, float]], doubt: str
) -> None:
    image = to_rgb(Image.fromarray(np.array([values], dtype=np.uint16)), ranges)
    assert image.info.get(DOUBT, "").startswith(doubt)
    assert (DOUBT in image.info) == bool(doubt)


STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED_AS)
def test_exif_rotation_is_applied(orientation: int) -> None:
    upright = class_image(0, 0, 4).crop((0, 0, 4, 3))
    how = STORED_AS[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if how is None else upright.transpose(how)
    seen = to_rgb(reopened(stored, exif=exif.tobytes()))
    assert digest_image(seen) == digest_image(upright)


def test_damaged_exif_is_passed_over() -> None:
    image = reopened(Image.new("RGB", (8, 4), RED), "JPEG", exif=b"Exif\0\0garbage!!")
    assert to_rgb(image).size == (8, 4)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_the_digest_is_of_pixels_not_of_the_container(kind: str) -> None:
    image = class_image(1, 1)
    assert digest_image(to_rgb(reopened(image, kind))) == digest_image(image)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_the_digest_does_not_depend_on_how_the_colours_are_stored(mode: str) -> None:
    grey = Image.new("RGB", (4, 4), GREY)
    assert digest_image(to_rgb(grey.convert(mode))) == digest_image(grey)


def test_the_digest_depends_on_the_shape() -> None:
    sizes = [(6, 2), (2, 6), (3, 4), (12, 1)]
    assert len({digest_image(Image.new("RGB", size)) for size in sizes}) == len(sizes)


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 90), (90, 1), (31, 33), (8, 8), (1000, 3), (700, 900)]
)
def test_any_size_becomes_a_square_of_bytes(size: tuple[int, int]) -> None:
    pixels = fit_square(Image.new("RGB", size, (1, 2, 3)), 8)
    assert (pixels.shape, pixels.dtype, pixels.flags.c_contiguous) == ((3, 8, 8), np.uint8, True)
    assert [np.unique(channel).tolist() for channel in pixels] == [[1], [2], [3]]


@pytest.mark.parametrize("turned", [False, True], ids=["wide", "tall"])
def test_the_central_square_is_kept(turned: bool) -> None:
    wide = Image.new("RGB", (24, 8), RED)
    wide.paste(GREY, (8, 0, 16, 8))
    image = wide.transpose(Image.Transpose.ROTATE_90) if turned else wide
    assert np.unique(fit_square(image, 8)).tolist() == [120]


def test_an_image_of_the_right_size_is_not_changed() -> None:
    image = class_image(2, 0, 8)
    assert np.array_equal(fit_square(image, 8), np.asarray(image).transpose(2, 0, 1))


def image_set(images: list[Image.Image], labels: list[int]) -> ImageSet:
    split = Split(np.array(labels, dtype=np.int64), lambda rows: (images[row] for row in rows))
    return read_images(split, np.arange(len(images)), 8)


IMAGES = [class_image(label, 0) for label in range(3)]


def with_other_pixel(number: int, where: tuple[int, int]) -> list[Image.Image]:
    images = [image.copy() for image in IMAGES]
    red, green, blue = np.asarray(images[number])[where[1], where[0]].tolist()
    images[number].putpixel(where, (red ^ 1, green, blue))
    return images


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (with_other_pixel(0, (0, 0)), [0, 1, 2]),
        (with_other_pixel(2, (31, 31)), [0, 1, 2]),
        (IMAGES, [0, 1, 1]),
        ([IMAGES[1], IMAGES[0], IMAGES[2]], [1, 0, 2]),
        (IMAGES[:2], [0, 1]),
    ],
    ids=["first pixel", "last pixel", "label", "order", "one less"],
)
def test_a_fingerprint_changes_with_any_pixel_label_or_order(
    images: list[Image.Image], labels: list[int]
) -> None:
    assert image_set(images, labels).fingerprint() != image_set(IMAGES, [0, 1, 2]).fingerprint()


def test_equal_sets_have_equal_fingerprints() -> None:
    again = [reopened(image, "BMP") for image in IMAGES]
    fingerprint = image_set(again, [0, 1, 2]).fingerprint()
    assert fingerprint == image_set(IMAGES, [0, 1, 2]).fingerprint()
    assert len(fingerprint) == 64


def test_a_set_holds_its_images_in_order() -> None:
    images = image_set(IMAGES, [0, 1, 2])
    assert len(images) == 3
    assert images.pixels.dtype == torch.uint8
    assert images.pixels.shape == (3, 3, 8, 8)
    assert images.labels.dtype == torch.int64
    assert images.labels.tolist() == [0, 1, 2]
    for row, image in enumerate(IMAGES):
        assert np.array_equal(images.pixels[row].numpy(), fit_square(image, 8))
        assert images.digests[row].tobytes() == digest_image(image)


def test_keys_are_the_first_eight_bytes_of_the_digests() -> None:
    images = image_set(IMAGES, [0, 1, 2])
    assert images.keys.dtype == np.uint64
    assert [key.tobytes() for key in images.keys] == [digest_image(i)[:8] for i in IMAGES]


def test_moving_a_set_keeps_what_it_is() -> None:
    images = image_set(IMAGES, [0, 1, 2])
    moved = images.to(torch.device("cpu"))
    assert moved.fingerprint() == images.fingerprint()
    assert torch.equal(moved.pixels, images.pixels)
