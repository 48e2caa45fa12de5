"""What paired gains say about the true gain: a Student-t posterior, and a normal part beside it.

In: gains of paired runs (accuracy of the treatment arm minus the control arm on the same images),
in percentage points. Out: a `Posterior`; for many studies at once, the numbers behind it. Pure
functions. Not covered: what follows from it (`verdict.py`).

Method: Nadeau & Bengio 2003 (Machine Learning 52, 239-281); Benavoli, Corani, Demšar & Zaffalon
2017 (JMLR 18, 77). Under the flat prior of the latter the true gain is Student-t distributed.
Where it may be another for other test images as well (`crossed.py`), their part is added, normal
and independent: the distribution of Behrens (1929) and Fisher (1935, Annals of Eugenics 6,
391-398), with so many images that one of its parts is normal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Gains = Sequence[float] | NDArray[np.float64]
Floats = NDArray[np.float64]

INTERVAL = 0.95
TINY_PP = 1e-9
"""Gains closer than this are the same gain: they differ by rounding, not by an image."""
NODES = 128
"""Of the integral over the pairs' variance; exact to nine digits from 1 degree of freedom on."""
EDGE = 1e-10
"""Probability that is left out at either end of it."""


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """What is believed about the true gain after some pairs: a Student-t plus a normal.

    Attributes:
        pairs: paired gains it rests on.
        mean_pp: their mean, the posterior's location.
        sd_pp: their standard deviation, with `pairs - 1` in the denominator.
        scale_pp: of the Student-t, which has `pairs - 1` degrees of freedom:
            `sd_pp * sqrt(1 / pairs + correction)`. Where gains are known to a resolution, `sd_pp`
            counts as at least that of rounding.
        images_pp: standard deviation of the normal part, that of other test images; 0 for the
            test images at hand. With both 0: a point mass.
        correction: of resampled pairs; 0: disjoint draws.
        rope_pp: the region of practical equivalence is -rope_pp to rope_pp, edges included.
        p_above: probability of a gain above the region.
        p_inside: probability of a gain inside it.
        p_below: probability of a gain below it, a loss.
        interval_pp: central 95% credible interval.
    """

    pairs: int
    mean_pp: float
    sd_pp: float
    scale_pp: float
    images_pp: float
    correction: float
    rope_pp: float
    p_above: float
    p_inside: float
    p_below: float
    interval_pp: tuple[float, float]

    @property
    def shown_interval_pp(self) -> tuple[float, float]:
        """The interval as far as shares can reach: few pairs make it wider than 100 points."""
        low, high = self.interval_pp
        return max(-100.0, low), min(100.0, high)

    @property
    def size(self) -> str:
        """The gain and its interval in figures."""
        low, high = self.shown_interval_pp
        return f"{self.mean_pp:+.2f} pp ({low:+.2f} to {high:+.2f})"

    @property
    def p_positive(self) -> float:
        """Probability of any gain at all; a mass on zero is no gain."""
        mean, scale = np.asarray(self.mean_pp), np.asarray(self.scale_pp)
        return float(tails(mean, scale, self.pairs - 1, 0.0, self.images_pp)[0])


def moments(gains_pp: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation over the last axis, `(..., n)` to two of `(...)`.

    Gains within `TINY_PP` of each other have a standard deviation of exactly 0.
    """
    is_flat = np.ptp(gains_pp, axis=-1) <= TINY_PP
    sd = np.where(is_flat, 0.0, gains_pp.std(axis=-1, ddof=1))
    return gains_pp.mean(axis=-1), sd


def scale_of(sd_pp: Floats, pairs: int, correction: float, resolution_pp: float) -> Floats:
    """The posterior's scale, any shape; a spread counts as at least that of rounding."""
    spread = np.maximum(sd_pp, resolution_pp / math.sqrt(12))
    return np.asarray(spread * math.sqrt(1 / pairs + correction))


def tails(
    mean_pp: Floats,
    scale_pp: Floats,
    degrees: float,
    rope_pp: float,
    images_pp: float | Floats = 0.0,
) -> tuple[Floats, Floats]:
    """Probability of a gain above the ROPE, and of one below it; any shape.

    Scales of 0 are a point mass at the mean: each is 0 or 1. A mass on an edge, within `TINY_PP`,
    is inside, so both are 0.
    """
    is_mass = (scale_pp == 0) & (np.asarray(images_pp) == 0)
    scale = np.where(is_mass, 1.0, scale_pp)
    above = cdf(mean_pp - rope_pp, scale, degrees, images_pp)
    below = cdf(-mean_pp - rope_pp, scale, degrees, images_pp)
    edge = rope_pp + TINY_PP
    return np.where(is_mass, mean_pp > edge, above), np.where(is_mass, -mean_pp > edge, below)


def cdf(at_pp: Floats, scale_pp: Floats, degrees: float, images_pp: float | Floats) -> Floats:
    """P(scale * T + images * Z <= at), T a Student-t, Z a standard normal; any shape.

    T is Z' / w with w^2 = chi-squared / degrees, so that the sum is normal once w is known:
    an integral over log(w), which the trapezoid rule takes to nine digits.
    """
    if not np.any(images_pp):
        return np.asarray(special.stdtr(degrees, at_pp / scale_pp))
    low, high = special.chdtri(degrees, [1 - EDGE, EDGE])
    log_w = np.linspace(math.log(low), math.log(high), NODES) / 2  # of sqrt(chi-squared)
    square = np.exp(2 * log_w)
    log_weight = degrees * log_w - square / 2
    weight = np.exp(log_weight - log_weight.max())
    at, of_pairs, of_images = (np.asarray(one)[..., None] for one in (at_pp, scale_pp, images_pp))
    sd = np.sqrt(of_pairs**2 * degrees / square + of_images**2)
    return np.asarray((special.ndtr(at / sd) * (weight / weight.sum())).sum(-1))


def half_width(scale_pp: float, degrees: float, images_pp: float) -> float:
    """Half the width of the central 95% interval of `scale * T + images * Z`."""
    level = (1 + INTERVAL) / 2
    by_pairs = float(special.stdtrit(degrees, level)) * scale_pp
    if not images_pp:
        return by_pairs
    by_images = float(special.ndtri(level)) * images_pp

    def beyond(at_pp: float) -> float:
        at, scale = np.asarray(at_pp), np.asarray(scale_pp)
        return float(cdf(at, scale, degrees, images_pp)) - level

    low, high = max(by_pairs, by_images), by_pairs + by_images
    return float(optimize.brentq(beyond, low * (1 - 1e-6), high * (1 + 1e-6)))


def posterior(
    gains_pp: Gains,
    *,
    rope_pp: float,
    correction: float = 0.0,
    resolution_pp: float = 0.0,
) -> Posterior:
    """The posterior of the true gain given all of `gains_pp`; their order does not matter.

    Student-t with n - 1 degrees of freedom, location m, scale s * sqrt(1 / n + correction). If
    all gains are equal, and no resolution is given, it is a point mass at m: one of the three
    probabilities is 1, the interval has no width, and a mass on an edge of the ROPE counts as
    inside. With n = 2 it is a Cauchy.

    Args:
        gains_pp: two or more, -100 to 100.
        rope_pp: half-width of the region of practical equivalence.
        correction: 0 for disjoint draws; rho / (1 - rho) where the pairs are resampled from one
            pool, share images, and any two gains therefore correlate by rho
            (`comparing/pairs/draws.py`).
        resolution_pp: what one test image is worth. Gains are not known better than that: their
            standard deviation counts as at least that of rounding, resolution / sqrt(12), so that
            gains that happen to tie prove nothing.
    """
    gains = np.asarray(gains_pp, dtype=float)
    assert len(gains) >= 2, gains
    assert (np.abs(gains) <= 100).all(), gains
    count = len(gains)
    mean, sd = moments(gains)
    scale = scale_of(sd, count, correction, resolution_pp)
    return posterior_with(
        pairs=count,
        mean_pp=float(mean),
        sd_pp=float(sd),
        scale_pp=float(scale),
        images_pp=0.0,
        correction=correction,
        rope_pp=rope_pp,
    )


def posterior_with(
    *,
    pairs: int,
    mean_pp: float,
    sd_pp: float,
    scale_pp: float,
    images_pp: float,
    correction: float,
    rope_pp: float,
) -> Posterior:
    """The posterior with this location and these scales; see `Posterior`."""
    location, scale, degrees = np.asarray(mean_pp), np.asarray(scale_pp), pairs - 1
    above, below = (float(p) for p in tails(location, scale, degrees, rope_pp, images_pp))
    half = half_width(scale_pp, degrees, images_pp)
    return Posterior(
        pairs=pairs,
        mean_pp=mean_pp,
        sd_pp=sd_pp,
        scale_pp=scale_pp,
        images_pp=images_pp,
        correction=correction,
        rope_pp=rope_pp,
        p_above=above,
        p_inside=max(0.0, 1 - above - below),
        p_below=below,
        interval_pp=(mean_pp - half, mean_pp + half),
    )
