"""Looks and verdicts against hand-made gains and the slow twin; the words they are told in."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stats.design import Design
from pipeline.stats.verdict import Verdict, decide_at_look, verdict
from tests.verdict_twin import walk

D = Design(looks=(5, 10, 20), threshold=0.98, anytime=False, robust=False)
BASE = [-2.0, -1.0, 0.0, 1.0, 2.0]  # mean 0, scale sqrt(2.5 / 5) = 0.707107
NOISE = [-1.0, 1.0] * 10
FEW = settings(max_examples=80, deadline=None, derandomize=True, database=None)


def around(mean_pp: float) -> list[float]:
    return [mean_pp + step for step in BASE]


def ending(found: Verdict) -> str:
    return found.kind or found.state


# One look. The 0.98 quantile of 4 degrees is 2.998528: 2.998528 * 0.707107 = 2.120279 from an edge


@pytest.mark.parametrize(
    ("mean_pp", "state", "kind"),
    [
        (2.6204, "justified", None),  # 0.5 + 2.1204
        (2.6201, "go_on", None),
        (0.5, "go_on", None),
        (-1.6201, "go_on", None),  # 0.5 - 2.1201
        (-1.6204, "not_justified", "no_gain"),
        (-2.6201, "not_justified", "no_gain"),  # -0.5 - 2.1201
        (-2.6204, "not_justified", "harmful"),
    ],
)
def test_a_verdict_falls_at_the_threshold_worked_out_by_hand(
    mean_pp: float, state: str, kind: str | None
) -> None:
    look = decide_at_look(around(mean_pp), D)
    assert (look.state, look.kind) == (state, kind)


def test_a_correction_moves_the_threshold_as_worked_out_by_hand() -> None:
    # c = 0.3: scale sqrt(2.5 * 0.5) = 1.118034, 2.998528 * 1.118034 = 3.352456
    assert decide_at_look(around(3.8526), D, 0.3).state == "justified"
    assert decide_at_look(around(3.8523), D, 0.3).state == "go_on"


def test_a_probability_of_exactly_the_threshold_is_enough() -> None:
    # two pairs 0 and 2 around 1: scale 1, P(gain > 0) = 1/2 + atan(1) / pi = 0.75
    for rope_pp, state in ((0.0, "justified"), (0.001, "inconclusive")):
        design = replace(D, rope_pp=rope_pp, looks=(2,), threshold=0.75)
        assert decide_at_look([0.0, 2.0], design).state == state


@pytest.mark.parametrize(
    ("value", "ends"),
    [(0.51, "justified"), (0.5, "equivalent"), (-0.5, "equivalent"), (-0.51, "harmful")],
)
def test_equal_gains_decide_at_the_first_look_and_an_edge_is_not_a_gain(
    value: float, ends: str
) -> None:
    found = verdict([value] * 5, D)
    assert ending(found) == ends
    assert found.reason.endswith("all gains are equal")


def test_the_last_look_without_a_finding_is_inconclusive() -> None:
    assert decide_at_look(NOISE, D).state == "inconclusive"
    assert decide_at_look(NOISE[:10], D).state == "go_on"


# The walk


def test_the_path_holds_every_look_up_to_the_verdict() -> None:
    gains = [-0.5, 2.5, 1.0, -0.5, 2.5, 2.0, 2.5, 2.0, 1.5, 2.0]
    found = verdict(gains, D)
    assert [look.state for look in found.looks] == ["go_on", "justified"]
    assert [look.posterior.mean_pp for look in found.looks] == pytest.approx([1.0, 1.5])
    assert found.posterior == found.looks[1].posterior
    assert (found.pairs, found.pairs_needed) == (10, 0)


def test_gains_beyond_the_verdict_are_not_used() -> None:
    assert verdict([*around(3.0), *[-50.0] * 15], D) == verdict(around(3.0), D)
    assert verdict([*NOISE, 90.0], D) == verdict(NOISE, D)


@pytest.mark.parametrize(
    ("pairs", "looks", "used", "needed"),
    [(0, 0, 0, 5), (4, 0, 0, 1), (5, 1, 5, 5), (7, 1, 5, 3), (19, 2, 10, 1)],
)
def test_before_a_verdict_it_says_how_many_pairs_are_missing(
    pairs: int, looks: int, used: int, needed: int
) -> None:
    found = verdict(NOISE[:pairs], D)
    assert (found.state, found.kind) == ("go_on", None)
    assert (len(found.looks), found.pairs, found.pairs_needed) == (looks, used, needed)
    assert (found.posterior is None) == (looks == 0)
    assert f"the next look needs {needed} more" in found.reason


def test_the_order_of_the_pairs_decides_when_the_verdict_falls() -> None:
    early, late = around(3.0), around(-3.0)
    assert verdict(early + late, D).state == "justified"
    assert ending(verdict(late + early, D)) == "harmful"


@FEW
@given(
    st.integers(-6, 6),
    st.lists(st.integers(-4, 4), max_size=24),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([(5, 10, 20), (2, 3), (2, 4, 6, 8), (7,)]),
    st.sampled_from([0.6, 0.9, 0.98]),
    st.sampled_from([0.0, 0.25]),
)
def test_it_ends_as_the_slow_twin_does(
    centre: int,
    steps: list[int],
    rope_pp: float,
    looks: tuple[int, ...],
    threshold: float,
    correction: float,
) -> None:
    gains = [(centre + step) / 2 for step in steps]  # halves: ties, and means on edges
    found = verdict(
        gains, replace(D, rope_pp=rope_pp, looks=looks, threshold=threshold), correction
    )
    assert (ending(found), found.pairs) == walk(gains, looks, rope_pp, threshold, correction)


@FEW
@given(st.lists(st.floats(1.5, 4), min_size=5, max_size=20))
def test_swapping_the_arms_turns_justified_into_not_justified(gains: list[float]) -> None:
    found, swapped = verdict(gains, D), verdict([-g for g in gains], D)
    if found.state == "justified":
        assert swapped.state == "not_justified"
        # a gain may be ruled out at an earlier look: that needs less than showing a harm
        assert swapped.kind == "harmful" or swapped.pairs < found.pairs
    assert swapped.state != "justified"


# Words


@pytest.mark.parametrize(
    ("gains", "sentence"),
    [
        # mean 1.8, s^2 = 0.13 / 4, scale 0.080623; 2.776445 * 0.080623 = 0.223844
        (
            [1.5, 2.0, 1.8, 1.9, 1.8],
            "Stage 3 gains +1.8 pp (95% interval +1.6 to +2.0, 5 pairs): justified.",
        ),
        (
            [-1.5, -2.0, -1.8, -1.9, -1.8],
            "Stage 3 loses 1.8 pp (95% interval -2.0 to -1.6, 5 pairs): not justified, harmful.",
        ),
        (
            [0.02, -0.03, 0.0, -0.04, 0.01],
            "Stage 3 gains +0.0 pp (95% interval +0.0 to +0.0, 5 pairs): not justified, a gain "
            "above 0.5 pp is ruled out.",
        ),
        # 20 times +-1: s^2 = 20 / 19, scale 0.229416; 2.093024 * 0.229416 = 0.480173
        (
            [g + 0.5 for g in NOISE],
            "Stage 3 gains +0.5 pp (95% interval +0.0 to +1.0, 20 pairs): inconclusive, whether "
            "it gains more than 0.5 pp stays open.",
        ),
        # mean -0.2, s^2 = 4.8 / 4, scale 0.489898; 2.776445 * 0.489898 = 1.360175
        (
            NOISE[:9],
            "Stage 3 loses 0.2 pp (95% interval -1.6 to +1.2, 5 pairs): no verdict yet, 1 pair to "
            "the next look.",
        ),
        ([0.1, 0.2], "Stage 3: no verdict yet, 3 pairs to the first look."),
    ],
)
def test_the_sentence_says_the_gain_how_sure_and_what_follows(
    gains: list[float], sentence: str
) -> None:
    assert verdict(gains, D).sentence() == sentence
    of_arms = verdict(gains, D).sentence("full", "stage 2 continued")
    assert of_arms.startswith("Full")
    assert ("against stage 2 continued (95% interval" in of_arms) == (len(gains) > 2)


def test_reasons_hold_the_odds_and_the_threshold() -> None:
    # P(gain > 0.5) at t = 2.5 / 0.707107 = 3.535534, 4 degrees: u = 1.740777, 0.987948
    assert verdict(around(3.0), D).reason == "P(gain > 0.5 pp) = 0.988 is at least 0.98"
    assert verdict(around(-3.0), D).reason == "P(gain < -0.5 pp) = 0.988 is at least 0.98"
    assert verdict(around(-2.0), D).reason == (
        "P(gain <= 0.5 pp) = 0.988 is at least 0.98, P(gain < -0.5 pp) = 0.949 is not"
    )
    assert verdict([g + 0.5 for g in NOISE], D, 0.25).reason == (
        "after the last look, 20 pairs, P(gain > 0.5 pp) = 0.500 and P(gain <= 0.5 pp) = 0.500 "
        "are below 0.98; pairs share images (correction 0.25)"
    )
    nothing = replace(D, rope_pp=0)
    assert "P(gain < 0 pp)" in verdict(around(-3.0), nothing).reason


@pytest.mark.parametrize("threshold", [0.57, 0.9, 0.98, 0.9999])
def test_odds_are_never_rounded_across_the_threshold(threshold: float) -> None:
    for step in range(400):
        gains = [1 + step / 100, 0.0]
        look = decide_at_look(gains, replace(D, rope_pp=0, looks=(2,), threshold=threshold))
        first = re.search(r"= (\d\.\d+)", look.reason)
        assert first is not None
        assert (float(first[1]) >= threshold) == (look.state == "justified")
