"""The design of a decision: how large a gain must be, when to look, how sure to be.

In: numbers, or the text of an option. Out: a `Design`, or a `DesignError` that names the option.
Imports no NumPy, so that a misspelt option is refused at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real

from pipeline.errors import DesignError

ROPE_PP = 0.5
LOOKS = (5, 10, 20)
THRESHOLD = 0.98


@dataclass(frozen=True)
class Design:
    """What counts as a gain, and when there is enough evidence to say so.

    Attributes:
        rope_pp: half-width of the region of practical equivalence, in percentage points; a gain
            of exactly this size is inside, so not worth having.
        looks: numbers of pairs after which a verdict may fall, smallest first.
        threshold: posterior probability at which it falls.

    Raises:
        DesignError: a value that cannot be used; names the option to pass.
    """

    rope_pp: float = ROPE_PP
    looks: tuple[int, ...] = LOOKS
    threshold: float = THRESHOLD

    def __post_init__(self) -> None:
        object.__setattr__(self, "looks", tuple(self.looks))
        if not (_is_number(self.rope_pp) and 0 <= self.rope_pp < 100):
            raise DesignError(
                f"rope_pp is {self.rope_pp}: it must be a number of percentage points, at least 0 "
                f"and below 100: pass for instance -P rope_pp={ROPE_PP}"
            )
        if not _are_looks(self.looks):
            raise _looks_fault(",".join(map(str, self.looks)))
        if not (_is_number(self.threshold) and 0.5 < self.threshold < 1):
            raise DesignError(
                f"threshold is {self.threshold}: it must be a probability above 0.5 and below 1: "
                f"pass for instance -P threshold={THRESHOLD}"
            )

    def pairs_to_next_look(self, pairs: int) -> int:
        """Further pairs until the first look beyond `pairs`; 0 if no look is left."""
        return next((look - pairs for look in self.looks if look > pairs), 0)


def parse_looks(text: str) -> tuple[int, ...]:
    """Looks from the text of an option: "5,10,20", with or without spaces.

    Raises:
        DesignError: anything but whole numbers of at least 2, each larger than the one before.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
        raise _looks_fault(text)
    looks = tuple(map(int, parts))
    if not _are_looks(looks):
        raise _looks_fault(text)
    return looks


def _is_number(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def _are_looks(looks: Sequence[object]) -> bool:
    whole = [look for look in looks if not isinstance(look, bool) and isinstance(look, Integral)]
    rises = all(before < after for before, after in pairwise(map(int, whole)))
    return 0 < len(whole) == len(looks) and int(whole[0]) >= 2 and rises


def _looks_fault(got: str) -> DesignError:
    return DesignError(
        f"looks are {got!r}: they must be whole numbers of pairs, at least 2, each larger than "
        f"the one before: pass for instance -P looks={','.join(map(str, LOOKS))}"
    )
