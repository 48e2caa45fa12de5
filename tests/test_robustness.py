"""Single pairs left out, by hand and against verdicts without them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from pipeline.stats.crossed import Crossed
from pipeline.stats.design import Design
from pipeline.stats.operating import operating_characteristics, walk_studies
from pipeline.stats.posterior import moments, posterior
from pipeline.stats.robustness import many_stand, robustness, without_each
from pipeline.stats.verdict import decide_at_look, verdict


def test_the_record_is_the_one_worked_out_by_hand() -> None:
    # without 3: mean 1, s = 0 -> all mass on 1; without a 1: mean 5/3
    record = robustness([1, 1, 3, 1], rope_pp=0.5)
    assert record.means_pp == pytest.approx((5 / 3, 5 / 3, 1, 5 / 3))
    assert (record.smallest_pp, record.largest_pp) == (1, 3)
    # deviations -1/2 three times, 3/2: (27/8 - 3/8) / 4 over (3/4)^1.5
    assert record.skew == pytest.approx(0.75 / 0.75**1.5)
    # 1, 1, 3: s^2 = 4/3, scale 2/3; t = (5/3 - 1/2) / (2/3) = 1.75, 2 degrees:
    # 1/2 + 1.75 / (2 sqrt(2 + 3.0625)) = 0.888889
    assert record.p_above == pytest.approx((0.888889, 0.888889, 1, 0.888889), abs=1e-6)
    assert record.keeps_sign
    assert record.weakest == 0
    assert "without pair 1: +1.67 pp, P(gain) = 0.889" in record.sentence


def test_a_sign_that_a_pair_changes_is_told() -> None:
    assert not robustness([-0.1, -0.2, 0.1, 2.0], rope_pp=0.0).keeps_sign
    assert robustness([0.1, 0.2, 0.1, 2.0], rope_pp=0.0).keeps_sign


def test_equal_gains_have_no_skew() -> None:
    assert robustness([0.7] * 5, rope_pp=0.5).skew == 0


def test_skew_and_odds_are_those_of_others() -> None:
    gains = np.random.default_rng(0).exponential(1, 12)
    record = robustness(gains, rope_pp=0.5, correction=0.1, resolution_pp=0.05)
    assert record.skew == pytest.approx(float(stats.skew(gains)))
    alone = [
        posterior(np.delete(gains, i), rope_pp=0.5, correction=0.1, resolution_pp=0.05).p_above
        for i in range(12)
    ]
    assert record.p_above == pytest.approx(alone)


def test_with_images_the_odds_cover_other_images() -> None:
    table = (np.random.default_rng(1).random((6, 300)) < 0.03).astype(np.int8)
    record = robustness(100 * table.mean(1), rope_pp=0.5, differences=table)
    alone = [Crossed.of(np.delete(table, i, axis=0)).posterior(rope_pp=0.5) for i in range(6)]
    assert record.p_above == pytest.approx([one.p_above for one in alone])


# five gains of which one is low: P(gain > 0.5) = 0.981 with all; without a high one it is lower
CARRIED = [2.0, 2.2, 2.1, 2.3, 0.75]


def test_a_verdict_that_a_single_pair_carries_is_not_told() -> None:
    strict = Design(looks=(5, 10), threshold=0.98, anytime=False)
    plain = replace(strict, robust=False)
    gains = _just_justified()
    assert decide_at_look(gains, plain).state == "justified"
    look = decide_at_look(gains, strict)
    assert (look.state, look.kind) == ("go_on", None)
    assert "carries it" in look.reason
    assert decide_at_look([2.0, 2.1, 2.2, 2.1, 2.0], strict).state == "justified"


def _just_justified() -> list[float]:
    """Gains that only just reach 0.98, one of them close to the edge."""
    low = np.arange(-1.0, 2.0, 0.01)
    found = [[*CARRIED[:4], float(x)] for x in low]
    return next(g for g in found if posterior(g, rope_pp=0.5).p_above >= 0.98)


def test_many_studies_end_as_each_does_alone() -> None:
    design = Design(looks=(3, 5, 8), threshold=0.98, anytime=False)
    gains = np.random.default_rng(2).normal(1.4, 0.8, (400, 8)).round(1)
    ends, used = walk_studies(gains, design)
    plain, _ = walk_studies(gains, replace(design, robust=False))
    assert (ends != plain).any()
    for end, pairs, study in zip(ends, used, gains, strict=True):
        alone = verdict(study, design)
        assert (end, pairs) == (alone.kind or alone.state, alone.pairs)


def test_two_pairs_stand_for_want_of_spread() -> None:
    assert many_stand(np.array([[1.0, 2.0]]), 0.5, 0.98).all()
    assert decide_at_look([3.0, 3.0], Design(looks=(2,))).state == "justified"


@pytest.mark.parametrize("count", [3, 4, 10])
def test_what_is_left_without_a_pair_is_that_of_the_others(count: int) -> None:
    gains = np.random.default_rng(count).normal(0.4, 2.0, (50, count)).round(1)
    gains[0], gains[1, 1:], gains[2, :2] = 0.7, -3.3, 1.1  # all tie, all but one, two
    mean, sd = without_each(gains)
    for pair in range(count):
        of_others = moments(np.delete(gains, pair, axis=1))
        assert mean[:, pair] == pytest.approx(of_others[0])
        assert sd[:, pair] == pytest.approx(of_others[1], abs=1e-12)
    assert sd[1, 0] == 0


def test_a_thousand_pairs_are_simulated_in_little_memory() -> None:
    """A table of each study without each pair had terabytes."""
    design = Design(looks=(1000,))
    row = operating_characteristics(design, 1.0, [2.0], studies=2000).loc[0]
    assert row["justified"] == 1.0
