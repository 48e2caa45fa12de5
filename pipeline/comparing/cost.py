"""What arms will cost, before anything is spent: optimizer steps, operations, seconds.

In: arms. Out: steps; floating-point operations of their training; seconds on this machine. The
seconds are an estimate, measured on a few images: two epochs of each stage, scaled by images
and epochs. Reading images and logging are taken as a constant.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from pipeline.comparing.arms import Arm
from pipeline.data.augment import distinct_views
from pipeline.data.images import ImageSet
from pipeline.errors import DesignError
from pipeline.model.flops import training_operations
from pipeline.runs.scoring import predict
from pipeline.runs.session import Session
from pipeline.tracking import Tracking
from pipeline.tracking.keys import TRAIN_S, VAL_S
from pipeline.training.trainer import Trainer, split_batches

PROBE_IMAGES = 128
OVERHEAD_S = 4.0
"""Reading images, logging two runs or more."""


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
    """`470`, or `470 and 464` where rounding keeps them apart."""
    return " and ".join(map(str, dict.fromkeys(steps)))


def operations_of(arm: Arm, classes: int) -> float:
    """Floating-point operations of all stages' training, without the frozen prefix."""
    settings = arm.settings
    an_epoch = settings.train_per_class * classes
    return sum(
        settings.training(number).epochs
        * an_epoch
        * training_operations(
            settings.backbone, classes, settings.image_size, settings.stage(number)
        )
        for number in range(1, arm.last + 1)
    )


def seconds_a_draw(arms: Sequence[Arm], test_count: int, tracking: Tracking) -> float:
    """Seconds for all arms on one draw: each distinct stage once, every arm scored."""
    settings = arms[0].settings
    session = Session.open(settings, tracking, lambda _: None)
    train, val = len(session.draw.train), len(session.draw.val)
    few = ImageSet(
        session.draw.train.pixels[:PROBE_IMAGES],
        session.draw.train.labels[:PROBE_IMAGES],
        session.draw.train.digests[:PROBE_IMAGES],
    )
    backbone = session.pretrained_backbone()
    predict(backbone, few, session.dtype, session.device)  # warm
    started = time.perf_counter()
    predict(backbone, few, session.dtype, session.device)
    forward_s = (time.perf_counter() - started) / len(few)
    stages = _distinct_stages(arms)
    total = OVERHEAD_S + len(arms) * test_count * forward_s
    augments = {arm.settings.training(number).augment for arm, number in stages}
    views = sum(distinct_views(augment) or settings.views or 10 for augment in augments)
    total += (train * views + val) * forward_s
    for arm, number in stages:
        training = arm.settings.training(number)
        total += training.epochs * train * _training_s(session, few, arm, number)
    return total


def _distinct_stages(arms: Sequence[Arm]) -> list[tuple[Arm, int]]:
    """Stages that are trained once for all arms."""
    found: dict[str, tuple[Arm, int]] = {}
    for arm in arms:
        for number in range(1, arm.last + 1):
            chain = [
                (arm.settings.stage(n).trainable, arm.settings.training(n))
                for n in range(1, number + 1)
            ]
            found.setdefault(repr(chain), (arm, number))
    return list(found.values())


def _training_s(session: Session, few: ImageSet, arm: Arm, number: int) -> float:
    """Seconds for an image in an epoch of a stage, validation included, prefix excluded."""
    stage = arm.settings.stage(number)
    training = arm.settings.training(number).model_copy(update={"epochs": 2, "augment": "none"})
    backbone = session.pretrained_backbone()
    features = session.cache.features(
        backbone,
        stage.prefix,
        few,
        augment="none",
        views=1,
        dtype=session.dtype,
        device=session.device,
    )
    trainer = Trainer(backbone, stage, training, 0, 1, session.device, session.dtype)
    last = list(trainer.epochs(few, features, few, features))[-1]
    return (last[TRAIN_S] + last[VAL_S]) / len(few)
