"""The least that three stages can cost here: their operations at the best rate measured."""

from __future__ import annotations

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model.backbones import build_backbone
from pipeline.settings.schedules import SCHEDULES


def convolution_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second of the fastest convolution seen here."""
    best = 0.0
    for channels, side in ((128, 16), (256, 8), (256, 16)):
        x = torch.randn(64, channels, side, side, dtype=dtype).to(
            memory_format=torch.channels_last
        )
        w = torch.randn(channels, channels, 3, 3, dtype=dtype)
        for _ in range(12):
            started = time.perf_counter()
            y = torch.nn.functional.conv2d(x, w, padding=1)
            seconds = time.perf_counter() - started
            best = max(best, 2 * y.numel() * channels * 9 / seconds)
    return best


def _segment_costs(backbone_name: str, size: int) -> tuple[list[int], list[int]]:
    """Operations of each segment for one image forward, and the frozen segments of each stage."""
    backbone = build_backbone(backbone_name, 10, size, 0)
    x = torch.zeros(1, 3, size, size)
    cost = []
    for segment in backbone.segments:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            x = segment.module(x)
        cost.append(counter.get_total_flops())
    stages = SCHEDULES["three_stage"].stages
    return cost, [backbone.frozen_segments(stage.trainable) for stage in stages]


def floor_operations(
    backbone_name: str, size: int, epochs: int, train: int, val: int, views: int
) -> float:
    """Operations of three stages: suffix forward and backward, validation, one prefix pass.

    Backward counts twice the forward. A matrix product over a 2x2 map needs fewer operations than
    the convolution that is counted here, so the floor is not a bound for every program.
    """
    cost, frozen = _segment_costs(backbone_name, size)
    total = (train * views + val) * sum(cost[: frozen[0]])
    for prefix in frozen:
        total += epochs * (train * 3 + val) * sum(cost[prefix:])
    return float(total)


def loop_operations(backbone_name: str, size: int, epochs: int, train: int, val: int) -> float:
    """Operations of three stages where nothing is kept: the whole network forward each time.

    Its backward pass stops at the last frozen block, as PyTorch's does.
    """
    cost, frozen = _segment_costs(backbone_name, size)
    total = 0
    for prefix in frozen:
        total += epochs * ((train + val) * sum(cost) + train * 2 * sum(cost[prefix:]))
    return float(total)
