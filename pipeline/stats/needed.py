"""What would settle an open decision: so many more pairs, or so many more test images.

In: what is known now, as variances of pairs, images and the rest. Out: the fewest pairs, or the
fewest test images, with which a verdict would fall if the gain and the variances are what they
seem. The true gain may lie on either side, so that the verdict falls with a probability of about
one half. Pure functions. Not covered: what the pairs and images cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.stats.crossed import ADDED, Crossed, Table
from pipeline.stats.design import GRID, Design
from pipeline.stats.posterior import Posterior, tails

MOST = 10
"""Times as many test images as there are: more is no help to anybody."""


@dataclass(frozen=True, kw_only=True)
class Needed:
    """More of what would settle a decision; None: no number up to a limit does.

    Attributes:
        pairs: further pairs on these test images, to 160 in all at most.
        images: further test images for these pairs, to ten times as many at most.
        by_image: whether it is known what images would do.
        most: pairs in all that were looked at.
    """

    pairs: int | None
    images: int | None
    by_image: bool = True
    most: int = GRID[-1]

    def sentence(self, cost: str = "") -> str:
        """In words; `cost`: of the pairs."""
        spent, s = f" ({cost})" if cost else "", "" if self.pairs == 1 else "s"
        pairs = f"about {self.pairs:,} more pair{s}{spent}" if self.pairs is not None else ""
        images = f"about {self.images:,} more test images" if self.images is not None else ""
        either = " or ".join(filter(None, (pairs, images)))
        if either:
            verb = "is" if self.pairs == 1 and not images else "are"
            return f"to settle this, {either} {verb} needed, if the gain stays what it seems"
        limits = f"more than {self.most} pairs in all"
        if self.by_image:
            limits = f"{limits}, or more than {MOST} times the test images,"
        return f"to settle this, {limits} would be needed, if the gain stays what it seems"


@dataclass(frozen=True, kw_only=True)
class Variances:
    """What varies, in squared percentage points: of a pair, of an image, of one cell beside both.

    `correction`: of resampled pairs.
    """

    pair: float
    image: float
    rest: float
    correction: float = 0.0

    def scales(self, pairs: int, images: float) -> tuple[float, float]:
        """The scales that `Crossed.scales` would find on average."""
        one_pair = self.pair + self.rest / images
        of_pairs = one_pair * (1 / pairs + self.correction)
        chance = self.rest / (pairs * images)
        by_image = self.image / images + chance + 1e4 * 2 * ADDED / images**2
        return math.sqrt(of_pairs), math.sqrt(by_image - chance)


def needed(known: Posterior, design: Design, differences: Table | None = None) -> Needed:
    """What would settle a decision of which `known` is believed.

    `differences` (pairs, images): those that `known` rests on; without them test images count as
    fixed.
    """
    gap_pp = abs(known.mean_pp - design.rope_pp)
    if differences is None:
        pair = known.scale_pp**2 / (1 / known.pairs + known.correction)  # at least the resolution
        alone = Variances(pair=pair, image=0.0, rest=0.0, correction=known.correction)
        pairs = _pairs(alone, gap_pp, design, known.pairs, math.inf)
        return Needed(pairs=pairs, images=None, by_image=False, most=_most(known.pairs))
    table = Crossed.of(differences)
    pair, image, rest = table.components
    both = Variances(pair=pair, image=image, rest=rest, correction=known.correction)
    return Needed(
        pairs=_pairs(both, gap_pp, design, known.pairs, table.images),
        images=_images(both, gap_pp, design, known.pairs, table.images),
        most=_most(known.pairs),
    )


def _most(pairs: int) -> int:
    """Up to how many pairs in all are looked at, where so many have been run."""
    return max(GRID[-1], 2 * pairs)


def _settles(one: Variances, gap_pp: float, design: Design, pairs: int, images: float) -> bool:
    scale_pp, images_pp = (np.asarray(part) for part in one.scales(pairs, images))
    above, _ = tails(np.asarray(gap_pp), scale_pp, pairs - 1, 0.0, images_pp)
    return bool(above >= design.threshold_at(pairs))


def _pairs(one: Variances, gap_pp: float, design: Design, pairs: int, images: float) -> int | None:
    more = range(1, _most(pairs) - pairs + 1)
    return next((n for n in more if _settles(one, gap_pp, design, pairs + n, images)), None)


def _images(one: Variances, gap_pp: float, design: Design, pairs: int, images: int) -> int | None:
    low, high = images, MOST * images
    if not _settles(one, gap_pp, design, pairs, high):
        return None
    while high - low > max(1, low // 100):  # to 1%
        middle = (low + high) // 2
        if _settles(one, gap_pp, design, pairs, middle):
            high = middle
        else:
            low = middle
    return high - images
