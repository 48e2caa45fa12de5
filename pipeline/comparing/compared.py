"""What finished draws came to: a grid of schedules and backbones, `Compared`.

In: a grid and the results of its runs. Out: everything that a report shows. Pure data: nothing is
trained, measured or read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from pipeline.comparing.arms import Arm
from pipeline.comparing.effects import minus
from pipeline.comparing.grid import Grid
from pipeline.comparing.pairs.draws import Pool
from pipeline.comparing.pairs.results import ArmResult, PairKey, Results
from pipeline.data.inspection.overlap import Counts
from pipeline.runs.floor import Floor
from pipeline.stats.crossed import Crossed
from pipeline.stats.metrics import DEFAULT_SHARE
from pipeline.stats.posterior import Floats, Posterior, posterior
from pipeline.tracking.keys import TEST, VAL, flat

SURE = 0.95
"""A posterior probability from which a difference is counted in the summary."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A finished comparison.

    Attributes:
        results: by backbone, a row a draw, in the order of the grid's arms.
        studies: names of the studies that an arm was tuned by, by backbone and schedule.
        test: how many images arms were scored on, and how many of these were seen before.
        worth_pp: what one test image is worth.
        floors: stage 0 on the first draw, by backbone.
    """

    grid: Grid
    pool: Pool
    keys: Sequence[PairKey]
    results: Mapping[str, Sequence[Results]]
    studies: Mapping[tuple[str, str], Sequence[str]]
    test: Counts
    worth_pp: float
    steps: Sequence[int]
    wall_s: float
    floors: Mapping[str, Floor] = field(default_factory=dict)

    @property
    def cells(self) -> list[Cell]:
        """Every backbone and schedule, in the order of the grid."""
        return [cell for backbone in self.grid.arms for cell in self.cells_of(backbone)]

    def cells_of(self, backbone: str) -> list[Cell]:
        """The schedules on one backbone, the baseline first."""
        rows = zip(*self.results[backbone], strict=True)
        pairs = zip(self.grid.arms[backbone], rows, strict=True)
        return [Cell(backbone, arm, results) for arm, results in pairs]

    def difference(self, one: Cell, other: Cell) -> Posterior:
        """What is believed about the metric of one minus that of another, draw by draw."""
        if self.covers_images:
            both = zip(one.results, other.results, strict=True)
            table = np.array([minus(ours, theirs) for ours, theirs in both])
            rope_pp, correction = self.grid.compare.rope_pp, self.pool.correction
            return Crossed.of(table).posterior(rope_pp=rope_pp, correction=correction)
        return self._posterior(one.test_pp - other.test_pp)

    @property
    def covers_images(self) -> bool:
        """Whether differences hold for other test images, too: accuracy is known by image."""
        return self.grid.compare.metric == DEFAULT_SHARE

    def mean(self, cell: Cell) -> Posterior:
        """What is believed about a cell's metric, in per cent."""
        return self._posterior(cell.test_pp)

    def _posterior(self, values: Floats) -> Posterior:
        return posterior(
            values,
            rope_pp=self.grid.compare.rope_pp,
            correction=self.pool.correction,
            resolution_pp=self.worth_pp,
        )

    def frame(self) -> pd.DataFrame:
        """A row for each run."""
        metric = self.grid.compare.metric
        return pd.DataFrame(
            {
                "backbone": cell.backbone,
                "schedule": cell.arm.name,
                "draw": key.draw,
                "data_seed": key.data_seed,
                "seed": key.seed,
                flat(TEST[metric]): result.test,
                flat(VAL[metric]): result.val,
                "parameters_trained": result.parameters_trained,
                "training_s": round(result.training_s, 2),
                "prefix_s": round(result.prefix_s, 2),
                "peak_mib": round(result.peak_mib, 1),
                "run_id": result.run_id,
            }
            for cell in self.cells
            for key, result in zip(self.keys, cell.results, strict=True)
        )

    def summary(self) -> list[str]:
        """A sentence for each schedule against the baseline, over all backbones."""
        lines, rope = [], self.grid.compare.rope_pp
        rows = {backbone: self.cells_of(backbone) for backbone in self.grid.arms}
        baseline, *others = next(iter(rows.values()))
        for number, other in enumerate(others, start=1):
            known = {b: self.difference(row[number], row[0]) for b, row in rows.items()}
            sizes = ", ".join(f"{b} {p.size}" for b, p in known.items())
            better = sum(p.p_above >= SURE for p in known.values())
            worse = sum(p.p_below >= SURE for p in known.values())
            lines.append(
                f"{other.arm.name} against {baseline.arm.name}: {sizes}; better by more than "
                f"{rope:g} pp on {better} of {len(known)} backbones, worse on {worse} "
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
        return float(np.mean([result.training_s for result in self.results]))

    @property
    def parameters_trained(self) -> int:
        """The most that was trained on a draw: an arm that diverges ends early."""
        return max(result.parameters_trained for result in self.results)

    @property
    def peak_mib(self) -> float:
        """Peak memory, the largest of all draws; NaN where unknown."""
        return float(np.max([result.peak_mib for result in self.results]))
