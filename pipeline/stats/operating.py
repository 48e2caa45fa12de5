"""How often a design's verdicts are right: operating characteristics.

In: a `Design` and how much gains vary. Out: the share of studies that end in each verdict, and the
pairs they use; a table of it. All studies are judged at once, by the functions that judge one. Not
covered: gains that are not normal, and other test images (`simulated.py`).

Gains of resampled pools: Nadeau & Bengio 2003 (Machine Learning 52, 239-281).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.stats.design import Design
from pipeline.stats.posterior import Floats, moments, scale_of, tails
from pipeline.stats.robustness import many_stand
from pipeline.stats.verdict import rule
from pipeline.system.text import in_columns

_FORMATS = {"true gain, pp": "{:g}", "mean pairs used": "{:.1f}"}


def walk_studies(
    gains_pp: Floats, design: Design, correction: float = 0.0, resolution_pp: float = 0.0
) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """`verdict.verdict` for many studies at once, one a row of `gains_pp` `(studies, pairs)`.

    Returns:
        How each study ends (`justified`, `equivalent`, `no_gain`, `harmful`, `inconclusive` or
        `go_on`), and the pairs it rests on, both `(studies,)`.
    """
    studies, pairs = gains_pp.shape
    ends = np.full(studies, "open", dtype="<U12")
    used = np.zeros(studies, dtype=np.int64)
    for look in (look for look in design.looks if look <= pairs):
        still = np.flatnonzero(ends == "open")
        mean, sd = moments(gains_pp[still, :look])
        scale = scale_of(sd, look, correction, resolution_pp)
        threshold = design.threshold_at(look)
        found = rule(*tails(mean, scale, look - 1, design.rope_pp), threshold)
        if design.robust:
            shared = correction, resolution_pp
            stand = many_stand(gains_pp[still, :look], design.rope_pp, threshold, *shared)
            found[(found == "justified") & ~stand] = "open"
        ends[still] = found
        used[still] = look
    ends[ends == "open"] = "inconclusive" if pairs >= design.looks[-1] else "go_on"
    return ends, used


def operating_characteristics(
    design: Design,
    sd_pp: float,
    true_gains: Sequence[float],
    studies: int = 20_000,
    seed: int = 0,
    correction: float = 0.0,
    resolution_pp: float = 0.0,
) -> pd.DataFrame:
    """How often each verdict falls, a row for each true gain, in simulated studies.

    With `correction` = 0 the gains of a study are independent. With `correction` c > 0 its pairs
    are resampled from one pool and share images: any two gains correlate by rho = c / (1 + c), the
    assumption from which Nadeau & Bengio derive the form of the correction. Part of a study's
    error is then common to all its pairs and never averages out: more pairs cannot bring the scale
    below `sd_pp * sqrt(rho)`. That is the loss of power shown here. Under this assumption the
    posterior of a single look is calibrated exactly, for every c.

    All true gains are tried on the same noise, so rows differ less by chance than their standard
    errors, `sqrt(p * (1 - p) / studies)`, suggest.

    `sd_pp` is the standard deviation of one gain around the true gain. Gains of one pool spread
    less, by `sqrt(1 - rho)`: from a spread s seen in one, pass `s * sqrt(1 + c)`. The simulated
    gains themselves are not rounded to `resolution_pp`.
    """
    rho = correction / (1 + correction)
    rng = np.random.default_rng(seed)
    own = rng.standard_normal((studies, design.looks[-1]))
    common = rng.standard_normal((studies, 1))
    noise = sd_pp * (math.sqrt(1 - rho) * own + math.sqrt(rho) * common)
    rows = []
    for gain in true_gains:
        ends, used = walk_studies(noise + gain, design, correction, resolution_pp)
        rows.append(share_of_ends(gain, ends, used))
    return pd.DataFrame(rows)


def share_of_ends(
    gain: float, ends: NDArray[np.str_], used: NDArray[np.int64]
) -> dict[str, float]:
    """A row of a table of operating characteristics."""
    return {
        "true gain, pp": gain,
        "justified": float(np.mean(ends == "justified")),
        "not justified": float(np.mean(np.isin(ends, ["equivalent", "harmful", "no_gain"]))),
        "of these harmful": float(np.mean(ends == "harmful")),
        "inconclusive": float(np.mean(ends == "inconclusive")),
        "mean pairs used": float(np.mean(used)),
    }


def characteristics_text(table: pd.DataFrame) -> str:
    """The table as aligned columns for a terminal."""
    columns = map(str, table)
    return in_columns(
        pd.DataFrame({c: table[c].map(_FORMATS.get(c, "{:.3f}").format) for c in columns})
    )
