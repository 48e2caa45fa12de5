"""Metrics of predictions: one function and one line of the table each.

In: logits (N, classes) and labels (N,), both on the CPU. Out: one number. Another metric is a
function `(logits, labels) -> float` and a line of `METRICS`: it is then computed for validation in
every epoch and for the test split, logged as `more/val_<name>` and `test/<name>`, and can be
selected and tuned by as `val_<name>`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

BALANCED = "balanced_acc"
"""The name of the metric that counts classes alike."""
Row = Mapping[str, float]
"""Values by metric name."""
Direction = Literal["maximize", "minimize"]
Column = Literal["correct", "nll"]
"""What is stored of each image's prediction: whether the class is right, and the cross-entropy."""


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of labels that have the largest logit, 0 to 1."""
    return (logits.argmax(1) == labels).sum().item() / len(labels)


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats, without label smoothing."""
    from torch.nn import functional

    return functional.cross_entropy(logits, labels).item()


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """The mean over classes of F1 = 2 hits / (labels + predictions), 0 to 1.

    A class that is neither a label nor predicted does not count; one that is only predicted
    counts as 0. As scikit-learn's `f1_score(average="macro")`.
    """
    hits, true, predicted = _counts(logits, labels)
    known = true + predicted > 0
    return (2 * hits[known] / (true + predicted)[known]).double().mean().item()


def balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """The mean over classes of the share of a class's images that are recognised, 0 to 1.

    A class that no image is of does not count. As scikit-learn's `balanced_accuracy_score`.
    """
    hits, true, _ = _counts(logits, labels)
    return (hits[true > 0] / true[true > 0]).double().mean().item()


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """How far the probabilities of predicted classes are from how often they are right, 0 to 1.

    NaN where a logit is not a number. See `calibration.py`.
    """
    from pipeline.stats.calibration import Bins

    probability, predicted = logits.double().softmax(1).max(1)
    if not probability.isfinite().all():
        return math.nan
    return Bins.of(probability.numpy(), (predicted == labels).numpy()).error


def _counts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Right predictions, labels, and predictions of each class, (classes,) each, float64."""
    predicted, classes = logits.argmax(1), logits.shape[1]
    parts = (labels[predicted == labels], labels, predicted)
    hits, true, guessed = (part.bincount(minlength=classes).double() for part in parts)
    return hits, true, guessed


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A line of the table.

    Attributes:
        words: its name in a sentence.
        direction: what is better.
        of_classes: depends on the predicted classes alone, and is a share from 0 to 1.
        mean_of: what of each image's stored prediction the metric is the mean of, where it is
            such a mean.
    """

    words: str
    compute: Callable[[Tensor, Tensor], float]
    direction: Direction = "maximize"
    of_classes: bool = False
    mean_of: Column | None = None


METRICS: Mapping[str, Metric] = {
    "loss": Metric(words="loss", compute=cross_entropy, direction="minimize", mean_of="nll"),
    "acc": Metric(words="accuracy", compute=accuracy, of_classes=True, mean_of="correct"),
    "macro_f1": Metric(words="macro F1", compute=macro_f1, of_classes=True),
    BALANCED: Metric(words="balanced accuracy", compute=balanced_accuracy, of_classes=True),
    "ece": Metric(words="calibration error", compute=calibration_error, direction="minimize"),
}
SHARES = tuple(name for name, metric in METRICS.items() if metric.of_classes)
"""Metrics whose differences are percentage points: what arms can be compared by."""
DEFAULT_SHARE = "acc"


def score_logits(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Every metric of the table, by name, as it is stored."""
    return {name: rounded(metric.compute(logits, labels)) for name, metric in METRICS.items()}


def rounded(value: float) -> float:
    """A number as it is stored and shown: six significant digits, whole numbers as they are.

    Rounded where it is made, so that a run that is found says what it said when it was made.
    """
    return float(value) if value % 1 == 0 else float(f"{value:.6g}")


@dataclass(frozen=True)
class Objective:
    """What epochs and trials are compared by: a validation metric, and which way is better."""

    name: str
    direction: Direction

    @property
    def metric(self) -> str:
        """Its name in the table."""
        return self.name.removeprefix("val_")

    @property
    def maximised(self) -> bool:
        """Whether more is better."""
        return self.direction == "maximize"

    def rank(self, val: Row) -> tuple[float, float]:
        """The larger, the better: by the metric, ties by the loss.

        An epoch whose loss or metric is not a number comes last.
        """
        value, loss = val[self.metric], val["loss"]
        if not (math.isfinite(loss) and math.isfinite(value)):
            return (-math.inf, -math.inf)
        return (value if self.maximised else -value, -loss)


OBJECTIVES: Mapping[str, Objective] = {
    f"val_{name}": Objective(f"val_{name}", metric.direction) for name, metric in METRICS.items()
}
DEFAULT_OBJECTIVE = "val_acc"
