"""What would settle a decision that is open, what that costs, and how to ask for it.

In: what is believed of the gain, and how many pairs there can be. Out: an `Outlook`. Pure data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.runs.messages.words import minutes
from pipeline.stats.design import GRID, Design
from pipeline.stats.needed import Needed
from pipeline.stats.posterior import Posterior
from pipeline.system.text import count_of

FEWEST = 5
"""Fewest pairs from which a page says what would settle a decision."""
USUAL = (5, 10, 20)
"""Looks that are proposed below them."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The way on from an `inconclusive` decision.

    Attributes:
        known: what is believed of the gain.
        most: pairs that the pool holds; None: as many as are wanted.
        needed: pairs or images with which a verdict would fall.
        seeds: pairs on each draw.
        pair_s: seconds that a further pair takes here, an estimate; so many `at_once`.
    """

    known: Posterior
    design: Design
    most: int | None
    needed: Needed
    seeds: int
    pair_s: float
    at_once: int

    @property
    def sentence(self) -> str:
        """What would settle it."""
        how = f"-P looks={','.join(map(str, self.looks))}"
        if self.known.pairs < FEWEST:
            return (
                f"{count_of(self.known.pairs, 'pair')} tell too little of how gains vary to say "
                f"what would settle this: take {FEWEST} pairs or more"
                f"{f' ({how})' if self.looks else ''}."
            )
        goes_on = f"{how} goes on from these pairs"
        if not self.looks:
            held = f"the pool holds {self.most}"
            goes_on = f"{held}: fewer images a class, or more images, make more"
        if self._is_carried:
            return f"to settle this, more pairs are needed, as one pair carries it; {goes_on}."
        if not self.needed.pairs:
            return f"{self.needed.sentence()}."
        rounds = math.ceil(self.needed.pairs * self.seeds / self.at_once)
        cost = f"about {minutes(rounds * self.pair_s)} here"
        return f"{self.needed.sentence(cost)}; {goes_on}."

    @property
    def looks(self) -> tuple[int, ...]:
        """The numbers of pairs with which to go on; empty where the pool holds too few, or stuck.

        A decision of few pairs goes on with the usual looks, any other with what would settle it.
        """
        before, most = self.design.looks, math.inf if self.most is None else self.most
        pairs = self.known.pairs
        if pairs < FEWEST:
            usual = (*before, *(n for n in USUAL if n > before[-1]))
            return usual if max(usual) <= most else ()
        if self._is_carried:
            total = next((number for number in GRID if number > pairs), 2 * pairs)
            if self.most is not None and self.most > pairs:
                total = min(total, self.most)
        elif self.needed.pairs:
            total = pairs + self.needed.pairs
        else:
            return ()
        return (*before, total) if total <= most else ()

    @property
    def _is_carried(self) -> bool:
        """Whether the gain is large and sure enough, but not without one of the pairs."""
        return self.known.p_above >= self.design.threshold_at(self.known.pairs)
