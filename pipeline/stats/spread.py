"""Do paired values vary more than others? The test of Pitman and Morgan.

In: two values of each run. Out: a probability. Pure functions. Pitman (1939), Biometrika 31, 9-12;
Morgan (1939), Biometrika 31, 13-19.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import special


def variance_test(values: Sequence[float], reference: Sequence[float]) -> float:
    """One-sided p of the Pitman-Morgan test that paired `values` vary more than `reference`.

    Sums and differences of the pairs correlate exactly as far as the variances differ.
    """
    x, y = np.asarray(values, dtype=float), np.asarray(reference, dtype=float)
    if min(np.ptp(x + y), np.ptp(x - y)) < 1e-12:
        return 0.5  # equal variances
    freedom, r = len(x) - 2, np.corrcoef(x + y, x - y)[0, 1]
    return float(special.stdtr(freedom, -r * math.sqrt(freedom / max(1 - r * r, 1e-300))))
