"""What people read of finished stages: their table, settings and durations in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from pipeline.settings.run import Settings
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
            "parameters": f"{row.trainable:,}",
            "epoch": str(row.epoch),
            "train acc": f"{row.metrics[TRAIN_ACC]:.2%}",
            "val acc": f"{row.metrics[VAL_ACC]:.2%}",
            **({"balanced": f"{row.balanced or row.val_acc:.2%}"} if unequal else {}),
            "val loss": f"{row.metrics[VAL_LOSS]:.4f}",
            "time": f"{row.wall_s:.1f} s" + (" (reused)" if row.reused else ""),
            "run": row.run_id,
        }
        for row in rows
    ]
    return pd.DataFrame([*floor, *cells], columns=list(cells[0])).fillna("")


def with_auto_resolved(asked: object, found: Sequence[str]) -> str:
    """A setting as typed; where `auto` was typed, also the values it became, with their pairs."""
    counts = Counter(filter(None, found)).most_common() if asked == "auto" else []
    shown = ", ".join(f"{value} ({count} pairs)" for value, count in counts)
    return f"{asked}: {shown}" if shown else str(asked)


def stage_in_words(settings: Settings, number: int) -> str:
    """The blocks that a stage trains, and every training setting, short."""
    training = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in settings.training(number).model_dump().items()
    )
    return f"{' + '.join(settings.stage(number).trainable)}: {training}"


def minutes(seconds: float) -> str:
    """A duration as people say it."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
