"""The design of a decision: how large a gain must be, when to look, how sure to be.

Imports no NumPy, so that a misspelt option is refused at once; `settings/entry.py` checks values.
"""

from __future__ import annotations

from dataclasses import dataclass

ROPE_PP = 0.5
LOOKS = (5, 10, 20)
THRESHOLD = 0.98


@dataclass(frozen=True)
class Design:
    """What counts as a gain, and when there is enough evidence to say so.

    Attributes:
        rope_pp: half-width of the region of practical equivalence, in percentage points; a gain
            of exactly this size is inside, so not worth having.
        looks: numbers of pairs after which a verdict may fall, at least 2, rising.
        threshold: posterior probability at which a verdict falls, above one half.
    """

    rope_pp: float = ROPE_PP
    looks: tuple[int, ...] = LOOKS
    threshold: float = THRESHOLD

    def pairs_to_next_look(self, pairs: int) -> int:
        """Further pairs until the first look beyond `pairs`; 0 if no look is left."""
        return next((look - pairs for look in self.looks if look > pairs), 0)
