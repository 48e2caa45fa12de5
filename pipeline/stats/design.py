"""The design of a decision: how large a gain must be, when to look, how sure to be.

Imports no NumPy, so that a misspelt option is refused at once; `settings/entry.py` checks values.
"""

from __future__ import annotations

from dataclasses import dataclass

GRID = (5, 10, 20, 40, 80, 160)
"""Looks at which an `anytime` design spends most of its error."""
OFF_GRID = 0.2
"""Error allowed at a look off the grid, as a share of that at a look on the grid. With 0.99 on the
grid a gain at the edge errs in 5% of the decisions of a person who looks after each pair from 5 to
160, whatever makes this person stop (`benchmarks/looks.py`)."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """What counts as a gain, and when there is enough evidence to say so; the only defaults.

    Attributes:
        rope_pp: half-width of the region of practical equivalence, in percentage points; a gain
            of exactly this size is inside, so not worth having.
        looks: numbers of pairs after which a verdict may fall, at least 2, rising.
        threshold: posterior probability at which a verdict falls, above one half; at looks of
            `GRID`.
        anytime: looking again, and going on after `inconclusive`, must not add to the error: the
            threshold is higher away from the looks of `GRID` (`threshold_at`).
        robust: `justified` must not rest on a single pair (`robustness.py`).
        end: number of pairs after which none can follow, as the pool holds no more; it takes the
            place of the next number of `GRID`. None: unknown, or there is no end.
    """

    rope_pp: float = 0.5
    looks: tuple[int, ...] = (5, 10, 20, 40)
    threshold: float = 0.99
    anytime: bool = True
    robust: bool = True
    end: int | None = None

    def threshold_at(self, pairs: int) -> float:
        """The probability at which a verdict falls after so many pairs."""
        is_planned = not self.anytime or pairs in GRID or pairs == self.end
        return self.threshold if is_planned else self.off_grid

    @property
    def off_grid(self) -> float:
        """The probability at which a verdict falls after a number of pairs that `GRID` lacks."""
        return 1 - OFF_GRID * (1 - self.threshold)

    def pairs_to_next_look(self, pairs: int) -> int:
        """Further pairs until the first look beyond `pairs`; 0 if no look is left."""
        return next((look - pairs for look in self.looks if look > pairs), 0)
