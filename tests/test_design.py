"""A design is read from options; what nothing can be decided by is refused."""

from __future__ import annotations

import pytest

from pipeline.settings.entry import CompareSettings, DecideSettings
from pipeline.stats.design import Design


def test_the_default_is_the_one_whose_error_rates_are_documented() -> None:
    documented = Design(
        rope_pp=0.5, looks=(5, 10, 20, 40), threshold=0.99, anytime=True, robust=True
    )
    assert DecideSettings().design == Design() == documented
    assert CompareSettings().rope_pp == documented.rope_pp


@pytest.mark.parametrize(
    ("text", "looks"), [(" 5, 10 ,20 ", (5, 10, 20)), ("2", (2,)), ("2,3", (2, 3))]
)
def test_looks_are_read_from_text(text: str, looks: tuple[int, ...]) -> None:
    assert DecideSettings(looks=text).design.looks == looks


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("looks", text) for text in ("", ",", "5,", "5,,10", "5;10", "5 10", "five", "5.0")),
        *(("looks", text) for text in ("-5", "+5", "1_0", "[5,10]", "1,5", "0", "5,5", "10,5")),
        *(("looks", text) for text in ("9" * 5000, "\u0665")),
        *(("rope_pp", number) for number in (-0.1, 100.0, float("nan"), float("inf"))),
        *(("threshold", number) for number in (0.5, 0.0, 1.0, 98.0, float("nan"), None)),
    ],
)
def test_what_nothing_can_be_decided_by_is_refused(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=option):
        DecideSettings.model_validate({option: value})
    if option == "rope_pp":
        with pytest.raises(ValueError, match=option):
            CompareSettings.model_validate({option: value})


@pytest.mark.parametrize(
    ("pairs", "missing"), [(0, 5), (5, 5), (7, 3), (19, 1), (20, 20), (40, 0), (99, 0)]
)
def test_pairs_to_the_next_look(pairs: int, missing: int) -> None:
    assert Design().pairs_to_next_look(pairs) == missing


def test_an_anytime_design_asks_for_more_away_from_its_grid() -> None:
    plain, anytime = Design(anytime=False), Design()
    assert [plain.threshold_at(n) for n in (5, 6, 40)] == [0.99] * 3
    assert [anytime.threshold_at(n) for n in (5, 40, 160)] == [0.99] * 3
    assert [anytime.threshold_at(n) for n in (6, 41)] == pytest.approx([0.998] * 2)
    assert anytime.off_grid == anytime.threshold_at(6)
