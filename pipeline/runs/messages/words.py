"""What people read of finished stages: their table, settings and durations in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from pipeline.settings.run import Settings
from pipeline.signals.readings import Signal
from pipeline.system.text import as_markdown, count_of, fixed
from pipeline.tracking import RunView
from pipeline.tracking.history import Summary
from pipeline.tracking.keys import TRAIN_ACC, VAL_ACC, VAL_LOSS


def summary_table(
    rows: Sequence[Summary], floor: Sequence[Mapping[str, str]] = ()
) -> pd.DataFrame:
    """The stages as a table of text, below the rows of stage 0.

    Balanced accuracy is shown only where it differs from accuracy.
    """
    unequal = any(row.balanced is not None for row in rows)
    cells = [
        {
            "stage": str(row.number),
            "trains": " + ".join(row.trains),
            "parameters": f"{row.trainable_parameters:,}",
            "epoch": str(row.epoch),
            "train acc": f"{row.metrics[TRAIN_ACC]:.2%}",
            "val acc": f"{row.metrics[VAL_ACC]:.2%}",
            **({"balanced": f"{row.balanced or row.val_acc:.2%}"} if unequal else {}),
            "val loss": fixed(row.metrics[VAL_LOSS], 4),
            "time": f"{row.wall_s:.1f} s" + (" (reused)" if row.reused else ""),
            "run": row.run_id,
        }
        for row in rows
    ]
    return pd.DataFrame([*floor, *cells], columns=list(cells[0])).fillna("")


def with_auto_resolved(asked: object, found: Sequence[str]) -> str:
    """A setting as typed; where `auto` was typed, the values it became, with their pairs."""
    counts = Counter(filter(None, found)).most_common() if asked == "auto" else []
    shown = ", ".join(f"{value} ({count_of(count, 'pair')})" for value, count in counts)
    return f"{shown}, chosen automatically" if shown else str(asked)


def stage_in_words(settings: Settings, number: int) -> str:
    """The blocks that a stage trains, and every training setting, short."""
    training = ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in settings.training(number).model_dump().items()
    )
    return f"{' + '.join(settings.stage(number).trainable)}: {training}"


def stage_name(settings: Settings, number: int) -> str:
    """`stage 3`; `stage 2 continued`; `stage 2 of two_stage` of another schedule."""
    schedule = settings.chain
    trains = schedule.trains(number)
    if number > 1 and trains[-1] == trains[-2]:
        return f"stage {number - 1} continued"
    usual = schedule.name == "three_stage" or schedule.is_continued
    return f"stage {number}" if usual else f"stage {number} of {schedule.name}"


def before_of(settings: Settings, number: int) -> str:
    """What a stage is compared with; empty for the first."""
    return stage_name(settings, number - 1) if number > 1 else ""


def run_name(settings: Settings, number: int, role: str = "", acc: float | None = None) -> str:
    """A stage run's name, what differs between runs first; `acc`: once the run has ended.

    `role`: what the stage is run for, such as `pair 3`.
    """
    of = "val " if role else ""  # a pair is judged by test images
    reached = [] if acc is None else [f"{of}{acc:.1%}"]
    what = stage_name(settings, number)
    first = [role, what, *reached] if role else [*reached, what]
    dealt = [f"draw {settings.draw}"]
    dealt += [f"data_seed {settings.data_seed}"] if settings.data_seed else []
    rate = f"lr {settings.training(number).lr:.3g}"
    rest = [rate, settings.data_name, settings.backbone, *dealt, f"seed {settings.seed}"]
    return " · ".join([*first, *rest])


def model_name(settings: Settings, number: int) -> str:
    """What a stage's servable model is called."""
    return f"{settings.data_name}-{settings.backbone}-{stage_name(settings, number)}".replace(
        " ", "-"
    )


def outcome_sentence(
    name: str,
    acc: float,
    images: int,
    signals: Sequence[Signal],
    before: str,
    *,
    balanced: float | None = None,
) -> str:
    """What a stage came to, against the stage `before` (empty: a first stage), as one sentence.

    `balanced`: balanced accuracy, where it differs from accuracy.
    """
    start = f"{name[:1].upper()}{name[1:]}: {acc:.1%} of {count_of(images, 'validation image')}"
    if balanced is not None:
        start += f" (balanced {balanced:.1%})"
    gain = next((s for s in signals if s.name == "positive.val_acc_gain"), None)
    if gain is None or not before:
        return f"{start} recognised"
    if "acc_gain" not in gain.numbers:
        return f"{start}; how that compares with {before} is not known"
    points, error = 100 * gain.numbers["acc_gain"], 100 * gain.numbers["acc_gain_se"]
    size = f"{abs(points):.1f}"
    against = f"as many as {before}"
    if float(size):
        against = f"{size} points {'above' if points > 0 else 'below'} {before}"
    sure = "" if math.isnan(error) else f" (s.e. {error:.1f})"
    so_far = "worth it so far" if gain.state == "true" else "no gain so far"
    if gain.state != "true" and float(size) and points > 0:
        so_far = "that may be chance"
    return f"{start}, {against}{sure}: {so_far}; one run proves nothing"


def minutes(seconds: float) -> str:
    """A duration as people say it."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def member_of(role: str, outer: RunView) -> str:
    """What a pair's or a trial's run is part of."""
    return f"This is {role} of run `{outer.run_id}`: {as_markdown(outer.name)}."
