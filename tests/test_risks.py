"""Drift, gradients and CKA against values worked out by hand, and over a real training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pipeline.tracking.keys import RISKS
from pipeline.training.diagnostics import (
    PROBES,
    RiskMeter,
    gram,
    linear_cka,
    norm_of,
)
from pipeline.training.master_weights import MasterWeight


def cka(x: Tensor, y: Tensor) -> float:
    return float(linear_cka(gram(x), gram(y)))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drift(now: list[Tensor], start: list[Tensor]) -> float:
    weights = [
        MasterWeight(f"w{number}", "head", nn.Parameter(one), before)
        for number, (one, before) in enumerate(zip(now, start, strict=True))
    ]
    meter, outputs = RiskMeter(weights, 4), {"head": random(4, 2)}
    meter.start(outputs)
    meter.see_gradients()
    return meter.read(outputs)[f"{RISKS}drift/head"]


def test_drift_is_the_distance_over_the_size_at_the_start_of_all_tensors_together() -> None:
    assert norm_of([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]).item() == pytest.approx(5.0)
    start = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    now = [torch.tensor([3.0, 1.0]), torch.tensor([4.0])]
    assert drift(now, start) == pytest.approx(0.2)
    zero = [torch.zeros(2)]
    assert drift(start, start) == drift(zero, zero) == 0.0
    assert drift([torch.ones(2)], zero) == math.inf


def test_gradients_of_a_step_that_overflowed_a_scaled_loss_do_not_count() -> None:
    parameter = nn.Parameter(torch.ones(2))
    weight = MasterWeight("w", "head", parameter, torch.ones(2))
    meter, outputs = RiskMeter([weight], 4), {"head": random(4, 2)}
    meter.start(outputs)
    seen = {}
    for may_overflow in (True, False):
        for gradient in ([3.0, 4.0], [math.inf, 0.0]):
            weight.master.grad = torch.tensor(gradient)
            meter.see_gradients(may_overflow=may_overflow)
        seen[may_overflow] = meter.read(outputs)[f"{RISKS}grad_norm/head"]
    assert seen == {True: 5.0, False: math.inf}


def test_large_representations_are_multiplied_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = random(20, 3, 4, 4)
    whole = gram(maps)
    monkeypatch.setattr("pipeline.training.diagnostics.GRAM_VALUES", 7 * 20)
    torch.testing.assert_close(gram(maps), whole)


def test_cka_is_blind_to_rotation_scale_shift_and_shape() -> None:
    x, maps = random(40, 6), random(20, 3, 2, 2)
    rotation = torch.linalg.qr(random(6, 6, seed=1))[0]
    assert cka(x, 3 * x @ rotation + 5) == pytest.approx(1.0, abs=1e-5)
    assert cka(maps, maps.flatten(1)) == pytest.approx(1.0, abs=1e-5)
    assert cka(torch.ones(5, 3), random(5, 3)) == 0.0  # a constant is similar to nothing


def test_cka_by_hand() -> None:
    """Kornblith et al., equation 3: ||Y'X||^2 / (||X'X|| ||Y'Y||) of centred columns."""
    x, y = random(30, 5).double(), random(30, 7, seed=1).double()
    x, y = x - x.mean(0), y - y.mean(0)
    expected = (y.t() @ x).norm() ** 2 / ((x.t() @ x).norm() * (y.t() @ y).norm())
    assert cka(x.float(), y.float()) == pytest.approx(float(expected), abs=1e-5)
    assert 0 < float(expected) < 0.5


@pytest.mark.parametrize("images", [1, 5, PROBES, PROBES + 1, 1000])
def test_probes_are_few_and_spread(images: int) -> None:
    probes = RiskMeter([], images).probes
    assert len(probes) <= PROBES
    assert len(probes) >= min(images, PROBES // 2)
    assert probes[0] == 0
    assert probes[-1] >= images - (images // PROBES + 1) - 1
