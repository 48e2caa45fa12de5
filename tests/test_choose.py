"""The error of a gain by any metric: a mean over images, of predicted classes, or neither."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import f1_score

from benchmarks.best_of_trials import recognised
from benchmarks.best_of_trials import study as simulated
from pipeline.signals.scored import Scored, paired
from pipeline.stats.metrics import METRICS, Metric
from pipeline.tuning.choose import bootstrapped, error_over_draws, gain_of, wanted_errors
from tests.conftest import tiny, words_of
from tests.test_tuning import studies

IMAGES = 300


def scored(seed: int, wrong: float) -> Scored:
    """Predictions for the same images, a share of them wrong, class names as they are stored."""
    names = np.array(["NA", "none", "other"])
    labels = np.random.default_rng(0).choice(3, IMAGES, p=[0.7, 0.2, 0.1])
    rng = np.random.default_rng(seed)
    moved = (labels + rng.integers(1, 3, IMAGES)) % 3
    predicted = np.where(rng.random(IMAGES) < wrong, moved, labels)
    images = tuple(map(str, range(IMAGES)))
    return Scored(
        images=images,
        labels=names[labels],
        predicted=names[predicted],
        nll=np.zeros(IMAGES),
    )


def test_resampled_accuracy_has_the_gain_and_the_error_of_the_paired_mean() -> None:
    both = [(scored(draw, 0.2), scored(draw + 10, 0.3)) for draw in (1, 2)]
    gain, error = bootstrapped(both, METRICS["acc"])
    differences = np.concatenate([paired(*one)["correct"] for one in both])
    assert gain == pytest.approx(differences.mean())
    assert error == pytest.approx(differences.std() / math.sqrt(len(differences)), rel=0.15)


def test_a_gain_in_macro_f1_is_scikit_learns_and_is_paired_by_image() -> None:
    best, default = scored(1, 0.2), scored(2, 0.3)
    expected = [f1_score(s.labels, s.predicted, average="macro") for s in (best, default)]
    gain, error = bootstrapped([(best, default)], METRICS["macro_f1"])
    assert gain == pytest.approx(expected[0] - expected[1])
    assert 0 < error < 0.1
    columns = {key: getattr(default, key)[::-1] for key in Scored.__dataclass_fields__}
    turned = Scored(**columns)
    assert bootstrapped([(best, turned)], METRICS["macro_f1"]) == (gain, error)
    assert bootstrapped([(best, best)], METRICS["macro_f1"]) == (0.0, 0.0)


def test_the_table_says_which_gains_have_an_error_not_the_names_of_metrics() -> None:
    both = [(scored(draw, 0.2), scored(draw + 10, 0.3)) for draw in (1, 2)]
    by_name = {name: gain_of(both, metric) for name, metric in METRICS.items()}
    assert by_name["acc"] == pytest.approx((0.1, 0.02), abs=0.05)
    assert by_name["loss"] == (0.0, 0.0)  # of the scores above, whose losses are equal
    for name, metric in METRICS.items():
        has_error = bool(metric.mean_of) or metric.of_classes
        assert all(map(math.isfinite, by_name[name])) is has_error

    def wrong(logits: torch.Tensor, labels: torch.Tensor) -> float:
        return (logits.argmax(1) != labels).double().mean().item()

    error_rate = Metric(words="error", compute=wrong, direction="minimize", of_classes=True)
    gain, error = gain_of(both, error_rate)
    assert gain == pytest.approx(-by_name["acc"][0])
    assert error == pytest.approx(by_name["acc"][1], rel=0.15)


# --- the best of many ----------------------------------------------------------------------------


def test_the_best_of_many_must_lead_by_more_than_a_single_trial() -> None:
    assert wanted_errors(2.0, 1) == 2.0
    assert wanted_errors(2.0, 0) == 2.0
    assert [wanted_errors(margin, 19) for margin in (0.0, 100.0)] == [0.0, 100.0]
    assert wanted_errors(2.0, 19) == pytest.approx(3.03, abs=0.01)
    for margin in (0.5, 2.0, 3.0):
        one_of_19 = norm.cdf(wanted_errors(margin, 19)) ** 19
        assert one_of_19 == pytest.approx(norm.cdf(margin))


@pytest.mark.parametrize("draws", [2, 3, 10])
def test_the_error_over_draws_is_that_of_noise_whatever_draws_and_a_few_trials_are(
    draws: int,
) -> None:
    rng = np.random.default_rng(draws)
    noise = rng.normal(0, 0.01, (4000, draws))
    values = noise + rng.normal(0, 0.1, draws) + rng.normal(0, 0.1, (4000, 1))
    values[::5] += rng.normal(0, 1, (800, draws))  # trials at hopeless settings
    assert error_over_draws(values) == pytest.approx(0.01 * math.sqrt(2 / draws), rel=0.35)
    assert error_over_draws(noise) == pytest.approx(0.01 * math.sqrt(2 / draws), rel=0.1)
    assert error_over_draws(noise[:, :1]) == error_over_draws(noise[:1]) == 0.0
    assert error_over_draws(np.empty((0, draws))) == 0.0


@pytest.mark.parametrize(("draws", "noise_pp"), [(1, 0.0), (1, 0.23), (3, 0.0), (3, 0.5)])
def test_of_twenty_trials_that_are_alike_the_best_is_seldom_taken(
    draws: int, noise_pp: float
) -> None:
    rng, studies = np.random.default_rng(0), 500
    ends = [
        simulated(recognised(rng, 20, draws, 500, unsure=0.2, noise_pp=noise_pp), 500)
        for _ in range(studies)
    ]
    plain, now = (np.mean([end[n] for end in ends]) for n in (1, 2))
    assert plain > 0.12
    assert now < 0.05


CALIBRATED = """
import sys
from pipeline.stats import metrics

def calibration_error(logits, labels):
    sure, predicted = logits.softmax(1).max(1)
    bins = (10 * sure).long().clamp(max=9)
    gaps = [(sure - (predicted == labels).float())[bins == b].sum().abs() for b in range(10)]
    return float(sum(gaps) / len(labels))

metrics.METRICS["ece"] = metrics.Metric(
    words="calibration error", compute=calibration_error, direction="minimize"
)
metrics.OBJECTIVES["val_ece"] = metrics.Objective("val_ece", "minimize")
from pipeline.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The command line with a metric in the table that stored predictions do not give."""


@pytest.mark.slow
def test_a_study_by_a_metric_that_cannot_be_resampled_chooses_and_says_so(
    image_folder: Path, store: Path
) -> None:
    (store / "space.yaml").write_text("lr: [1.0e-7]\nnorm: [keep]\n")
    options = {"stage": "1", "n_trials": "2", "objective": "val_ece", "space": "space.yaml"}
    options = tiny(image_folder, store, options)
    done = subprocess.run(
        [sys.executable, "-c", CALIBRATED, *words_of("tune", options)],
        cwd=store,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    [study] = studies(store)
    trials = {trial.number: trial.value for trial in study.trials}
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    assert study.user_attrs["chosen"] == min(trials, key=lambda n: (trials[n], n))
    if study.user_attrs["chosen"]:
        assert "no standard error of a gain in calibration error" in done.stdout
