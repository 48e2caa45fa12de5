"""Bins of confidence and their error, by hand and against a slow twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.stats.calibration import BINS, Bins
from pipeline.stats.metrics import calibration_error


def twin(confidence: list[float], correct: list[bool]) -> float:
    """The formula of Guo et al. (2017), bin after bin."""
    total = 0.0
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        inside = [(c, r) for c, r in zip(confidence, correct, strict=True) if low < c <= high]
        if inside:
            mean = sum(c for c, _ in inside) / len(inside)
            right = sum(r for _, r in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(mean - right)
    return total


def test_the_error_is_that_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        confidence = rng.uniform(0.05, 1, 50)
        correct = rng.uniform(size=50) < confidence
        expected = twin(confidence.tolist(), correct.tolist())
        assert Bins.of(confidence, correct).error == pytest.approx(expected)


def test_a_model_that_is_as_sure_as_right_has_no_error_and_a_boaster_has_all_of_it() -> None:
    half = torch.zeros(4, 2)  # 50% for the first class each time
    assert calibration_error(half, torch.tensor([0, 0, 1, 1])) == pytest.approx(0)
    sure = torch.tensor([[50.0, 0.0]] * 4)
    assert calibration_error(sure, torch.tensor([1, 1, 1, 1])) == pytest.approx(1)


def test_a_probability_of_1_falls_into_the_last_bin_and_no_number_is_no_error() -> None:
    bins = Bins.of(np.array([1.0, 1 / BINS, 0.0]), np.array([True, True, False]))
    assert bins.counts.tolist() == [2, 1]
    assert math.isnan(calibration_error(torch.tensor([[math.nan, 0.0]]), torch.tensor([0])))
