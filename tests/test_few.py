"""Few images out of many: the first ones, and every class among them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.sampling.few import few_with_every_class


def shuffled(*per_class: int) -> np.ndarray:
    labels = np.repeat(np.arange(len(per_class)), per_class)
    return np.random.default_rng(0).permutation(labels)


def test_a_rare_class_is_taken_whole_and_the_last_of_others_give_way() -> None:
    labels = np.zeros(1000, dtype=np.int64)
    labels[[150, 400, 600, 999]] = 1
    found = few_with_every_class(labels, 100)
    assert found.tolist() == [*range(96), 150, 400, 600, 999]


def test_the_first_are_taken_where_every_class_has_two_among_them() -> None:
    labels = shuffled(500, 30, 470)
    assert np.bincount(labels[:200])[1] >= 2
    assert few_with_every_class(labels, 200).tolist() == list(range(200))
    assert few_with_every_class(labels, 1000).tolist() == list(range(1000))


def test_a_class_of_one_image_is_left_out_where_two_are_needed() -> None:
    labels = np.zeros(50, dtype=np.int64)
    labels[[30, 31, 40]] = 1, 1, 2
    assert set(labels[few_with_every_class(labels, 10)]) == {0, 1, 2}
    assert np.bincount(labels[few_with_every_class(labels, 10, least=2)]).tolist() == [8, 2]
    single = shuffled(30, 30, 1)
    assert np.bincount(single[few_with_every_class(single, 1000, least=2)]).tolist() == [30, 30]
    for seed in range(5):  # nor where the first images hold it, or there is room for it
        many = np.random.default_rng(seed).permutation(np.repeat([0, 1, 2], [900, 900, 1]))
        assert 2 not in many[few_with_every_class(many, 1000, least=2)]
    assert few_with_every_class(np.arange(3), 10, least=2).tolist() == []


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(0, 40), min_size=2, max_size=12).filter(any),
    st.integers(1, 60),
    st.integers(0, 9),
)
def test_places_rise_are_as_many_as_may_be_and_hold_every_class_that_finds_room(
    per_class: list[int], most: int, seed: int
) -> None:
    labels = np.repeat(np.arange(len(per_class)), per_class)
    labels = np.random.default_rng(seed).permutation(labels)
    found = few_with_every_class(labels, most)
    assert len(found) == min(most, len(labels))
    assert (np.diff(found) > 0).all()
    there, sizes = np.unique(labels, return_counts=True)
    among = np.bincount(labels[found], minlength=len(per_class))[there]
    assert np.count_nonzero(among) >= min(len(there), most)
    if most >= 2 * len(there):
        assert (among >= np.minimum(sizes, 2)).all()
