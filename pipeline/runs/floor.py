"""The floor of a chain: stage 0 on a session's images, kept on the run of stage 1.

In: a session; test images where the caller may read them. Out: a `Floor`: accuracies of both
classifiers of `training.stage0` on validation and test images, in words and as rows of a table.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.data.image_set import ImageSet
from pipeline.model.grouping import HEAD
from pipeline.runs.session import Session
from pipeline.settings.augmentation import Augment
from pipeline.system.progress import doing
from pipeline.system.provenance import typed
from pipeline.tracking import RunView
from pipeline.tracking.keys import STAGE0
from pipeline.training.stage0 import KNN, LOGREG, Points, fit_and_score, head_inputs

VAL, TEST = "val", "test"


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What stage 0 came to.

    Attributes:
        chosen: k of `knn`, C of `logreg`.
        val: accuracy on validation images by classifier, 0 to 1.
        test: the same on test images; empty where they were not read.
        balanced: balanced accuracy by part and classifier, where it is known.
        seconds: forward passes that the cache did not have, and both classifiers.
    """

    chosen: Mapping[str, float]
    val: Mapping[str, float]
    test: Mapping[str, float] = field(default_factory=dict)
    balanced: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def names(self) -> dict[str, str]:
        """Both classifiers in words."""
        return {
            KNN: f"{self.chosen[KNN]:g} nearest neighbours"
            if self.chosen[KNN] > 1
            else "nearest neighbour",
            LOGREG: f"logistic regression (C {self.chosen[LOGREG]:g})",
        }

    @property
    def metrics(self) -> dict[str, float]:
        """The floor as a run's metrics."""
        values = {f"{STAGE0}{name}_{VAL}_acc": acc for name, acc in self.val.items()}
        values |= {f"{STAGE0}{name}_{TEST}_acc": acc for name, acc in self.test.items()}
        values |= {
            f"{STAGE0}{name}_{part}_balanced_acc": value
            for part, of in self.balanced.items()
            for name, value in of.items()
            if self.balanced_of(part, name) is not None
        }
        return values | {f"{STAGE0}{name}_chosen": value for name, value in self.chosen.items()}

    def balanced_of(self, part: str, name: str) -> float | None:
        """Balanced accuracy, where it is known and differs from accuracy."""
        acc = (self.test if part == TEST else self.val)[name]
        found = self.balanced.get(part, {}).get(name, acc)
        return None if math.isclose(found, acc, abs_tol=1e-6) else found

    def in_words(self, part: str, name: str, digits: int = 1) -> str:
        """The accuracy of a classifier, balanced accuracy behind it where that differs."""
        acc = (self.test if part == TEST else self.val)[name]
        balanced = self.balanced_of(part, name)
        return f"{acc:.{digits}%}" + (
            "" if balanced is None else f" (balanced {balanced:.{digits}%})"
        )

    @property
    def sentence(self) -> str:
        """The floor in one clause, on test images where they were read."""
        part, words = (TEST, TEST) if self.test else (VAL, "validation")
        accs = self.test or self.val
        shown = ", ".join(f"{self.names[name]} {self.in_words(part, name)}" for name in accs)
        return f"stage 0 (frozen features, nothing trained): {shown} on {words} images"

    def remark(self, number: int, val_acc: float) -> str:
        """A line where the floor lies above what training came to by a stage; else empty."""
        best = max(self.val, key=lambda name: self.val[name])
        if self.val[best] <= val_acc:
            return ""
        return (
            f"note: {self.names[best]} on the frozen features is ahead of stage {number} "
            f"({self.val[best]:.1%} against {val_acc:.1%}): more epochs or another rate would be "
            f"the first thing to try (-P epochs=, -P lr=, or `{typed('tune')}`)"
        )

    def ahead_of(
        self, reached: Mapping[str, float], where: str, todo: str, *, balanced: bool = False
    ) -> str:
        """A line where stage 0 is ahead of all that was reached on test images; else empty.

        `reached`: accuracies (`balanced`: balanced ones), by what reached them. `where`: on what.
        """
        accs = self.balanced.get(TEST, {}) if balanced else self.test
        best = max(accs, key=lambda name: accs[name], default="")
        if not best or accs[best] < max(reached.values()) + 1e-5:  # these are kept to six digits
            return ""
        others = " and ".join(f"{name} {acc:.2%}" for name, acc in reached.items())
        return (
            f"! {self.names[best]} on the frozen features, nothing trained, reaches "
            f"{'balanced ' * balanced}{accs[best]:.2%} on {where}, {others}: {todo}"
        )

    @property
    def rows(self) -> list[dict[str, str]]:
        """The floor as rows of the table of stages."""
        return [
            {
                "stage": "0",
                "trains": name,
                "val acc": f"{self.val[key]:.2%}",
                "balanced": f"{self.balanced.get(VAL, self.val).get(key, self.val[key]):.2%}",
            }
            for key, name in self.names.items()
        ]


def floor_of(session: Session, test: ImageSet | None = None) -> Floor | None:
    """Stage 0 on a session's draw, and on test images; None where features are not finite."""
    started = time.perf_counter()
    backbone, settings, draw = session.pretrained_backbone(), session.settings, session.draw

    def inputs(images: ImageSet, augment: Augment = "none", views: int = 1) -> Points:
        where = (session.cache, session.dtype, session.device)
        return head_inputs(backbone, images, *where, augment=augment, views=views)

    first = settings.stage(1)
    like: tuple[Augment, int] = ("none", 1)
    if first.trainable == (HEAD,):
        like = (settings.training(1).augment, settings.views)
    train = inputs(draw.train, *like)
    others = {VAL: (inputs(draw.val), draw.val.labels.numpy())}
    if test is not None:
        others[TEST] = (inputs(test), test.labels.numpy())
    with doing("fitting stage 0"):
        found = fit_and_score(draw.train, train, others)
    if found is None:
        session.say("note: stage 0 is left out: the frozen features are not finite numbers")
        return None
    return Floor(
        chosen=found.chosen,
        val=found.scores[VAL],
        test=found.scores.get(TEST, {}),
        balanced=found.balanced,
        seconds=time.perf_counter() - started,
    )


def floor_on(session: Session, run: RunView) -> Floor | None:
    """The floor on validation images, from the run of stage 1, or computed and kept there."""
    names = (KNN, LOGREG)
    wanted = [f"{STAGE0}{name}_{what}" for name in names for what in (f"{VAL}_acc", "chosen")]
    balanced = {name: f"{STAGE0}{name}_{VAL}_balanced_acc" for name in names}
    if all(name in run.metrics for name in wanted):
        return Floor(
            chosen={name: run.metrics[f"{STAGE0}{name}_chosen"] for name in names},
            val={name: run.metrics[f"{STAGE0}{name}_{VAL}_acc"] for name in names},
            balanced={VAL: {n: run.metrics[k] for n, k in balanced.items() if k in run.metrics}},
        )
    floor = floor_of(session)
    if floor:
        session.tracking.writing(run.run_id).metrics(floor.metrics)
    return floor
