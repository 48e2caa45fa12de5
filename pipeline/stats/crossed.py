"""What paired predictions say about the gain for other test images too: crossed random effects.

In: for p pairs of two arms, scored on the same n test images, the difference of each pair on each
image (1: only the treatment is right, -1: only the control, 0: both or neither). Out: `Crossed`,
the sums that the posterior needs, and from them the posterior's two scales.
Pure functions.

Model: difference = gain + pair (its draw and seed) + image + rest, all independent, so

    var(mean) = var_pair / p + var_image / n + var_rest / (p * n),

which the mean squares of a two-way layout without replication estimate as
(MS_pair + MS_image - MS_rest) / (p * n) (Searle, Casella & McCulloch 1992, Variance Components,
ch. 4). The part of the pairs, MS_pair, has p - 1 degrees of freedom, and the part of the images is
normal: their sum is the posterior (`posterior.py`). One Student-t for both, with Satterthwaite's
degrees of freedom, is too narrow below 5 pairs: MS_pair, when small by chance, makes the scale
small and the degrees many at the same time. Images that
would show an effect may be missing from a small test split, so two images are added, one that each
arm wins in every pair: the adjustment of Bonett & Price (2012, J. Educational and Behavioral
Statistics 37, 479-488) for the difference of paired proportions. `benchmarks/image_effects.py`
compares this with others; results in docs/experiments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.stats.design import Design
from pipeline.stats.posterior import Floats, Gains, Posterior, posterior, posterior_with

Table = NDArray[np.integer[Any]] | Floats
"""Differences of pairs on test images (pairs, images): 1, 0 or -1; or means of several seeds'."""

ADDED = 1.0
"""Images that are added for each arm, which wins them in every pair."""


@dataclass(frozen=True, kw_only=True)
class Crossed:
    """Sums over a table of differences (pairs, images); arrays hold one value a study.

    Attributes:
        pairs: rows, 2 or more.
        images: columns, 2 or more.
        mean: of all cells, -1 to 1; 0.01 is a gain of one percentage point.
        ss_pair: sum over pairs of (mean of the pair - mean)^2.
        square_image: sum over images of (mean of the image)^2.
        square_cell: sum over all cells of difference^2, the number of disagreements.
    """

    pairs: int
    images: int
    mean: Floats
    ss_pair: Floats
    square_image: Floats
    square_cell: Floats

    @classmethod
    def of(cls, differences: Table) -> Crossed:
        """The sums of one table (pairs, images)."""
        table = np.asarray(differences)
        assert table.ndim == 2, table.shape
        pairs, images = table.shape
        assert min(pairs, images) >= 2, table.shape
        by_pair, by_image = table.mean(axis=1), table.mean(axis=0)
        mean = by_pair.mean()
        return cls(
            pairs=pairs,
            images=images,
            mean=mean,
            ss_pair=((by_pair - mean) ** 2).sum(),
            square_image=(by_image**2).sum(),
            square_cell=(table.astype(float) ** 2).sum(),
        )

    @property
    def mean_squares(self) -> tuple[Floats, Floats, Floats]:
        """MS_pair, MS_image and MS_rest of the two-way layout."""
        p, n = self.pairs, self.images
        pair = n * self.ss_pair
        image = p * (self.square_image - n * self.mean**2)
        rest = self.square_cell - p * n * self.mean**2 - pair - image
        pair, image, rest = (np.maximum(one, 0.0) for one in (pair, image, rest))  # rounding
        return pair / (p - 1), image / (n - 1), rest / ((p - 1) * (n - 1))

    @property
    def components(self) -> tuple[float, float, float]:
        """Variances of pair, image and rest, of one cell, in squared percentage points; 0 or more.

        Of one table. Image: without the added ones.
        """
        pair, image, rest = (float(one) for one in self.mean_squares)
        return (
            1e4 * max(pair - rest, 0.0) / self.images,
            1e4 * max(image - rest, 0.0) / self.pairs,
            1e4 * rest,
        )

    def scales(self, correction: float = 0.0, added: float = ADDED) -> tuple[Floats, Floats]:
        """Scales of the pairs' and of the images' part of the posterior, in percentage points.

        The part of the pairs is var_pair / p + var_rest / (p n), what the spread of gains shows
        (at least that of rounding to one image), times 1 + p * correction for resampled pairs; the
        part of the images is what they vary beyond the rest.

        Args:
            correction: of resampled pairs, as `posterior.posterior` has it.
            added: images added for each arm.
        """
        p, n = self.pairs, self.images
        square_pair, _, square_rest = self.mean_squares
        one_pair = np.maximum(square_pair / n, 1 / (12 * n**2))
        pair, rest = one_pair * (1 / p + correction), square_rest / (p * n)
        with_added = n + 2 * added
        squares = self.square_image + 2 * added - (n * self.mean) ** 2 / with_added
        image = squares / (with_added - 1) / with_added
        return 100 * np.sqrt(pair), 100 * np.sqrt(np.maximum(image - rest, 0.0))

    def posterior(self, *, rope_pp: float = Design.rope_pp, correction: float = 0.0) -> Posterior:
        """What one table says about the gain for other draws, seeds and test images."""
        scale_pp, images_pp = self.scales(correction)
        return posterior_with(
            pairs=self.pairs,
            mean_pp=100 * float(self.mean),
            sd_pp=100 * float(np.sqrt(self.ss_pair / (self.pairs - 1))),
            scale_pp=float(scale_pp),
            images_pp=float(images_pp),
            correction=correction,
            rope_pp=rope_pp,
        )


def posterior_of(
    gains_pp: Gains,
    *,
    rope_pp: float,
    correction: float,
    resolution_pp: float,
    differences: Table | None,
) -> Posterior:
    """The posterior of gains: for other test images, too, where differences by image are known.

    `differences` (pairs, images), from which the gains come, have a resolution of their own.
    """
    if differences is not None:
        return Crossed.of(differences).posterior(rope_pp=rope_pp, correction=correction)
    return posterior(gains_pp, rope_pp=rope_pp, correction=correction, resolution_pp=resolution_pp)
