"""What a stage run says about itself: positive and negative signals, from finished numbers alone.

In: the history of the run R, per-image scores of R and of its parent U on the same validation
images, validation accuracies of sibling runs, thresholds. Out: `Signal`s, each `true`, `false` or
`unknown`, with its numbers and a sentence. Pure functions: nothing is read, trained or logged.

Positive:  val_acc_gain, val_loss_stable, no_early_spike
Negative:  train_acc_saturates, val_loss_rises, unstable_across_runs

Paired variances: Pitman 1939, Morgan 1939. What each signal is worth: docs/signals.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.settings.run import Thresholds
from pipeline.tracking.history import History
from pipeline.tracking.keys import TRAIN_ACC, TRAIN_LOSS, VAL_LOSS

State = Literal["true", "false", "unknown"]
MIN_SIBLINGS = 3


@dataclass(frozen=True)
class Signal:
    """One reading of a run.

    Attributes:
        name: `positive.…` or `negative.…`.
        state: what the tag `signal.<name>` says.
        sentence: the reading in words, with its numbers.
        numbers: what the metrics `signal/<key>` say.
    """

    name: str
    state: State
    sentence: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """A model's result on each validation image.

    Attributes:
        images: each image's SHA-256, (N,).
        labels: its class, a name or a number, (N,).
        predicted: the class that was predicted, likewise, (N,).
        nll: cross-entropy in nats, (N,).
    """

    images: tuple[str, ...]
    labels: NDArray[Any]
    predicted: NDArray[Any]
    nll: NDArray[np.float64]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the right class was predicted, (N,)."""
        right: NDArray[np.bool_] = self.labels == self.predicted
        return right


@dataclass(frozen=True)
class Sibling:
    """A run with the same everything but draw or seed: its accuracy and its parent's.

    `parent`: which one that is; siblings of one parent have no spread of parents to compare with.
    """

    val_acc: float
    parent_val_acc: float
    parent: str


def read_signals(
    history: History,
    scored: Scored,
    parent: Scored | None,
    siblings: Sequence[Sibling],
    thresholds: Thresholds,
    *,
    has_parent: bool,
) -> list[Signal]:
    """Every signal that makes sense for this run; a first stage has no parent to be better than.

    `parent` is None where the parent's scores are lost: then what needs them is `unknown`.
    """
    readings = [
        early_spike(history, thresholds),
        saturation(history, thresholds),
        loss_rise(history, scored, parent, thresholds, has_parent=has_parent),
    ]
    if has_parent:
        readings += [
            accuracy_gain(scored, parent, thresholds),
            loss_stability(scored, parent),
            instability(siblings, thresholds),
        ]
    return sorted(readings, key=lambda signal: signal.name, reverse=True)


def aligned(scored: Scored, parent: Scored) -> NDArray[np.int64]:
    """The row of the parent's scores that is about each image of the run's, (N,).

    Raises:
        ValueError: the two are not about the same images.
    """
    row_of = {image: row for row, image in enumerate(parent.images)}
    if len(row_of) != len(parent.images) or set(row_of) != set(scored.images):
        if scored.images != parent.images:  # equal images may appear twice, in one order
            raise ValueError("the run and its parent were not scored on the same images")
        return np.arange(len(parent.images))
    return np.array([row_of[image] for image in scored.images])


def paired(scored: Scored, parent: Scored) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Differences R - U of correctness and of cross-entropy, image by image, (N,) each.

    Raises:
        ValueError: the two are not about the same images.
    """
    rows = aligned(scored, parent)
    accuracy = scored.correct.astype(float) - parent.correct[rows].astype(float)
    return accuracy, scored.nll - parent.nll[rows]


def mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def accuracy_gain(scored: Scored, parent: Scored | None, thresholds: Thresholds) -> Signal:
    """True if the lower one-sided bound of the paired accuracy difference is above 0."""
    name = "positive.val_acc_gain"
    if parent is None or len(scored.images) < 2:
        return _unknown(name, "the parent's validation scores")
    mean, error = mean_and_error(paired(scored, parent)[0])
    quantile = float(stats.t.ppf(thresholds.signal_confidence, len(scored.images) - 1))
    bound = mean - quantile * error
    return Signal(
        name,
        _state(bound > 0),
        f"validation accuracy changed by {100 * mean:+.1f} pp against the parent (standard error "
        f"{100 * error:.1f}); with {thresholds.signal_confidence:.0%} confidence it is above "
        f"{100 * bound:+.1f} pp",
        {"acc_gain": mean, "acc_gain_se": error, "acc_gain_bound": bound},
    )


def loss_stability(scored: Scored, parent: Scored | None) -> Signal:
    """True if the mean cross-entropy is at most the parent's plus one paired standard error."""
    name = "positive.val_loss_stable"
    if parent is None or len(scored.images) < 2:
        return _unknown(name, "the parent's validation scores")
    mean, error = mean_and_error(paired(scored, parent)[1])
    return Signal(
        name,
        _state(mean <= error),
        f"validation loss changed by {mean:+.3f} nats against the parent (standard error "
        f"{error:.3f})",
        {"nll_change": mean, "nll_change_se": error},
    )


def first_epoch_at(train_acc: Sequence[float], level: float) -> int | None:
    """The first epoch, from 1, whose training accuracy is at least `level`; None: never."""
    return next((epoch for epoch, acc in enumerate(train_acc, start=1) if acc >= level), None)


def early_spike(history: History, thresholds: Thresholds) -> Signal:
    """True if training accuracy saturates after half of the epochs, or never."""
    level, share = thresholds.signal_saturation_acc, thresholds.signal_spike_share
    epoch = first_epoch_at(history[TRAIN_ACC], level)
    late = epoch is None or epoch > share * history.planned
    diverged = epoch is None and not math.isfinite(history[TRAIN_LOSS][-1])
    state: State = "unknown" if diverged else _state(late)
    sentence = _when(epoch, level, history) + (", and the loss diverged" if diverged else "")
    return Signal("positive.no_early_spike", state, sentence, _at(epoch, history))


def saturation(history: History, thresholds: Thresholds) -> Signal:
    """True if training accuracy saturates within the first quarter of the epochs."""
    level, share = thresholds.signal_saturation_acc, thresholds.signal_early_share
    epoch = first_epoch_at(history[TRAIN_ACC], level)
    early = epoch is not None and epoch <= share * history.planned
    return Signal(
        "negative.train_acc_saturates",
        _state(early),
        _when(epoch, level, history),
        _at(epoch, history),
    )


def loss_rise(
    history: History,
    scored: Scored,
    parent: Scored | None,
    thresholds: Thresholds,
    *,
    has_parent: bool,
) -> Signal:
    """True if the loss exceeds the parent's by a standard error, or ends above its minimum."""
    name = "negative.val_loss_rises"
    finite = [loss for loss in history[VAL_LOSS] if math.isfinite(loss)]
    lowest, last = min(finite, default=math.nan), history[VAL_LOSS][-1]
    rise = 0.0 if lowest == 0 else last / lowest - 1
    own = not math.isfinite(last) or rise > thresholds.signal_loss_rise
    shown = f"{lowest:.3f}" if lowest < 1000 else f"{lowest:.2g}"
    how = f"{rise:.1%} above" if math.isfinite(last) else "as no number, after"
    sentence = f"validation loss ended {how} its minimum of {shown} nats"
    numbers = {"loss_rise": rise} if math.isfinite(rise) else {}
    if not has_parent:
        return Signal(name, _state(own), sentence, numbers)
    if parent is None or len(scored.images) < 2:
        state: State = "true" if own else "unknown"
        return Signal(name, state, f"{sentence}; the parent's scores are missing", numbers)
    mean, error = mean_and_error(paired(scored, parent)[1])
    compared = f"at the selected epoch it is {mean:+.3f} nats from the parent's (s.e. {error:.3f})"
    return Signal(name, _state(own or mean > error), f"{sentence}; {compared}", numbers)


def variance_test(values: Sequence[float], reference: Sequence[float]) -> float:
    """One-sided p of the Pitman-Morgan test that paired `values` vary more than `reference`.

    Sums and differences of the pairs correlate exactly as far as the variances differ.
    """
    x, y = np.asarray(values, dtype=float), np.asarray(reference, dtype=float)
    total, difference = x + y, x - y
    tiny = 1e-12
    if np.ptp(total) < tiny or np.ptp(difference) < tiny:
        return 0.5  # equal variances
    r = float(np.corrcoef(total, difference)[0, 1])
    if abs(r) > 1 - tiny:
        return 0.0 if r > 0 else 1.0
    t = r * math.sqrt((len(x) - 2) / (1 - r * r))
    return float(stats.t.sf(t, len(x) - 2))


def instability(siblings: Sequence[Sibling], thresholds: Thresholds) -> Signal:
    """True if accuracies of sibling draws or seeds spread more than their parents'.

    Of siblings that share a parent the first alone counts: their parents do not vary at all.
    """
    name = "negative.unstable_across_runs"
    first_of: dict[str, Sibling] = {}
    for sibling in siblings:
        first_of.setdefault(sibling.parent, sibling)
    count = len(first_of)
    if count < MIN_SIBLINGS:
        runs = f"{len(siblings)} run{' differs' if len(siblings) == 1 else 's differ'}"
        sentence = f"{runs} only in draw or seed: {MIN_SIBLINGS} are needed"
        if count < len(siblings):
            parents_told = "one parent" if count == 1 else f"{count} parents"
            sentence += f" with a parent each, these have {parents_told}"
        return Signal(name, "unknown", sentence, {"siblings": count})
    own = [100 * sibling.val_acc for sibling in first_of.values()]
    parents = [100 * sibling.parent_val_acc for sibling in first_of.values()]
    p = variance_test(own, parents)
    spread, before = float(np.std(own, ddof=1)), float(np.std(parents, ddof=1))
    return Signal(
        name,
        _state(p < thresholds.signal_spread_p),
        f"over {count} runs that differ only in draw or seed validation accuracy has a standard "
        f"deviation of {spread:.2f} pp, their parents' {before:.2f} pp (p = {p:.2f})",
        {"siblings": count, "spread": spread, "parent_spread": before, "spread_p": p},
    )


def _state(holds: bool) -> State:
    return "true" if holds else "false"


def _unknown(name: str, missing: str) -> Signal:
    return Signal(name, "unknown", f"{missing} are missing")


def _when(epoch: int | None, level: float, history: History) -> str:
    reached = f"reached {level:.0%} in epoch {epoch}" if epoch else f"never reached {level:.0%}"
    return f"training accuracy {reached} (of {history.planned} epochs)"


def _at(epoch: int | None, history: History) -> dict[str, float]:
    return {} if epoch is None else {"saturation_share": epoch / history.planned}
