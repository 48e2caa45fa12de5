"""Decisions that were made, by what the gate had read before: how often was stage 3 justified?

In: the gate's prior. Out: a sentence. `cases.csv` holds a row a case, a data set with a backbone
and a recipe; `benchmarks/signal_study.py` writes it from the stores of decisions.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

CASES = Path(__file__).parent / "cases.csv"


@cache
def cases() -> pd.DataFrame:
    """The recorded cases: data, backbone, recipe, gate, verdict, pairs, gain_pp."""
    return pd.read_csv(CASES, dtype={"data": str})


def cases_like(prior: str) -> str:
    """How often stage 3 justified itself where the gate had said the same, as a sentence."""
    found = cases()
    alike = found[found["gate"] == prior]
    if alike.empty:
        return f"no decision that this project has recorded began with a gate that said {prior}"
    mean = alike["gain_pp"].mean()
    won, open_ = ((alike["verdict"] == end).sum() for end in ("justified", "inconclusive"))
    return (
        f"stage 3 justified itself in {won} of {len(alike)} recorded cases of this project in "
        f"which the gate said {prior} ({open_} stayed open; mean gain {mean:+.1f} pp)"
    )
