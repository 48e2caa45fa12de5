"""How long a pair will take on this machine, measured on a handful of images beforehand.

In: two arms. Out: seconds. It is an estimate: two epochs of each stage on a few images, scaled by
images and epochs. Reading images and logging are taken as a constant.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipeline.arms import Arm
from pipeline.data.augment import distinct_views
from pipeline.data.images import ImageSet
from pipeline.evaluate import predict
from pipeline.session import Session
from pipeline.tracking import Tracking
from pipeline.training import Trainer

PROBE_IMAGES = 128
OVERHEAD_S = 4.0
"""Reading images, logging two runs or more."""


def seconds_a_pair(treatment: Arm, control: Arm, test_count: int, tracking: Tracking) -> float:
    """Seconds for both arms on one draw: each distinct stage once, both scored."""
    session = Session.open(treatment.settings, tracking, lambda _: None)
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
    stages = _distinct_stages([treatment, control])
    total = OVERHEAD_S + 2 * test_count * forward_s
    augments = {arm.settings.training(number).augment for arm, number in stages}
    views = sum(distinct_views(augment) or treatment.settings.views or 10 for augment in augments)
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
    return (last.train_s + last.val_s) / len(few)
