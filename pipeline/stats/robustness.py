"""Does a single pair carry a verdict? Each pair left out in turn.

In: paired gains, in percentage points. Out: a `Robustness`; for many studies at once, the numbers
behind it. Pure functions. Not covered: a collapse that has not happened yet (`benchmarks/looks.py`
shows what rare collapses do to a verdict).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.stats.crossed import Table, posterior_of
from pipeline.stats.posterior import Floats, Gains, moments, scale_of, tails

LENIENCE = 2.5
"""Without a pair the probability of no gain may be so many times what the threshold allows: 0.95
for a verdict at 0.98. Of normal gains at most 0.3% lose their verdict (`benchmarks/looks.py`)."""


ROUNDING = 1e-12
"""Of a sum of squares: what rounding leaves of it."""


def still_enough(threshold: float) -> float:
    """The P(gain > ROPE) that `justified` asks for without any single pair."""
    return 1 - LENIENCE * (1 - threshold)


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """What single pairs do to a verdict.

    Attributes:
        smallest_pp: the smallest gain.
        largest_pp: the largest gain.
        skew: third standardised moment of the gains; below 0: rare losses. 0 if all are equal.
        p_above: P(gain > ROPE) without each pair, in the order of the pairs.
        means_pp: the mean gain without each pair.
        keeps_sign: leaving out a pair never changes the sign of the mean.
    """

    smallest_pp: float
    largest_pp: float
    skew: float
    p_above: tuple[float, ...]
    means_pp: tuple[float, ...]
    keeps_sign: bool

    def stands(self, threshold: float) -> bool:
        """A gain above the ROPE, found at this threshold, does not rest on a single pair."""
        return self.keeps_sign and min(self.p_above) >= still_enough(threshold)

    @property
    def weakest(self) -> int:
        """The pair, counted from 0, without which a gain above the ROPE is least probable."""
        return int(np.argmin(self.p_above))

    @property
    def sentence(self) -> str:
        """The record in words."""
        without = f"without pair {self.weakest + 1}: {self.means_pp[self.weakest]:+.2f} pp"
        return (
            f"gains from {self.smallest_pp:+.2f} to {self.largest_pp:+.2f} pp, skew "
            f"{self.skew:+.1f}; {without}, P(gain) = {self.p_above[self.weakest]:.3f}"
        )


def without_each(gains_pp: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation without each pair in turn, (..., n) to two of (..., n); n > 2.

    Gains that are equal but for the pair left out have a standard deviation of exactly 0.
    """
    count, mean = gains_pp.shape[-1], gains_pp.mean(-1, keepdims=True)
    apart = gains_pp - mean
    all_squares = (apart**2).sum(-1, keepdims=True)
    squares = all_squares - apart**2 * count / (count - 1)
    squares[squares <= ROUNDING * all_squares] = 0.0
    return mean - apart / (count - 1), np.sqrt(squares / (count - 2))


def many_stand(
    gains_pp: Floats,
    rope_pp: float,
    threshold: float,
    correction: float = 0.0,
    resolution_pp: float = 0.0,
) -> NDArray[np.bool_]:
    """`Robustness.stands` for many studies with gains above the ROPE, (studies, pairs).

    Two pairs always stand: what is left without one of them has no spread.
    """
    count = gains_pp.shape[-1] - 1
    if count < 2:
        return np.ones(len(gains_pp), dtype=bool)
    mean, sd = without_each(gains_pp)
    above, _ = tails(mean, scale_of(sd, count, correction, resolution_pp), count - 1, rope_pp)
    return np.asarray((mean > 0).all(-1) & (above.min(-1) >= still_enough(threshold)))


def robustness(
    gains_pp: Gains,
    *,
    rope_pp: float,
    correction: float = 0.0,
    resolution_pp: float = 0.0,
    differences: Table | None = None,
) -> Robustness:
    """The record of one decision over 3 gains or more.

    With `differences` (pairs, images) the probabilities cover other test images, too.
    """
    gains = np.asarray(gains_pp, dtype=float)
    assert len(gains) >= 3, gains
    left = [
        posterior_of(
            np.delete(gains, pair),
            rope_pp=rope_pp,
            correction=correction,
            resolution_pp=resolution_pp,
            differences=None if differences is None else np.delete(differences, pair, axis=0),
        )
        for pair in range(len(gains))
    ]
    means = tuple(one.mean_pp for one in left)
    all_mean, all_sd = moments(gains)
    spread = float(all_sd) * np.sqrt(1 - 1 / len(gains))
    return Robustness(
        smallest_pp=float(gains.min()),
        largest_pp=float(gains.max()),
        skew=float(((gains - all_mean) ** 3).mean() / spread**3) if spread else 0.0,
        p_above=tuple(one.p_above for one in left),
        means_pp=means,
        keeps_sign=bool((np.sign(means) == np.sign(all_mean)).all()),
    )
