"""The posterior against numbers worked out by hand, a slow twin, baycomp, and its symmetries."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.stats.posterior import moments, posterior, tails
from tests.verdict_twin import probabilities, student_cdf

FEW = settings(max_examples=60, deadline=None, derandomize=True, database=None)
gain = st.floats(-30, 30).map(lambda x: round(x, 2))
some_gains = st.lists(gain, min_size=2, max_size=25)
corrections = st.sampled_from([0.0, 0.1, 0.25, 1.0])
ropes = st.sampled_from([0.0, 0.25, 0.5, 2.0])


# By hand


@pytest.mark.parametrize(
    ("gains", "rope", "correction", "above", "below"),
    [
        # n = 2, a Cauchy: P(T < t) = 1/2 + atan(t) / pi. Mean 2, s = sqrt(2), scale 1.
        # Above 1: t = -1, 1/2 + 1/4. Below -1: t = -3, 1/2 - atan(3) / pi = 0.5 - 0.397584.
        ([1, 3], 1.0, 0.0, 0.75, 0.102416),
        # the same with c = 3/2: scale sqrt(2) * sqrt(2) = 2. t = -1/2 and -3/2:
        # 1/2 + atan(0.5) / pi = 0.5 + 0.147584; 1/2 - atan(1.5) / pi = 0.5 - 0.312833
        ([1, 3], 1.0, 1.5, 0.647584, 0.187167),
        # n = 3: P(T < t) = 1/2 + t / (2 sqrt(2 + t^2)). Mean 1, s = 1, c = 2/3: scale 1.
        # Above 1/2: t = -1/2, 1/2 + 0.5 / (2 * 1.5) = 2/3. Below -1/2: t = -3/2,
        # 1/2 - 1.5 / (2 sqrt(4.25)) = 0.5 - 0.363803
        ([0, 1, 2], 0.5, 2 / 3, 0.666667, 0.136197),
        # c = 0: scale 1 / sqrt(3), t = -0.866025 and -2.598076:
        # 1/2 + 0.866025 / (2 * 1.658312); 1/2 - 2.598076 / (2 * 2.958040)
        ([0, 1, 2], 0.5, 0.0, 0.761116, 0.060845),
        # n = 5, mean 2, s^2 = 10 / 4, scale sqrt(0.5) = 0.707107. Quantiles of 4 degrees:
        # 0.95 at 2.131847, so P(gain > 2 - 2.131847 * 0.707107 = 0.492557) = 0.95;
        # below -0.492557: t = -3.524989, 1/2 - 3/8 u (1 - u^2 / 12) with
        # u = t / sqrt(1 + t^2 / 4) = 3.524989 / 2.026425 = 1.739511: 0.5 - 0.487829
        ([0, 1, 2, 3, 4], 0.492557, 0.0, 0.95, 0.012171),
        # 0.975 at 2.776445: ROPE 2 - 2.776445 * 0.707107 = 0.036757; below its negative
        # t = -2.880410, u = 2.880410 / 1.753337 = 1.642816: 0.5 - 0.616056 * 0.775096
        ([4, 2, 0, 3, 1], 0.036757, 0.0, 0.975, 0.022497),
        # c = 0.3: scale sqrt(2.5 * 0.5) = 1.118034. Mean -2; above 0.5: t = -2.236068,
        # u = 2.236068 / 1.5 = 1.490712: 0.5 - 0.559017 * 0.814815. Below -0.5: t = 1.341641,
        # u = 1.341641 / sqrt(1.45) = 1.114172: 0.5 + 0.417815 * 0.896552
        ([0, -1, -2, -3, -4], 0.5, 0.3, 0.044505, 0.874592),
    ],
)
def test_probabilities_are_those_worked_out_by_hand(
    gains: list[float], rope: float, correction: float, above: float, below: float
) -> None:
    known = posterior(gains, rope_pp=rope, correction=correction)
    assert known.p_above == pytest.approx(above, abs=2e-6)
    assert known.p_below == pytest.approx(below, abs=2e-6)
    assert known.p_inside == pytest.approx(1 - above - below, abs=3e-6)


def test_location_scale_and_interval_are_those_worked_out_by_hand() -> None:
    known = posterior([0, 1, 2, 3, 4], rope_pp=0.5, correction=0.3)
    assert known.pairs == 5
    assert known.mean_pp == pytest.approx(2)
    assert known.sd_pp == pytest.approx(math.sqrt(2.5))
    assert known.scale_pp == pytest.approx(1.118034, abs=1e-6)
    # the 0.975 quantile of 4 degrees is 2.776445: 2 -+ 3.104160
    assert known.interval_pp == pytest.approx((-1.104160, 5.104160), abs=1e-5)


def test_two_pairs_have_an_interval_of_a_cauchy() -> None:
    # the 0.975 quantile of 1 degree is tan(0.475 pi) = 12.706205; mean 2, scale 1
    assert posterior([1, 3], rope_pp=0.5).interval_pp == pytest.approx(
        (-10.706205, 14.706205), abs=1e-5
    )


# Ties


@pytest.mark.parametrize(
    ("value", "rope", "probabilities"),
    [
        (0.7, 0.5, (1, 0, 0)),
        (0.5, 0.5, (0, 1, 0)),  # an edge is inside
        (-0.5, 0.5, (0, 1, 0)),
        (0.3, 0.5, (0, 1, 0)),
        (-0.7, 0.5, (0, 0, 1)),
        (0.0, 0.0, (0, 1, 0)),  # two identical arms
        (0.1, 0.0, (1, 0, 0)),
        (-0.1, 0.0, (0, 0, 1)),
    ],
)
@pytest.mark.parametrize("correction", [0.0, 0.5])
@pytest.mark.parametrize("pairs", [2, 7])
def test_equal_gains_are_a_point_mass_and_an_edge_is_inside(
    value: float, rope: float, probabilities: tuple[int, ...], correction: float, pairs: int
) -> None:
    known = posterior([value] * pairs, rope_pp=rope, correction=correction)
    assert (known.p_above, known.p_inside, known.p_below) == probabilities
    assert known.sd_pp == 0
    assert known.interval_pp == (known.mean_pp, known.mean_pp)


def test_gains_that_differ_by_rounding_are_equal() -> None:
    accuracies = [(0.705, 0.7), (0.015, 0.01), (0.105, 0.1), (0.625, 0.62), (0.555, 0.55)]
    gains = [100 * (treated - control) for treated, control in accuracies]
    assert len(set(gains)) > 1
    assert posterior(gains, rope_pp=0.5).p_inside == 1


def test_the_smallest_real_difference_is_not_rounding() -> None:
    one_image_of_a_million = 1e-4
    assert posterior([1.0, 1.0, 1.0 + one_image_of_a_million], rope_pp=0.5).sd_pp > 0


# Twins


@FEW
@given(some_gains, ropes, corrections)
def test_it_agrees_with_the_slow_twin(gains: list[float], rope: float, correction: float) -> None:
    known = posterior(gains, rope_pp=rope, correction=correction)
    assert (known.p_above, known.p_inside, known.p_below) == pytest.approx(
        probabilities(gains, rope, correction), abs=1e-8
    )
    low, high = known.interval_pp
    if known.sd_pp:
        reach = (high - known.mean_pp) / known.scale_pp
        assert student_cdf(reach, len(gains) - 1) == pytest.approx(0.975, abs=1e-8)
        assert high - known.mean_pp == pytest.approx(known.mean_pp - low)


ORACLE = "baycomp is a development dependency: pip install -e '.[dev]'"


@pytest.mark.parametrize("runs", [1, 2, 5])
@pytest.mark.parametrize("rope", [0.25, 0.5, 1.5])
def test_it_agrees_with_baycomp_on_cross_validation(runs: int, rope: float) -> None:
    """It knows cross-validation alone: with k folds, n_test / n_train is 1 / (k - 1)."""
    baycomp = pytest.importorskip("baycomp", reason=ORACLE)
    rng = np.random.default_rng(runs)
    folds = 4
    for shift in (-1.0, 0.0, 0.4, 2.0):
        control = rng.normal(70, 2, folds * runs)
        treated = control + rng.normal(shift, 1, folds * runs)
        known = posterior(treated - control, rope_pp=rope, correction=1 / (folds - 1))
        oracle = baycomp.two_on_single(control, treated, rope=rope, runs=runs)
        assert (known.p_below, known.p_inside, known.p_above) == pytest.approx(oracle, abs=1e-10)


def test_it_agrees_with_baycomp_on_disjoint_draws() -> None:
    """No number of runs gives baycomp a correction of 0: its posterior is asked directly."""
    single = pytest.importorskip("baycomp.single", reason=ORACLE)
    rng = np.random.default_rng(0)
    for count in (2, 5, 20):
        gains = rng.normal(0.6, 1.0, count)
        oracle = single.Posterior(gains.mean(), gains.var(ddof=1) / count, count - 1, rope=0.5)
        known = posterior(gains, rope_pp=0.5)
        assert (known.p_below, known.p_inside, known.p_above) == pytest.approx(oracle.probs())


@pytest.mark.parametrize("value", [-1.0, -0.5, 0.2, 0.5, 1.0])
def test_a_point_mass_is_baycomps_too_edges_included(value: float) -> None:
    single = pytest.importorskip("baycomp.single", reason=ORACLE)
    known = posterior([value] * 3, rope_pp=0.5)
    oracle = single.Posterior(value, 0.0, 2, rope=0.5).probs()
    assert (known.p_below, known.p_inside, known.p_above) == oracle


# Symmetries


@FEW
@given(
    some_gains,
    ropes,
    corrections,
    st.sampled_from([0.01, 0.5, 3.0]),
    st.randoms(use_true_random=False),
)
def test_order_swapped_arms_and_units_change_what_they_should_and_nothing_else(
    gains: list[float], rope: float, correction: float, factor: float, random: Random
) -> None:
    one = posterior(gains, rope_pp=rope, correction=correction)
    parts, (low, high) = (one.p_below, one.p_inside, one.p_above), one.interval_pp
    assert sum(parts) == pytest.approx(1, abs=1e-12)
    assert all(0 <= part <= 1 for part in parts)
    assert low <= one.mean_pp <= high

    shuffled = random.sample(gains, len(gains))
    other = posterior(shuffled, rope_pp=rope, correction=correction)
    assert (other.p_below, other.p_above) == pytest.approx((parts[0], parts[2]), abs=1e-9)
    assert other.interval_pp == pytest.approx(one.interval_pp)

    swapped = posterior([-g for g in gains], rope_pp=rope, correction=correction)
    assert (swapped.p_above, swapped.p_inside, swapped.p_below) == pytest.approx(parts, abs=1e-12)
    assert swapped.interval_pp == pytest.approx((-high, -low))

    scaled = posterior([factor * g for g in gains], rope_pp=factor * rope, correction=correction)
    assert (scaled.p_below, scaled.p_above) == pytest.approx((parts[0], parts[2]), abs=1e-9)
    assert scaled.scale_pp == pytest.approx(factor * one.scale_pp)


@FEW
@given(some_gains, ropes)
def test_sharing_images_makes_it_less_sure(gains: list[float], rope: float) -> None:
    disjoint = posterior(gains, rope_pp=rope)
    shared = posterior(gains, rope_pp=rope, correction=0.25)
    assume(disjoint.sd_pp > 0)
    assert shared.scale_pp == pytest.approx(disjoint.scale_pp * math.sqrt(1 + 0.25 * len(gains)))
    if disjoint.mean_pp > rope:
        assert shared.p_above <= disjoint.p_above


# Many at once, and the resolution


def test_many_studies_have_the_numbers_of_each() -> None:
    rng = np.random.default_rng(4)
    gains = np.round(rng.normal(0.5, 0.6, (40, 3)) * 2) / 2  # halves: ties, and means on edges
    gains[0], gains[1], gains[2] = 0.5, -0.5, 0.7  # sure to be among them
    mean, sd = moments(gains)
    above, below = tails(mean, sd / math.sqrt(3), 2, 0.5)
    for row, study in enumerate(gains):
        known = posterior(study, rope_pp=0.5)
        assert (mean[row], sd[row]) == pytest.approx((known.mean_pp, known.sd_pp))
        assert (above[row], below[row]) == pytest.approx((known.p_above, known.p_below))


def test_ties_are_known_no_better_than_to_one_test_image() -> None:
    # two gains of 2.5 on 120 images: an image is worth 0.8333 pp, rounding's s.d. 0.240563, the
    # scale 0.170104; P(gain > 0.5) = 1/2 + atan(2 / 0.170104) / pi
    known = posterior([2.5, 2.5], rope_pp=0.5, resolution_pp=100 / 120)
    assert known.sd_pp == 0
    assert known.scale_pp == pytest.approx(0.170104, abs=1e-6)
    assert known.p_above == pytest.approx(0.5 + math.atan(2 / 0.170104) / math.pi, abs=1e-6)
    assert known.p_above < 0.98


def test_gains_that_spread_more_than_rounding_keep_their_own_spread() -> None:
    gains = [0.3, 0.9, 1.4, -0.2]
    assert posterior(gains, rope_pp=0.5, resolution_pp=0.01) == posterior(gains, rope_pp=0.5)
