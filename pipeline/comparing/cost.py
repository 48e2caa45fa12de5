"""What arms cost before anything is spent: optimizer steps and floating-point operations.

Seconds: `estimate.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.comparing.arms import Arm
from pipeline.errors import DesignError
from pipeline.model.flops import training_operations
from pipeline.settings.run import Settings
from pipeline.training.trainer import split_batches


def steps_an_epoch(images: int, batch_size: int) -> int:
    """Optimizer steps of an epoch on so many training images."""
    return len(split_batches(np.arange(images), batch_size))


def equal_steps(arms: Sequence[Arm], images: int) -> list[int]:
    """Optimizer steps of each arm on so many training images.

    Raises:
        DesignError: they differ by more than rounding to whole epochs explains.
    """
    stages = [[arm.settings.training(n) for n in range(1, arm.last + 1)] for arm in arms]
    steps = [sum(s.epochs * steps_an_epoch(images, s.batch_size) for s in arm) for arm in stages]
    epoch = max(steps_an_epoch(images, s.batch_size) for arm in stages for s in arm)
    if max(steps) - min(steps) > epoch:
        have = ", ".join(f"{arm.words} {n}" for arm, n in zip(arms, steps, strict=True))
        raise DesignError(
            f"arms would not have equal optimizer steps ({have}): give every stage the same "
            "batch_size"
        )
    return steps


def shown_steps(steps: Sequence[int]) -> str:
    """`470`, or `470 and 464` where rounding to whole epochs keeps arms apart."""
    return " and ".join(map(str, dict.fromkeys(steps)))


def operations_of(arm: Arm, classes: int, images: int) -> float:
    """Floating-point operations of all stages' training, without the frozen prefix.

    `images`: training images.
    """
    of, total = arm.settings, 0.0
    for number in range(1, arm.last + 1):
        seen = of.training(number).epochs * images
        total += seen * _operations(of, classes, of.stage(number).trainable)
    return total


def _operations(settings: Settings, classes: int, trainable: Sequence[str]) -> float:
    return training_operations(
        settings.backbone, classes, settings.image_size, trainable, settings.blocks
    )
