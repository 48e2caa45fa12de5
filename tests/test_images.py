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

from pipeline.data.image_set import ImageSet
from pipeline.data.images import DOUBT, USUAL, digest_image, is_deep, to_rgb
from pipeline.data.reading import read_images
from tests.conftest import class_image
from tests.helpers import split_of

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


@pytest.mark.parametrize(
    ("kind", "transparency"),
    [("PNG", 1), ("GIF", 1), ("PNG", b"\xff\x00")],
    ids=["png", "gif", "png with an alpha a colour"],
)
def test_a_palette_is_looked_up_and_a_transparent_entry_laid_on_white(
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


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (range(0, 65536, 257), range(256)),
        ([0, 16, 2048, 4095], [0, 1, 128, 255]),
        ([0, 16, 300], [0, 4, 75]),
        ([0, 257, 4096], [0, 1, 16]),
    ],
    ids=["16 bits", "12 bits", "10 bits, dark", "16 bits, dark"],
)
def test_16_bit_greyscale_is_scaled_by_its_depth(
    kind: str, values: Sequence[int], expected: Sequence[int]
) -> None:
    """Depths are 8, 10, 12 or 16 bits: a brightest pixel that is there by chance sets no scale."""
    image = reopened(Image.fromarray(np.array([values], dtype=np.uint16)), kind)
    assert image.mode == "I;16"
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == list(expected)


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


@pytest.mark.parametrize(("top", "opaque"), [(255, 255), (1023, 1023), (4095, 4095)])
def test_transparency_is_as_deep_as_the_colours(top: int, opaque: int) -> None:
    values = np.array([[[0, top // 5, top, opaque], [top, 0, top // 5, 0]]])
    image = Image.open(io.BytesIO(png_of_16_bits(values, 6)))
    assert np.asarray(to_rgb(image)).tolist() == [[[0, 51, 255], list(WHITE)]]


@pytest.mark.parametrize("top", [255, 1023, 4095, 65535])
@pytest.mark.parametrize("alpha", [False, True])
def test_8_to_16_bits_of_colour_are_the_same_picture(top: int, alpha: bool) -> None:
    """Pillow gives the upper 8 bits, which are 0 where a file holds 8."""
    pixels = [[0, top // 5, top, 65535], [top, 0, top // 5, 65535]]
    values = np.array([[pixel if alpha else pixel[:3] for pixel in pixels]])
    image = Image.open(io.BytesIO(png_of_16_bits(values, 6 if alpha else 2)))
    assert np.asarray(to_rgb(image)).tolist() == [[[0, 51, 255], [255, 0, 51]]]


def tiff_of_16_bits(values: np.ndarray, order: str, packed: bool, extra: int) -> bytes:
    """A TIFF of 16 bits a channel; `values`: (H, W, C); `extra`: what a fourth channel is."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    data = compress(data) if packed else data
    numbers = [(256, width), (257, height), (258, 0), (259, 8 if packed else 1), (262, 2)]
    numbers += [(273, 0), (277, channels), (278, height), (279, len(data)), (284, 1)]
    numbers += [(338, extra)] * (channels == 4)
    bits_at = 8 + 2 + 12 * len(numbers) + 4
    numbers[5] = (273, bits_at + 2 * channels)
    parts = [struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(numbers))]
    for tag, number in numbers:
        kind, count, number = (3, channels, bits_at) if tag == 258 else (4, 1, number)
        parts.append(struct.pack(f"{order}HHII", tag, kind, count, number))
    bits = struct.pack(f"{order}I{channels}H", 0, *[16] * channels)
    return b"".join([*parts, bits, data])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("channels", "extra"), [(3, 0), (4, 0), (4, 2)], ids=["RGB", "RGBX", "RGBA"]
)
@pytest.mark.parametrize("top", [255, 4095, 65535])
def test_compressed_16_bit_tiff_is_not_read_darker_than_its_plain_twin(
    order: str, channels: int, extra: int, top: int
) -> None:
    values = np.random.default_rng(0).integers(0, top + 1, (6, 5, channels))
    values[0, 0] = top
    plain, packed = (
        Image.open(io.BytesIO(tiff_of_16_bits(values, order, kind, extra)))
        for kind in (False, True)
    )
    assert is_deep(packed)
    assert is_deep(plain)
    pixels = np.asarray(to_rgb(packed))
    assert np.array_equal(pixels, np.asarray(to_rgb(plain)))
    assert pixels[0, 0].tolist() == [255] * 3
    if channels == 3 and top < 65535:
        assert np.array_equal(pixels, np.rint(values * (255 / top)))


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
        ([280.0, 310.0], [0, 255]),
        ([0.0, 0.001, 0.003], [0, 85, 255]),
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
        (range(9000), {"I": (0, 65535)}, ""),
        (range(4096), {"I": (0, 65535)}, "17 of 256 levels are left"),
        ([*range(4096), *range(60000, 60040)], {"I": (0, 65535)}, "17 of 256 levels are left"),
        ([*range(4096), *[65535] * 99], {"I": (0, 4095)}, ""),
        (range(0, 8000, 8), {"I": (0, 4095)}, "holds values from 0 to 7992, the training images"),
        (range(256), {"I": (0, 65535)}, "2 of 252 levels are left"),
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


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_exif_rotation_is_applied(orientation: int, turn: Image.Transpose | None) -> None:
    upright = class_image(0, 0, 4).crop((0, 0, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if turn is None else upright.transpose(turn)
    assert digest_image(to_rgb(reopened(stored, exif=exif.tobytes()))) == digest_image(upright)


def test_the_digest_is_of_pixels_not_of_the_container_or_mode() -> None:
    image, grey = class_image(1, 1), Image.new("RGB", (4, 4), GREY)
    for kind in ("PNG", "BMP", "TIFF"):
        assert digest_image(to_rgb(reopened(image, kind))) == digest_image(image)
    for mode in ("L", "RGBA"):
        assert digest_image(to_rgb(grey.convert(mode))) == digest_image(grey)


def test_the_digest_depends_on_the_shape() -> None:
    sizes = [(6, 2), (2, 6), (3, 4), (12, 1)]
    assert len({digest_image(Image.new("RGB", size)) for size in sizes}) == len(sizes)


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 90), (90, 1), (31, 33), (8, 8), (1000, 3), (700, 900)]
)
def test_any_size_becomes_a_square_of_bytes(size: tuple[int, int]) -> None:
    pixels = USUAL.fit_square(Image.new("RGB", size, (1, 2, 3)), 8)
    assert (pixels.shape, pixels.dtype, pixels.flags.c_contiguous) == ((3, 8, 8), np.uint8, True)
    assert [np.unique(channel).tolist() for channel in pixels] == [[1], [2], [3]]


@pytest.mark.parametrize("turned", [False, True], ids=["wide", "tall"])
def test_the_central_square_is_kept(turned: bool) -> None:
    wide = Image.new("RGB", (24, 8), RED)
    wide.paste(GREY, (8, 0, 16, 8))
    image = wide.transpose(Image.Transpose.ROTATE_90) if turned else wide
    assert np.unique(USUAL.fit_square(image, 8)).tolist() == [120]


def test_an_image_of_the_right_size_is_not_changed() -> None:
    image = class_image(2, 0, 8)
    assert np.array_equal(USUAL.fit_square(image, 8), np.asarray(image).transpose(2, 0, 1))


def image_set(images: list[Image.Image], labels: list[int]) -> ImageSet:
    split = split_of(labels, lambda rows: (images[row] for row in rows))
    return read_images(split, np.arange(len(images)), 8)


IMAGES = [class_image(label, 0) for label in range(3)]


def with_other_pixel(number: int, where: tuple[int, int]) -> list[Image.Image]:
    images = [image.copy() for image in IMAGES]
    red, green, blue = np.asarray(images[number])[where[1], where[0]].tolist()
    images[number].putpixel(where, (red ^ 1, green, blue))
    return images


@pytest.mark.parametrize(
    ("images", "labels", "same"),
    [
        (with_other_pixel(0, (0, 0)), [0, 1, 2], False),
        (with_other_pixel(2, (31, 31)), [0, 1, 2], False),
        (IMAGES, [0, 1, 1], False),
        ([IMAGES[1], IMAGES[0], IMAGES[2]], [1, 0, 2], False),
        (IMAGES[:2], [0, 1], False),
        ([reopened(image, "BMP").convert("RGB") for image in IMAGES], [0, 1, 2], True),
    ],
    ids=["first pixel", "last pixel", "label", "order", "one less", "another format"],
)
def test_a_fingerprint_changes_with_any_pixel_label_or_order(
    images: list[Image.Image], labels: list[int], same: bool
) -> None:
    fingerprint = image_set(IMAGES, [0, 1, 2]).fingerprint()
    assert (image_set(images, labels).fingerprint() == fingerprint) is same


def test_a_set_holds_its_images_in_order() -> None:
    images = image_set(IMAGES, [0, 1, 2])
    assert (len(images), images.labels.tolist()) == (3, [0, 1, 2])
    assert (images.pixels.dtype, images.labels.dtype) == (torch.uint8, torch.int64)
    for row, image in enumerate(IMAGES):
        digest = digest_image(image)
        assert np.array_equal(images.pixels[row].numpy(), USUAL.fit_square(image, 8))
        assert images.digests[row].tobytes() == digest
        assert images.keys[row].tobytes() == digest[:8]
