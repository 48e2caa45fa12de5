"""What would settle a decision, by hand and by running decisions with so much more."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.stats.crossed import Crossed
from pipeline.stats.design import Design
from pipeline.stats.needed import Variances, needed
from pipeline.stats.posterior import posterior

D = Design(looks=(5, 10, 20), threshold=0.98, anytime=False, robust=False)


def test_pairs_are_those_worked_out_by_hand() -> None:
    # s = 1, gap 0.5: t quantile of 0.98 over sqrt(n) at most 0.5; n = 20: 2.2047 / 4.4721 = 0.493
    # n = 19: 2.2137 / 4.3589 = 0.508
    gains = np.array([0.0, 2.0, 1.0, 0.0, 2.0, 1.0])
    gains = (gains - 1) / gains.std(ddof=1) + 1
    assert needed(posterior(gains, rope_pp=0.5), D).pairs == 20 - 6
    assert needed(posterior(gains, rope_pp=0.5), D).images is None


def test_a_gain_on_the_edge_or_correlated_pairs_are_never_settled() -> None:
    assert needed(posterior([0.0, 1.0, 0.5], rope_pp=0.5), D).pairs is None
    known = posterior([0.0, 2.0, 1.0, 0.0, 2.0, 1.0], correction=1.0, rope_pp=0.5)
    assert needed(known, D).pairs is None
    sentence = needed(known, D).sentence()
    assert "more than 160 pairs in all would be needed" in sentence
    assert "test images" not in sentence  # what they would do is not known


def test_equal_gains_are_known_to_their_resolution_alone() -> None:
    # 30 test images: gains in steps of 3.33, a spread of 3.33 / sqrt(12) = 0.962 at least
    known = posterior([0.0] * 5, rope_pp=0.5, resolution_pp=100 / 30)
    found = needed(known, D).pairs
    assert found is not None
    n = found + 5  # 0.98 at n: t over sqrt(n) at most 0.5 / 0.962
    assert stats.t.ppf(0.98, n - 1) / n**0.5 <= 0.5 / 0.9623
    assert stats.t.ppf(0.98, n - 2) / (n - 1) ** 0.5 > 0.5 / 0.9623


def test_a_decision_of_more_pairs_than_usual_looks_further() -> None:
    gains = np.random.default_rng(0).normal(size=200)
    gains = (gains - gains.mean()) / gains.std(ddof=1) * 4 + 1  # s 4, gap 0.5: some 270 pairs
    design = Design(looks=(200, 400), threshold=0.98, anytime=False, robust=False)
    found = needed(posterior(gains, rope_pp=0.5), design)
    assert found.pairs is not None
    assert 200 + found.pairs == pytest.approx((stats.norm.ppf(0.98) * 4 / 0.5) ** 2, rel=0.02)
    far = needed(posterior(gains * 4, rope_pp=0.5), design)
    assert far.pairs is None or far.pairs > 0
    edge = needed(posterior(gains - 0.5, rope_pp=0.5), design).sentence()
    assert "more than 400 pairs in all would be needed" in edge


def test_an_anytime_design_goes_to_a_look_of_its_grid() -> None:
    gains = np.array([0.0, 2.0, 1.0, 0.0, 2.0, 1.0])
    gains = (gains - 1) / gains.std(ddof=1) + 1
    anytime = Design(robust=False)
    # 0.99 at 40: 2.4258 / 6.3246 = 0.384; at 0.998 first at 36 or so: 3.09 / 6 = 0.515
    found = needed(posterior(gains, rope_pp=0.5), anytime).pairs
    assert found is not None
    n = found + 6
    assert stats.t.ppf(anytime.threshold_at(n), n - 1) / n**0.5 <= 0.5
    assert stats.t.ppf(anytime.threshold_at(n - 1), n - 2) / (n - 1) ** 0.5 > 0.5


def tables(images: int, pairs: int, seed: int) -> np.ndarray:
    """Images decide: 3% are always won, 1.5% always lost, 2% come and go."""
    rng = np.random.default_rng(seed)
    kind = rng.random(images)
    always = (kind < 0.03).astype(int) - (kind > 0.985)
    come = rng.choice([-1, 0, 1], p=[0.01, 0.98, 0.01], size=(pairs, images))
    return np.where(always, always, come).astype(np.int8)


def test_where_images_are_few_it_asks_for_images_and_these_settle_it() -> None:
    table = tables(800, 20, 1)
    known = Crossed.of(table).posterior(rope_pp=0.5)
    found = needed(known, D, table)
    assert found.pairs is None
    assert found.images is not None
    assert f"about {found.images:,} more test images" in found.sentence()
    # as many more of the same: the gain and the variances stay as they are
    times = 1 + found.images / 800
    more = np.tile(table, (1, int(np.ceil(times * 1.1))))
    assert Crossed.of(more).posterior(rope_pp=0.5).p_above >= 0.98
    assert known.p_above < 0.98


def test_the_scale_foreseen_is_the_one_found() -> None:
    table = tables(1000, 10, 5)
    one = Crossed.of(table)
    pair, image, rest = one.components
    foreseen = Variances(pair=pair, image=image, rest=rest).scales(10, 1000)
    assert foreseen == pytest.approx([float(x) for x in one.scales()], rel=0.02)
