"""What people read: the reference line, a run's description, the table of the stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.settings.run import TrainSettings
from pipeline.settings.schedules import Stage


@dataclass(frozen=True)
class StageSummary:
    """A finished run at its selected epoch; losses in nats, accuracies 0 to 1."""

    stage: Stage
    run_id: str
    reused: bool
    epoch: int
    train_loss: float
    val_loss: float
    train_acc: float
    val_acc: float
    wall_s: float
    trainable: int

    @property
    def best_line(self) -> str:
        """The line that every stage run ends with."""
        return (
            f"Stage-{self.stage.number} Best results: Train Loss: {self.train_loss:.4f} | "
            f"Val Loss: {self.val_loss:.4f} | Train Acc: {self.train_acc:.2%} | "
            f"Val Acc: {self.val_acc:.2%}"
        )


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


def _cells(row: StageSummary) -> tuple[str, ...]:
    return (
        str(row.stage.number),
        " + ".join(row.stage.trainable),
        f"{row.trainable:,}",
        str(row.epoch),
        f"{row.train_acc:.2%}",
        f"{row.val_acc:.2%}",
        f"{row.val_loss:.4f}",
        f"{row.wall_s:.1f} s" + (" (reused)" if row.reused else ""),
        row.run_id,
    )


def table_text(rows: Sequence[StageSummary]) -> str:
    """The stages as aligned columns for a terminal."""
    cells = [_COLUMNS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def table_markdown(rows: Sequence[StageSummary]) -> str:
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
