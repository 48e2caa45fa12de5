"""What does looking again cost, and what does a single pair do? Simulated gains of pairs.

    python benchmarks/looks.py

First table: with a true gain of exactly the ROPE, how often a person is told `justified` who looks
at the given pairs; for a constant threshold and for an `anytime` design. The person who goes on
is told nothing at 5, 10 and 20 pairs, and then looks after every pair. Second table: how often a
gain of half or one standard deviation above the ROPE is found. Third table: what `robust` (no
single pair carries a verdict) costs, and what gains that are not normal do. Takes 4 minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.stats.design import GRID, Design  # noqa: E402
from pipeline.stats.operating import walk_studies  # noqa: E402
from pipeline.stats.posterior import Floats  # noqa: E402

FOUR = (5, 10, 20, 40)
PLAIN = Design(looks=(5, 10, 20), threshold=0.98, anytime=False, robust=False)
SCHEDULES = {
    "5, 10, 20": (5, 10, 20),
    "5, 10, 20, 40": FOUR,
    "5, 10, 20, 40, 80, 160": GRID,
    "5 to 20, every pair": tuple(range(5, 21)),
    "5, 10, 20, then every pair to 160": (5, 10, *range(20, 161)),
    "5 to 160, every pair": tuple(range(5, 161)),
}
DESIGNS = {
    "0.98": PLAIN,
    "0.984": replace(PLAIN, threshold=0.984),
    "0.9956": replace(PLAIN, threshold=0.9956),
    "anytime, 0.99": Design(robust=False),
}


def share(gains: Floats, looks: tuple[int, ...], design: Design) -> tuple[float, float]:
    """Share of studies that are `justified`, and the pairs used."""
    own = replace(design, looks=looks)
    ends, used = walk_studies(gains[:, : looks[-1]], own)
    return float(np.mean(ends == "justified")), float(np.mean(used))


def table(gain: float, studies: int, schedules: dict[str, tuple[int, ...]]) -> None:
    """A row for each schedule of looks, a column for each threshold."""
    rng = np.random.default_rng(0)
    gains = 0.5 + gain + rng.standard_normal((studies, GRID[-1]))
    print(f"\n| looks, gain at the ROPE + {gain:g} SD |", " | ".join(DESIGNS), "|")
    print("|---|" + "---|" * len(DESIGNS))
    for name, looks in schedules.items():
        found = [share(gains, looks, design) for design in DESIGNS.values()]
        print(f"| {name} |", " | ".join(f"{one:.1%} ({used:.0f})" for one, used in found), "|")


def collapsing(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """One pair in ten loses 10 standard deviations; mean 0."""
    return 1 + rng.standard_normal(shape) - 10 * (rng.random(shape) < 0.1)


SHAPES: dict[str, Callable[[np.random.Generator, tuple[int, int]], Floats]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "Student-t, 3 degrees": lambda rng, shape: rng.standard_t(3, shape) / 3**0.5,
    "right-skewed, exponential": lambda rng, shape: rng.exponential(1, shape) - 1,
    "left-skewed, exponential": lambda rng, shape: 1 - rng.exponential(1, shape),
    "a tenth collapses by 10 SD": collapsing,
    "a tenth jumps by 10 SD": lambda rng, shape: -collapsing(rng, shape),
}


def single_pairs(studies: int) -> None:
    """The third table."""
    anytime = Design(robust=False)
    columns = {
        "5, 10, 20 at 0.98": PLAIN,
        "robust": replace(PLAIN, robust=True),
        "5, 10, 20, 40 anytime": anytime,
        "anytime, robust": Design(),
    }
    print("\n| gains | true gain, pp |", " | ".join(columns), "|")
    print("|---|---|" + "---|" * len(columns))
    for name, draw in SHAPES.items():
        noise = draw(np.random.default_rng(1), (studies, FOUR[-1]))
        for gain in (0.5, 1.0, 1.5):
            found = [share(noise + gain, one.looks, one)[0] for one in columns.values()]
            print(f"| {name} | {gain:g} |", " | ".join(f"{one:.1%}" for one in found), "|")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--studies", type=int, default=20_000)
    studies = parser.parse_args().studies
    table(0.0, studies, SCHEDULES)
    some = {name: SCHEDULES[name] for name in list(SCHEDULES)[:3]}
    table(0.5, studies // 4, some)
    table(1.0, studies // 4, some)
    single_pairs(studies // 4)


if __name__ == "__main__":
    main()
