"""What people read: the reference line, a run's description, the table of the stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.settings.run import Settings
from pipeline.settings.schedules import Stage

if TYPE_CHECKING:
    import pandas as pd


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


def summary_table(rows: Sequence[StageSummary]) -> pd.DataFrame:
    """The stages as a table of text."""
    import pandas as pd

    cells = [
        {
            "stage": str(row.stage.number),
            "trains": " + ".join(row.stage.trainable),
            "parameters": f"{row.trainable:,}",
            "epoch": str(row.epoch),
            "train acc": f"{row.train_acc:.2%}",
            "val acc": f"{row.val_acc:.2%}",
            "val loss": f"{row.val_loss:.4f}",
            "time": f"{row.wall_s:.1f} s" + (" (reused)" if row.reused else ""),
            "run": row.run_id,
        }
        for row in rows
    ]
    return pd.DataFrame(cells)


def came_to(asked: object, found: Sequence[str]) -> str:
    """What a setting was, and where it was `auto`, what that came to on how many pairs."""
    counts = Counter(filter(None, found))
    if asked != "auto" or not counts:
        return str(asked)
    shown = ", ".join(f"{value} ({count} pairs)" for value, count in counts.most_common())
    return f"auto: {shown}"


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
