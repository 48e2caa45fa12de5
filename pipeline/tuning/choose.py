"""Which trial to go on with: the best, but only if it beats the defaults by more than noise.

The best of many noisy trials looks better than it is (the winner's curse). So the best trial must
beat the first one, which has the defaults, by so many standard errors of their paired difference
that the best of as many trials that are all alike seldom does (`wanted_errors`); otherwise the
defaults stay. The standard error is that over the images of the tuning draws; with several draws
it is at least what their differences between draws show (`error_over_draws`), in which other
training noise stands as well. Where the scores are lost, a choice among the same trials stays. The
best trial is taken where nothing can be compared: the defaults did not finish, the scores of
further trials are lost, or the metric is one whose standard error stored predictions do not give.

In: a study and its runs. Out: a `Choice`. Not covered: training noise with a single draw, where
settings and noise cannot be told apart (`benchmarks/best_of_trials.py` says what that costs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from optuna.trial import FrozenTrial, TrialState
from scipy import special
from torch.nn import functional

from pipeline.errors import LineageError
from pipeline.signals.evidence import scores_of
from pipeline.signals.scored import Scored, aligned, mean_and_error, paired
from pipeline.stats.metrics import METRICS, OBJECTIVES, Metric
from pipeline.system.text import count_of
from pipeline.tracking import Tracking
from pipeline.tracking.keys import draw_run_id
from pipeline.tuning.storage.trial_state import RUN_ID, default_of
from pipeline.tuning.study import CHOICE, CHOSEN, FINISHED, STEPS_A_DRAW, Study

RESAMPLES = 500
FAR = 30.0
"""Standard errors beyond which the number of trials changes nothing."""


@dataclass(frozen=True)
class Choice:
    """The trial to go on with, and why in a sentence."""

    trial: FrozenTrial
    sentence: str


def choose(study: Study, tracking: Tracking, margin: float) -> Choice | None:
    """The choice between the best trial and the defaults; None before any trial is complete.

    `margin`: standard errors by which a single trial must be better, see `wanted_errors`.
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
    if both is None and margin > 0 and (settled := _settled(study)):
        return settled
    if both is None:
        why = "the scores of its run or of the defaults' run are lost"
        return Choice(best, f"the best trial is taken without a margin: {why}")
    gain, error = gain_of(both, metric)
    if math.isnan(gain):
        assert best.value is not None
        assert default.value is not None
        gain = best.value - default.value
    gain = gain if objective.maximised else -gain
    tried = _tried(study)
    lead = f"the best of {count_of(tried, 'trial')} beats the defaults by {gain:.4f}"
    if math.isnan(error):
        unknown = f"no standard error of a gain in {metric.words} can be had"
        return Choice(best, f"{lead}: its settings are taken without a margin, as {unknown}")
    error = max(error, error_over_draws(_by_draw(study)))
    wanted = wanted_errors(margin, tried - 1)
    lead, luck = f"{lead} (s.e. {error:.4f})", f"the {wanted:.3g} s.e. that luck explains"
    if gain <= wanted * error:
        return Choice(default, f"{lead}, less than {luck}: the defaults stay")
    return Choice(best, f"{lead}, more than {luck}: its settings are taken")


def _settled(study: Study) -> Choice | None:
    """What was chosen among these very trials, when their scores were still there."""
    attrs = study.optuna.user_attrs
    if CHOSEN not in attrs or attrs.get(FINISHED) != study.finished():
        return None
    return Choice(study.trials[attrs[CHOSEN]], str(attrs.get(CHOICE)))


def _tried(study: Study) -> int:
    """How many settings the best was picked from; trials that repeat others are none."""
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    return len({tuple(sorted(t.params.items())) for t in study.trials if t.state in ended})


def wanted_errors(margin: float, challengers: int) -> float:
    """Standard errors by which the best of several trials must beat the defaults.

    The best of so many trials that are no better leads by this much at most as often as a single
    one leads by `margin`: 2.3% for 2. Sidak's bound (1967, JASA 62, 626-633), which holds for
    trials that share the defaults and the images. A margin of 0 takes the best outright.
    """
    if not 0 < margin < FAR or challengers < 2:
        return margin
    return float(-special.ndtri(-np.expm1(special.log_ndtr(margin) / challengers)))


def error_over_draws(values: ArrayLike) -> float:
    """Standard error of a difference of two trials' means, from how trials vary over draws.

    `values`: of every trial that is complete on each draw, (trials, draws). What all trials have
    in common on a draw, its median over trials, is taken off; then the median of the trials'
    variances, which a few trials far from the others do not change. 0 for a single draw or trial.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim < 2 or min(table.shape) < 2:
        return 0.0
    trials, draws = table.shape
    own = table - np.median(table, axis=0)
    variance = np.median(own.var(axis=1, ddof=1)) * trials / (trials - 1)
    # chi-squared of draws - 1 degrees has this median, and draws - 1 as its mean
    median = 2 * special.gammaincinv((draws - 1) / 2, 0.5)
    return float(np.sqrt(2 * variance * (draws - 1) / median / draws))


def _by_draw(study: Study) -> NDArray[np.float64]:
    """The values of complete trials on each draw, (trials, draws), from what they reported."""
    counts = np.arange(1, len(study.spec.draws) + 1)
    rows = [
        [trial.intermediate_values.get(STEPS_A_DRAW * int(count), math.nan) for count in counts]
        for trial in study.trials
        if trial.state == TrialState.COMPLETE
    ]
    sums = np.array(rows, dtype=np.float64).reshape(-1, len(counts)) * np.array(
        counts
    )  # of means so far
    values = np.diff(sums, axis=1, prepend=0.0)
    return values[np.isfinite(values).all(axis=1)]


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
