"""What people read of finished stages: their table, settings and durations in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipeline.settings.run import TrainSettings
from pipeline.tracking.history import Summary
from pipeline.tracking.keys import TRAIN_ACC, VAL_ACC, VAL_LOSS

_COLUMNS = (
    "stage",
    "trains",
    "parameters",
    "epoch",
    "train acc",
    "val acc",
    "val loss",
    "time",
    "run",
)


def _cells(row: Summary) -> tuple[str, ...]:
    return (
        str(row.number),
        " + ".join(row.trains),
        f"{row.trainable:,}",
        str(row.epoch),
        f"{row.metrics[TRAIN_ACC]:.2%}",
        f"{row.metrics[VAL_ACC]:.2%}",
        f"{row.metrics[VAL_LOSS]:.4f}",
        f"{row.wall_s:.1f} s" + (" (reused)" if row.reused else ""),
        row.run_id,
    )


def table_text(rows: Sequence[Summary]) -> str:
    """The stages as aligned columns for a terminal."""
    cells = [_COLUMNS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def table_markdown(rows: Sequence[Summary]) -> str:
    """The same as a Markdown table."""
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def came_to(asked: object, found: Sequence[str]) -> str:
    """What a setting was, and where it was `auto`, what that came to on how many pairs."""
    counts = Counter(filter(None, found))
    if asked != "auto" or not counts:
        return str(asked)
    shown = ", ".join(f"{value} ({count} pairs)" for value, count in counts.most_common())
    return f"auto: {shown}"


def training_in_words(training: TrainSettings) -> str:
    """Every training setting, short."""
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in training.model_dump().items()
    )


def minutes(seconds: float) -> str:
    """A duration as people say it."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
