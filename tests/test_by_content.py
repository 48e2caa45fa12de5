"""Without numbers images are dealt by content: in shares, disjoint, whatever files are called."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.cli import main
from pipeline.data.base import Source
from pipeline.data.sampling.draws import (
    dealt_words,
    draw_in,
    draw_rows,
    draws_held,
    share_in_common,
    with_test_split,
)
from pipeline.data.sampling.units import units_of
from pipeline.errors import DataError, SettingsError
from pipeline.runs.sources import source_of
from pipeline.settings.run import Settings
from tests.conftest import Command, class_image
from tests.helpers import fill, load_settings, opened, split_of

SIZES = st.lists(st.integers(3, 40), min_size=2, max_size=4)
FEW = settings(deadline=None, max_examples=20)
NAMES = ("ant", "bee", "cow", "dog")


def asked(**values: str) -> Settings:
    return load_settings({"preset": "images", "weights": "none", **values})


def make(sizes: Sequence[int], groups: Sequence[str] = (), shuffle: int = 0) -> Source:
    """A source of so many different images a class, their rows in an order of its own."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    order = np.random.default_rng(shuffle).permutation(len(labels))

    def read(rows: Sequence[int]) -> list[Image.Image]:
        return [
            Image.new("RGB", (2, 2), (0, int(order[r]) // 256, int(order[r]) % 256)) for r in rows
        ]

    split = split_of(labels[order].tolist(), read)
    if groups:
        split = replace(split, groups=tuple(groups[n] for n in order))
    return Source(name="farm", class_names=NAMES[: len(sizes)], pool=split)


def parts_of(source: Source, own: Settings) -> tuple[set[bytes], set[bytes], set[bytes]]:
    """The digests of training, validation and test images."""
    parted = with_test_split(source, own)
    train, val = draw_rows(parted, own)
    pool, test = parted.pool.stored.digests(), parted.test
    vals = parted.val.stored.digests() if parted.val else pool
    tests = set(test.stored.digests()) if test else set()
    return {pool[n] for n in train}, {vals[n] for n in val}, tests


@FEW
@given(sizes=SIZES, data_seed=st.integers(0, 5))
def test_parts_are_disjoint_whole_and_a_fifth_of_each_class(
    sizes: list[int], data_seed: int
) -> None:
    own = asked(data_seed=str(data_seed))
    source = make(sizes)
    train, val, test = parts_of(source, own)
    assert not train & val
    assert not train & test
    assert not val & test
    assert train | val | test == set(source.pool.stored.digests())
    parted = with_test_split(source, own)
    fifths = [max(1, round(n / 5)) for n in sizes]
    assert parted.test is not None
    assert parted.class_sizes(parted.test).tolist() == fifths
    assert np.bincount(parted.pool.labels[draw_rows(parted, own)[1]]).tolist() == fifths


@FEW
@given(sizes=SIZES, shuffle=st.integers(1, 9), data_seed=st.integers(0, 3))
def test_the_order_and_the_names_of_files_play_no_part(
    sizes: list[int], shuffle: int, data_seed: int
) -> None:
    own = asked(data_seed=str(data_seed))
    assert parts_of(make(sizes), own) == parts_of(make(sizes, shuffle=shuffle), own)


def test_renamed_files_make_the_same_draw_to_the_order_of_its_images(tmp_path: Path) -> None:
    folder = fill(tmp_path / "farm", "ant", "bee", count=10)
    other = tmp_path / "other"
    for path in folder.rglob("*.png"):
        (other / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, other / path.parent.name / f"{hash(path.name) % 1000}-{path.name}")
    draws = []
    for data in (folder, other):
        own = asked(data=str(data), image_size="32")
        source = source_of(own)
        assert source.test is not None
        draws.append((draw_in(source, own).fingerprint, source.test.stored.digests()))
    assert draws[0] == draws[1]


@FEW
@given(count=st.integers(10, 60), more=st.integers(1, 5))
def test_added_images_move_few_others(count: int, more: int) -> None:
    own = asked()
    before, after = parts_of(make([count]), own), parts_of(make([count + more]), own)
    moved = sum(len(old - new) for old, new in zip(before, after, strict=True))
    assert moved <= 2 * more + 1


def test_the_test_split_is_the_same_for_every_shuffle_and_the_rest_is_not() -> None:
    source = make([30, 30])
    one, other = (parts_of(source, asked(data_seed=str(n))) for n in (0, 1))
    assert one[2] == other[2]
    assert one[1] != other[1]


def test_files_without_content_are_no_copies_of_one_image(tmp_path: Path) -> None:
    root = fill(tmp_path, "ant", "bee", count=20)
    for label in ("ant", "bee"):
        for number in range(100, 120):
            (root / label / f"{number}.png").touch()
    pool = opened(root).pool
    sizes = Counter(len(unit.rows) for unit in units_of(pool, "draws 0"))
    assert sizes == {1: 80}


def test_copies_of_an_image_go_to_one_part() -> None:
    source = make([12, 12])
    labels = np.concatenate([source.pool.labels] * 2)

    def read(rows: Sequence[int]) -> list[Image.Image]:
        return [Image.new("RGB", (2, 2), (0, 0, row % 24)) for row in rows]

    parts = parts_of(replace(source, pool=split_of(labels.tolist(), read)), asked())
    assert sum(map(len, parts)) == 24


@pytest.mark.parametrize(
    ("sizes", "own", "words"),
    [
        ((80, 80), {}, "80 a class: 48 to train, 16 to validate, 16 kept for the test"),
        ((3, 3), {}, "3 a class: 1 to train, 1 to validate, 1 kept for the test"),
        (
            (20, 45, 300),
            {},
            "365 images, 20 to 300 a class: 219 to train (12 to 180 a class), 73 to validate "
            "(4 to 60 a class), 73 kept for the test (4 to 60 a class)",
        ),
        (
            (120, 120),
            {"train_per_class": "100"},
            "120 a class: 100 to train, 10 to validate, 10 kept for the test",
        ),
        (
            (102, 102),
            {"train_per_class": "100"},
            "102 a class: 100 to train, 1 to validate, 1 kept for the test",
        ),
        (
            (200, 200),
            {"train_per_class": "100"},
            "200 a class: 100 to train, 33 to validate, 40 kept for the test, 27 left over",
        ),
        ((50, 50), {"val_per_class": "5"}, "50 a class: 35 to train, 5 to validate, 10 kept"),
        ((50, 50), {"test_per_class": "0"}, "50 a class: 40 to train, 10 to validate"),
        (
            (50, 50),
            {"train_per_class": "10", "test_per_class": "20"},
            "50 a class: 10 to train, 3 to validate, 20 kept for the test, 17 left over, which",
        ),
    ],
)
def test_the_parts_are_told_in_one_line(
    sizes: tuple[int, ...], own: dict[str, str], words: str
) -> None:
    source = with_test_split(make(sizes), asked(**own))
    assert dealt_words(source, asked(**own)).startswith(words)


@pytest.mark.parametrize(
    ("sizes", "own", "words"),
    [
        ((1, 9), {}, r"class ant \(1\): 3 are needed to train, validate and test on: add images"),
        ((9, 2), {}, r"class bee \(2\): 3 are needed"),
        ((100, 101), {"train_per_class": "100"}, r"ant \(100\), bee \(101\): 102 are needed"),
        (
            (9, 9),
            {"test_per_class": "8"},
            r"10 are needed .* with test_per_class=8: ask for fewer",
        ),
        ((9, 9), {"draw": "1"}, r"draw 1 asked for, the pool holds 1 draw .*data_seed="),
        ((90, 90), {"train_per_class": "20", "draw": "2"}, r"draw 2 .* holds 2 draws \(0 to 1\)"),
    ],
)
def test_what_cannot_be_dealt_is_refused_with_what_is_needed(
    sizes: tuple[int, ...], own: dict[str, str], words: str
) -> None:
    with pytest.raises(DataError, match=f"^farm: .*{words}"):
        draw_rows(with_test_split(make(sizes), asked(**own)), asked(**own))


@settings(deadline=None, max_examples=4)  # each deals many draws
@given(size=st.integers(30, 60), train=st.integers(1, 9))
def test_draws_of_a_given_size_share_no_image(size: int, train: int) -> None:
    own = asked(train_per_class=str(train))
    source = with_test_split(make([size, size + 3]), own)
    held = draws_held(source, own)
    seen: Counter[int] = Counter()
    for draw in range(held):
        rows = draw_rows(source, own.model_copy(update={"draw": draw}))
        assert np.bincount(source.pool.labels[rows[0]]).tolist() == [train] * 2
        seen.update(np.concatenate(rows).tolist())
    assert held > 1
    assert max(seen.values()) == 1


def test_a_split_of_the_datas_own_is_used_and_the_rest_is_dealt() -> None:
    own, other = make([40, 40]), make([7, 7], shuffle=3).pool
    tested = with_test_split(replace(own, test=other), asked())
    assert tested.test is other
    assert [len(rows) for rows in draw_rows(tested, asked())] == [64, 16]
    assert "the data's own test split has 7 a class" in dealt_words(tested, asked())
    validated = with_test_split(replace(own, val=other), asked())
    assert [len(rows) for rows in draw_rows(validated, asked())] == [64, 14]
    assert validated.test is not None
    assert len(validated.test.labels) == 16


def test_shuffles_of_data_with_its_own_validation_split_differ_in_training_images() -> None:
    source = with_test_split(replace(make([40, 40]), val=make([7, 7]).pool), asked())
    one, other = (set(draw_rows(source, asked(data_seed=n))[0].tolist()) for n in ("1", "2"))
    assert len(one) == len(other) == 48
    assert one != other
    assert share_in_common(source, asked()) == 0.75


def test_numbers_for_both_parts_set_no_test_split_aside_unless_asked() -> None:
    own = asked(train_per_class="4", val_per_class="2")
    assert own.test_per_class == 0
    assert not own.by_content
    assert with_test_split(make([9, 9]), own).test is None


@pytest.mark.parametrize("value", ["aut", "-1", "2.5", "0", "true"])
def test_a_wrong_number_is_refused(value: str) -> None:
    with pytest.raises(
        SettingsError, match=r"train_per_class must be auto, or a whole number of 1"
    ):
        asked(train_per_class=value)


GROUPS = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 6)), min_size=12, max_size=30)


@FEW
@given(groups=GROUPS, data_seed=st.integers(0, 3), number=st.sampled_from(["auto", "3"]))
def test_groups_are_never_parted(
    groups: list[tuple[int, int]], data_seed: int, number: str
) -> None:
    groups = [*groups, *((label, 2) for label in (0, 1) for _ in range(4))]
    by_class = [
        [
            f"p{n}"
            for n, (label, count) in enumerate(groups)
            if label == wanted
            for _ in range(count)
        ]
        for wanted in (0, 1)
    ]
    names = by_class[0] + by_class[1]
    source = make([len(by_class[0]), len(by_class[1])], groups=names)
    own = asked(data_seed=str(data_seed), train_per_class=number, group="x")
    parted = with_test_split(source, own)
    for train, val in [draw_rows(parted, own)]:
        kinds = [{parted.pool.groups[row] for row in rows} for rows in (train, val)]
        assert parted.test is not None
        kinds.append(set(parted.test.groups))
        assert not kinds[0] & kinds[1]
        assert not kinds[0] & kinds[2]
        assert not kinds[1] & kinds[2]
        for split, rows in ((parted.pool, train), (parted.pool, val)):
            assert set(split.labels[rows].tolist()) == {0, 1}


def test_groups_of_one_size_are_dealt_in_exact_shares() -> None:
    names = [f"p{n // 5}" for n in range(100)]
    own = asked(group="x")
    source = with_test_split(make([50, 50], groups=names), own)
    assert "50 a class: 30 to train, 10 to validate, 10 kept" in dealt_words(source, own)


def test_a_class_in_too_few_groups_is_named() -> None:
    names = [f"p{n // 10}" for n in range(40)]
    with pytest.raises(DataError, match=r"class ant stands in 2 groups of group=who, too few"):
        draw_rows(
            with_test_split(make([20, 20], groups=names), asked(group="who")), asked(group="who")
        )


def test_a_folder_without_numbers_goes_from_stage_1_to_evaluate_and_decide(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "farm"
    for label, (name, count) in enumerate({"ant": 10, "bee": 20}.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            class_image(label, number).save(folder / name / f"{number}.png")
    own = {"data": str(folder), "train_per_class": "auto", "val_per_class": "auto"}
    assert command("stage1", **own) == 0
    out = capsys.readouterr().out
    assert "30 images, 10 to 20 a class: 18 to train (6 to 12 a class)" in out
    run_id = out.split("stage 1: run ")[1].split()[0]
    assert main(["evaluate", "--run_id", run_id]) == 0
    assert "on 6 images" in capsys.readouterr().out


def test_a_class_that_the_validation_split_lacks_is_named_before_images_are_decoded(
    tmp_path: Path,
) -> None:
    source = opened(fill(tmp_path, "train/a", "train/b", "val/a", count=4))
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"validation split .* of class b \(0\): 1 is needed: add"):
        draw_in(source, asked(image_size="32"))


def test_groups_are_told_apart_by_bytes_that_are_no_utf_8() -> None:
    names = [os.fsdecode(bytes([0xE9 + n % 4, 0x20])) for n in range(8)]
    units = units_of(make([4, 4], groups=names).pool, "draws 0")
    assert sorted(len(unit.rows) for unit in units) == [2, 2, 2, 2]
