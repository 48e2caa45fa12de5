"""Simulated studies against the documented table, exact rates, and one study at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipeline.stats.design import Design
from pipeline.stats.operating import (
    characteristics_text,
    operating_characteristics,
    walk_studies,
)
from pipeline.stats.verdict import verdict
from tests.verdict_twin import walk

D = Design(looks=(5, 10, 20), threshold=0.98, anytime=False, robust=False)
STUDIES = 20_000
TABLE = [
    # true gain, justified, not justified, inconclusive, mean pairs: 20,000 studies, SD 1 pp
    (-1.0, 0.000, 1.000, 0.000, 6.9),
    (0.0, 0.001, 0.574, 0.424, 16.5),
    (0.5, 0.051, 0.050, 0.899, 19.1),
    (1.0, 0.573, 0.002, 0.424, 16.5),
    (1.5, 0.986, 0.000, 0.014, 10.4),
    (2.0, 1.000, 0.000, 0.000, 6.9),
]


def near(share: float, documented: float, studies: int = STUDIES) -> bool:
    """Within 4 standard errors of a difference of two simulations, and the table's rounding."""
    pooled = max((share + documented) / 2, 1 / studies)
    error = math.sqrt(2 * pooled * max(1 - pooled, 1 / studies) / studies)
    return abs(share - documented) <= 4 * error + 0.0005


def test_the_documented_table_is_reproduced_and_not_by_other_designs() -> None:
    gains = [row[0] for row in TABLE]
    table = operating_characteristics(D, 1.0, gains)
    assert list(table["true gain, pp"]) == gains
    ends = ["justified", "not justified", "inconclusive"]
    for row, documented in zip(table[ends].to_numpy(), TABLE, strict=True):
        assert all(map(near, row, documented[1:4])), row
    # pairs are 5 to 20: a standard deviation of at most 7.5
    pairs = [row[4] for row in TABLE]
    assert list(table["mean pairs used"]) == pytest.approx(pairs, abs=0.05 + 4 * 7.5 / 100)
    assert list(table[ends].sum(axis=1)) == pytest.approx([1.0] * len(TABLE))
    assert table["justified"].is_monotonic_increasing
    for other in (replace(D, threshold=0.97), replace(D, rope_pp=0.6)):
        rates = operating_characteristics(other, 1.0, gains)["justified"]
        assert not all(map(near, rates, (row[1] for row in TABLE)))


@pytest.mark.parametrize("correction", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("look", [2, 5, 20])
def test_one_look_at_a_gain_on_the_edge_errs_exactly_as_often_as_the_threshold_allows(
    correction: float, look: int
) -> None:
    design = replace(D, looks=(look,), threshold=0.95)
    table = operating_characteristics(design, 1.3, [0.5], correction=correction, seed=look)
    error = math.sqrt(0.05 * 0.95 / STUDIES)
    shares = table.loc[0, ["justified", "not justified"]]
    assert list(shares) == pytest.approx([0.05, 0.05], abs=4 * error)


def correlated(rho: float, pairs: int, studies: int, seed: int) -> np.ndarray:
    """Normal gains of SD 1 of which any two correlate by `rho`: from the covariance matrix."""
    covariance = np.full((pairs, pairs), rho) + (1 - rho) * np.eye(pairs)
    return np.random.default_rng(seed).multivariate_normal(
        np.zeros(pairs), covariance, studies, method="cholesky"
    )


@pytest.mark.parametrize("correction", [0.1, 1.0])
def test_shared_images_are_gains_that_correlate_by_the_share_of_test_images(
    correction: float,
) -> None:
    rho = correction / (1 + correction)
    noise = correlated(rho, 20, STUDIES, seed=8)
    table = operating_characteristics(D, 1.0, [0.0, 1.0, 2.0], correction=correction)
    for _, row in table.iterrows():
        ends, used = walk_studies(noise + row["true gain, pp"], D, correction)
        harmless = row["not justified"] - row["of these harmful"]
        assert near(row["justified"], float(np.mean(ends == "justified")))
        assert near(harmless, float(np.mean(np.isin(ends, ["equivalent", "no_gain"]))))
        assert row["mean pairs used"] == pytest.approx(np.mean(used), abs=0.3)


def test_shared_images_cost_power() -> None:
    rates = [
        operating_characteristics(D, 1.0, [1.5], correction=c).loc[0, "justified"]
        for c in (0.0, 0.1, 0.5)
    ]
    assert rates[0] > 0.9 > rates[1] > 0.6 > rates[2]


def test_leaving_out_the_correction_would_call_noise_a_gain() -> None:
    noise = correlated(0.5, 20, 4000, seed=1) + 0.5
    naive, _ = walk_studies(noise, D)
    honest, _ = walk_studies(noise, D, 1.0)
    assert np.mean(naive == "justified") > 0.2
    assert np.mean(honest == "justified") < 0.05


@pytest.mark.parametrize("resolution_pp", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("correction", [0.0, 0.25])
@pytest.mark.parametrize("pairs", [1, 2, 3, 5, 8, 9])
def test_many_studies_end_as_each_does_alone(
    pairs: int, correction: float, resolution_pp: float
) -> None:
    design = replace(D, looks=(2, 4, 8), threshold=0.9)
    rng = np.random.default_rng(pairs)
    gains = np.round(2 * rng.normal(0.25, 0.9, (60, pairs))) / 2  # halves: ties, edges
    ends, used = walk_studies(gains, design, correction, resolution_pp)
    for row, study in enumerate(gains):
        alone = verdict(study, design, correction, resolution_pp)
        assert (ends[row], used[row]) == (alone.kind or alone.state, alone.pairs)
        if not resolution_pp:
            assert (ends[row], used[row]) == walk(list(study), (2, 4, 8), 0.5, 0.9, correction)


def test_gains_without_spread_end_at_the_first_look_unless_an_image_is_worth_more() -> None:
    """Gains that all round to 0.6 pp are no certainty where an image is worth 5 pp."""
    table = operating_characteristics(D, 0.0, [0.6, 0.5, -0.6], studies=3)
    assert table.to_numpy().tolist() == [
        [0.6, 1, 0, 0, 0, 5],
        [0.5, 0, 1, 0, 0, 5],
        [-0.6, 0, 1, 1, 0, 5],
    ]
    coarse = operating_characteristics(D, 0.0, [0.6], studies=3, resolution_pp=5.0)
    assert coarse.loc[0, "inconclusive"] == 1


def test_the_same_seed_gives_the_same_table() -> None:
    first, again, other = (
        operating_characteristics(D, 1.0, [0.5, 1.0], studies=500, seed=seed) for seed in (3, 3, 4)
    )
    assert first.equals(again)
    assert not first.equals(other)


def test_the_text_table_is_aligned() -> None:
    table = operating_characteristics(D, 0.0, [-1.0, 0.5], studies=3)
    lines = characteristics_text(pd.concat([table, table + 0.1234])).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["-1", "0.000", "1.000", "1.000", "0.000", "5.0"]
    assert lines[3].split() == ["-0.8766", "0.123", "1.123", "1.123", "0.123", "5.1"]


@pytest.mark.parametrize(
    "looks", [tuple(range(5, 81)), (5, 10, 20, *range(21, 81)), (5, 10, 20, 40)]
)
def test_a_person_who_looks_again_and_again_errs_in_at_most_one_of_twenty(
    looks: tuple[int, ...],
) -> None:
    studies = 4000
    gains = 0.5 + np.random.default_rng(7).standard_normal((studies, 80))
    anytime = Design(looks=looks, robust=False)
    for sign in (1, -1):
        ends, _ = walk_studies(0.5 + sign * (gains - 0.5), anytime)
        assert np.mean(ends == "justified") <= 0.05
    if len(looks) > 4:
        ends, _ = walk_studies(gains, replace(D, looks=looks))
        assert np.mean(ends == "justified") > 0.09
