"""What finished pairs and draws came to: a `Decision` between two arms, or a grid `Compared`.

In: arms and the results of their runs. Out: everything that a report shows. Pure data: nothing is
trained, measured or read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.comparing.arms import Arm, Comparison, TunedArm, differences
from pipeline.comparing.cost import equal_steps
from pipeline.comparing.draws import Pool
from pipeline.comparing.grid import Grid
from pipeline.comparing.pairs import ArmResult, Pair, PairKey, Results, resolution_pp
from pipeline.data.images import ImageSet
from pipeline.data.overlap import Counts
from pipeline.runs.words import minutes
from pipeline.stats.crossed import Crossed, Table
from pipeline.stats.design import Design
from pipeline.stats.metrics import DEFAULT_SHARE, METRICS
from pipeline.stats.needed import needed
from pipeline.stats.posterior import Floats, Posterior, posterior
from pipeline.stats.robustness import Robustness, robustness
from pipeline.stats.verdict import Verdict, verdict
from pipeline.system.digests import digest_values
from pipeline.tracking.keys import TEST, VAL, VERDICT, VERDICT_PAIRS, VERDICT_QUESTION, flat

SURE = 0.95
"""A posterior probability from which a difference is counted in the summary."""


def verdict_of(
    pairs: Sequence[Pair], design: Design, pool: Pool, metric: str, seeds: int = 1
) -> Verdict:
    """The verdict over the gains of these pairs, in the order in which they were run.

    A gain in accuracy is known image by image: the verdict then holds for other test images, too.
    With several seeds a draw the gains of a draw's pairs, which follow each other, count as one.
    """
    gains = np.array([pair.gain_pp for pair in pairs])
    table = differences_of(pairs, seeds)
    resolution = resolution_pp(table.shape[1]) / seeds
    by_image = table if metric == DEFAULT_SHARE else None
    by_draw = gains if seeds == 1 else gains.reshape(-1, seeds)
    return verdict(by_draw, design, pool.correction, resolution, by_image)


def differences_of(pairs: Sequence[Pair], seeds: int = 1) -> Table:
    """For each draw and test image: 1 if the treatment alone is right, -1 the control, else 0.

    Shape (draws, images); with several seeds a draw, their means.
    """
    table = np.array([minus(pair.treatment, pair.control) for pair in pairs])
    return table if seeds == 1 else table.reshape(-1, seeds, table.shape[1]).mean(axis=1)


def minus(one: ArmResult, other: ArmResult) -> NDArray[np.int8]:
    """For each test image: 1 if `one` alone is right, -1 if the other alone is, else 0."""
    return one.correct.astype(np.int8) - other.correct.astype(np.int8)


def effects_of(
    pairs: Sequence[Pair], images: ImageSet, class_names: Sequence[str]
) -> pd.DataFrame:
    """What the treatment does to each test image on which the arms ever disagree.

    A row an image, what is mended most often first: its digest and class; `mended`, in how many
    pairs the treatment alone is right, `broken`, in how many the control alone is.
    """
    table = np.array([minus(pair.treatment, pair.control) for pair in pairs])
    frame = pd.DataFrame(
        {
            "image_sha256": [row.tobytes().hex() for row in images.digests],
            "label": np.array(class_names, dtype=object)[images.labels.numpy()],
            "mended": (table > 0).sum(axis=0),
            "broken": (table < 0).sum(axis=0),
        }
    )
    touched = frame[frame["mended"] + frame["broken"] > 0]
    order = (touched["broken"] - touched["mended"]).sort_values(kind="stable").index
    return touched.loc[order].reset_index(drop=True)


@dataclass(frozen=True, kw_only=True)
class ArmCost:
    """What an arm of a decision cost: see `ArmResult`, means over pairs.

    `operations`: floating-point operations of all its stages' training.
    """

    arm: Arm
    training_s: float
    trained: int
    operations: float
    val: float
    test: float

    @property
    def optimism_pp(self) -> float:
        """The metric on validation images at the selected epoch minus that on test images."""
        return 100 * (self.val - self.test)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A finished decision.

    Attributes:
        asked: the comparison before tuning.
        beside: arms that were not judged, with their gains over the control on the first pairs.
        test: how many images arms were scored on, and how many of these were seen before.
        verdict: over the gains of the pairs, from `verdict_of`.
        effects: which test images the treatment mends and breaks, from `effects_of`.
        tuned: what tuning came to, by arm; empty without tuning.
        operations: of the treatment's and of the control's training, from `cost.operations_of`.
        pair_s: what a further pair takes here, an estimate.
    """

    asked: Comparison
    treatment: Arm
    control: Arm
    design: Design
    pool: Pool
    pairs: tuple[Pair, ...]
    verdict: Verdict
    beside: Mapping[str, tuple[Arm, list[float]]]
    test: Counts
    classes: int
    effects: pd.DataFrame
    tuned: tuple[TunedArm, ...]
    operations: tuple[float, float]
    pair_s: float
    wall_s: float

    @property
    def seeds(self) -> int:
        """Seeds on each draw."""
        return self.asked.decide.seeds

    @property
    def metric(self) -> str:
        """What the arms are compared by."""
        return self.asked.decide.metric

    @property
    def gains_pp(self) -> list[float]:
        """Gains in the order in which the pairs were run."""
        return [pair.gain_pp for pair in self.pairs]

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        sentence = self.verdict.sentence(self.treatment.words, self.control.words)
        by = "" if self.metric == DEFAULT_SHARE else f"By {METRICS[self.metric].words}: "
        apart = ", ".join(self.differences)
        mean_of = f" Each pair is the mean of {self.seeds} seeds." if self.seeds > 1 else ""
        return f"{by}{sentence}{mean_of}" + (f" The arms differ in {apart}, too." if apart else "")

    @property
    def robustness(self) -> Robustness | None:
        """What single pairs do to the verdict; None for two pairs, which say nothing of it."""
        known = self.verdict.posterior
        assert known
        if known.pairs < 3:
            return None
        gains = np.array(self.gains_pp).reshape(-1, self.seeds).mean(axis=1)
        return robustness(
            gains,
            rope_pp=known.rope_pp,
            correction=known.correction,
            resolution_pp=resolution_pp(self.test.images) / self.seeds,
            differences=self._table,
        )

    @property
    def outlook(self) -> str:
        """What would settle an open decision, what it costs and how to ask for it; else empty."""
        known = self.verdict.posterior
        if self.verdict.state != "inconclusive" or not known:
            return ""
        more = needed(known, self.design, self._table)
        if not more.pairs:
            return f"{more.sentence()}."
        seconds = more.pairs * self.pair_s * self.seeds
        total, most = known.pairs + more.pairs, self.pool.most
        looks = ",".join(map(str, (*self.design.looks, total)))
        how = f"-P looks={looks} goes on from these pairs"
        if most is not None and total > most:
            how = f"the pool holds {most}: fewer images a class, or more images, make more"
        return f"{more.sentence(f'about {minutes(seconds)} here')}; {how}."

    @property
    def _table(self) -> Table | None:
        return differences_of(self.pairs, self.seeds) if self.covers_images else None

    def disagreements(self) -> pd.DataFrame:
        """By class, how many test images the treatment mends and breaks in a pair, on average.

        Rows by class name: `mended`, `broken`, and `always_mended` and `always_broken`, how many
        images come out that way in three quarters of the pairs or more. The sum is the last row.
        """
        frame, often = self.effects, 0.75 * len(self.pairs)
        columns = {
            "mended": frame["mended"] / len(self.pairs),
            "broken": frame["broken"] / len(self.pairs),
            "always_mended": frame["mended"] >= often,
            "always_broken": frame["broken"] >= often,
        }
        by_class = pd.DataFrame(columns).groupby(frame["label"], sort=True).sum()
        return pd.concat([by_class, by_class.sum().to_frame("all").T])

    @property
    def covers_images(self) -> bool:
        """Whether the interval holds for other test images, too: accuracy is known by image."""
        return self.metric == DEFAULT_SHARE

    @property
    def differences(self) -> list[str]:
        """How the arms' last stages are trained otherwise, beside what they train."""
        return differences(self.treatment, self.control)

    @property
    def recommended(self) -> Arm:
        """The treatment where the verdict is justified, else the control: both were scored."""
        return self.treatment if self.verdict.state == "justified" else self.control

    @property
    def steps(self) -> list[int]:
        """Optimizer steps of each arm."""
        images = self.treatment.settings.train_per_class * self.classes
        return equal_steps([self.treatment, self.control], images)

    @property
    def costs(self) -> tuple[ArmCost, ArmCost]:
        """What the treatment and the control cost."""
        treatment = _cost(self.treatment, self.operations[0], [p.treatment for p in self.pairs])
        return treatment, _cost(self.control, self.operations[1], [p.control for p in self.pairs])

    @property
    def tags(self) -> dict[str, str]:
        """What the decision's run, its studies and the treatment's runs carry."""
        known = self.verdict.posterior
        assert known
        low, high = known.interval_pp
        return {
            VERDICT: self.verdict.state,
            "verdict.kind": self.verdict.kind or "none",
            "verdict.p_gain": f"{known.p_above:.4f}",
            "verdict.p_equivalent": f"{known.p_inside:.4f}",
            "verdict.p_harm": f"{known.p_below:.4f}",
            "verdict.mean_gain_pp": f"{known.mean_pp:.3f}",
            "verdict.interval_pp": f"{low:.3f} to {high:.3f}",
            VERDICT_PAIRS: str(known.pairs),
            "verdict.recommended": self.recommended.words,
            VERDICT_QUESTION: self.question,
            "verdict.metric": self.metric,
            "verdict.outlook": self.outlook or "settled",
            "verdict.arms_differ_in": "; ".join(self.differences) or "nothing",
        }

    @property
    def metrics(self) -> dict[str, float]:
        """What the decision's run measures."""
        known = self.verdict.posterior
        assert known
        return {
            "gain/mean_pp": known.mean_pp,
            "gain/p_gain": known.p_above,
            "gain/pairs": known.pairs,
            **self.test.metrics,
        }

    @property
    def question(self) -> str:
        """Digest of what was asked, without the number of pairs: two arms, and a gain's size."""
        arms = [
            [arm.name, *(arm.settings.training(n).model_dump() for n in range(1, arm.last + 1))]
            for arm in (self.treatment, self.control)
        ]
        counts: list[object] = [self.design.rope_pp, self.design.threshold]
        if self.metric != DEFAULT_SHARE:  # decisions of earlier versions had no other
            counts.append(self.metric)
        return digest_values({"arms": arms, "design": counts})[:16]


def _cost(arm: Arm, operations: float, results: Sequence[ArmResult]) -> ArmCost:
    return ArmCost(
        arm=arm,
        training_s=mean(result.training_s for result in results),
        trained=results[0].trained,
        operations=operations,
        val=mean(result.val for result in results),
        test=mean(result.test for result in results),
    )


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A finished comparison.

    Attributes:
        results: by backbone, a row a draw, in the order of the grid's arms.
        studies: names of the studies that an arm was tuned by, by backbone and schedule.
        test: how many images arms were scored on, and how many of these were seen before.
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
            resolution_pp=resolution_pp(self.test.images),
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
                "parameters_trained": result.trained,
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
    def peak_mib(self) -> float:
        """Peak memory, the largest of all draws; NaN where unknown."""
        return float(np.max([result.peak_mib for result in self.results]))
