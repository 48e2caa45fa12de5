"""The design of a decision: how large a gain must be, when to look, how sure to be.

Imports no NumPy, so that a misspelt option is refused at once; `settings/entry.py` checks values.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Design:
    """What counts as a gain, and when there is enough evidence to say so; the only defaults.

    Attributes:
        rope_pp: half-width of the region of practical equivalence, in percentage points; a gain
            of exactly this size is inside, so not worth having.
        looks: numbers of pairs after which a verdict may fall, at least 2, rising.
        threshold: posterior probability at which a verdict falls, above one half.
    """

    rope_pp: float = 0.5
    looks: tuple[int, ...] = (5, 10, 20)
    threshold: float = 0.98

    def pairs_to_next_look(self, pairs: int) -> int:
        """Further pairs until the first look beyond `pairs`; 0 if no look is left."""
        return next((look - pairs for look in self.looks if look > pairs), 0)
