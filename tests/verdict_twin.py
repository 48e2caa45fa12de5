"""The decision once more, slowly: Python loops and numerical integration, no NumPy, no SciPy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from fractions import Fraction


def student_cdf(t: float, degrees: int) -> float:
    """Simpson's rule over the angle atan(t / sqrt(degrees)): the density is a power of its cosine.

    The density of a Student-t at sqrt(v) tan(a), times the derivative of that, is
    gamma((v + 1) / 2) / (sqrt(pi) gamma(v / 2)) cos(a) ** (v - 1).
    """
    log_height = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    height = math.exp(log_height) / math.sqrt(math.pi)
    end, steps = math.atan(t / math.sqrt(degrees)), 400
    total = 0.0
    for step in range(steps + 1):
        weight = 1 if step in (0, steps) else 4 if step % 2 else 2
        total += weight * math.cos(end * step / steps) ** (degrees - 1)
    return 0.5 + height * total * end / steps / 3


def probabilities(
    gains: Sequence[float], rope: float, correction: float
) -> tuple[float, float, float]:
    """Above, inside and below the ROPE; sums of exact fractions, so that ties are ties."""
    n = len(gains)
    exact = [Fraction(gain) for gain in gains]
    mean, variance = float(sum(exact) / n), float(statistics.variance(exact))
    if variance == 0:
        above, below = float(mean > rope), float(mean < -rope)
    else:
        scale = math.sqrt(variance * (1 / n + correction))
        above = 1 - student_cdf((rope - mean) / scale, n - 1)
        below = student_cdf((-rope - mean) / scale, n - 1)
    return above, 1 - above - below, below


def walk(
    gains: Sequence[float], looks: Sequence[int], rope: float, threshold: float, correction: float
) -> tuple[str, int]:
    """How a study ends, and the pairs it rests on."""
    used = 0
    for look in looks:
        if look > len(gains):
            return "go_on", used
        used = look
        above, inside, below = probabilities(gains[:look], rope, correction)
        if above >= threshold:
            return "justified", look
        if inside + below >= threshold:
            if below >= threshold:
                return "harmful", look
            return ("equivalent" if 1 - below >= threshold else "no_gain"), look
    return "inconclusive", used
