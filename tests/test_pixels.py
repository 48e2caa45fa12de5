"""Many images: the same pixels wherever they are kept, in bounded memory, on any disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data import pixels as kept
from pipeline.data.image_set import ImageSet
from pipeline.data.pixels import ChosenPixels, DecodedPixels, MappedPixels
from pipeline.data.reading import read_images, read_parts
from pipeline.errors import DataError
from pipeline.system.disk.shelf import Shelf
from pipeline.system.progress import shown
from tests.helpers import opened

ROOT = Path(__file__).resolve().parent.parent
SIZE = 16
ENOUGH = 1 << 30

Kind = type[Tensor] | type[MappedPixels] | type[DecodedPixels] | type[ChosenPixels]


def same(one: ImageSet, other: ImageSet) -> None:
    """Everything but where the pixels are."""
    count = len(one)
    assert torch.equal(one.pixels[:], other.pixels[:])
    assert one.pixels.shape == other.pixels.shape == (count, 3, SIZE, SIZE)
    rows = np.array([count - 1, 0, 0])
    for which in (1, slice(1, 3), slice(0, 0), torch.from_numpy(rows)):
        assert torch.equal(one.pixels[which], other.pixels[which])
    assert torch.equal(one.batch(rows), other.batch(rows, torch.device("cpu")))
    assert one.fingerprint() == other.fingerprint()
    assert one.unreadable == other.unreadable
    assert one.names == other.names
    assert one.rows.tolist() == other.rows.tolist()


@pytest.mark.parametrize(
    ("damaged", "has_shelf", "kind"),
    [
        (False, True, MappedPixels),
        (True, True, ChosenPixels),
        (False, False, DecodedPixels),
        (True, False, DecodedPixels),
    ],
)
def test_images_are_the_same_in_memory_on_disk_and_decoded_anew(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    damaged: bool,
    has_shelf: bool,
    kind: Kind,
) -> None:
    if damaged:
        (image_folder / "berry" / "03.png").write_bytes(b"no image")
    split = opened(image_folder).pool
    rows = np.random.default_rng(0).permutation(len(split.labels))
    plain = read_images(split, rows, SIZE, skip_unreadable=True)
    assert isinstance(plain.pixels, Tensor)
    monkeypatch.setattr(kept, "MEMORY_BYTES", 0)
    monkeypatch.setattr(kept, "RESIDENT_BYTES", 1)
    shelf = Shelf(tmp_path / "cache", ENOUGH) if has_shelf else None
    images = read_images(split, rows, SIZE, skip_unreadable=True, shelf=shelf)
    assert isinstance(images.pixels, kind)
    same(plain, images)
    files = list((tmp_path / "cache").glob("pixels*")) if has_shelf else []
    assert [path.stat().st_size for path in files] == [len(rows) * 3 * SIZE**2] * has_shelf
    del images
    assert list(tmp_path.glob("cache/pixels*")) == []


def test_rows_of_several_splits_are_one_set(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = opened(image_folder).pool
    parts = [(split, np.array([30, 2])), (split.part(np.arange(20, 36)), np.array([5, 0, 9]))]
    apart = [read_images(part, rows, SIZE) for part, rows in parts]
    monkeypatch.setattr(kept, "MEMORY_BYTES", 0)
    for shelf in (Shelf(tmp_path / "cache", ENOUGH), None):
        images = read_parts(parts, SIZE, shelf=shelf)
        assert torch.equal(images.pixels[:], torch.cat([one.pixels[:] for one in apart]))
        assert images.labels.tolist() == [label for one in apart for label in one.labels.tolist()]


def test_a_parquet_file_is_read_in_pieces_in_its_order_and_given_in_any(
    write_parquet: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    labels = [number % 3 for number in range(30)]
    path = write_parquet(tmp_path / "parquet" / "train-0.parquet", labels)
    whole = opened(tmp_path / "parquet").pool
    digests, sizes = whole.stored.digests(), whole.stored.sizes()
    rows = np.random.default_rng(0).permutation(30)
    images = read_images(whole, rows, SIZE)
    pq.write_table(pq.read_table(path), path, row_group_size=7)
    monkeypatch.setattr("pipeline.data.stored.TOGETHER", 4)
    pieces = opened(tmp_path / "parquet").pool
    part = pieces.part(rows)
    places = np.arange(30)
    assert part.stored.place(part.stored.in_order(places)).tolist() == places.tolist()
    same(images, read_images(pieces, rows, SIZE))
    assert read_images(part, places, SIZE).fingerprint() == images.fingerprint()
    assert list(pieces.stored.digests()) == list(digests)
    assert pieces.stored.sizes().tolist() == sizes.tolist()
    assert pieces.stored.sample() == whole.stored.sample()


def test_without_room_or_a_folder_images_are_decoded_when_needed(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    split, rows = opened(image_folder).pool, np.arange(36)
    monkeypatch.setattr(kept, "MEMORY_BYTES", 0)
    with shown():
        images = read_images(split, rows, SIZE, shelf=Shelf(tmp_path / "cache", 1000))
        assert isinstance(images.pixels, DecodedPixels)
        (tmp_path / "file").touch()
        blocked = Shelf(tmp_path / "file" / "cache", ENOUGH)
        assert isinstance(read_images(split, rows, SIZE, shelf=blocked).pixels, DecodedPixels)
    small, closed = capsys.readouterr().out.splitlines()
    assert "would need 27.6 kB, the limit is 1 kB (cache_limit)" in small
    assert "decoding them when needed" in small
    assert "cannot be kept on disk (Not a directory)" in closed
    (image_folder / "apple" / "00.png").unlink()
    with pytest.raises(DataError, match=r"apple/00\.png"):
        images.batch(np.array([0]))


IN_BOUNDS = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from pipeline.data import pixels
from pipeline.data.reading import read_images
from pipeline.model.backbones import build_backbone
from pipeline.runs.scoring import predict
from pipeline.system.disk.shelf import Shelf
from pipeline.training.norm.choice import choose_norm_stats
from pipeline.training.prefix.cache import PrefixCache
from tests.helpers import CPU, split_of

COUNT, SIZE, FURTHER = 1500, 224, 190 << 20
base = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
shades = [np.uint8(n % 256) for n in range(COUNT)]
split = split_of([n % 3 for n in range(COUNT)], lambda rows: (base + shades[n] for n in rows))
backbone = build_backbone("tests.networks:Net", 3, SIZE, 0)
few, all_rows = np.arange(16), np.arange(COUNT)
shelf = Shelf(Path(sys.argv[1]), 1 << 30)

def everything(rows):
    images = read_images(split, rows, SIZE, shelf=shelf)
    cache = PrefixCache.on(shelf)
    choose_norm_stats(backbone, images, torch.float32, CPU)
    logits = predict(backbone, images, torch.float32, CPU, cache=cache, prefix=1)
    assert len(logits) == len(rows) and not cache.notes, cache.notes

everything(few)  # libraries are loaded
lines = Path("/proc/self/status").read_text().splitlines()
now = int(next(l for l in lines if l.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (now + FURTHER, resource.RLIM_INFINITY))
pixels.MEMORY_BYTES = 8 << 20
everything(all_rows)
pixels.MEMORY_BYTES = 1 << 30
try:
    read_images(split, all_rows, SIZE)
except MemoryError:
    sys.exit(0)
sys.exit("225 MB are within the bound: nothing was shown")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded by Linux")
def test_reading_probing_and_scoring_take_memory_for_a_piece_not_for_all(tmp_path: Path) -> None:
    """1,500 images of 150 kB, of 600 kB as floating point, and 100 kB of outputs, in 200 MB."""
    command = [sys.executable, "-c", IN_BOUNDS, str(tmp_path / "cache")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


ON_A_FULL_DISK = """
import subprocess, sys
from pathlib import Path
import numpy as np, torch
from pipeline.data import pixels
from pipeline.data.pixels import DecodedPixels
from pipeline.data.reading import read_images
from pipeline.system.progress import shown
from pipeline.system.disk.shelf import Shelf
from pipeline.training.prefix.features import LiveFeatures, StoredFeatures
from pipeline.training.norm.choice import choose_norm_stats
from pipeline.training.prefix.cache import PrefixCache
from pipeline.model.backbones import build_backbone
from tests.helpers import CPU, make_images, split_of

disk, COUNT, SIZE = Path(sys.argv[1]), 32, 64
filler, shelf = disk / "filler", Shelf(disk / "prefix", 1 << 30)
images = make_images(COUNT, SIZE)
backbone = build_backbone("tests.networks:Net", 3, SIZE, 0)

def fill():
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError as err:
            assert err.strerror == "No space left on device"

def read(rows):
    for n in rows:
        if n == 20:
            fill()
        yield images.pixels[n].permute(1, 2, 0).numpy()

def left():
    ours = (*disk.rglob("*.tmp"), *disk.rglob("*.about"), *disk.rglob("*.part"))
    return [path.name for path in ours] + [path.name for path in disk.rglob("*.bin")]

def features(pixels):
    cache = PrefixCache.on(shelf)
    given = type(images)(pixels=pixels, labels=images.labels, digests=images.digests)
    found = cache.features(
        backbone, 1, given, augment="none", views=1, dtype=torch.float32, device=CPU
    )
    cache.tell_notes(say)
    return found

class Filling:
    shape = images.pixels.shape
    def __getitem__(self, which):
        fill()
        return images.pixels[which]

with shown() as say:
    pixels.MEMORY_BYTES = 0
    assert isinstance(features(images.pixels), StoredFeatures)
    for path in (disk / "prefix").iterdir():
        path.unlink()
    split = split_of(images.labels.tolist(), read)
    found = read_images(split, np.arange(COUNT), SIZE, shelf=shelf)
    assert isinstance(found.pixels, DecodedPixels)  # the disk was filled by others on the way
    assert torch.equal(found.pixels[:20], images.pixels[:20])
    assert left() == []
    assert isinstance(features(images.pixels), LiveFeatures)  # and is full now
    filler.unlink()
    import pipeline.training.prefix.cache as prefix_cache
    prefix_cache.PIXELS_PER_BATCH = 64 * 64  # an image at a time
    assert isinstance(features(Filling()), LiveFeatures)  # full after the first image
    choose_norm_stats(backbone, images, torch.float32, CPU, disk / "norm_stats")
    assert left() == [], left()
"""


@pytest.mark.slow
def test_a_full_disk_costs_the_cache_and_nothing_else(tmp_path: Path) -> None:
    """A real disk of 1 MB, which others fill before or while each part of the cache is written."""
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
    script = [sys.executable, "-c", ON_A_FULL_DISK, str(disk)]
    command = ["unshare", "--mount", "sh", "-c", mount, str(disk), *script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "mount" in result.stderr and "permi" in result.stderr.lower():
        pytest.skip("no disk may be mounted here")
    assert result.returncode == 0, result.stderr[-3000:]
    notes = [line for line in result.stdout.splitlines() if line.startswith("note: ")]
    assert [line.count("No space left on device") for line in notes] == [1, 0, 1, 1, 1]
    assert "decoding them when needed" in notes[0]
    assert "the disk has room for" in notes[1]
    assert "computing without it" in notes[2]
    assert all("norm_stats" in line for line in notes[3:])
