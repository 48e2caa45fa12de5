"""Has stage 3 been earned? What finished stage-1 and stage-2 runs say, before any stage-3 run.

In: the loss by epoch and the results of stage 2, and of its parents, one pair a draw. Out: a
`Gate`, four readings and a prior in words. It advises; `enforce_gate` lets it refuse. Pure
functions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import GateError
from pipeline.settings.run import Thresholds
from pipeline.signals.readings import State
from pipeline.stats.metrics import Row
from pipeline.tracking.keys import TRAIN_ACC, TRAIN_LOSS, VAL_ACC, VAL_LOSS

Prior = Literal["promising", "confirmation_only", "not_yet"]
MIN_DRAWS = 3
LINE = re.compile(
    r"Stage-(\d+) Best results: Train Loss: (\d+\.?\d*) \| Val Loss: (\d+\.?\d*) \| "
    r"Train Acc: (\d+\.?\d*)% \| Val Acc: (\d+\.?\d*)%"
)


@dataclass(frozen=True)
class Pair:
    """Stage 1 and stage 2 of one draw, each at its selected epoch.

    Attributes:
        val_loss: stage 2's by epoch; empty where it is not known.
    """

    draw: str
    first: Row
    second: Row
    val_loss: Sequence[float] = ()


@dataclass(frozen=True)
class Reading:
    """One of the gate's four: its tag is `gate.<name>`."""

    name: str
    state: State
    sentence: str


@dataclass(frozen=True)
class Gate:
    """The four readings, and what they come to."""

    readings: tuple[Reading, ...]
    prior: Prior
    reason: str

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the stage-2 runs."""
        return {f"gate.{r.name}": r.state for r in self.readings} | {"gate.prior": self.prior}

    def enforce(self) -> None:
        """Stop unless stage 3 is promising.

        Raises:
            GateError: says why.
        """
        if self.prior != "promising":
            raise GateError(
                f"stage 3 is not started: the gate says {self.prior} ({self.reason}): "
                f"{self.advice}, or pass -P enforce_gate=false to run it all the same"
            )

    @property
    def advice(self) -> str:
        """What to do before stage 3."""
        consistent = next(r for r in self.readings if r.name == "consistent_gains")
        if self.prior == "not_yet" and consistent.state == "unknown":
            return f"run stage 2 on {MIN_DRAWS} draws or more first"
        return "improve stage 2 first"


def parse_best_lines(text: str) -> list[Pair]:
    """Stages 1 and 2 of each draw, from the lines that stage runs end with, draw after draw.

    Raises:
        GateError: a stage has no line, or one of them has more than the other; an accuracy above
            100%.
    """
    found: dict[int, list[Row]] = {1: [], 2: []}
    for stage, *numbers in LINE.findall(text):
        train_loss, val_loss, train_acc, val_acc = map(float, numbers)
        if max(train_acc, val_acc) > 100:
            raise GateError(
                f"Stage-{stage}: accuracy {max(train_acc, val_acc):g}% is above 100%: pass the "
                "lines as the runs printed them"
            )
        values = (train_loss, val_loss, train_acc / 100, val_acc / 100)
        names = (TRAIN_LOSS, VAL_LOSS, TRAIN_ACC, VAL_ACC)
        found.setdefault(int(stage), []).append(dict(zip(names, values, strict=True)))
    for number in (1, 2):
        if not found[number]:
            raise GateError(
                f"no line `Stage-{number} Best results: Train Loss: … | Val Loss: … | Train Acc: "
                "…% | Val Acc: …%` found: pass the lines of stages 1 and 2"
            )
    if len(found[1]) != len(found[2]):
        raise GateError(
            f"{len(found[1])} lines of stage 1 and {len(found[2])} of stage 2: pass one of each "
            "for every draw"
        )
    pairs = zip(found[1], found[2], strict=True)
    return [Pair(str(draw), first, second) for draw, (first, second) in enumerate(pairs)]


def read_gate(pairs: Sequence[Pair], thresholds: Thresholds) -> Gate:
    """The gate over one or more draws of the same recipe."""
    readings = (
        _stabilized(pairs, thresholds),
        _consistent(pairs),
        _headroom(pairs, thresholds),
        _memorising(pairs, thresholds),
    )
    stabilized, consistent, headroom, memorising = readings
    if memorising.state == "true":
        return Gate(readings, "confirmation_only", memorising.sentence)
    unmet = [r for r in (stabilized, consistent, headroom) if r.state != "true"]
    if unmet:
        return Gate(readings, "not_yet", "; ".join(r.sentence for r in unmet))
    return Gate(readings, "promising", "; ".join(r.sentence for r in readings[:3]))


def last_fifth_span(val_loss: Sequence[float]) -> float:
    """Highest over lowest, minus 1, in the last fifth of the epochs, at least two.

    Infinite where one of them is no number, or zero.
    """
    tail = val_loss[-max(2, math.ceil(len(val_loss) / 5)) :]
    readable = all(map(math.isfinite, tail)) and min(tail) > 0
    return max(tail) / min(tail) - 1 if readable else math.inf


def _stabilized(pairs: Sequence[Pair], thresholds: Thresholds) -> Reading:
    name = "optimization_stabilized"
    spans = [last_fifth_span(pair.val_loss) for pair in pairs if len(pair.val_loss) > 1]
    if len(spans) < len(pairs):
        return Reading(name, "unknown", "stage 2's loss by epoch is not known")
    worst = max(spans)
    if not math.isfinite(worst):
        return Reading(name, "false", "stage 2's validation loss ends as no number")
    flat = worst <= thresholds.gate_flat
    what = "flat" if flat else "not flat"
    sentence = f"stage 2's validation loss is {what} at the end (its last fifth spans {worst:.1%})"
    return Reading(name, "true" if flat else "false", sentence)


def _consistent(pairs: Sequence[Pair]) -> Reading:
    name = "consistent_gains"
    better = sum(pair.second[VAL_ACC] > pair.first[VAL_ACC] for pair in pairs)
    sentence = f"stage 2 beats stage 1 on {better} of {len(pairs)} draws"
    if better < len(pairs):
        return Reading(name, "false", sentence)
    if len(pairs) < MIN_DRAWS:
        return Reading(name, "unknown", f"{sentence}, {MIN_DRAWS} are needed")
    return Reading(name, "true", sentence)


def _headroom(pairs: Sequence[Pair], thresholds: Thresholds) -> Reading:
    count = len(pairs)
    first = sum(pair.first[VAL_ACC] for pair in pairs) / count
    second = sum(pair.second[VAL_ACC] for pair in pairs) / count
    below = second < thresholds.gate_ceiling
    rising = second - first >= thresholds.gate_min_gain
    sentence = (
        f"mean validation accuracy {second:.1%} is {'below' if below else 'not below'} the "
        f"ceiling of {thresholds.gate_ceiling:.0%} and changed by {100 * (second - first):+.1f} "
        f"pp from stage 1{'' if rising else ', no real rise'}"
    )
    return Reading("headroom", "true" if below and rising else "false", sentence)


def _memorising(pairs: Sequence[Pair], thresholds: Thresholds) -> Reading:
    def memorises(row: Row) -> bool:
        gap = row[VAL_LOSS] - row[TRAIN_LOSS]
        fits = row[TRAIN_ACC] >= thresholds.gate_memorising_acc
        return fits and gap >= thresholds.gate_memorising_gap

    count = sum(memorises(pair.second) for pair in pairs)
    train_acc, train_loss, val_loss = (
        sum(pair.second[name] for pair in pairs) / len(pairs)
        for name in (TRAIN_ACC, TRAIN_LOSS, VAL_LOSS)
    )
    sentence = (
        f"stage 2 memorises the training set on {count} of {len(pairs)} draws (mean training "
        f"accuracy {train_acc:.1%}, loss {train_loss:.3f} against {val_loss:.3f} nats on "
        "validation images)"
    )
    return Reading("memorising", "true" if 2 * count > len(pairs) else "false", sentence)
