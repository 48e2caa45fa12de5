"""Which trial to go on with: the best, but only if it beats the defaults by more than noise.

The best of many noisy trials looks better than it is (the winner's curse). So the best trial must
beat the first one, which has the defaults, by some (2) standard errors of their paired difference
over the images of the tuning draws; otherwise the defaults stay. Where the defaults did not
finish, or the scores are lost, there is nothing to hold it against and the best is taken.

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
from pipeline.signals.readings import Scored, aligned, paired
from pipeline.stats.metrics import METRICS, OBJECTIVES, Metric
from pipeline.tracking import Tracking
from pipeline.tuning.study import Study
from pipeline.tuning.trial_state import RUN_ID, default_of

RESAMPLES = 500


@dataclass(frozen=True)
class Choice:
    """The trial to go on with.

    Attributes:
        gain: of the best trial over the defaults, positive where it is better; NaN if unknown.
        error: its paired standard error; NaN if unknown.
        margin: standard errors that were asked for.
    """

    trial: FrozenTrial
    is_default: bool
    gain: float
    error: float
    margin: float

    @property
    def sentence(self) -> str:
        """What was chosen and why."""
        if math.isnan(self.gain):
            if self.is_default:
                return "the defaults are the best"
            return "the best trial is taken: there is no trial of the defaults to hold it against"
        error = "unknown" if math.isnan(self.error) else f"{self.error:.4f}"
        size = f"the best trial beats the defaults by {self.gain:.4f} (s.e. {error})"
        if self.is_default:
            return f"{size}, less than {self.margin:g} s.e.: the defaults stay"
        return f"{size}: its settings are taken"


def choose(study: Study, tracking: Tracking, margin: float) -> Choice | None:
    """The choice between the best trial and the defaults; None before any trial is complete."""
    best = study.best
    if best is None:
        return None
    nothing = float("nan")
    default = default_of(study.optuna.get_trials(deepcopy=False))
    if default is None or default.number == best.number:
        return Choice(best, default is not None, nothing, nothing, margin)
    gain, error = _gain(study, tracking, best, default)
    stays = gain <= margin * error  # False where they are unknown
    return Choice(default if stays else best, stays, gain, error, margin)


def _gain(
    study: Study, tracking: Tracking, best: FrozenTrial, default: FrozenTrial
) -> tuple[float, float]:
    """The gain, a mean over the study's draws, and its standard error; NaN where unknown."""
    both = []
    for draw in study.spec.draws:
        scored = [_scored(tracking, trial, draw) for trial in (best, default)]
        if scored[0] is None or scored[1] is None:
            return math.nan, math.nan
        both.append((scored[0], scored[1]))
    objective = OBJECTIVES[study.spec.objective]
    if objective.metric in ("acc", "loss"):  # means over images
        differences = [paired(*one) for one in both]
        signed = [acc if objective.metric == "acc" else -nll for acc, nll in differences]
        all_images = np.concatenate(signed)
        return float(all_images.mean()), float(all_images.std(ddof=1)) / math.sqrt(len(all_images))
    if METRICS[objective.metric].of_classes:
        return bootstrapped(both, METRICS[objective.metric])
    assert best.value is not None
    assert default.value is not None
    gain = best.value - default.value
    return gain if objective.maximised else -gain, math.nan


def bootstrapped(both: Sequence[tuple[Scored, Scored]], metric: Metric) -> tuple[float, float]:
    """The first's metric minus the second's, a mean over draws, and its standard error.

    The images of each draw are resampled, the same ones for both (Efron 1979, paired bootstrap).
    `metric`: one that depends on the predicted classes alone.
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


def _scored(tracking: Tracking, trial: FrozenTrial, draw: int) -> Scored | None:
    try:
        run = tracking.get(str(trial.user_attrs.get(RUN_ID, "")))
        return scores_of(tracking, tracking.get(run.tags[f"draw{draw}_run_id"]))
    except LineageError:
        return None
