"""Has stage 3 been earned? What finished stage-1 and stage-2 runs say, before any stage-3 run.

In: a stage-2 run (its siblings are found), several, or the lines that runs end with. Out: a
`Gate`, four readings and a prior in words; tags `gate.…` and a one-page report on the stage-2
runs. The gate advises; `enforce_gate` lets it refuse.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from pipeline.errors import GateError, LineageError
from pipeline.reporting.page import to_markdown
from pipeline.settings.thresholds import Thresholds
from pipeline.signals.cases import cases_like
from pipeline.signals.evidence import as_far_as_allowed, siblings_of_run, thresholds_of
from pipeline.signals.readings import Signal
from pipeline.stats.metrics import Row
from pipeline.system.text import changed_by, count_of
from pipeline.tracking import RunView, Tracking
from pipeline.tracking.history import metrics_at_best, read_history
from pipeline.tracking.keys import (
    DRAW,
    GATE_GAINS,
    GATE_PRIOR,
    PARENT_RUN_ID,
    PARENT_VAL_ACC,
    SEED,
    TRAIN_ACC,
    TRAIN_LOSS,
    VAL_ACC,
    VAL_LOSS,
)

MIN_DRAWS = 3
REPORT = "gate/report.md"
_NUMBER = r"(\d+\.?\d*(?:e\+\d+)?)"
LINE = re.compile(
    rf"Stage-([12]) Best results: Train Loss: {_NUMBER} \| Val Loss: {_NUMBER} \| "
    rf"Train Acc: {_NUMBER}% \| Val Acc: {_NUMBER}%"
)


@dataclass(frozen=True, kw_only=True)
class GateDraw:
    """Stage 1 and stage 2 of one draw, each at its selected epoch.

    `val_loss`: stage 2's by epoch; empty where it is not known.
    """

    draw: str
    first: Row
    second: Row
    val_loss: Sequence[float] = ()


@dataclass(frozen=True)
class Gate:
    """The four readings, and what they come to."""

    readings: tuple[Signal, ...]
    prior: Literal["promising", "confirmation_only", "not_yet"]
    reason: str

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the stage-2 runs."""
        return {f"gate.{r.name}": r.state for r in self.readings} | {GATE_PRIOR: self.prior}

    def enforce(self) -> None:
        """Stop unless stage 3 is promising.

        Raises:
            GateError: says why, and what to do.
        """
        if self.prior == "promising":
            return
        advice = "improve stage 2 first"
        if self.prior == "not_yet" and self.tags[GATE_GAINS] == "unknown":
            advice = (
                f"run stage 2 on {MIN_DRAWS} draws or more first (train_per_class=auto leaves one)"
            )
        raise GateError(
            f"stage 3 is not started: the gate says {self.prior} ({self.reason}): {advice}, or "
            "pass -P enforce_gate=false to run it all the same"
        )


def parse_best_lines(text: str) -> list[GateDraw]:
    """Stages 1 and 2 of each draw, from the lines that stage runs end with, draw after draw.

    Raises:
        GateError: a stage has no line, or more than the other; an accuracy above 100%.
    """
    found: dict[str, list[Row]] = {"1": [], "2": []}
    for stage, *numbers in LINE.findall(text):
        train_loss, val_loss, train_acc, val_acc = map(float, numbers)
        if max(train_acc, val_acc) > 100:
            raise GateError(
                f"Stage-{stage}: accuracy {max(train_acc, val_acc):g}% is above 100%: pass the "
                "lines as the runs printed them"
            )
        row = {TRAIN_LOSS: train_loss, TRAIN_ACC: train_acc / 100}
        found[stage].append(row | {VAL_LOSS: val_loss, VAL_ACC: val_acc / 100})
    for stage, rows in found.items():
        if not rows:
            raise GateError(
                f"no line `Stage-{stage} Best results: Train Loss: … | Val Loss: … | Train Acc: "
                "…% | Val Acc: …%` found: pass the lines of stages 1 and 2"
            )
    first, second = found.values()
    if len(first) != len(second):
        raise GateError(
            f"{len(first)} lines of stage 1 and {len(second)} of stage 2: pass one of each for "
            "every draw"
        )
    both = enumerate(zip(first, second, strict=True))
    return [GateDraw(draw=str(n), first=one, second=other) for n, (one, other) in both]


def read_gate(draws: Sequence[GateDraw], thresholds: Thresholds) -> Gate:
    """The gate over one or more draws of the same recipe."""
    memorising = _memorising(draws, thresholds)
    conditions = _stabilized(draws, thresholds), _consistent(draws), _headroom(draws, thresholds)
    readings = (*conditions, memorising)
    if memorising.state == "true":
        return Gate(readings, "confirmation_only", memorising.sentence)
    unmet = [reading for reading in conditions if reading.state != "true"]
    reason = "; ".join(reading.sentence for reading in unmet or conditions)
    return Gate(readings, "not_yet" if unmet else "promising", reason)


def last_fifth_span(val_loss: Sequence[float]) -> float:
    """Highest over lowest, minus 1, in the last fifth of the epochs, at least two.

    Infinite where a loss is not a number, or zero.
    """
    tail = val_loss[-max(2, math.ceil(len(val_loss) / 5)) :]
    readable = all(map(math.isfinite, tail)) and min(tail) > 0
    return max(tail) / min(tail) - 1 if readable else math.inf


def _stabilized(draws: Sequence[GateDraw], thresholds: Thresholds) -> Signal:
    name = "optimization_stabilized"
    if any(len(draw.val_loss) < 2 for draw in draws):
        is_known = all(draw.val_loss for draw in draws)
        why = "has one epoch, too few to tell" if is_known else "has no loss by epoch on record"
        return Signal.of(name, None, f"stage 2 {why}")
    worst = max(last_fifth_span(draw.val_loss) for draw in draws)
    if not math.isfinite(worst):
        return Signal.of(name, False, "stage 2's validation loss ends as no number")
    flat = worst <= thresholds.gate_flat
    what = "flat" if flat else "not flat"
    sentence = f"stage 2's validation loss is {what} at the end (its last fifth spans {worst:.1%})"
    return Signal.of(name, flat, sentence)


def _consistent(draws: Sequence[GateDraw]) -> Signal:
    name = "consistent_gains"
    better = sum(draw.second[VAL_ACC] > draw.first[VAL_ACC] for draw in draws)
    sentence = f"stage 2 beats stage 1 on {better} of {count_of(len(draws), 'draw')}"
    if better < len(draws):
        return Signal.of(name, False, sentence)
    if len(draws) < MIN_DRAWS:
        return Signal.of(name, None, f"{sentence}, {MIN_DRAWS} are needed")
    return Signal.of(name, True, sentence)


def _headroom(draws: Sequence[GateDraw], thresholds: Thresholds) -> Signal:
    second = fmean(draw.second[VAL_ACC] for draw in draws)
    gain = second - fmean(draw.first[VAL_ACC] for draw in draws)
    rising = gain >= thresholds.gate_min_gain - 1e-9  # of decimals that are no binary fractions
    below = second < thresholds.gate_ceiling
    sentence = (
        f"mean validation accuracy {changed_by(100 * gain, 1, 'points')} from stage 1 to stage 2"
        f"{'' if rising else ', no real rise'}, and {second:.1%} is "
        f"{'below' if below else 'not below'} the ceiling of {thresholds.gate_ceiling:.0%}"
    )
    return Signal.of("headroom", below and rising, sentence)


def _memorising(draws: Sequence[GateDraw], thresholds: Thresholds) -> Signal:
    rows = [draw.second for draw in draws]
    count = sum(
        row[TRAIN_ACC] >= thresholds.gate_memorising_acc
        and row[VAL_LOSS] - row[TRAIN_LOSS] >= thresholds.gate_memorising_gap
        for row in rows
    )
    train_acc, train_loss, val_loss = (
        fmean(row[name] for row in rows) for name in (TRAIN_ACC, TRAIN_LOSS, VAL_LOSS)
    )
    memorises = 2 * count > len(rows)
    sentence = (
        f"stage 2 {'memorises' if memorises else 'does not memorise'} the training images: "
        f"{count} of {count_of(len(rows), 'draw')} did (mean training accuracy {train_acc:.1%}, "
        f"loss {train_loss:.3f}, on validation images {val_loss:.3f} nats)"
    )
    return Signal.of("memorising", memorises, sentence)


def gate_of_run(
    tracking: Tracking, run: RunView, thresholds: Thresholds, say: Callable[[str], None]
) -> tuple[Gate, list[GateDraw]]:
    """The gate over a stage-2 run and one sibling of each other draw; tags all of them."""

    def preference(sibling: RunView) -> tuple[bool, bool, bool, int]:
        """Of a draw the run itself, then its seed, then seeds as `decide` deals them."""
        seed = sibling.number(SEED)
        moved, draws = seed - run.number(SEED), sibling.number(DRAW) - draw
        return sibling.run_id != run.run_id, moved != 0, moved != draws, seed

    draw = run.number(DRAW)
    found = [*siblings_of_run(tracking, run).values(), run]
    by_draw = {r.number(DRAW): r for r in sorted(found, key=preference, reverse=True)}
    runs = [by_draw[number] for number in sorted(by_draw)]
    return gate_over(tracking, runs, thresholds, run.name, say)


def gate_over(
    tracking: Tracking,
    runs: Sequence[RunView],
    thresholds: Thresholds,
    title: str,
    say: Callable[[str], None],
    *,
    only_new: bool = False,
) -> tuple[Gate, list[GateDraw]]:
    """The gate over these stage-2 runs; tags each of them, other people's too, by its thresholds.

    `only_new`: leave the tags of runs that have been read.
    """
    draws = [_draw(tracking, run) for run in runs]
    for run in runs:
        if only_new and GATE_PRIOR in run.tags:
            continue
        with as_far_as_allowed(run, say):
            own = read_gate(draws, thresholds_of(run))
            tracking.writing(run.run_id).tags(own.tags)
            tracking.writing(run.run_id).text(report_markdown(own, draws, title), REPORT)
    return read_gate(draws, thresholds), draws


def _draw(tracking: Tracking, run: RunView) -> GateDraw:
    history = read_history(tracking, run, [VAL_LOSS])
    try:
        first = metrics_at_best(tracking.get(run.tags[PARENT_RUN_ID]))
    except LineageError:  # deleted or damaged: the child has the accuracy, all that is read of it
        first = {VAL_ACC: run.metrics[PARENT_VAL_ACC]}
    losses = history[VAL_LOSS] if history else ()
    second = metrics_at_best(run)
    return GateDraw(draw=run.tags[DRAW], first=first, second=second, val_loss=losses)


def report_markdown(gate: Gate, draws: Sequence[GateDraw], title: str) -> str:
    """One page: the prior, the four readings, the numbers by draw."""
    return to_markdown("gate", gate=gate, draws=draws, title=title, cases=cases_like(gate.prior))
