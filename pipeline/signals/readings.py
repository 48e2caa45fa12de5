"""Positive and negative signals of a stage run, from finished numbers alone. Pure functions.

In: the history of the run R, per-image scores of R and of its parent U on the same validation
images, validation accuracies of sibling runs, thresholds. Out: `Signal`s.

Positive:  val_acc_gain, val_loss_stable, no_early_spike
Negative:  train_acc_saturates, val_loss_rises, unstable_across_runs

Paired variances: Pitman 1939, Morgan 1939. What each signal is worth: docs/signals.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy import special

from pipeline.settings.thresholds import Thresholds
from pipeline.signals.scored import Scored, mean_and_error, paired
from pipeline.stats.metrics import Column
from pipeline.stats.spread import variance_test
from pipeline.system.text import changed_by, count_of, fixed
from pipeline.tracking.history import History
from pipeline.tracking.keys import TRAIN_ACC, VAL_LOSS

State = Literal["true", "false", "unknown"]
MIN_SIBLINGS = 3
TIED = 1e-9
"""Standard deviation, in percentage points, that is none."""
_WARNINGS = ("negative.", "memorising")
"""Beginnings of the names of readings that speak against a stage where they are true."""
_NUMBERS = ("positive.no_early_spike", "negative.train_acc_saturates")
"""They tell the learning rate, not the gain: in one study they pointed one way, in another the
other (docs/signals.md)."""
_UNSTABLE = "negative.unstable_across_runs"
"""It has found rates that ruin a network; where it is false it has told nothing."""


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One reading: a run's tag `signal.<name>` or `gate.<name>`, its metrics `signal/<number>`."""

    name: str
    state: State
    sentence: str
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def mark(self) -> str:
        """`+` speaks for the stage, `!` against it, `?` is not known, `·` says neither."""
        if self.state == "unknown":
            return "?"
        if self.name in _NUMBERS or (self.name, self.state) == (_UNSTABLE, "false"):
            return "·"
        return "+" if (self.state == "true") != self.name.startswith(_WARNINGS) else "!"

    @property
    def line(self) -> str:
        """The reading as people read it: its mark and its sentence."""
        return f"{self.mark} {self.sentence}"

    @classmethod
    def of(cls, name: str, holds: bool | None, sentence: str, **numbers: float) -> Signal:
        """A reading that holds, does not, or (None) is unknown."""
        state: State = "unknown" if holds is None else "true" if holds else "false"
        return cls(name=name, state=state, sentence=sentence, numbers=numbers)


def numbers_of(signals: Iterable[Signal]) -> dict[str, float]:
    """The numbers of all signals by name; signals share a name only where the values are equal."""
    found: dict[str, float] = {}
    for signal in signals:
        for name, value in signal.numbers.items():
            same = found.setdefault(name, value)
            equal = same == value or (math.isnan(same) and math.isnan(value))
            assert equal, f"{signal.name}: another signal has a number called {name}, too"
    return found


@dataclass(frozen=True)
class Sibling:
    """A run that differs in draw or seed alone: its accuracy, and its parent by digest."""

    val_acc: float
    parent_val_acc: float
    parent: str


def read_signals(
    history: History,
    scored: Scored,
    parent: Scored | None,
    thresholds: Thresholds,
    *,
    has_parent: bool,
    parent_epochs: int = 0,
) -> list[Signal]:
    """Every signal that makes sense for a run that has just ended; a first stage has no parent.

    `parent` is None where the parent's scores are lost: signals that need them are `unknown`.
    `parent_epochs`: how many epochs the parent's was selected from; 0: not known, so the number
    of the run's own epochs is taken.
    """
    readings = [
        no_early_spike(history, thresholds),
        saturation(history, thresholds),
        loss_rise(history, scored, parent, thresholds, has_parent=has_parent),
    ]
    if has_parent:
        choices = len(history) / (parent_epochs or len(history))
        readings += [
            accuracy_gain(scored, parent, thresholds, choices),
            loss_stability(scored, parent),
            instability([], thresholds),
        ]
    return sorted(readings, key=lambda signal: signal.name, reverse=True)


def _change(scored: Scored, parent: Scored | None, column: Column) -> tuple[float, float] | None:
    """Mean and standard error of a column of `paired`; None without scores to pair."""
    if parent is None or len(scored.images) < 2:
        return None
    return mean_and_error(paired(scored, parent)[column])


def _unknown(name: str, what: str) -> Signal:
    why = "the validation scores of the stage before are missing"
    return Signal.of(name, None, f"how {what} changed is not known: {why}")


def accuracy_gain(
    scored: Scored, parent: Scored | None, thresholds: Thresholds, choices: float = 1.0
) -> Signal:
    """True if so many more images are recognised than lost that chance rarely does it.

    By the exact one-sided sign test over images on which the two disagree (McNemar 1947), at
    1 - `signal_confidence`. `choices`: epochs that the run's was selected from for each of the
    parent's. More than one choice makes a gain more likely by chance: the level is divided by
    their number (Bonferroni).
    """
    name = "positive.val_acc_gain"
    change = _change(scored, parent, "correct")
    if change is None or parent is None:
        return _unknown(name, "validation accuracy")
    mean, error = change
    level = (1 - thresholds.signal_confidence) / max(1.0, choices)
    quantile = float(special.stdtrit(len(scored.images) - 1, 1 - level))
    differences = paired(scored, parent)["correct"]
    gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
    p = float(special.bdtrc(gained - 1, gained + lost, 0.5)) if gained else 1.0
    enough = "" if p <= level or mean <= 0 else f", which may be chance: {level:.2g} is needed"
    sentence = (
        f"validation accuracy {changed_by(100 * mean, 1, 'points')} (s.e. {100 * error:.1f}): "
        f"{count_of(gained, 'image')} gained, {lost:,} lost, p = {p:.2g}{enough}"
    )
    return Signal.of(
        name,
        p <= level,
        sentence,
        acc_gain=mean,
        acc_gain_se=error,
        acc_gain_bound=mean - quantile * error,
        acc_gain_p=p,
    )


def loss_stability(scored: Scored, parent: Scored | None) -> Signal:
    """True if the mean cross-entropy is at most the parent's plus one paired standard error."""
    name = "positive.val_loss_stable"
    change = _change(scored, parent, "nll")
    if change is None:
        return _unknown(name, "validation loss")
    mean, error = change
    within = ", a rise within noise" if 0 < mean <= error else ""
    return Signal.of(
        name,
        mean <= error,
        f"validation loss {changed_by(mean, 3, 'nats')} (s.e. {fixed(error, 3)}){within}",
        nll_change=mean,
        nll_change_se=error,
    )


EARLY = ": early, which tells of the learning rate, not of the gain"
TOO_FEW = ": too few epochs to tell whether that is early"


def no_early_spike(history: History, thresholds: Thresholds) -> Signal:
    """True if training accuracy saturates after `signal_spike_share` of the epochs, or never.

    Unknown in a run of one epoch that ends saturated: when in the epoch is not seen.
    """
    share, numbers, sentence = _saturated(history, thresholds)
    name = "positive.no_early_spike"
    if not numbers and history.diverged:
        return Signal.of(name, None, f"{sentence}, and the loss diverged")
    late = share > thresholds.signal_spike_share
    is_seen = not late or share != 1 / history.planned
    if not late:
        sentence += EARLY
    elif not is_seen:
        sentence += TOO_FEW
    return Signal.of(name, late if is_seen else None, sentence, **numbers)


def saturation(history: History, thresholds: Thresholds) -> Signal:
    """True if training accuracy saturates within the first quarter of the epochs.

    Unknown where it saturates in the first of fewer than four: when in the epoch is not seen.
    """
    share, numbers, sentence = _saturated(history, thresholds)
    early = share <= thresholds.signal_early_share
    is_seen = early or share != 1 / history.planned
    if early:
        sentence += EARLY
    elif not is_seen:
        sentence += TOO_FEW
    elif share <= thresholds.signal_spike_share:
        sentence += f", after the first {thresholds.signal_early_share:.0%} of the epochs"
    return Signal.of(
        "negative.train_acc_saturates", early if is_seen else None, sentence, **numbers
    )


def _saturated(history: History, thresholds: Thresholds) -> tuple[float, dict[str, float], str]:
    """The share of the planned epochs at which training accuracy saturates; infinite: never."""
    level = thresholds.signal_saturation_acc
    epochs = (epoch for epoch, acc in enumerate(history[TRAIN_ACC], start=1) if acc >= level)
    epoch = next(epochs, None)
    when = "its first epoch" if epoch == 1 else f"epoch {epoch}"
    reached = f"reached {level:.0%} in {when}" if epoch else f"never reached {level:.0%}"
    sentence = f"training accuracy {reached} (of {count_of(history.planned, 'epoch')})"
    if epoch is None:
        return math.inf, {}, sentence
    return epoch / history.planned, {"saturation_share": epoch / history.planned}, sentence


def loss_rise(
    history: History,
    scored: Scored,
    parent: Scored | None,
    thresholds: Thresholds,
    *,
    has_parent: bool,
) -> Signal:
    """True if the loss exceeds the parent's by a standard error, or ends above its minimum."""
    finite = [loss for loss in history[VAL_LOSS] if math.isfinite(loss)]
    lowest, last = min(finite, default=math.nan), history[VAL_LOSS][-1]
    rise = last / lowest - 1 if lowest else (math.inf if last else 0.0)
    rises = not math.isfinite(last) or rise > thresholds.signal_loss_rise
    least = f"its minimum of {fixed(lowest, 3)} nats"
    if not math.isfinite(last):
        sentence = f"validation loss ended as no number, after {least}"
    elif len(history) == 1:
        sentence = f"validation loss was {fixed(last, 3)} nats after its one epoch"
    elif math.isinf(rise):
        sentence = f"validation loss ended at {fixed(last, 3)} nats, above {least}"
    elif float(f"{rise:.3f}") == 0:
        sentence = f"validation loss ended at {least}"
    else:
        sentence = f"validation loss ended {'' if rises else 'only '}{rise:.1%} above {least}"
    holds = rises or (None if len(history) == 1 else False)  # of one epoch: a rise is not seen
    if change := _change(scored, parent, "nll"):
        mean, error = change
        against = f"{fixed(abs(mean), 3)} nats {'above' if mean > 0 else 'below'}"
        sentence += f", at the selected epoch {against} the stage before (s.e. {fixed(error, 3)})"
        holds = rises or mean > error
    elif has_parent:
        sentence += "; the scores of the stage before are missing"
        holds = rises or None
    numbers = {"loss_rise": rise} if math.isfinite(rise) else {}
    return Signal.of("negative.val_loss_rises", holds, sentence, **numbers)


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
        have = count_of(len(siblings), "run")
        if count < len(siblings):
            have += f" of {count_of(count, 'parent')}"
        each = ", with a parent each," if count < len(siblings) else ""
        sentence = (
            f"whether another draw or seed would end alike is not known: {MIN_SIBLINGS} runs that "
            f"differ only in these{each} are needed; so far: {have}"
        )
        return Signal.of(name, None, sentence, siblings=count)
    own = [100 * sibling.val_acc for sibling in first_of.values()]
    before = [100 * sibling.parent_val_acc for sibling in first_of.values()]
    spread, parent_spread = float(np.std(own, ddof=1)), float(np.std(before, ddof=1))
    if min(spread, parent_spread) < TIED:
        which = "the runs" if spread < TIED else "those of the stage before"
        sentence = f"over {count} runs that differ only in draw or seed, accuracies of {which} tie"
        return Signal.of(name, None, f"{sentence}: how they vary is not seen", siblings=count)
    p = variance_test(own, before)
    return Signal.of(
        name,
        p < thresholds.signal_spread_p,
        f"over {count} runs that differ only in draw or seed, validation accuracy varies "
        f"{'more than' if p < thresholds.signal_spread_p else 'no more than'} at the stage before "
        f"(standard deviations {spread:.2f} and {parent_spread:.2f} points, p = {p:.2f})",
        siblings=count,
        spread=spread,
        parent_spread=parent_spread,
        spread_p=p,
    )
