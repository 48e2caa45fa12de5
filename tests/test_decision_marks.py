"""What a decision leaves on runs that it rests on: never over what another question has left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.comparing.decision import Decision, verdict_of
from pipeline.comparing.pages.decision import mark
from pipeline.tracking import Tracking
from tests.test_decision import decision


def tags_after(*decisions: Decision) -> dict[str, str]:
    """What a run carries that these decisions rest on, one after another."""
    tracking = Tracking.connect()
    run_id = tracking.start("a run", {"kind": "stage"})
    for number, made in enumerate(decisions):
        mark(made, f"decision {number}", tracking.get(run_id), tracking)
    return dict(tracking.get(run_id).tags)


def longer(made: Decision) -> Decision:
    """The same question, answered with more pairs."""
    pairs, design = made.pairs * 2, replace(made.design, looks=(4,))
    found = verdict_of(pairs, design, made.pool, made.metric, made.worth_pp)
    return replace(made, pairs=pairs, design=design, verdict=found)


def test_a_run_carries_the_verdict_that_rests_on_it(store: Path) -> None:
    made = decision()
    tags = tags_after(made)
    assert made.tags.items() <= tags.items()
    assert tags["decision_run_id"] == "decision 0"


@pytest.mark.parametrize(
    "other",
    [{"rope_pp": "5"}, {"threshold": "0.9"}, {"question": "stage2"}, {"stage3.lr": "0.5"}],
)
def test_another_question_leaves_it(other: dict[str, str], store: Path) -> None:
    asked = decision(**other)
    tags = tags_after(decision(), longer(asked))
    assert decision().tags.items() <= tags.items()
    assert tags["decision_run_id"] == "decision 0"


def test_the_same_question_with_as_many_pairs_or_more_has_the_last_word(store: Path) -> None:
    short, long = decision(), longer(decision())
    assert tags_after(short, short)["decision_run_id"] == "decision 1"
    assert tags_after(short, long)["verdict.pairs"] == "4"
    assert tags_after(long, short)["verdict.pairs"] == "4"
    assert tags_after(long, short)["decision_run_id"] == "decision 0"


def test_a_verdict_of_an_earlier_version_does_not_say_its_question_and_stays(store: Path) -> None:
    tracking = Tracking.connect()
    old = {"verdict": "justified", "verdict.pairs": "1", "decision_run_id": "old"}
    run_id = tracking.start("a run", old)
    mark(decision(), "new", tracking.get(run_id), tracking)
    assert old.items() <= tracking.get(run_id).tags.items()
