"""Which trial to go on with: the best, but only if it beats the defaults by more than noise.

The best of many noisy trials looks better than it is (the winner's curse). So the best trial must
beat the first one, which has the defaults, by some (2) standard errors of their paired difference
over the images of the tuning draws; otherwise the defaults stay. The best trial is taken where
nothing can be compared: the defaults did not finish, the scores are lost, or the metric is one
whose standard error stored predictions do not give.

In: a study and its runs. Out: a `Choice`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from optuna.trial import FrozenTrial
from torch.nn import functional

from pipeline.errors import LineageError
from pipeline.signals.evidence import scores_of
from pipeline.signals.readings import Scored, aligned, mean_and_error, paired
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
    objective = OBJECTIVES[study.spec.objective]
    metric, both = METRICS[objective.metric], _scores(study, tracking, best, default)
    if both is None:
        return Choice(best, "the best trial is taken: the scores of the defaults are lost")
    gain, error = gain_of(both, metric)
    if math.isnan(gain):
        assert best.value is not None
        assert default.value is not None
        gain = best.value - default.value
    gain = gain if objective.maximised else -gain
    lead = f"the best trial beats the defaults by {gain:.4f}"
    if math.isnan(error):
        unknown = f"no standard error of a gain in {metric.words} can be had"
        return Choice(best, f"{lead}: its settings are taken without a margin, as {unknown}")
    lead = f"{lead} (s.e. {error:.4f})"
    if gain <= margin * error:
        return Choice(default, f"{lead}, less than {margin:g} s.e.: the defaults stay")
    return Choice(best, f"{lead}: its settings are taken")


def gain_of(both: Sequence[tuple[Scored, Scored]], metric: Metric) -> tuple[float, float]:
    """The first's metric minus the second's, a mean over draws, and its standard error.

    NaN where stored predictions, which have the predicted class and the loss of each image, do
    not give the metric; an error of NaN from a single image.
    """
    if metric.mean_of:
        return mean_and_error(np.concatenate([paired(*one)[metric.mean_of] for one in both]))
    return bootstrapped(both, metric) if metric.of_classes else (math.nan, math.nan)


def bootstrapped(both: Sequence[tuple[Scored, Scored]], metric: Metric) -> tuple[float, float]:
    """The same for a metric of the predicted classes that is not a mean over images.

    The images of each draw are resampled, the same ones for both (Efron 1979, paired bootstrap).
    """
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


def _scores(
    study: Study, tracking: Tracking, best: FrozenTrial, default: FrozenTrial
) -> list[tuple[Scored, Scored]] | None:
    """Both trials' scores on each draw; None where any are lost."""
    both = []
    for draw in study.spec.draws:
        ours, theirs = (_scored(tracking, trial, draw) for trial in (best, default))
        if ours is None or theirs is None:
            return None
        both.append((ours, theirs))
    return both


def _scored(tracking: Tracking, trial: FrozenTrial, draw: int) -> Scored | None:
    try:
        run = tracking.get(str(trial.user_attrs.get(RUN_ID, "")))
        return scores_of(tracking, tracking.get(run.tags[draw_run_id(draw)]))
    except LineageError:
        return None
