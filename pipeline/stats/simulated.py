"""Simulated decisions by image: how often a design errs for a test split of some size.

In: a `World` (how many test images, how often the arms disagree, how far by the images' doing) and
a true gain. Out: the sums of many studies at each look; a table as `operating.py` makes it. Not
covered: images that owe each other anything (copies, series of one object).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.stats.crossed import Crossed
from pipeline.stats.design import Design
from pipeline.stats.operating import share_of_ends
from pipeline.stats.posterior import Floats, tails
from pipeline.stats.verdict import rule

FICKLE = 0.25
"""Share of pairs in which an image without an effect of its own, on which arms disagree at all,
is such a disagreement."""
ROOM = 2.5
"""Disagreements that come and go, as times the standard deviation that gains are to have."""
CELLS = 20_000_000
"""Cells of simulated tables held at once: about 100 MB."""
ROW_CELLS = 8_000_000
"""Cells that the studies of one row of a table may take: a second or two."""
FEWEST, MOST = 400, 4000
"""Studies of one row of a table, at least and at most."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What differences of two arms on test images are like.

    Attributes:
        images: test images.
        disagree: share of images on which the arms of a pair disagree (q).
        by_image: share of these disagreements that the image decides: it comes out the same way
            in all pairs. The others come and go from pair to pair.
        spread_pp: standard deviation of pairs' own gains, beside that of chance.
        correction: of resampled pairs: the pairs of a study have so much in common that the mean
            of their gains has this times the variance of one gain, however many they are.
    """

    images: int
    disagree: float = 0.04
    by_image: float = 0.3
    spread_pp: float = 0.3
    correction: float = 0.0

    def with_room(self) -> World:
        """The same with disagreements enough for gains that spread so far."""
        fickle = ROOM * self._spread_of(self.fickle)
        share = min(1.0, fickle / (1 - self.by_image)) if self.by_image < 1 else 0.0
        return replace(self, disagree=max(self.disagree, share))

    @property
    def fickle(self) -> float:
        """Share of images on which arms disagree that come and go from pair to pair."""
        return (1 - self.by_image) * self.disagree

    def _spread_of(self, fickle: float) -> float:
        """Standard deviation of a pair's own part and of what all pairs of a study share."""
        own = (self.spread_pp / 100) ** 2
        return math.sqrt(own + self.correction * (own + fickle / self.images))

    def studies(
        self, rng: np.random.Generator, studies: int, gain_pp: float, looks: Sequence[int]
    ) -> list[Crossed]:
        """Many studies at each look; arms disagree on as many images as the gain asks for."""
        gain, pairs = gain_pp / 100, looks[-1]
        disagree = max(self.disagree, abs(gain))
        own, fickle = self.by_image * disagree, (1 - self.by_image) * disagree
        net = float(np.clip(gain, -own, own))
        won, lost, _ = rng.multinomial(
            self.images, [(own + net) / 2, (own - net) / 2, 1 - own], size=studies
        ).T
        active = np.zeros(studies, dtype=np.int64)
        tilt = np.zeros((studies, pairs))
        if fickle > 0:
            often = max(FICKLE, fickle / (1 - own))
            active = rng.binomial(self.images - won - lost, min(1.0, fickle / often / (1 - own)))
            mean = float(np.clip((gain - net) / fickle, -1, 1))
            room = 1 - abs(mean)
            own_sd, all_sd = self.spread_pp / 100 / fickle, self._spread_of(fickle) / fickle
            noise = min(own_sd, 0.5) * rng.standard_normal(tilt.shape)
            common = math.sqrt(max(all_sd**2 - own_sd**2, 0.0))
            noise += min(common, 0.5) * rng.standard_normal((studies, 1)) if common else 0.0
            tilt = mean + np.clip(noise, -room, room)
            cells = _cells(rng, active, tilt, often)
        else:
            cells = np.zeros((studies, 1, pairs), dtype=np.int8)
        return [self._sums(cells[:, :, :look], won, lost) for look in looks]

    def _sums(
        self, cells: NDArray[np.int8], won: NDArray[np.int64], lost: NDArray[np.int64]
    ) -> Crossed:
        pairs, always = cells.shape[2], won + lost
        by_pair = (cells.sum(1, dtype=np.int32) + (won - lost)[:, None]) / self.images
        by_image = cells.sum(2, dtype=np.int32) / pairs
        mean = by_pair.mean(1)
        return Crossed(
            pairs=pairs,
            images=self.images,
            mean=mean,
            ss_pair=((by_pair - mean[:, None]) ** 2).sum(1),
            square_image=(by_image**2).sum(1) + always,
            square_cell=np.abs(cells).sum((1, 2), dtype=np.int64) + always * float(pairs),
        )

    def chunks(self, studies: int, pairs: int) -> Iterator[int]:
        """How many of `studies` fit into memory at once."""
        images = 1 + self.images * min(1.0, (1 - self.by_image) * self.disagree / FICKLE)
        size = max(1, int(CELLS / (images * pairs)))
        for start in range(0, studies, size):
            yield min(size, studies - start)


def _cells(
    rng: np.random.Generator, active: NDArray[np.int64], tilt: Floats, often: float
) -> NDArray[np.int8]:
    """Differences on images that come and go, (studies, images, pairs): -1, 0 or 1."""
    most = max(1, int(active.max()))
    drawn = rng.random((len(active), most, tilt.shape[1]), dtype=np.float32)
    up = (often * (1 + tilt) / 2).astype(np.float32)[:, None, :]
    cells = (drawn < up).astype(np.int8) - ((drawn >= up) & (drawn < np.float32(often)))
    cells *= (np.arange(most) < active[:, None])[:, :, None]
    return cells.astype(np.int8, copy=False)


def walk_tables(
    tables: Sequence[Crossed], design: Design, correction: float = 0.0
) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """How each study ends, and after how many pairs; `tables`: one a look, in order."""
    studies = len(tables[0].mean)
    ends = np.full(studies, "open", dtype="<U12")
    used = np.zeros(studies, dtype=np.int64)
    for table in tables:
        scale_pp, images_pp = table.scales(correction)
        found = tails(100 * table.mean, scale_pp, table.pairs - 1, design.rope_pp, images_pp)
        still = ends == "open"
        ends[still] = rule(*found, design.threshold_at(table.pairs))[still]
        used[still] = table.pairs
    ends[ends == "open"] = "inconclusive"
    return ends, used


def image_characteristics(
    design: Design,
    world: World,
    true_gains: Sequence[float],
    *,
    studies: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """How often each verdict falls for these test images, a row for each true gain.

    The columns are those of `operating.operating_characteristics`. `studies`: by default as many
    as take a few seconds, from 400 with 10,000 test images (standard error of 5%: 1.1) to 4,000.
    """
    rng = np.random.default_rng(seed)
    if studies is None:
        row = next(world.chunks(10**9, design.looks[-1])) * ROW_CELLS // CELLS
        studies = min(MOST, max(FEWEST, row))
    rows = []
    for gain in true_gains:
        parts = [
            walk_tables(world.studies(rng, size, gain, design.looks), design, world.correction)
            for size in world.chunks(studies, design.looks[-1])
        ]
        ends, used = (np.concatenate(both) for both in zip(*parts, strict=True))
        rows.append(share_of_ends(gain, ends, used))
    return pd.DataFrame(rows)
