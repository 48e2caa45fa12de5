"""What finished pairs came to: a `Decision` between two arms.

In: arms and the results of their runs. Out: everything that a report shows. Pure data: nothing is
trained, measured or read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean

import numpy as np
import pandas as pd

from pipeline.comparing.arms import Arm, Comparison, TunedArm, differences
from pipeline.comparing.cost import equal_steps
from pipeline.comparing.effects import by_class, differences_of
from pipeline.comparing.outlook import Outlook
from pipeline.comparing.pairs.draws import Pool
from pipeline.comparing.pairs.results import ArmResult, Pair, label_of
from pipeline.data.inspection.overlap import Counts
from pipeline.runs.floor import Floor
from pipeline.stats.crossed import Table
from pipeline.stats.design import Design
from pipeline.stats.metrics import DEFAULT_SHARE, METRICS
from pipeline.stats.needed import needed
from pipeline.stats.robustness import Robustness, robustness
from pipeline.stats.verdict import Verdict, verdict
from pipeline.system.disk.digests import digest_values
from pipeline.tracking.keys import VERDICT, VERDICT_PAIRS, VERDICT_QUESTION


def verdict_of(
    pairs: Sequence[Pair],
    design: Design,
    pool: Pool,
    metric: str,
    worth_pp: float,
    seeds: int = 1,
) -> Verdict:
    """The verdict over the gains of these pairs, in the order in which they were run.

    `worth_pp`: what one test image is worth, see `resolution_pp`.
    A gain in accuracy is known image by image: the verdict then holds for other test images, too.
    With several seeds a draw the gains of a draw's pairs, which follow each other, count as one.
    """
    gains = np.array([pair.gain_pp for pair in pairs])
    by_image = differences_of(pairs, seeds) if metric == DEFAULT_SHARE else None
    by_draw = gains if seeds == 1 else gains.reshape(-1, seeds)
    return verdict(by_draw, design, pool.correction, worth_pp / seeds, by_image)


@dataclass(frozen=True, kw_only=True)
class ArmCost:
    """What an arm of a decision cost: see `ArmResult`, means over pairs.

    `operations`: floating-point operations of all its stages' training.
    """

    arm: Arm
    training_s: float
    parameters_trained: int
    operations: float
    val: float
    test: float

    @property
    def optimism_pp(self) -> float:
        """The metric on validation images at the selected epoch minus that on test images."""
        return 100 * (self.val - self.test)


@dataclass(frozen=True, kw_only=True)
class Beside:
    """An arm that is run for show, with its gains over the control on the first pairs.

    `diverged`: of each pair whether the arm came to no result, so that its accuracy counts as 0.
    """

    arm: Arm
    gains_pp: tuple[float, ...]
    diverged: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A finished decision.

    Attributes:
        asked: the comparison before tuning.
        beside: arms that were not judged, by name.
        test: how many images arms were scored on, and how many of these were seen before.
        verdict: over the gains of the pairs, from `verdict_of`.
        effects: which test images the treatment mends and breaks, from `effects_of`.
        tuned: what tuning came to, by arm; empty without tuning.
        operations: of the treatment's and of the control's training, from `cost.operations_of`.
        worth_pp: what one test image is worth.
        pair_s: what a further pair takes here, an estimate.
        at_once: pairs that run side by side.
        floor: stage 0 on the images of the first pair.
    """

    asked: Comparison
    treatment: Arm
    control: Arm
    design: Design
    pool: Pool
    pairs: tuple[Pair, ...]
    verdict: Verdict
    beside: Mapping[str, Beside]
    test: Counts
    classes: int
    images: int
    effects: pd.DataFrame
    tuned: tuple[TunedArm, ...]
    operations: tuple[float, float]
    worth_pp: float
    pair_s: float
    at_once: int
    wall_s: float
    floor: Floor | None = None

    @property
    def seeds(self) -> int:
        """Seeds on each draw."""
        return self.asked.decide.seeds

    @property
    def labels(self) -> list[str]:
        """The pairs' numbers, in their order; with several seeds a draw `1.1`, `1.2`, `2.1`."""
        return [label_of(pair.key.number, self.seeds) for pair in self.pairs]

    @property
    def metric(self) -> str:
        """What the arms are compared by."""
        return self.asked.decide.metric

    @property
    def gains_pp(self) -> list[float]:
        """Gains in the order in which the pairs were run."""
        return [pair.gain_pp for pair in self.pairs]

    @property
    def means_pp(self) -> list[float]:
        """The gains that the verdict rests on, means over seeds where a draw has several."""
        return [float(gain) for gain in np.reshape(self.gains_pp, (-1, self.seeds)).mean(axis=1)]

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
        return robustness(
            self.means_pp,
            rope_pp=known.rope_pp,
            correction=known.correction,
            resolution_pp=self.worth_pp / self.seeds,
            differences=self._table,
        )

    @property
    def outlook(self) -> str:
        """What would settle an open decision, what it costs and how to ask for it; else empty."""
        return self._outlook.sentence if self._outlook else ""

    @property
    def next_looks(self) -> tuple[int, ...]:
        """The numbers of pairs with which to go on; empty where it is settled or stuck."""
        return self._outlook.looks if self._outlook else ()

    @cached_property
    def _outlook(self) -> Outlook | None:
        known = self.verdict.posterior
        if self.verdict.state != "inconclusive" or not known:
            return None
        return Outlook(
            known=known,
            design=self.design,
            most=self.pool.most,
            needed=needed(known, self.design, self._table),
            seeds=self.seeds,
            pair_s=self.pair_s,
            at_once=self.at_once,
        )

    @property
    def _table(self) -> Table | None:
        return differences_of(self.pairs, self.seeds) if self.covers_images else None

    @property
    def disagreements(self) -> pd.DataFrame:
        """By class, how many test images the treatment mends and breaks."""
        return by_class(self.effects, len(self.pairs))

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
    def why(self) -> str:
        """Why that arm is recommended, as a clause."""
        other = self.treatment.words
        return {
            "justified": "since its gain is established",
            "not_justified": f"since {other} does not gain enough to be worth it",
        }.get(
            self.verdict.state,
            f"since {other} has not been shown to be better, and what is simpler stays until then",
        )

    @property
    def steps(self) -> list[int]:
        """Optimizer steps of each arm."""
        return equal_steps([self.treatment, self.control], self.images)

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
        low, high = known.shown_interval_pp
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
            **(self.floor.metrics if self.floor else {}),
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
        parameters_trained=max(result.parameters_trained for result in results),
        operations=operations,
        val=mean(result.val for result in results),
        test=mean(result.test for result in results),
    )
