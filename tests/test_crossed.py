"""Crossed random effects by hand, against a plain analysis of variance, and by their coverage."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, stats

from pipeline.stats.crossed import Crossed
from pipeline.stats.design import Design
from pipeline.stats.operating import operating_characteristics, walk_studies
from pipeline.stats.posterior import cdf, posterior, tails
from pipeline.stats.simulated import World, image_characteristics, walk_tables
from pipeline.stats.verdict import decide_at_look, verdict

SMALL = np.array([[1, 0, 0, 1], [1, 0, -1, 0]], dtype=np.int8)


def drawn(pairs: int, images: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    effect = rng.normal(0.2, 1, images) + rng.normal(0, 0.5, (pairs, 1))
    noisy = effect + rng.standard_normal((pairs, images))
    return (noisy > 1.2).astype(np.int8) - (noisy < -1.5).astype(np.int8)


# By hand


def test_mean_squares_are_those_worked_out_by_hand() -> None:
    # row means 1/2 and 0, column means 1, 0, -1/2, 1/2, mean 1/4
    # pairs: 4 * (1/16 + 1/16) / 1; images: 2 * (9 + 1 + 9 + 1) / 16 / 3
    # all: 4 cells of +-1, 4 - 8/16 = 3.5; the rest: (3.5 - 0.5 - 2.5) / 3
    assert Crossed.of(SMALL).mean_squares == pytest.approx((0.5, 2.5 / 3, 0.5 / 3))
    # pair (0.5 - 0.1667) / 4, image (0.8333 - 0.1667) / 2, in squared pp
    assert Crossed.of(SMALL).components == pytest.approx((833.333, 3333.333, 1666.667), rel=1e-5)


@pytest.mark.parametrize(
    ("correction", "added", "of_pairs", "of_images"),
    [
        # pair 0.5 / 8 = 0.0625; image 2.5 / 24 = 0.104167 less the rest, 0.5 / 24 = 0.020833
        (0.0, 0.0, 25.0, 28.8675),
        # one image won and one lost: (1 + 1/4 + 1/4 + 2 - 1 / 6) / 5 / 6 = 0.111111
        (0.0, 1.0, 25.0, 30.0463),
        # pair 0.125 * (1/2 + 1/2) = 0.125
        (0.5, 0.0, 35.3553, 28.8675),
    ],
)
def test_both_scales_are_those_worked_out_by_hand(
    correction: float, added: float, of_pairs: float, of_images: float
) -> None:
    found = Crossed.of(SMALL).scales(correction, added)
    assert found == pytest.approx((of_pairs, of_images), rel=1e-4)


def test_the_posterior_is_a_cauchy_and_a_normal_around_the_mean_gain() -> None:
    known = Crossed.of(SMALL).posterior(rope_pp=0.5)
    assert (known.pairs, known.mean_pp) == (2, 25)
    assert known.sd_pp == pytest.approx(50 / math.sqrt(2))
    low, high = known.interval_pp
    assert low + high == pytest.approx(50)
    rng = np.random.default_rng(0)
    drawn = 25 + 25 * rng.standard_cauchy(400_000) + 30.0463 * rng.standard_normal(400_000)
    assert np.mean((drawn > low) & (drawn < high)) == pytest.approx(0.95, abs=0.002)
    assert np.mean(drawn > 0.5) == pytest.approx(known.p_above, abs=0.003)
    assert np.mean(drawn < -0.5) == pytest.approx(known.p_below, abs=0.003)


# Against others


@pytest.mark.parametrize(("pairs", "images"), [(2, 5), (5, 150), (20, 37)])
def test_mean_squares_are_those_of_sums_over_residuals(pairs: int, images: int) -> None:
    table = drawn(pairs, images, pairs)
    by_pair, by_image, mean = table.mean(1, keepdims=True), table.mean(0), table.mean()
    rest = table - by_pair - by_image + mean
    expected = (
        images * ((by_pair - mean) ** 2).sum() / (pairs - 1),
        pairs * ((by_image - mean) ** 2).sum() / (images - 1),
        (rest**2).sum() / (pairs - 1) / (images - 1),
    )
    assert Crossed.of(table).mean_squares == pytest.approx(expected)


def test_without_effects_of_images_it_is_the_posterior_of_the_gains() -> None:
    rng = np.random.default_rng(0)
    table = np.array(
        [rng.permutation(np.r_[np.ones(k), np.zeros(99_000 - k)]) for k in (700, 900, 500, 800)]
    )
    known = Crossed.of(table.astype(np.int8)).posterior(rope_pp=0.5)
    alone = posterior(100 * table.mean(1), rope_pp=0.5)
    assert (known.mean_pp, known.sd_pp) == pytest.approx((alone.mean_pp, alone.sd_pp))
    assert known.p_above == pytest.approx(alone.p_above, abs=0.002)
    assert known.scale_pp == pytest.approx(alone.scale_pp, rel=0.01)


def test_more_pairs_on_the_same_images_do_not_make_the_images_more() -> None:
    # images decide everything but for one image a pair
    table = np.tile(drawn(1, 200, 1), (160, 1))
    table[np.arange(160), np.arange(160)] = 0
    alone = 100 * table[0].std() / math.sqrt(200)
    assert posterior(100 * table.mean(1), rope_pp=0.5).scale_pp < alone / 50
    for pairs in (5, 40, 160):
        known = Crossed.of(table[:pairs]).posterior(rope_pp=0.5)
        assert alone * 0.95 < math.hypot(known.scale_pp, known.images_pp) < alone * 1.1


def test_images_that_never_differ_are_no_certainty() -> None:
    """No disagreement on 150 images does not rule out one in a hundred."""
    nothing = np.zeros((20, 150), dtype=np.int8)
    assert decide_at_look([0.0] * 20, Design()).kind == "equivalent"
    assert decide_at_look([0.0] * 20, Design(), differences=nothing).state == "go_on"
    many = np.zeros((20, 10_000), dtype=np.int8)
    assert decide_at_look([0.0] * 20, Design(), differences=many).kind == "equivalent"


def test_a_walk_takes_the_first_rows_of_the_differences() -> None:
    table = drawn(12, 60, 4)
    found = verdict(100 * table.mean(1), Design(), differences=table)
    assert [look.posterior for look in found.looks] == [
        Crossed.of(table[:n]).posterior(rope_pp=0.5) for n in (5, 10)[: len(found.looks)]
    ]


# Coverage


def test_simulated_sums_are_those_of_tables_with_the_asked_gain() -> None:
    world = World(images=400, disagree=0.1, by_image=0.4, spread_pp=0.5)
    tables = world.studies(np.random.default_rng(0), 600, 1.5, (5, 10))
    for table in tables:
        error = table.mean.std() / math.sqrt(600)
        assert table.mean.mean() == pytest.approx(0.015, abs=4 * error)
        cells = table.pairs * table.images
        assert table.square_cell.mean() / cells == pytest.approx(0.1, rel=0.03)
        stated = (np.maximum(sum(table.mean_squares[:2]) - table.mean_squares[2], 0)) / cells
        assert stated.mean() == pytest.approx(table.mean.var(), rel=0.25)


@pytest.mark.parametrize("images", [150, 300, 1000])
def test_a_gain_at_the_edge_is_told_in_at_most_one_of_twenty_decisions(images: int) -> None:
    world = World(images=images, disagree=0.04, by_image=0.6)
    design = Design()
    row = image_characteristics(design, world, [0.5], studies=600).loc[0]
    error = math.sqrt(0.05 * 0.95 / 600)
    assert row["justified"] <= 0.05 + 2 * error
    assert row["not justified"] <= 0.05 + 2 * error


@pytest.mark.parametrize("pairs", [2, 3, 4, 5])
@pytest.mark.parametrize("images", [300, 2000])
def test_few_pairs_err_no_more_often_than_their_odds_say(pairs: int, images: int) -> None:
    world, edge = World(images=images, spread_pp=1.0), 0.5
    (table,) = world.studies(np.random.default_rng(pairs), 4000, edge, [pairs])
    scale_pp, images_pp = table.scales()
    above, _ = tails(100 * table.mean, scale_pp, pairs - 1, edge, images_pp)
    for odds in (above, 1 - above):
        assert np.mean(odds >= 0.99) <= 0.01 + 3 * math.sqrt(0.01 / 4000)
    assert np.mean((above > 0.025) & (above < 0.975)) >= 0.945


@pytest.mark.parametrize("degrees", [1, 2, 4, 19, 159])
@pytest.mark.parametrize(("of_pairs", "of_images"), [(1.0, 0.3), (0.02, 1.0), (1.0, 1e-6)])
def test_the_sum_of_both_parts_is_the_integral(
    degrees: int, of_pairs: float, of_images: float
) -> None:
    for at in (-3.0, -0.4, 0.0, 0.7, 5.0):

        def given(z: float, at: float = at) -> float:
            chance = stats.t.cdf((at - of_images * z) / of_pairs, degrees)
            return float(stats.norm.pdf(z) * chance)

        edge = float(np.clip(at / of_images, -9, 9))
        total, _ = integrate.quad(given, -9, 9, points=[edge], limit=500)
        found = cdf(np.asarray(at), np.asarray(of_pairs), degrees, of_images)
        assert found == pytest.approx(total, abs=1e-7)
        assert cdf(np.asarray(at), np.asarray(of_pairs), degrees, 0.0) == pytest.approx(
            stats.t.cdf(at / of_pairs, degrees), abs=1e-12
        )


def test_resampled_pairs_are_foreseen_to_err_together() -> None:
    """As the simulation of gains alone has it, of the spread that is seen within a pool."""
    design, correction, spread = Design(robust=False), 0.8, 1.0
    world = World(images=10_000, by_image=0.0, spread_pp=spread, correction=correction)
    gains = (0.0, 0.5, 2.0)
    found = image_characteristics(design, world.with_room(), gains, studies=600)
    sd = spread * math.sqrt(1 + correction)
    by_gains = operating_characteristics(design, sd, gains, correction=correction)
    for column in ("justified", "not justified"):
        assert found[column].to_numpy() == pytest.approx(by_gains[column].to_numpy(), abs=0.06)
    alone = image_characteristics(design, replace(world, correction=0.0), gains, studies=600)
    assert alone["justified"][2] > found["justified"][2] + 0.3


def test_gains_that_spread_very_far_can_be_simulated() -> None:
    for spread in (6.0, 8.0, 10.3, 11.1, 16.5, 100.0):
        for correction in (0.0, 0.3, 2.0):
            world = World(images=150, spread_pp=spread, correction=correction).with_room()
            assert world.studies(np.random.default_rng(0), 20, 2.0, [5])


@pytest.mark.parametrize("spread", [0.5, 2.0, 5.0])
def test_simulated_gains_spread_as_far_as_is_asked(spread: float) -> None:
    world = World(images=2000, spread_pp=spread).with_room()
    (table,) = world.studies(np.random.default_rng(0), 800, 0.5, [10])
    chance = 1e4 * world.fickle / 2000
    sd = 100 * np.sqrt((table.ss_pair / 9).mean())
    assert math.sqrt(sd**2 - chance) == pytest.approx(spread, rel=0.1)


def test_without_the_images_it_would_be_told_in_one_of_four() -> None:
    world = World(images=300, disagree=0.04, by_image=0.6)
    tables = world.studies(np.random.default_rng(1), 500, 0.5, (20,))
    ends, _ = walk_tables(tables, Design(looks=(20,), threshold=0.98, robust=False))
    rng = np.random.default_rng(2)
    table = tables[0]
    sd = np.sqrt(table.ss_pair / 19)[:, None]
    noise = rng.standard_normal((500, 20))
    gains = 100 * (table.mean[:, None] + sd * (noise - noise.mean(1, keepdims=True)))
    naive, _ = walk_studies(gains, Design(looks=(20,), threshold=0.98, robust=False))
    assert np.mean(naive == "justified") > 0.2
    assert np.mean(ends == "justified") < 0.05


def test_many_studies_end_as_each_does_alone() -> None:
    rng = np.random.default_rng(3)
    design = Design(looks=(3, 6), threshold=0.9, robust=False)
    data = [drawn(6, 80, seed) for seed in rng.integers(1000, size=12)]
    looks = []
    for look in design.looks:
        each = [Crossed.of(table[:look]) for table in data]
        fields = {
            name: np.array([getattr(one, name) for one in each])
            for name in ("mean", "ss_pair", "square_image", "square_cell")
        }
        looks.append(Crossed(pairs=look, images=80, **fields))
    ends, used = walk_tables(looks, design)
    for end, pairs, table in zip(ends, used, data, strict=True):
        alone = verdict(100 * table.mean(1), design, differences=table)
        assert (end, pairs) == (alone.kind or alone.state, alone.pairs)
