"""Which trial to go on with: the best, but only if it beats the defaults by more than noise.

The best of many noisy trials looks better than it is (the winner's curse). So the best trial must
beat the first one, which has the defaults, by some (2) standard errors of their paired difference
over the images of the tuning draws; otherwise the defaults stay. Where the defaults did not
finish, or the scores are lost, the best trial is taken.

In: a study and its runs. Out: a `Choice`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from optuna.trial import FrozenTrial
from scipy.stats import sem
from torch.nn import functional

from pipeline.errors import LineageError
from pipeline.signals.evidence import scores_of
from pipeline.signals.readings import Scored, aligned, paired
from pipeline.stats.metrics import METRICS, OBJECTIVES, Metric
from pipeline.tracking import Tracking
from pipeline.tracking.keys import draw_run_id
from pipeline.tuning.study import Study
from pipeline.tuning.trial_state import RUN_ID, default_of

RESAMPLES = 500


@dataclass(frozen=True)
class Choice:
    """The trial to go on with, and why in a sentence."""

    trial: FrozenTrial
    sentence: str


def choose(study: Study, tracking: Tracking, margin: float) -> Choice | None:
    """The choice between the best trial and the defaults; None before any trial is complete.

    `margin`: standard errors by which the best must be better.
    """
    best, default = study.best, default_of(study.trials)
    if best is None:
        return None
    if default is None:
        why = "the best trial is taken: there is no trial of the defaults to compare it with"
        return Choice(best, why)
    if default.number == best.number:
        return Choice(best, "the defaults are the best")
    gain, error = _gain(study, tracking, best, default)
    if math.isnan(gain):
        return Choice(best, "the best trial is taken: the scores of the defaults are lost")
    shown = "unknown" if math.isnan(error) else f"{error:.4f}"
    lead = f"the best trial beats the defaults by {gain:.4f} (s.e. {shown})"
    if gain <= margin * error:  # False where the error is unknown
        return Choice(default, f"{lead}, less than {margin:g} s.e.: the defaults stay")
    return Choice(best, f"{lead}: its settings are taken")


def _gain(
    study: Study, tracking: Tracking, best: FrozenTrial, default: FrozenTrial
) -> tuple[float, float]:
    """How much better the best trial is, a mean over draws, and its error; NaN where unknown."""
    both = []
    for draw in study.spec.draws:
        ours, theirs = (_scored(tracking, trial, draw) for trial in (best, default))
        if ours is None or theirs is None:
            return math.nan, math.nan
        both.append((ours, theirs))
    objective = OBJECTIVES[study.spec.objective]
    if objective.metric in ("acc", "loss"):  # means over images
        differences = [paired(*one) for one in both]
        signed = [acc if objective.metric == "acc" else -nll for acc, nll in differences]
        gains = np.concatenate(signed)
        return float(gains.mean()), float(sem(gains))
    return bootstrapped(both, METRICS[objective.metric])


def bootstrapped(both: Sequence[tuple[Scored, Scored]], metric: Metric) -> tuple[float, float]:
    """The first's metric minus the second's, a mean over draws, and its standard error.

    The images of each draw are resampled, the same ones for both (Efron 1979, paired bootstrap).
    """
    assert metric.of_classes, "images are resampled by their predicted classes alone"
    rng, gain, resampled = np.random.default_rng(0), 0.0, np.zeros(RESAMPLES)
    for one, other in both:
        predicted = [one.predicted, other.predicted[aligned(one, other)]]
        names, codes = np.unique(np.concatenate([one.labels, *predicted]), return_inverse=True)
        labels, *guesses = torch.from_numpy(codes).chunk(3)
        first, second = (functional.one_hot(g, len(names)).float() for g in guesses)
        count = len(labels)
        samples = [np.arange(count), *rng.integers(0, count, (RESAMPLES, count))]
        gains = np.array(
            [
                metric.compute(first[rows], labels[rows])
                - metric.compute(second[rows], labels[rows])
                for rows in map(torch.from_numpy, samples)
            ]
        )
        gain += gains[0] / len(both)
        resampled += gains[1:] / len(both)
    return gain, float(resampled.std(ddof=1))


def _scored(tracking: Tracking, trial: FrozenTrial, draw: int) -> Scored | None:
    try:
        run = tracking.get(str(trial.user_attrs.get(RUN_ID, "")))
        return scores_of(tracking, tracking.get(run.tags[draw_run_id(draw)]))
    except LineageError:
        return None
