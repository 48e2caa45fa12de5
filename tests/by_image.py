"""The posterior of a gain by image once more, slowly: from the predictions that runs hold."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import pandas as pd
from mlflow.entities import Run
from scipy import stats
from scipy.stats.distributions import rv_frozen

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


def student(table: list[list[int]], correction: float) -> rv_frozen:
    """The posterior of the gain in percentage points, word by word as `stats/crossed.py` cites."""
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
    variance = pair + max(image - rest, 0)
    share = pair**2 / (p - 1) + image**2 / (n - 1) + rest**2 / ((p - 1) * (n - 1))
    degrees = min(max(variance**2 / share, p - 1), n - 1)
    return stats.t(degrees, loc=100 * mean, scale=100 * math.sqrt(variance))


def odds(table: list[list[int]], rope: float, correction: float) -> tuple[float, float]:
    """P(gain > ROPE) and P(gain < -ROPE)."""
    known = student(table, correction)
    return float(known.sf(rope)), float(known.cdf(-rope))
