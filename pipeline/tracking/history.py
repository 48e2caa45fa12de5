"""The course of a run, and the run in one line: written once, read by all who judge it.

In: epochs as they come, or a finished run in the store. Out: a `History`, a row an epoch, and a
`Summary`, the run at its selected epoch. Metrics are named in `keys.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pipeline.stats.metrics import Row
from pipeline.system.text import fixed
from pipeline.tracking.keys import (
    CURVES,
    EPOCH_METRICS,
    NO_PARENT,
    PARENT_RUN_ID,
    RISKS,
    SELECTED_EPOCH,
    STAGE,
    TOTAL_S,
    TRAIN_ACC,
    TRAIN_LOSS,
    TRAINABLE,
    TRAINS,
    VAL,
    VAL_ACC,
    VAL_LOSS,
    at_best,
    flat,
)
from pipeline.tracking.store import Tracking
from pipeline.tracking.view import RunView

BY_EPOCH = (*CURVES, *VAL.values())
_GROUPS = ("lr/", RISKS)
"""Beginnings of the names of other metrics that a run has for every epoch."""


@dataclass(kw_only=True)
class History:
    """The metrics of each epoch; losses in nats, accuracies 0 to 1.

    Attributes:
        planned: epochs that the run would have without stopping early.
        rows: the metrics of epoch 1, of epoch 2, and so on, by their names.
        selected: the best epoch so far, from 1; 0 before any.
    """

    planned: int
    rows: list[Row] = field(default_factory=list)
    selected: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> list[float]:
        """One metric by epoch."""
        return [row[name] for row in self.rows]

    @property
    def best(self) -> Row:
        """The metrics of the selected epoch."""
        return self.rows[self.selected - 1]

    @property
    def diverged(self) -> bool:
        """Whether the last training or validation loss is not a number."""
        return bool(self.lost)

    @property
    def lost(self) -> list[str]:
        """Which of the last losses are not numbers: `training`, `validation`."""
        losses = {"training": TRAIN_LOSS, "validation": VAL_LOSS}
        return [name for name, key in losses.items() if not math.isfinite(self.rows[-1][key])]


def chain_of(tracking: Tracking, run: RunView) -> Iterator[RunView]:
    """A stage run, the run that it continued from, and so on to the first stage.

    Raises:
        LineageError: a run was deleted, or its tag that names the parent.
    """
    yield run
    while (parent := run.tags[PARENT_RUN_ID]) != NO_PARENT:
        run = tracking.get(parent)
        yield run


def read_history(
    tracking: Tracking, run: RunView, names: Iterable[str] | None = None
) -> History | None:
    """A finished stage run's course as the store has it; None where there is none.

    `names`: the metrics to read, one request each; None: all that it has by epoch.
    """
    if names is None:
        names = [n for n in run.metrics if n in BY_EPOCH or n.startswith(_GROUPS)]
    columns = {name: tracking.history(run.run_id, name) for name in names}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=False)]
    planned = run.settings[f"stage{run.tags[STAGE]}.epochs"]
    selected = int(run.metrics[SELECTED_EPOCH])
    return History(planned=planned, rows=list(rows), selected=selected) if rows else None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A finished stage run at its selected epoch.

    Attributes:
        number: of the stage, from 1.
        trains: its trainable blocks.
        reused: found, not trained by this command.
        epoch: the selected one, from 1.
        metrics: `EPOCH_METRICS` at that epoch, by name; a run of an earlier version lacks some.
        trainable_parameters: how many parameters the stage trains.
    """

    number: int
    trains: tuple[str, ...]
    run_id: str
    reused: bool
    epoch: int
    metrics: Mapping[str, float]
    wall_s: float
    trainable_parameters: int

    @classmethod
    def of(cls, run: RunView) -> Summary:
        """The summary of a run that finished earlier."""
        return cls(
            number=run.number(STAGE),
            trains=tuple(run.tags[TRAINS].split()),
            run_id=run.run_id,
            reused=True,
            epoch=int(run.metrics[SELECTED_EPOCH]),
            metrics=metrics_at_best(run),
            wall_s=run.metrics[TOTAL_S],
            trainable_parameters=int(run.metrics[TRAINABLE]),
        )

    @property
    def val_acc(self) -> float:
        """Validation accuracy, 0 to 1."""
        return self.metrics[VAL_ACC]

    @property
    def val(self) -> dict[str, float]:
        """Its validation metrics as an objective names them: `val_acc`, `val_loss`, ..."""
        names = [name for name in VAL.values() if name in self.metrics]
        return {flat(name): self.metrics[name] for name in names}

    @property
    def logged(self) -> dict[str, float]:
        """The summary as a run's metrics."""
        best = {at_best(name): value for name, value in self.metrics.items()}
        counts = {TRAINABLE: self.trainable_parameters, TOTAL_S: self.wall_s}
        return {SELECTED_EPOCH: self.epoch, **best, **counts}

    @property
    def best_line(self) -> str:
        """The line that every stage run ends with, and that `gate` reads back."""
        m = self.metrics
        return (
            f"Stage-{self.number} Best results: Train Loss: {fixed(m[TRAIN_LOSS], 4)} | "
            f"Val Loss: {fixed(m[VAL_LOSS], 4)} | Train Acc: {m[TRAIN_ACC]:.2%} | "
            f"Val Acc: {m[VAL_ACC]:.2%}"
            + (f" | Val Balanced Acc: {balanced:.2%}" if (balanced := self.balanced) else "")
        )

    @property
    def balanced(self) -> float | None:
        """Balanced validation accuracy, where it is known and differs from accuracy."""
        balanced = self.metrics.get(VAL["balanced_acc"], self.val_acc)
        return None if math.isclose(balanced, self.val_acc, abs_tol=1e-6) else balanced


def metrics_at_best(run: RunView) -> dict[str, float]:
    """A finished stage run's metrics at its selected epoch, by their names in `EPOCH_METRICS`."""
    known = [n for n in EPOCH_METRICS if n in CURVES or at_best(n) in run.metrics]
    return {name: run.metrics[at_best(name)] for name in known}
