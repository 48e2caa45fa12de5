"""What an open decision says of the way on."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.comparing.outlook import Outlook
from pipeline.stats.design import Design
from pipeline.stats.needed import Needed
from pipeline.stats.verdict import verdict

CARRIED = [2.0, 2.2, 2.1, 2.3]


def outlook(gains: list[float], **own: object) -> Outlook:
    """After five pairs with these gains, of a pool without an end."""
    design = Design(looks=(5,), threshold=0.98)
    found = verdict(gains, design)
    assert found.state == "inconclusive"
    assert found.posterior
    about: dict[str, object] = {
        "known": found.posterior,
        "design": design,
        "most": None,
        "needed": Needed(pairs=4, images=15),
        "seeds": 1,
        "pair_s": 120.0,
        "at_once": 1,
    }
    return Outlook(**{**about, **own})  # type: ignore[arg-type]


def carried() -> list[float]:
    """Gains that reach 0.98, but not without one of the pairs."""
    design = Design(looks=(5,), threshold=0.98, robust=False)
    low = np.arange(-1.0, 2.0, 0.01)
    found = ([*CARRIED, float(x)] for x in low)
    return next(gains for gains in found if verdict(gains, design).state == "justified")


def test_where_one_pair_carries_the_gain_more_test_images_are_no_help() -> None:
    told = outlook(carried())
    assert told.looks == (5, 10)
    assert told.sentence == (
        "to settle this, more pairs are needed, as one pair carries it; -P looks=5,10 goes on "
        "from these pairs."
    )
    assert outlook(carried(), most=8).looks == (5, 8)
    assert "the pool holds 5: fewer images a class" in outlook(carried(), most=5).sentence


@pytest.mark.parametrize(
    ("own", "minutes"), [({}, 8), ({"seeds": 3}, 24), ({"seeds": 3, "at_once": 2}, 12)]
)
def test_pairs_cost_their_seeds_and_run_side_by_side(own: dict[str, int], minutes: int) -> None:
    told = outlook([1.5, -0.5, 2.0, 0.1, 0.9], **own)
    assert told.looks == (5, 9)
    assert f"about 4 more pairs (about {minutes} min here)" in told.sentence
