"""The posterior of a gain by image once more, slowly: from the predictions that runs hold."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from mlflow.entities import Run
from scipy import optimize, stats

from tests.reports import artifact


def differences(pairs: Sequence[tuple[Run, Run]]) -> list[list[int]]:
    """A row a pair, a column a test image, from the predictions that the runs hold."""

    def right(run: Run) -> list[bool]:
        table = pd.read_parquet(artifact(run, "evaluation/test_predictions.parquet"))
        return (table["label"] == table["predicted"]).tolist()

    return [
        [int(a) - int(b) for a, b in zip(right(ours), right(theirs), strict=True)]
        for ours, theirs in pairs
    ]


def parts(table: list[list[int]], correction: float) -> tuple[float, float, float]:
    """Mean, scale of the pairs' part and deviation of the images', as `stats/crossed.py` cites."""
    p, n = len(table), len(table[0])
    rows = [statistics.mean(row) for row in table]
    columns = [statistics.mean(column) for column in zip(*table, strict=True)]
    mean = statistics.mean(rows)
    rest = sum(
        (table[i][j] - rows[i] - columns[j] + mean) ** 2 for i in range(p) for j in range(n)
    ) / ((p - 1) * (n - 1) * p * n)
    # no better known than rounding to one of the test images
    pair = max(statistics.variance(rows), 1 / 12 / n**2) * (1 / p + correction)
    with_added = [*columns, 1, -1]
    image = sum(one**2 for one in with_added) - sum(columns) ** 2 / (n + 2)
    image /= (n + 1) * (n + 2)
    return 100 * mean, 100 * math.sqrt(pair), 100 * math.sqrt(max(image - rest, 0))


@dataclass(frozen=True)
class BothParts:
    """A Student-t at each value that a normal takes: the posterior, in percentage points."""

    mean: float
    of_pairs: float
    of_images: float
    degrees: int

    @classmethod
    def of(cls, table: list[list[int]], correction: float) -> BothParts:
        return cls(*parts(table, correction), len(table) - 1)

    def cdf(self, gain: float) -> float:
        z = np.linspace(-8, 8, 20_001)
        weight = stats.norm.pdf(z) / stats.norm.pdf(z).sum()
        at = self.mean + self.of_images * z
        return float(weight @ stats.t.cdf(gain, self.degrees, loc=at, scale=self.of_pairs))

    def sf(self, gain: float) -> float:
        return BothParts(-self.mean, self.of_pairs, self.of_images, self.degrees).cdf(-gain)

    def median(self) -> float:
        return self.mean

    def interval(self, share: float) -> tuple[float, float]:
        far = 1e4 * (self.of_pairs + self.of_images)
        half = optimize.brentq(lambda x: self.sf(self.mean + x) - (1 - share) / 2, 0, far)
        return self.mean - half, self.mean + half


def odds(table: list[list[int]], rope: float, correction: float) -> tuple[float, float]:
    """P(gain > ROPE) and P(gain < -ROPE)."""
    known = BothParts.of(table, correction)
    return known.sf(rope), known.cdf(-rope)
