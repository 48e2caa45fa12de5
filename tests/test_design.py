"""A design refuses what it cannot decide by, and names the option."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import DesignError, PipelineError
from pipeline.stats.design import Design, parse_looks


def test_the_default_is_the_one_whose_error_rates_are_documented() -> None:
    assert Design() == Design(rope_pp=0.5, looks=(5, 10, 20), threshold=0.98)


@pytest.mark.parametrize(
    ("text", "looks"),
    [("5,10,20", (5, 10, 20)), (" 5, 10 ,20 ", (5, 10, 20)), ("2", (2,)), ("2,3", (2, 3))],
)
def test_looks_are_read_from_text(text: str, looks: tuple[int, ...]) -> None:
    assert parse_looks(text) == looks
    assert Design(looks=parse_looks(text)).looks == looks


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "5,", "5,,10", "5;10", "5 10", "five", "5.0", "-5", "+5", "1_0", "[5,10]"),
        *("1,5", "0", "5,5", "10,5", "9" * 5000, "\u0665"),
    ],
)
def test_text_that_is_not_looks_is_refused_on_one_line(text: str) -> None:
    with pytest.raises(DesignError, match=r"^looks are '.*'.*-P looks=5,10,20$"):
        parse_looks(text)


@pytest.mark.parametrize("looks", [(), (1,), (5, 5), (10, 5), (5, 10, 9), (5.0,), (True, 5)])
def test_looks_must_be_whole_and_rise(looks: tuple[int, ...]) -> None:
    with pytest.raises(DesignError, match="-P looks=5,10,20"):
        Design(looks=looks)


@pytest.mark.parametrize("rope_pp", [-0.1, 100.0, float("nan"), float("inf"), True, "0.5"])
def test_a_rope_out_of_range_is_refused(rope_pp: float) -> None:
    with pytest.raises(DesignError, match=r"^rope_pp is .*-P rope_pp=0.5$"):
        Design(rope_pp=rope_pp)


@pytest.mark.parametrize("threshold", [0.5, 0.0, 1.0, 98.0, float("nan"), None])
def test_a_threshold_that_is_no_confidence_is_refused(threshold: float) -> None:
    with pytest.raises(DesignError, match=r"^threshold is .*-P threshold=0.98$"):
        Design(threshold=threshold)


def test_the_limits_themselves_are_accepted_and_lists_become_tuples() -> None:
    assert Design(rope_pp=0, looks=[2, 3], threshold=0.51).looks == (2, 3)  # type: ignore[arg-type]
    assert Design(looks=tuple(np.array([5, 10]))).looks == (5, 10)
    assert issubclass(DesignError, PipelineError)


def test_a_changed_design_is_checked_too() -> None:
    with pytest.raises(DesignError, match="threshold"):
        replace(Design(), threshold=2.0)


@pytest.mark.parametrize(
    ("pairs", "missing"), [(0, 5), (4, 1), (5, 5), (7, 3), (10, 10), (19, 1), (20, 0), (99, 0)]
)
def test_pairs_to_the_next_look(pairs: int, missing: int) -> None:
    assert Design().pairs_to_next_look(pairs) == missing
