"""Metrics against hand computation and scikit-learn, and what epochs are ranked by."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

import pipeline
from pipeline.stats.metrics import DEFAULT_OBJECTIVE, METRICS, OBJECTIVES, score_logits

NAN, INF = math.nan, math.inf


def test_scores_are_the_mean_cross_entropy_and_the_share_of_hits() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)], [2.0, 2.0], [0.0, 0.0]])
    labels = torch.tensor([1, 0, 0, 1])  # ties go to the first class: a hit, then a miss
    scores = score_logits(logits, labels)
    expected = (math.log(4 / 3) + math.log(4) + 2 * math.log(2)) / 4
    assert scores["loss"] == pytest.approx(expected)
    assert scores["acc"] == 0.5


def test_a_share_has_six_digits() -> None:
    labels = torch.zeros(600, dtype=torch.int64)
    for hits, share in ((1, 0.00166667), (200, 0.333333), (419, 0.698333), (600, 1)):
        logits = torch.tensor([[1.0, 0.0]] * hits + [[0.0, 1.0]] * (600 - hits))
        assert score_logits(logits, labels)["acc"] == share


@settings(deadline=None)
@given(
    classes=st.integers(2, 6),
    present=st.integers(1, 6),
    count=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_metrics_are_scikit_learns_also_where_classes_are_absent(
    classes: int, present: int, count: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, min(present, classes), count)
    logits = rng.normal(size=(count, classes)).astype(np.float32)
    predicted, shares = logits.argmax(1), torch.from_numpy(logits).double().softmax(1).numpy()
    expected = {
        "loss": log_loss(labels, shares, labels=range(classes)),
        "acc": (predicted == labels).mean(),
        "macro_f1": f1_score(labels, predicted, average="macro", zero_division=0.0),
        "balanced_acc": balanced_accuracy_score(labels, predicted),
    }
    scores = score_logits(torch.from_numpy(logits), torch.from_numpy(labels))
    assert {name: scores[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_the_rule_for_absent_classes_by_hand() -> None:
    """Class 2 is only predicted: an F1 of 0. Class 3 is nowhere: it does not count."""
    logits = torch.eye(4)[[0, 0, 1, 2]]
    scores = score_logits(logits, torch.tensor([0, 0, 1, 1]))
    assert scores["balanced_acc"] == pytest.approx((1 + 1 / 2) / 2)
    assert scores["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_unequal_classes_part_accuracy_from_the_metrics_by_class() -> None:
    always_first = torch.eye(2)[[0] * 100]
    scores = score_logits(always_first, torch.tensor([0] * 90 + [1] * 10))
    assert scores["acc"] == 0.9
    assert scores["balanced_acc"] == 0.5
    assert scores["macro_f1"] == pytest.approx(0.9 / 1.9)


@pytest.mark.parametrize(
    ("name", "rows", "best"),
    [
        ("val_acc", [(0.5, 1.0, 0.9), (0.6, 2.0, 0.1), (0.6, 1.5, 0.1)], 2),
        ("val_loss", [(0.5, 1.0, 0.9), (0.6, 2.0, 0.1), (0.6, 1.5, 0.1)], 0),
        ("val_macro_f1", [(0.5, 1.0, 0.8), (0.6, 2.0, 0.9), (0.9, 1.5, 0.9)], 2),
        ("val_acc", [(0.5, 1.0, 0.5), (1.0, NAN, 1.0), (1.0, INF, 1.0)], 0),
        ("val_macro_f1", [(0.0, 9.0, 0.0), (1.0, NAN, 1.0)], 0),
    ],
)
def test_epochs_are_ranked_by_the_objective_then_by_loss(
    name: str, rows: list[tuple[float, ...]], best: int
) -> None:
    objective = OBJECTIVES[name]
    ranks = [
        objective.rank(dict(zip(("acc", "loss", "macro_f1"), row, strict=True))) for row in rows
    ]
    assert max(range(len(rows)), key=ranks.__getitem__) == best


def test_every_metric_is_an_objective_with_its_direction() -> None:
    assert {o.metric: o.direction for o in OBJECTIVES.values()} == {
        name: metric.direction for name, metric in METRICS.items()
    }
    assert not OBJECTIVES["val_loss"].maximised
    assert OBJECTIVES[DEFAULT_OBJECTIVE].metric == "acc"


def test_names_of_metrics_stand_in_one_place() -> None:
    names = "|".join(map(re.escape, METRICS))
    metric = re.compile(rf"""["'/](val|test|train)[_/]({names})["']""")
    found = [
        f"{path.name}: {line.strip()}"
        for path in Path(pipeline.__file__).parent.rglob("*.py")
        if path.name not in ("keys.py", "metrics.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if metric.search(line)
    ]
    assert found == []
