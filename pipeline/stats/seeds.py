"""How far shared images make gains agree, measured by several seeds a draw.

In: gains of draws that are resampled from one pool, each with the same number of seeds, 2 or more.
Out: the correction of `posterior.posterior` over the draws' mean gains. Pure functions.

Images can make gains agree by at most the share f of its images that a draw has in common with
another (Hoeffding 1948, see `comparing/pairs/draws.py`): rho = f. On readouts of real features
rho is 0.2 to 0.8 of f where nothing but images makes gains differ (`benchmarks/shared_images.py`);
KAPPA of f is taken. Seeds are never in common, so this holds only for the part of a gain that
images make. A one-way analysis of variance of draws x seeds gives that part; its upper 90% bound
(by the F distribution) is taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pipeline.stats.posterior import Floats

KAPPA = 0.75
"""Correlation of two gains without seeds, as a part of the share of images in common."""

SURE = 0.9
"""Confidence of the bound of what images do."""


def images_part(gains_pp: Floats) -> NDArray[np.floating[Any]]:
    """Upper bound of the share that images have in the variance of draws' mean gains, 0 to 1.

    `gains_pp`: (..., draws, seeds), 2 or more of each. With one seed's gains all alike, 1.
    """
    draws, seeds = gains_pp.shape[-2:]
    assert min(draws, seeds) >= 2, gains_pp.shape
    of_draws = seeds * gains_pp.mean(-1).var(-1, ddof=1)
    of_seeds = gains_pp.var(-1, ddof=1).mean(-1)
    least = special.fdtri(draws - 1, draws * (seeds - 1), 1 - SURE)
    bound = of_draws / least - of_seeds
    return np.clip(np.where(of_draws > 0, bound / np.maximum(of_draws, 1e-300), 1.0), 0.0, 1.0)


def correction_of(share: float, kappa: float = KAPPA) -> float:
    """The correction rho / (1 - rho) for single seeds, rho = kappa * share.

    Args:
        share: f, of its images that a draw has in common with another, 0 to below 1.
        kappa: 1 is Hoeffding's bound.
    """
    rho = kappa * share
    return rho / (1 - rho)


def correction_by_seeds(gains_pp: Floats, correction: float) -> float:
    """The correction for the mean gains of draws (draws, seeds), from that for single seeds."""
    assert gains_pp.ndim == 2, gains_pp.shape
    return float(images_part(gains_pp)) * correction
