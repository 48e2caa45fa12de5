"""How often is the best of many trials taken although all trials are alike? Simulated studies.

    python benchmarks/best_of_trials.py

A study has trials whose settings are all equally good. Each trial's network recognises each of
the `images` validation images of a draw, which all trials share, with a chance of the image's own:
most images are settled, a share `unsure` has a chance anywhere from 0 to 1. Besides, `noise` is
what another seed changes in the accuracy on images without end (standard deviation, in percentage
points). The best trial is taken or not as `tune` does: `gain > wanted_errors * error`. "Plain" is
the rule without a correction: two standard errors over images. Last table: how often a trial is
taken that is really better, of many that are not. Takes a minute.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import sem

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.tuning.choose import error_over_draws, wanted_errors  # noqa: E402

MARGIN = 2.0
"""The default of `margin`."""


def recognised(
    rng: np.random.Generator,
    trials: int,
    draws: int,
    images: int,
    *,
    unsure: float,
    noise_pp: float,
    better_pp: float = 0.0,
) -> NDArray[np.int8]:
    """Which unsure images each trial recognises; the last trial is better: (T, draws, unsure)."""
    count = round(images * unsure)
    chance = logit(rng.random((1, draws, count)))
    per_pp = 6 * 0.01 * images / count  # logits: a uniform chance has a mean slope of 1/6
    shift = rng.normal(0, noise_pp * per_pp, (trials, draws, 1))
    shift[-1] += better_pp * per_pp
    return (rng.random((trials, draws, count)) < expit(chance + shift)).astype(np.int8)


def study(found: NDArray[np.int8], images: int) -> tuple[int, bool, bool]:
    """The best trial, and whether it is taken by two standard errors, and as `tune` does."""
    trials, draws, count = found.shape
    by_draw = found.sum(axis=2) / images
    best = int(by_draw.mean(axis=1).argmax())
    if not best:  # trial 0 has the defaults
        return 0, False, False
    settled = np.zeros(draws * (images - count))
    gains = np.concatenate([(found[best] - found[0]).ravel(), settled])
    gain, over_images = float(gains.mean()), float(sem(gains))
    error = max(over_images, error_over_draws(by_draw))
    return best, gain > MARGIN * over_images, gain > wanted_errors(MARGIN, trials - 1) * error


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    print("| challengers | 1 | 4 | 9 | 19 | 49 | 99 |\n|---|---|---|---|---|---|---|")
    needed = [wanted_errors(MARGIN, count) for count in (1, 4, 9, 19, 49, 99)]
    print("| standard errors wanted |", " | ".join(f"{z:.2f}" for z in needed), "|")
    print(
        "\n| trials | images | unsure | noise, pp | 1 draw: plain | now | 3 draws: plain | now |"
    )
    print("|---|---|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    designs = [(20, n, u, s) for n in (100, 300, 1000) for u in (0.1, 0.2, 0.4) for s in (0, 0.23)]
    designs += [
        (20, 1000, 0.05, 0.23),
        (20, 1000, 0.2, 0.5),
        (2, 1000, 0.2, 0),
        (50, 1000, 0.2, 0),
    ]
    for trials, images, unsure, noise in designs:
        shown = []
        for draws in (1, 3):
            ends = [
                study(
                    recognised(rng, trials, draws, images, unsure=unsure, noise_pp=noise), images
                )
                for _ in range(studies)
            ]
            shown += [np.mean([end[1] for end in ends]), np.mean([end[2] for end in ends])]
        cells = " | ".join(f"{value:.1%}" for value in shown)
        print(f"| {trials} | {images} | {unsure:.0%} | {noise:g} | {cells} |", flush=True)
    print("\n| one of 20 is better by, pp | 1 draw: plain | now | 3 draws: plain | now |")
    print("|---|---|---|---|---|")
    for better in (1.0, 2.0, 3.0, 5.0):
        shown = []
        for draws in (1, 3):
            ends = [
                study(
                    recognised(rng, 20, draws, 1000, unsure=0.2, noise_pp=0.23, better_pp=better),
                    1000,
                )
                for _ in range(studies)
            ]
            right = [(end[0] == 19 and end[1], end[0] == 19 and end[2]) for end in ends]
            shown += [np.mean([one[0] for one in right]), np.mean([one[1] for one in right])]
        cells = " | ".join(f"{value:.1%}" for value in shown)
        print(f"| {better:g} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
