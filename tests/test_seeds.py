"""What shared images do, by hand and by the coverage of intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.stats.seeds import correction_by_seeds, correction_of, images_part


def test_the_correction_is_the_one_worked_out_by_hand() -> None:
    # draws' means 1 and 2, seeds differ by 2 and 2: MS of draws 2 * 0.5 = 1, of seeds 2
    # the 0.1 quantile of F(1, 2): x / sqrt(x^2 + 2) = 0.1 at x^2 = 2 * 0.01 / 0.99 = 0.020202
    # 1 / 0.020202 - 2 = 47.5, more than 1: all the images' doing
    assert correction_by_seeds(np.array([[0.0, 2.0], [1.0, 3.0]]), 1.0) == 1
    # 3 draws: F(2, 3) = 1.5 (0.9^(-2/3) - 1) = 0.109149; MS 2 * 0.01 = 0.02 and 2:
    # 0.02 / 0.109149 - 2 < 0: none of it
    assert correction_by_seeds(np.array([[0.0, 2.0], [0.1, 2.1], [0.2, 2.2]]), 1.0) == 0
    # MS 2 * 0.16 = 0.32: 0.32 / 0.109149 - 2 = 0.931772, of 0.32 more than all
    # MS 2 * 0.1225 = 0.245: 0.245 / 0.109149 - 2 = 0.244640, of 0.245 a share of 0.998532
    found = correction_by_seeds(np.array([[0.0, 2.0], [0.35, 2.35], [0.7, 2.7]]), 4.0)
    assert found == pytest.approx(4 * 0.998532, rel=1e-4)


def test_half_the_images_in_common_are_three_eighths_of_correlation() -> None:
    assert correction_of(0.5) == pytest.approx(0.375 / 0.625)
    assert correction_of(0.5, kappa=1) == 1
    assert correction_of(0) == 0


def test_gains_that_seeds_do_not_change_are_the_images_doing() -> None:
    assert correction_by_seeds(np.array([[1.0, 1.0], [2.0, 2.0]]), 1.0) == 1
    assert correction_by_seeds(np.ones((3, 2)), 1.0) == 1


@pytest.mark.parametrize("part", [0.0, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize(("share", "draws", "seeds"), [(0.5, 10, 2), (0.8, 5, 3)])
def test_intervals_hold_the_true_gain_whatever_part_images_have(
    part: float, share: float, draws: int, seeds: int
) -> None:
    rng = np.random.default_rng(0)
    studies = 3000
    shared = np.sqrt(part * share) * rng.standard_normal((studies, 1))
    own = np.sqrt(part * (1 - share)) * rng.standard_normal((studies, draws))
    noise = np.sqrt(1 - part) * rng.standard_normal((studies, draws, seeds))
    gains = (shared + own)[:, :, None] + noise
    means = gains.mean(2)
    c = images_part(gains) * share / (1 - share)
    half = means.std(1, ddof=1) * np.sqrt(1 / draws + c) * stats.t.ppf(0.975, draws - 1)
    assert np.mean(abs(means.mean(1)) <= half) >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / studies)
    bound = means.std(1, ddof=1) * np.sqrt(1 / draws + share / (1 - share))
    if part == 0:
        assert half.mean() < 0.96 * (bound * stats.t.ppf(0.975, draws - 1)).mean()
