"""What a decision came to: pairs, verdict, cost, optimism, what is recommended. Pure data.

In: arms, a design and paired results. Out: everything that a report says, computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.comparing.arms import Arm, Comparison, TunedArm
from pipeline.comparing.cost import equal_steps
from pipeline.comparing.draws import Pool
from pipeline.comparing.pairs import ArmResult, Pair, resolution_pp
from pipeline.data.overlap import Counts
from pipeline.model.flops import training_operations
from pipeline.stats.design import Design
from pipeline.stats.metrics import DEFAULT_SHARE, METRICS
from pipeline.stats.verdict import Verdict, verdict
from pipeline.system.digests import digest_values


@dataclass(frozen=True)
class ArmCost:
    """What an arm cost: means over pairs.

    Attributes:
        training_s: of all its stages, without the frozen prefix.
        trained: parameters of its largest stage.
        operations: floating-point operations of all its stages' training.
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


@dataclass(frozen=True)
class Decision:
    """A finished decision.

    Attributes:
        asked: the comparison before tuning.
        beside: arms that were not judged, with their gains over the control on the first pairs.
        test: how many images accuracies were measured on, and how many of them are no new ones.
        tuned: what tuning came to, by arm; empty without tuning.
    """

    asked: Comparison
    treatment: Arm
    control: Arm
    design: Design
    pool: Pool
    pairs: tuple[Pair, ...]
    beside: Mapping[str, tuple[Arm, list[float]]]
    test: Counts
    classes: int
    tuned: tuple[TunedArm, ...]
    wall_s: float

    @property
    def metric(self) -> str:
        """What the arms are compared by."""
        return self.asked.decide.metric

    @property
    def gains_pp(self) -> list[float]:
        """Gains in the order in which the pairs were run."""
        return [pair.gain_pp for pair in self.pairs]

    @property
    def verdict(self) -> Verdict:
        """The verdict over them."""
        return verdict(
            self.gains_pp, self.design, self.pool.correction, resolution_pp(self.test.images)
        )

    @property
    def sentence(self) -> str:
        """The verdict for those who will not read the rest."""
        sentence = self.verdict.sentence(self.treatment.words, self.control.words)
        if self.metric == DEFAULT_SHARE:
            return sentence
        return f"By {METRICS[self.metric].words}: {sentence}"

    @property
    def recommended(self) -> Arm:
        """The treatment where it is justified, else the control: both have been scored."""
        return self.treatment if self.verdict.state == "justified" else self.control

    @property
    def steps(self) -> list[int]:
        """Optimizer steps of each arm."""
        images = self.treatment.settings.train_per_class * self.classes
        return equal_steps([self.treatment, self.control], images)

    def cost(self, arm: Arm) -> ArmCost:
        """What the treatment or the control cost."""
        results: list[ArmResult] = [
            pair.treatment if arm is self.treatment else pair.control for pair in self.pairs
        ]
        count = len(results)
        settings = arm.settings
        an_epoch = settings.train_per_class * self.classes
        operations = [
            settings.training(number).epochs
            * an_epoch
            * training_operations(
                settings.backbone, self.classes, settings.image_size, settings.stage(number)
            )
            for number in range(1, arm.last + 1)
        ]
        return ArmCost(
            arm,
            sum(r.chain.training_s for r in results) / count,
            results[0].chain.trained,
            sum(operations),
            sum(r.val for r in results) / count,
            sum(r.test for r in results) / count,
        )

    @property
    def tags(self) -> dict[str, str]:
        """What the decision's run, its studies and the treatment's runs carry."""
        known = self.verdict.posterior
        assert known
        low, high = known.interval_pp
        return {
            "verdict": self.verdict.state,
            "verdict.kind": self.verdict.kind or "none",
            "verdict.p_gain": f"{known.p_above:.4f}",
            "verdict.p_equivalent": f"{known.p_inside:.4f}",
            "verdict.p_harm": f"{known.p_below:.4f}",
            "verdict.mean_gain_pp": f"{known.mean_pp:.3f}",
            "verdict.interval_pp": f"{low:.3f} to {high:.3f}",
            "verdict.pairs": str(known.pairs),
            "verdict.recommended": self.recommended.words,
            "verdict.question": self.question,
            "verdict.metric": self.metric,
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
        """What was asked, whatever the number of pairs: two arms, and what counts as a gain."""
        arms = [
            [arm.name, *(arm.settings.training(n).model_dump() for n in range(1, arm.last + 1))]
            for arm in (self.treatment, self.control)
        ]
        counts: list[object] = [self.design.rope_pp, self.design.threshold]
        if self.metric != DEFAULT_SHARE:  # decisions of earlier versions had no other
            counts.append(self.metric)
        return digest_values({"arms": arms, "design": counts})[:16]
