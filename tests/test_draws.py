"""Draws share no image, leave none out, and are the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.base import Source, Split
from pipeline.data.images import USUAL, digest_image
from pipeline.data.open import open_source
from pipeline.data.sampling.draws import Draw, deal_rows
from pipeline.errors import DataError
from tests.conftest import class_image
from tests.helpers import make_draw, split_of


def make_split(*per_class: int, start: int = 0) -> Split:
    """So many images of each class, the classes' rows interleaved."""
    labels = np.repeat(np.arange(len(per_class)), per_class)
    labels = np.random.default_rng(0).permutation(labels)
    return split_of(
        labels, lambda rows: (class_image(int(labels[row]), start + row, 8) for row in rows)
    )


def make_source(*per_class: int, val: Split | None = None, test: Split | None = None) -> Source:
    names = tuple(["ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen"][: len(per_class)])
    return Source(name="farm", class_names=names, pool=make_split(*per_class), val=val, test=test)


def deal(
    source: Source, draw: int = 0, train: int = 2, val: int = 1, data_seed: int = 0
) -> tuple[list[int], list[int]]:
    rows = deal_rows(source, train, val, data_seed, draw)
    return rows[0].tolist(), rows[1].tolist()


def read(source: Source, draw: int = 0, **settings: int) -> Draw:
    sizes = {"train_per_class": 2, "val_per_class": 1, "image_size": 8}
    return make_draw(source, draw=draw, **{**sizes, **settings})


def test_draws_share_no_row_leave_none_out_and_have_the_asked_number_of_each_class() -> None:
    source = make_source(12, 12, 12)
    slices = [part for draw in range(4) for part in deal(source, draw)]
    for left, right in combinations(slices, 2):
        assert not set(left) & set(right)
    assert sorted(chain(*slices)) == list(range(36))
    for rows, count in zip(slices, (2, 1) * 4, strict=True):
        assert np.bincount(source.pool.labels[rows]).tolist() == [count] * 3


def test_the_same_seed_deals_the_same_rows_and_another_others() -> None:
    source = make_source(12, 12)
    assert deal(source, 1) == deal(make_source(12, 12), 1)
    assert deal(source, 1) != deal(source, 1, data_seed=1)
    assert deal(source, 1) != deal(source, 2)


def test_one_class_is_dealt_alike_whatever_the_others_hold() -> None:
    source = make_source(12, 12)
    labels = np.concatenate([source.pool.labels, [1] * 5])
    grown = replace(source, pool=replace(source.pool, labels=labels))
    first, second = (np.array(deal(s, 2)[0]) for s in (source, grown))
    assert first[source.pool.labels[first] == 0].tolist() == second[labels[second] == 0].tolist()


@pytest.mark.parametrize(
    ("per_class", "val", "draw", "sizes", "words"),
    [
        (
            (9, 2, 3, 0),
            None,
            0,
            (2, 1),
            r"in class bee \(2\), dog \(0\) for .* = 3: ask for fewer",
        ),
        ((1,) * 8, None, 0, (2, 1), r"class ant \(1\), .*elk \(1\) and 3 more for"),
        ((12, 12), None, 4, (2, 1), r"draw 4 asked for, the pool holds 4 draws \(0 to 3\)"),
        ((12, 7), None, 2, (2, 1), r"holds 2 draws \(0 to 1\).*smallest class: bee, 7 images"),
        ((3, 5), None, 1, (2, 1), r"holds 1 draw \(0 to 0\).*smallest class: ant, 3 images"),
        ((6, 6), (1, 1), 0, (2, 2), r"in class ant \(1\), bee \(1\) for val_per_class = 2"),
        ((1, 1), (6, 6), 0, (2, 2), r"in class ant \(1\), bee \(1\) for train_per_class = 2"),
        ((4, 4), (8, 8), 2, (2, 2), r"2 draws \(0 to 1\) of train_per_class = 2 a class"),
        ((8, 8), (4, 4), 2, (2, 2), r"2 draws \(0 to 1\) of val_per_class = 2 a class"),
    ],
)
def test_more_than_there_is_is_refused_with_what_there_is(
    per_class: tuple[int, ...],
    val: tuple[int, ...] | None,
    draw: int,
    sizes: tuple[int, int],
    words: str,
) -> None:
    source = make_source(*per_class, val=make_split(*val) if val else None)
    with pytest.raises(DataError, match=f"^farm: .*{words}"):
        deal(source, draw, *sizes)
    if draw:
        deal(source, draw - 1, *sizes)


def test_a_validation_split_of_its_own_is_sliced_by_its_own_size() -> None:
    source = make_source(6, 6, val=make_split(3, 4, start=100))
    trains, vals = zip(*(deal(source, draw) for draw in range(3)), strict=True)
    assert sorted(chain(*trains)) == list(range(12))
    assert len(set(chain(*vals))) == 6
    assert source.val is not None
    for val in vals:
        assert sorted(source.val.labels[val].tolist()) == [0, 1]
    images = read(source, 1)
    for part, split, rows in (
        (images.train, source.pool, trains[1]),
        (images.val, source.val, vals[1]),
    ):
        originals = [image for image in split.read(rows) if isinstance(image, Image.Image)]
        assert part.labels.tolist() == split.labels[rows].tolist()
        assert [d.tobytes() for d in part.digests] == [digest_image(i) for i in originals]
        assert [p.numpy().tobytes() for p in part.pixels] == [
            USUAL.fit_square(i, 8).tobytes() for i in originals
        ]


def test_only_the_dealt_rows_are_read_and_the_test_split_never() -> None:
    split, seen = make_split(12, 12), []

    def recorded(rows: Sequence[int]) -> Iterator[Image.Image]:
        seen.extend(rows)
        return (class_image(0, row, 8) for row in rows)

    def forbidden(rows: Sequence[int]) -> Iterator[Image.Image]:
        raise AssertionError(f"the test split was read: {rows}")

    source = replace(
        make_source(12, 12), pool=split_of(split.labels, recorded), test=split_of([0], forbidden)
    )
    read(source, 2)
    assert seen == [*chain(*deal(source, 2))]


@pytest.mark.parametrize("same", [0, 1, 3])
def test_validation_images_with_the_pixels_of_a_training_image_are_counted(same: int) -> None:
    val = make_split(2, 2, start=100)

    def copies(rows: Sequence[int]) -> Iterator[Image.Image]:
        label = int(make_split(2, 2).labels[0])
        return (class_image(label, 0 if row < same else 100 + row, 8) for row in rows)

    source = make_source(2, 2, val=split_of(val.labels, copies))
    assert read(source, val_per_class=2).shared_images == same


def test_a_fingerprint_depends_on_images_and_class_names_and_not_on_the_name_of_the_source() -> (
    None
):
    farm = make_source(12, 12)
    first = read(farm)
    assert first.fingerprint == read(replace(farm, name="zoo")).fingerprint
    others = [
        read(farm, draw=1),
        read(farm, data_seed=1),
        read(replace(farm, class_names=("ant", "fly"))),
        read(replace(farm, pool=make_split(12, 12, start=1))),
        replace(first, train=first.val, val=first.train),
        replace(first, val=first.train),
        replace(first, train=first.val),
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
    draw = read(source, 19)
    assert draw.class_names[9] == "truck"
    assert draw.train.labels.tolist() == sorted([*range(10)] * 2)
    assert (draw.val.pixels.shape, draw.shared_images) == ((10, 3, 8, 8), 0)
