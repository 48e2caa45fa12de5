"""Views are a pure function of image and number; epochs cycle through the stored ones."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from pipeline.data.augment import (
    U64Array,
    distinct_views,
    hash_uniform,
    pick_views,
    render_views,
)
from pipeline.data.images import MEAN, STD, USUAL
from pipeline.settings.augmentation import Augment

EACH = ("none", "light", "strong", "randaugment", "trivialaugment", "erasing")
JOINED = ("strong+randaugment+erasing", "light+trivialaugment+erasing")
STRONG_MEANS = [133.5216, 114.8682, 147.554, 135.088, 123.0071, 129.7298]
ROOT = Path(__file__).resolve().parent.parent
KEYS = np.random.default_rng(0).integers(0, 2**64, 40, dtype=np.uint64)


def noise(count: int, size: int = 16) -> Tensor:
    rng = np.random.default_rng(count)
    return torch.from_numpy(rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8))


def rendered(pixels: Tensor, view: int, augment: Augment, keys: U64Array = KEYS) -> Tensor:
    """The same view of every image."""
    views = np.full(len(pixels), view, dtype=np.int64)
    return render_views(pixels, keys[: len(pixels)], views, augment)


def levels(images: Tensor) -> Tensor:
    """Normalised images back on the scale 0 to 255."""
    return (images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255


def test_normalising_subtracts_the_mean_and_divides_by_the_deviation() -> None:
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    normalised = USUAL.normalise(pixels)
    assert normalised.dtype == torch.float32
    assert normalised.flatten().tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("augment", "view", "mirrored"),
    [("none", 0, False), ("none", 7, False), *(("light", n, n % 2 == 1) for n in range(4))],
)
def test_none_leaves_the_image_alone_and_light_mirrors_the_odd_views(
    augment: Augment, view: int, mirrored: bool
) -> None:
    pixels = noise(3)
    expected = USUAL.normalise(pixels.flip(-1) if mirrored else pixels)
    assert torch.equal(rendered(pixels, view, augment), expected)


def test_strong_views_differ_from_each_other_and_between_images() -> None:
    pixels = noise(1).expand(4, -1, -1, -1)
    images = torch.cat([rendered(pixels, view, "strong") for view in range(10)])
    assert len({image.numpy().tobytes() for image in images}) == 40


@pytest.mark.parametrize("level", [0, 255, None], ids=["black", "white", "noise"])
def test_strong_stays_in_range(level: int | None) -> None:
    pixels = noise(20) if level is None else torch.full((20, 3, 16, 16), level, dtype=torch.uint8)
    for view in range(5):
        images = levels(rendered(pixels, view, "strong"))
        assert images.isfinite().all()
        assert -0.001 <= images.min().item() <= images.max().item() <= 255.001


def test_strong_changes_only_the_brightness_of_a_plain_grey_image() -> None:
    pixels = torch.full((40, 3, 16, 16), 100, dtype=torch.uint8)
    images = levels(rendered(pixels, 0, "strong"))
    brightness = images[:, :1, :1, :1] / 100
    assert torch.allclose(images, brightness.expand_as(images) * 100, atol=0.001)
    assert 0.699 < brightness.min() < 0.8
    assert 1.2 < brightness.max() < 1.301


def test_strong_moves_an_image_by_up_to_an_eighth_both_ways() -> None:
    size = 32
    right = torch.zeros((40, 3, size, size), dtype=torch.uint8)
    right[..., size // 2 :] = 255
    down = right.transpose(2, 3)
    moves = set()
    for view in range(0, 40, 2):
        row = levels(rendered(right, view, "strong"))[:, 0, 0]
        column = levels(rendered(down, view, "strong"))[:, 0, :, 0]
        found = []
        for line in (row, column):
            middle = (line.amax(1, keepdim=True) + line.amin(1, keepdim=True)) / 2
            found.append(((line < middle).sum(1) - size // 2).tolist())
        moves |= set(zip(*found, strict=True))
    assert moves == set(product(range(-4, 5), repeat=2))


def test_strong_changes_move_and_brightness_independently() -> None:
    pixels = torch.full((40, 3, 16, 16), 100, dtype=torch.uint8)
    pixels[:, :, 8:] = 104
    images = levels(torch.cat([rendered(pixels, view, "strong") for view in range(20)]))[:, 0]
    brightness = images.mean((1, 2))
    moved = images.sub(images.mean((1, 2), keepdim=True)).lt(0).sum((1, 2)).float()
    assert moved.std() > 0
    assert abs(torch.corrcoef(torch.stack([brightness, moved]))[0, 1].item()) < 0.1


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Sums of large images are shared out among threads, which may show in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("augment", "size"), [*product((*EACH, *JOINED), [16]), ("strong", 224), (JOINED[1], 224)]
)
def test_a_view_has_the_same_pixels_in_any_batch(augment: Augment, size: int) -> None:
    pixels, views = noise(8, size), np.array([3, 0, 5, 2, 7, 1, 4, 6])
    before = pixels.clone()
    whole = render_views(pixels, KEYS[:8], views, augment)
    assert torch.equal(pixels, before)
    for rows in ([7, 6, 5, 4, 3, 2, 1, 0], [1, 1, 0], *([row] for row in range(8))):
        part = render_views(pixels[rows], KEYS[rows], views[rows], augment)
        assert torch.equal(part, whole[rows]), rows


def digest_of_views() -> str:
    views = [rendered(noise(4), 3, augment) for augment in JOINED]
    return hashlib.sha256(torch.cat(views).numpy().tobytes()).hexdigest()


@pytest.mark.slow
def test_a_view_has_the_same_pixels_in_any_process_and_leaves_the_random_state_alone() -> None:
    code = (
        "import torch; from tests.test_augment import digest_of_views;"
        "torch.set_num_threads(2); torch.manual_seed(7); print(digest_of_views())"
    )
    command = [sys.executable, "-c", code]
    there = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    torch.manual_seed(1)
    before = torch.get_rng_state(), torch.get_num_threads()
    assert digest_of_views() == there.stdout.strip()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


def test_strong_is_what_it_was() -> None:
    """Means of views 0 and 5 of three images, by the version before other words could be added."""
    means = [levels(rendered(noise(3), view, "strong")).mean((1, 2, 3)) for view in (0, 5)]
    assert torch.cat(means).tolist() == pytest.approx(STRONG_MEANS, rel=1e-5)


@pytest.mark.parametrize("word", ["randaugment", "trivialaugment", "erasing"])
def test_views_of_torchvisions_transforms_differ_between_views_and_images(word: str) -> None:
    pixels = noise(1).expand(20, -1, -1, -1)
    first, second = rendered(pixels, 0, word), rendered(pixels, 1, word)
    distinct = {image.numpy().tobytes() for image in torch.cat([first, second])}
    assert len(distinct) > 10  # erasing leaves half of all images alone
    assert distinct_views(word) is None


def test_a_policy_comes_before_the_flip_and_has_torchvisions_own_pixels() -> None:
    pixels, key = noise(1), KEYS[:1]
    seed = int(hash_uniform(key, 3 * 8 + 5).item() * 2**53)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        expected = v2.TrivialAugmentWide()(pixels[0])
    assert not torch.equal(expected, pixels[0])
    views = rendered(pixels, 3, "light+trivialaugment", key)
    assert torch.equal(views[0], USUAL.normalise(expected[None])[0].flip(-1))


def test_erasing_fills_a_rectangle_with_the_mean_colour() -> None:
    pixels = noise(40)
    plain, erased = USUAL.normalise(pixels), rendered(pixels, 0, "erasing")
    changed = (plain != erased).any(1)
    assert 8 < changed.flatten(1).any(1).sum() < 32
    for image, mask in zip(erased, changed, strict=True):
        if mask.any():
            rows, columns = mask.any(1), mask.any(0)
            assert (image[:, mask] == 0).all()
            assert mask.sum() >= 0.9 * rows.sum() * columns.sum()  # noise may be grey as well


@pytest.mark.parametrize("augment", ["light+mixup", "light+cutmix"])
def test_what_mixes_batches_is_no_part_of_a_view(augment: Augment) -> None:
    assert torch.equal(rendered(noise(3), 1, augment), rendered(noise(3), 1, "light"))
    assert distinct_views(augment) == 2


@pytest.mark.parametrize("stored_views", [1, 4, 10])
def test_strong_meets_every_stored_view_equally_often(stored_views: int) -> None:
    epochs = [
        pick_views(KEYS, seed=3, epoch=epoch, augment="strong", stored_views=stored_views)
        for epoch in range(3 * stored_views)
    ]
    for views in np.stack(epochs, axis=1):
        assert np.bincount(views, minlength=stored_views).tolist() == [3] * stored_views


@pytest.mark.parametrize(
    ("augment", "stored_views", "count"),
    [("none", 10, 1), ("none", 0, 1), ("light", 10, 2), ("light", 0, 2), ("light", 1, 1)],
)
def test_no_more_views_are_picked_than_there_are(
    augment: Augment, stored_views: int, count: int
) -> None:
    views = [
        pick_views(KEYS, seed=0, epoch=epoch, augment=augment, stored_views=stored_views)
        for epoch in range(8)
    ]
    assert set(np.concatenate(views).tolist()) == set(range(count))
    assert distinct_views(augment) == max(count, 1 + (augment == "light"))


@pytest.mark.parametrize("stored_views", [0, 10])
def test_picked_views_depend_on_seed_image_and_epoch_and_nothing_else(stored_views: int) -> None:
    def pick(seed: int, epoch: int, keys: U64Array = KEYS) -> list[int]:
        views = pick_views(
            keys, seed=seed, epoch=epoch, augment="strong", stored_views=stored_views
        )
        return [int(view) for view in views]

    assert pick(1, 2) == pick(1, 2)
    assert pick(1, 2, KEYS[7:9]) == pick(1, 2)[7:9]
    assert pick(1, 2) != pick(2, 2)
    assert pick(1, 2) != pick(1, 3)
    assert len(set(pick(1, 2))) > 5


def test_no_stored_views_gives_fresh_ones() -> None:
    picked = [
        pick_views(KEYS, seed=0, epoch=epoch, augment="strong", stored_views=0)
        for epoch in range(50)
    ]
    views = np.stack(picked)
    assert len(np.unique(views)) == views.size
    assert views.min() >= 0
    assert np.isin([0, 1], views % 2).all()
    assert distinct_views("strong") is None


def test_the_largest_seed_and_key_are_usable() -> None:
    keys = np.array([2**64 - 1, 0], dtype=np.uint64)
    views = pick_views(keys, seed=2**31 - 1, epoch=9999, augment="strong", stored_views=0)
    assert rendered(noise(2), int(views.max()), "strong", keys).isfinite().all()


def test_the_hash_is_splitmix64() -> None:
    """The first outputs that the algorithm's published test vector gives for seed 1234567."""
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    key = np.array([1234567], dtype=np.uint64)
    hashed = [hash_uniform(key, counter).item() for counter in range(4)]
    assert hashed == [(output >> 11) / 2**53 for output in outputs]


@pytest.mark.parametrize("over", ["keys", "counters"])
def test_the_hash_is_uniform(over: str) -> None:
    numbers = np.arange(2**15, dtype=np.uint64)
    same = np.full_like(numbers, 5)
    hashed = hash_uniform(numbers, 5) if over == "keys" else hash_uniform(same, numbers)
    assert hashed.min() >= 0
    assert hashed.max() < 1
    counts = np.histogram(hashed, bins=32, range=(0, 1))[0]
    chi_squared = ((counts - 1024) ** 2 / 1024).sum()
    assert 9 < chi_squared < 70  # 31 degrees of freedom: both beyond 1 in 10,000
    assert abs(np.corrcoef(hashed[:-1], hashed[1:])[0, 1]) < 0.02
