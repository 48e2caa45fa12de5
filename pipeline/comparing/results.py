"""What a comparison of schedules came to: accuracies, differences, costs. Pure data.

In: a grid and the results of its runs. Out: everything that a report says, computed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.comparing.arms import Arm
from pipeline.comparing.draws import Pool
from pipeline.comparing.grid import Grid
from pipeline.comparing.pairs import ArmResult, PairKey, Results, resolution_pp
from pipeline.data.overlap import Counts
from pipeline.stats.posterior import Floats, Posterior, posterior
from pipeline.tracking.keys import TEST, VAL, flat

SURE = 0.95
"""A posterior probability from which a difference is counted in the summary."""


@dataclass(frozen=True)
class Compared:
    """A finished comparison.

    Attributes:
        results: by backbone, a row a draw, in the order of the grid's arms.
        test: how many images accuracies were measured on, and how many of them are no new ones.
        studies: names of the studies that an arm was tuned by, by backbone and schedule.
    """

    grid: Grid
    pool: Pool
    keys: Sequence[PairKey]
    results: Mapping[str, Sequence[Results]]
    studies: Mapping[tuple[str, str], Sequence[str]]
    test: Counts
    steps: Sequence[int]
    wall_s: float

    @property
    def cells(self) -> list[Cell]:
        """Every backbone and schedule, in the order of the grid."""
        return [
            Cell(backbone, arm, [row[number] for row in self.results[backbone]])
            for backbone, arms in self.grid.arms.items()
            for number, arm in enumerate(arms)
        ]

    def cells_of(self, backbone: str) -> list[Cell]:
        """The schedules on one backbone, the baseline first."""
        return [cell for cell in self.cells if cell.backbone == backbone]

    def difference(self, one: Cell, other: Cell) -> Posterior:
        """What is believed about the accuracy of one minus that of another, draw by draw."""
        return posterior(
            one.test_pp - other.test_pp,
            rope_pp=self.grid.compare.rope_pp,
            correction=self.pool.correction,
            resolution_pp=resolution_pp(self.test.images),
        )

    def mean(self, cell: Cell) -> Posterior:
        """What is believed about a cell's accuracy, in per cent."""
        return posterior(
            cell.test_pp,
            correction=self.pool.correction,
            resolution_pp=resolution_pp(self.test.images),
        )

    def frame(self) -> pd.DataFrame:
        """A row for each run."""
        rows, metric = [], self.grid.compare.metric
        for cell in self.cells:
            for key, result in zip(self.keys, cell.results, strict=True):
                rows.append(
                    {
                        "backbone": cell.backbone,
                        "schedule": cell.arm.name,
                        "draw": key.draw,
                        "data_seed": key.data_seed,
                        "seed": key.seed,
                        flat(TEST[metric]): result.test,
                        flat(VAL[metric]): result.val,
                        "parameters_trained": result.chain.trained,
                        "training_s": round(result.chain.training_s, 2),
                        "prefix_s": round(result.chain.prefix_s, 2),
                        "peak_mib": round(result.chain.peak_mib, 1),
                        "run_id": result.run_id,
                    }
                )
        return pd.DataFrame(rows)

    def summary(self) -> list[str]:
        """A sentence for each schedule against the baseline, over all backbones."""
        lines = []
        base = self.grid.baseline
        for name in [arm.name for arm in next(iter(self.grid.arms.values()))][1:]:
            known = {}
            for backbone in self.grid.arms:
                first, *others = self.cells_of(backbone)
                cell = next(cell for cell in others if cell.arm.name == name)
                known[backbone] = self.difference(cell, first)
            rope = self.grid.compare.rope_pp
            better = [b for b, p in known.items() if p.p_above >= SURE]
            worse = [b for b, p in known.items() if p.p_below >= SURE]
            sizes = ", ".join(f"{b} {p.size}" for b, p in known.items())
            lines.append(
                f"{name} against {base}: {sizes}; better by more than {rope:g} pp on "
                f"{len(better)} of {len(known)} backbones, worse on {len(worse)} "
                f"(posterior probability {SURE} or more)"
            )
        return lines


@dataclass(frozen=True)
class Cell:
    """One schedule on one backbone, with a result for each draw."""

    backbone: str
    arm: Arm
    results: Sequence[ArmResult]

    @property
    def test_pp(self) -> Floats:
        """The metric on the test images by draw, in per cent."""
        return np.array([100 * result.test for result in self.results])

    @property
    def training_s(self) -> float:
        """Seconds of all stages without the prefix, mean over draws."""
        return float(np.mean([result.chain.training_s for result in self.results]))

    @property
    def peak_mib(self) -> float:
        """Peak memory, the largest of all draws; NaN where unknown."""
        return float(np.max([result.chain.peak_mib for result in self.results]))
