"""The error of a gain that is no mean over images, against the one that is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score

from pipeline.signals.readings import Scored, paired
from pipeline.stats.metrics import METRICS
from pipeline.tuning.choose import bootstrapped

IMAGES = 300


def scored(seed: int, wrong: float) -> Scored:
    """Predictions for the same images, a share of them wrong, class names as they are stored."""
    names = np.array(["NA", "none", "other"])
    labels = np.random.default_rng(0).choice(3, IMAGES, p=[0.7, 0.2, 0.1])
    rng = np.random.default_rng(seed)
    moved = (labels + rng.integers(1, 3, IMAGES)) % 3
    predicted = np.where(rng.random(IMAGES) < wrong, moved, labels)
    images = tuple(map(str, range(IMAGES)))
    return Scored(images, names[labels], names[predicted], np.zeros(IMAGES))


def test_resampled_accuracy_has_the_gain_and_the_error_of_the_paired_mean() -> None:
    both = [(scored(draw, 0.2), scored(draw + 10, 0.3)) for draw in (1, 2)]
    gain, error = bootstrapped(both, METRICS["acc"])
    differences = np.concatenate([paired(*one)[0] for one in both])
    assert gain == pytest.approx(differences.mean())
    assert error == pytest.approx(differences.std() / math.sqrt(len(differences)), rel=0.15)


def test_a_gain_in_macro_f1_is_scikit_learns_and_is_paired_by_image() -> None:
    best, default = scored(1, 0.2), scored(2, 0.3)
    expected = [f1_score(s.labels, s.predicted, average="macro") for s in (best, default)]
    gain, error = bootstrapped([(best, default)], METRICS["macro_f1"])
    assert gain == pytest.approx(expected[0] - expected[1])
    assert 0 < error < 0.1
    columns = (default.labels, default.predicted, default.nll)
    turned = Scored(default.images[::-1], *(column[::-1] for column in columns))
    assert bootstrapped([(best, turned)], METRICS["macro_f1"]) == (gain, error)
    assert bootstrapped([(best, best)], METRICS["macro_f1"]) == (0.0, 0.0)
