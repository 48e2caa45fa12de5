"""Whether a probability of 80% is right in 80% of cases: bins of confidence, and their mean error.

In: the probability of each predicted class, and whether it is right. Out: `Bins`. Sources: the
reliability diagram (DeGroot & Fienberg 1983, doi 10.2307/2987588) and the expected calibration
error over `BINS` bins of equal width (Naeini, Cooper & Hauskrecht 2015; Guo et al. 2017, arXiv
1706.04599). The error is of the predicted class alone, is biased upwards with few images, and is 0
for a model that always says how often it is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15
"""As Guo et al. have them."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Bins:
    """The bins that hold predictions, from the least sure to the surest; (B,) each.

    Attributes:
        confidence: mean probability of the predictions.
        accuracy: share of them that are right.
        counts: how many there are.
    """

    confidence: Floats
    accuracy: Floats
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, confidence: Floats, correct: NDArray[np.bool_]) -> Bins:
        """The bins of N predictions: a bin reaches up to its upper end and includes it."""
        place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        counts = np.bincount(place, minlength=BINS)
        held = counts > 0
        sums = (np.bincount(place, of, BINS)[held] for of in (confidence, correct.astype(float)))
        mean, share = (total / counts[held] for total in sums)
        return cls(confidence=mean, accuracy=share, counts=counts[held])

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of confidence and accuracy, 0 to 1."""
        distance = np.abs(self.confidence - self.accuracy)
        return float(np.average(distance, weights=self.counts))
