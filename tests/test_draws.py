"""Draws share no image, leave none out, and are the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.base import Source, Split
from pipeline.data.draws import Draw, deal_rows, make_draw
from pipeline.data.images import digest_image, fit_square
from pipeline.data.open import open_source
from pipeline.errors import DataError
from tests.conftest import class_image


def make_split(*per_class: int, start: int = 0) -> Split:
    """So many images of each class, the classes' rows interleaved."""
    labels = np.repeat(np.arange(len(per_class)), per_class)
    labels = np.random.default_rng(0).permutation(labels)
    return Split(
        labels, lambda rows: (class_image(int(labels[row]), start + row, 8) for row in rows)
    )


def make_source(*per_class: int, val: Split | None = None, test: Split | None = None) -> Source:
    names = ("ant", "bee", "cow", "dog")[: len(per_class)]
    return Source(name="farm", class_names=names, pool=make_split(*per_class), val=val, test=test)


def deal(
    source: Source, draw: int = 0, train: int = 2, val: int = 1, data_seed: int = 0
) -> tuple[list[int], list[int]]:
    rows = deal_rows(source, train, val, data_seed, draw)
    return rows[0].tolist(), rows[1].tolist()


def flat(parts: Iterable[list[int]]) -> list[int]:
    return [row for part in parts for row in part]


def read(source: Source, draw: int = 0, data_seed: int = 0) -> Draw:
    return make_draw(
        source, train_per_class=2, val_per_class=1, data_seed=data_seed, draw=draw, image_size=8
    )


def test_draws_share_no_row_and_leave_none_out() -> None:
    source = make_source(12, 12, 12)
    slices = [part for draw in range(4) for part in deal(source, draw)]
    for left, right in combinations(slices, 2):
        assert not set(left) & set(right)
    assert sorted(flat(slices)) == list(range(36))


def test_a_draw_has_the_asked_number_of_each_class() -> None:
    source = make_source(9, 12, 30)
    train, val = deal(source, draw=1, train=3, val=1)
    assert np.bincount(source.pool.labels[train]).tolist() == [3, 3, 3]
    assert np.bincount(source.pool.labels[val]).tolist() == [1, 1, 1]


def test_the_same_seed_deals_the_same_rows_and_another_others() -> None:
    source = make_source(12, 12)
    assert deal(source, 1) == deal(make_source(12, 12), 1)
    assert deal(source, 1) != deal(source, 1, data_seed=1)
    assert deal(source, 1) != deal(source, 2)


def test_one_class_is_dealt_alike_whatever_the_others_hold() -> None:
    source, grown = make_source(12, 12), make_source(12, 12)
    labels = np.concatenate([grown.pool.labels, [1] * 5])
    grown = Source(name="farm", class_names=grown.class_names, pool=Split(labels, grown.pool.read))
    first, second = (np.array(deal(s, 2)[0]) for s in (source, grown))
    assert first[source.pool.labels[first] == 0].tolist() == second[labels[second] == 0].tolist()


def test_a_class_that_is_too_small_is_named_with_its_size() -> None:
    message = (
        r"farm: too few images in class bee \(2\), dog \(0\) for "
        r"train_per_class \+ val_per_class = 3: lower it or add images"
    )
    with pytest.raises(DataError, match=message):
        deal(
            Source(name="farm", class_names=("ant", "bee", "cow", "dog"), pool=make_split(9, 2, 3))
        )


def test_many_small_classes_are_summed_up() -> None:
    names = tuple("abcdefgh")
    with pytest.raises(DataError, match=r"class a \(1\), .*e \(1\) and 3 more for"):
        deal(Source(name="letters", class_names=names, pool=make_split(*[1] * 8)))


@pytest.mark.parametrize(
    ("per_class", "draw", "held"),
    [
        ((12, 12), 4, r"holds 4 draws \(0 to 3\)"),
        ((12, 7), 2, r"holds 2 draws \(0 to 1\).*smallest class: bee, 7 images"),
        ((3, 5), 1, r"holds 1 draw \(0 to 0\).*smallest class: ant, 3 images"),
    ],
)
def test_asking_for_too_many_draws_says_how_many_there_are(
    per_class: tuple[int, ...], draw: int, held: str
) -> None:
    source = make_source(*per_class)
    deal(source, draw - 1)
    with pytest.raises(DataError, match=f"farm: draw {draw} asked for, the pool {held}"):
        deal(source, draw)


def test_a_validation_split_of_its_own_is_sliced_by_its_own_size() -> None:
    source = make_source(6, 6, val=make_split(3, 4, start=100))
    trains, vals = zip(*(deal(source, draw) for draw in range(3)), strict=True)
    assert sorted(flat(trains)) == list(range(12))
    assert len(set(flat(vals))) == 6
    assert source.val is not None
    for val in vals:
        assert sorted(source.val.labels[val].tolist()) == [0, 1]


def test_images_come_from_the_split_they_belong_to() -> None:
    source = make_source(6, 6, val=make_split(3, 3, start=100))
    assert source.val is not None
    images = read(source, 1)
    train, val = deal(source, 1)
    for part, split, rows in ((images.train, source.pool, train), (images.val, source.val, val)):
        originals = list(split.read(rows))
        assert part.labels.tolist() == split.labels[rows].tolist()
        assert [d.tobytes() for d in part.digests] == [digest_image(i) for i in originals]
        assert [p.numpy().tobytes() for p in part.pixels] == [
            fit_square(i, 8).tobytes() for i in originals
        ]


@pytest.mark.parametrize(
    ("pool", "val", "message"),
    [
        (6, 1, r"too few images in class ant \(1\), bee \(1\) for val_per_class = 2"),
        (1, 6, r"too few images in class ant \(1\), bee \(1\) for train_per_class = 2"),
        (4, 8, r"holds 2 draws \(0 to 1\) of train_per_class = 2 a class"),
        (8, 4, r"holds 2 draws \(0 to 1\) of val_per_class = 2 a class"),
    ],
)
def test_either_split_may_be_the_one_that_is_too_small(pool: int, val: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        deal(make_source(pool, pool, val=make_split(val, val)), draw=2, train=2, val=2)


def test_the_test_split_is_never_read() -> None:
    def forbidden(rows: Sequence[int]) -> Iterator[Image.Image]:
        raise AssertionError(f"the test split was read: {rows}")

    test = Split(np.zeros(50, dtype=np.int64), forbidden)
    with_test, without = make_source(12, 12, test=test), make_source(12, 12)
    for draw in range(4):
        assert read(with_test, draw).fingerprint == read(without, draw).fingerprint


def test_only_the_dealt_rows_are_read() -> None:
    split, seen = make_split(12, 12), []

    def recorded(rows: Sequence[int]) -> Iterator[Image.Image]:
        seen.extend(rows)
        return split.read(rows)

    source = Source(name="farm", class_names=("ant", "bee"), pool=Split(split.labels, recorded))
    read(source, 2)
    assert seen == flat(deal(source, 2))


@pytest.mark.parametrize(("same", "shared"), [(0, 0), (1, 1), (2, 2), (3, 3)])
def test_validation_images_with_the_pixels_of_a_training_image_are_counted(
    same: int, shared: int
) -> None:
    train, val = make_split(2, 2), make_split(2, 2, start=100)

    def copies(rows: Sequence[int]) -> Iterator[Image.Image]:
        return (next(train.read([0])) if row < same else next(val.read([row])) for row in rows)

    source = Source(
        name="farm", class_names=("ant", "bee"), pool=train, val=Split(val.labels, copies)
    )
    draw = make_draw(source, train_per_class=2, val_per_class=2, data_seed=0, draw=0, image_size=4)
    assert draw.shared_images == shared


def test_a_fingerprint_depends_on_images_and_class_names_and_not_on_the_name_of_the_source() -> (
    None
):
    pool = make_split(12, 12)
    first = read(Source(name="farm", class_names=("ant", "bee"), pool=pool))
    assert (
        first.fingerprint
        == read(Source(name="zoo", class_names=("ant", "bee"), pool=pool)).fingerprint
    )
    others = [
        read(Source(name="farm", class_names=("ant", "bee"), pool=pool), draw=1),
        read(Source(name="farm", class_names=("ant", "bee"), pool=pool), data_seed=1),
        read(Source(name="farm", class_names=("ant", "fly"), pool=pool)),
        read(Source(name="farm", class_names=("ant", "bee"), pool=make_split(12, 12, start=1))),
        Draw("farm", ("ant", "bee"), first.val, first.train),
        Draw("farm", ("ant", "bee"), first.train, first.train),
        Draw("farm", ("ant", "bee"), first.val, first.val),
    ]
    assert len({draw.fingerprint for draw in (first, *others)}) == len(others) + 1


def test_real_cifar_holds_20_draws_of_100_and_100(cifar_folder: Path, tmp_path: Path) -> None:
    source = open_source(str(cifar_folder), tmp_path)
    dealt = [np.concatenate(deal_rows(source, 100, 100, 0, draw)) for draw in range(20)]
    rows = np.concatenate(dealt)
    assert rows.size == np.unique(rows).size == 20 * 2000
    for part in dealt:
        assert np.bincount(source.pool.labels[part]).tolist() == [200] * 10
    with pytest.raises(DataError, match=r"draw 20 asked for, the pool holds 20 draws \(0 to 19\)"):
        deal_rows(source, 100, 100, 0, 20)


def test_a_real_cifar_draw_is_read(cifar_folder: Path, tmp_path: Path) -> None:
    draw = read(open_source(str(cifar_folder), tmp_path), 19)
    assert draw.class_names[9] == "truck"
    assert draw.train.labels.tolist() == sorted([*range(10)] * 2)
    assert draw.val.pixels.shape == (10, 3, 8, 8)
    assert draw.shared_images == 0
