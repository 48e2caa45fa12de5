"""Images that cannot be read are named all at once, or left out; damaged metadata is no harm."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.base import Unreadable, decode_image
from pipeline.data.images import digest_image
from pipeline.data.reading import read_images
from pipeline.data.sampling.draws import Draw
from pipeline.errors import DataError
from tests.conftest import class_image
from tests.helpers import fill, make_draw, opened, refused


def damaged(root: Path, count: int = 6, bad: int = 0) -> Path:
    """Two classes of so many images, of which the first ones of each cannot be read."""
    for path in fill(root, "cats", "dogs", count=count).rglob("*.png"):
        if int(path.stem) < bad:
            path.write_bytes(path.read_bytes()[:100])
    return root


def drawn(root: Path, draw: int = 0, *, skip: bool = False, train: int = 2, val: int = 1) -> Draw:
    own = {"draw": draw, "image_size": 8, "skip_unreadable": skip}
    return make_draw(opened(root), train_per_class=train, val_per_class=val, **own)


def test_all_that_cannot_be_read_is_named_on_one_line(tmp_path: Path) -> None:
    root = damaged(tmp_path / "set", count=6, bad=2)
    with pytest.raises(DataError, match=r"cannot read 4 of 12 images: ") as caught:
        drawn(root, train=4, val=2)
    message = str(caught.value)
    assert "\n" not in message
    for name in ("cats/0.png", "cats/1.png", "dogs/0.png", "dogs/1.png"):
        assert f"{root / name} (" in message
    assert message.endswith("or go on without: -P skip_unreadable=true")
    many = damaged(tmp_path / "many", count=16, bad=15)
    with pytest.raises(DataError, match=r"cannot read 30 of 32 images: .* and 10 more: replace"):
        drawn(many, train=8, val=8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "an HTML page"),
        (b"<html><body>", "an HTML page"),
        (b"something else", "not an image that Pillow knows"),
    ],
)
def test_what_stands_in_place_of_an_image_is_said(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for given in (content, tmp_path / "a.png"):
        found = decode_image(given, "a.png")
        assert isinstance(found, Unreadable)
        assert found.reason.startswith(reason)


def test_skipping_leaves_out_what_cannot_be_read_and_keeps_everything_else(
    tmp_path: Path,
) -> None:
    whole = drawn(damaged(tmp_path / "whole"), train=3, val=2)
    kept, again = (
        drawn(damaged(tmp_path / "broken", bad=1), train=3, val=2, skip=True) for _ in range(2)
    )
    lost = {digest_image(class_image(label, 0)) for label in (0, 1)}
    for part, before in ((kept.train, whole.train), (kept.val, whole.val)):
        pairs = [(d.tobytes(), int(n)) for d, n in zip(before.digests, before.labels, strict=True)]
        left = [(d.tobytes(), int(n)) for d, n in zip(part.digests, part.labels, strict=True)]
        assert left == [pair for pair in pairs if pair[0] not in lost]
        assert len(part.pixels) == len(part.labels)
    counts = [len(draw.train) + len(draw.val) for draw in (whole, kept)]
    assert len(kept.unreadable) == counts[0] - counts[1]
    assert all("broken" in line for line in kept.unreadable)
    assert again.fingerprint == kept.fingerprint != whole.fingerprint
    assert again.unreadable == kept.unreadable


def test_skipping_changes_no_other_draw(tmp_path: Path) -> None:
    whole, broken = damaged(tmp_path / "a" / "set", 16), damaged(tmp_path / "b" / "set", 16, bad=1)
    draws = [drawn(broken, n, skip=True, val=2) for n in range(4)]
    same = [drawn(whole, n, val=2).fingerprint == draws[n].fingerprint for n in range(4)]
    assert same == [not draw.unreadable for draw in draws]
    assert same.count(False) in (1, 2)
    seen = [row.tobytes() for draw in draws for row in (*draw.train.digests, *draw.val.digests)]
    assert len(seen) == len(set(seen)) == 30


def test_a_class_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    root = damaged(tmp_path / "set")
    for path in (root / "dogs").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no image of class dogs to train on can be read"):
        drawn(root, skip=True)


def deep(root: Path, **tops: int) -> Path:
    """Two classes of 16-bit grey in splits whose brightest pixels are so bright."""
    ramp = np.arange(64).reshape(8, 8) / 63
    for split, top in tops.items():
        for label, name in enumerate(("cats", "dogs")):
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                values = np.rint(np.roll(ramp, 3 * label + number) * top).astype(np.uint16)
                Image.fromarray(values).save(root / split / name / f"{number}.png")
    return root


@pytest.mark.parametrize(("top", "bits_top"), [(255, 255), (900, 1023), (4000, 4095)])
def test_the_depth_is_that_of_the_training_images_in_every_split(
    top: int, bits_top: int, tmp_path: Path
) -> None:
    source = opened(deep(tmp_path / "set", train=top, test=top // 3))
    assert source.pool.ranges == {"I": (0, bits_top)}
    assert f"deep images (whole numbers) are scaled from 0 to {bits_top}" in source.notes
    assert source.test is not None
    for split, brightest in ((source.pool, top), (source.test, top // 3)):
        image = next(split.read([0]))
        assert isinstance(image, Image.Image)
        assert np.asarray(image).max() == round(brightest * 255 / bits_top)
    assert drawn(tmp_path / "set").notes == []


BITS_12 = np.arange(4096).reshape(64, 64)


@pytest.mark.parametrize(
    ("values", "strays", "known"),
    [
        (BITS_12.astype(np.uint16), [65535], (0, 4095)),
        (BITS_12.astype(np.uint16) // 16, [4095], (0, 255)),
        (BITS_12.astype(np.uint16), [50000, 60000, 65535], (0, 65535)),
        (BITS_12.astype(np.int32) - 1024, [-32768], (-1024, 3071)),
        (BITS_12 / np.float32(4095), [-9999, 3.4e38], (0, 1)),
        (BITS_12 / np.float32(4095) * 30 + 280, [0, np.nan], (280, 310)),
        (BITS_12 / np.float32(4095) - 20, [-9999], (-20, -19)),
    ],
)
def test_a_value_far_from_all_others_sets_no_range(
    values: np.ndarray, strays: list[float], known: tuple[float, float], tmp_path: Path
) -> None:
    """A marker, padding, or `no data`; a tail of several values, as of stars, is none."""
    for label, name in enumerate(("cats", "dogs")):
        (tmp_path / name).mkdir()
        for number in range(3):
            image = np.roll(values, 9 * label + number).astype(values.dtype)
            for row, stray in enumerate(strays):
                image[row, : 5 if number else 0] = stray
            Image.fromarray(image).save(tmp_path / name / f"{number}.tiff")
    source = opened(tmp_path)
    assert [*source.pool.ranges.values()] == [pytest.approx(known)]
    told = drawn(tmp_path).notes
    assert bool(told) == (known == (0, 65535))
    assert all("levels are left" in note for note in told)


def test_images_without_a_finite_value_are_refused(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / name / "0.tiff")
    refused(tmp_path, "none of 2 training images looked at holds a finite value")
    Image.fromarray(np.eye(8, dtype=np.float32)).save(tmp_path / "cats" / "1.tiff")
    assert opened(tmp_path).pool.ranges == {"F": (0, 1)}


@pytest.mark.parametrize(
    ("tops", "words"),
    [
        ({"train": 4000, "val": 60000}, r"lost what they show: 2 \(.*cats/.\.png \(holds values"),
        ({"train": 60000, "val": 250}, r"lost what they show: 2 \(.*\(2 of 64 levels are left"),
    ],
)
def test_images_of_another_depth_are_told(
    tops: dict[str, int], words: str, tmp_path: Path
) -> None:
    (note,) = drawn(deep(tmp_path / "set", **tops)).notes
    assert re.search(words, note)


def test_a_picture_of_two_classes_is_told_with_their_names(tmp_path: Path) -> None:
    root = damaged(tmp_path / "set", count=3)
    for number in (0, 1):
        (root / "dogs" / f"{number}.png").unlink()
        (root / "dogs" / f"{number}.png").symlink_to(root / "cats" / f"{number}.png")
    notes = drawn(root).notes
    assert any("2 of these pictures stand under two" in n and "cats and dogs" in n for n in notes)


# --- damaged metadata ----------------------------------------------------------------------------


def tiff(*entries: tuple[int, int, int, bytes]) -> bytes:
    """A TIFF directory of (tag, type, count, 4-byte value)."""
    body = struct.pack("<H", len(entries))
    body += b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"II*\x00" + struct.pack("<I", 8) + body + struct.pack("<I", 0)


TURNED = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
NOT_REWRITABLE = (0xC4A5, 5, 1, struct.pack("<I", 9999))
PICTURE = class_image(0, 0).crop((0, 0, 32, 20))


def jpeg(exif: bytes) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "JPEG", quality=95)
    content = buffer.getvalue()
    payload = b"Exif\x00\x00" + exif
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + content[2:]


def png(kind: bytes, data: bytes) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    content = buffer.getvalue()
    chunk = struct.pack(">I", len(data)) + kind + data
    return content[:33] + chunk + struct.pack(">I", zlib.crc32(kind + data)) + content[33:]


def webp(exif: bytes) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "WEBP", lossless=True, exif=exif)
    return buffer.getvalue()


STORED_AS_JPEG = Image.open(io.BytesIO(jpeg(tiff()))).convert("RGB")
DAMAGED: dict[str, Callable[[], bytes]] = {
    "jpeg, header": lambda: jpeg(b"ZZ*\x00" + bytes(40)),
    "jpeg, text": lambda: jpeg(tiff((0x0112, 2, 2, b"6\x00\x00\x00"))),
    "png, short": lambda: png(b"eXIf", b"II*\x00\x08\x00"),
    "png, not hexadecimal": lambda: png(
        b"tEXt", b"Raw profile type exif\x00\nexif\n   20\n45786966zz\n"
    ),
    "webp, header": lambda: webp(b"Exif\x00\x00ZZ" + bytes(9)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_good_pixels_beside_damaged_metadata_are_an_image(name: str) -> None:
    image = decode_image(DAMAGED[name](), name)
    assert isinstance(image, Image.Image)
    assert image.size == PICTURE.size
    assert digest_image(image) == digest_image(STORED_AS_JPEG if "jpeg" in name else PICTURE)


def test_an_image_is_turned_where_only_its_other_metadata_is_damaged() -> None:
    """Pillow's own `exif_transpose` writes all of it anew, which fails."""
    image = decode_image(jpeg(tiff(TURNED, (0x0100, 2, 4, b"abc\x00"), NOT_REWRITABLE)), "x.jpg")
    assert isinstance(image, Image.Image)
    assert image.size == (20, 32)
    upright = STORED_AS_JPEG.transpose(Image.Transpose.ROTATE_270)
    assert digest_image(image) == digest_image(upright)


def test_images_with_damaged_metadata_are_read_into_a_set(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "a.png").write_bytes(DAMAGED["png, short"]())
        (tmp_path / "set" / name / "b.webp").write_bytes(DAMAGED["webp, header"]())
    source = opened(tmp_path / "set")
    images = read_images(source.pool, np.arange(4), 8)
    assert (len(images), images.unreadable) == (4, ())
