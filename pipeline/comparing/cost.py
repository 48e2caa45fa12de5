"""What arms will cost, before anything is spent: optimizer steps, operations, seconds.

In: arms. Out: steps; floating-point operations of their training; seconds, which are an estimate:
from earlier runs of the same stages, else from operations and one measured training step. Reading
images and logging count as a constant.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from pipeline.comparing.arms import Arm
from pipeline.data.augment import distinct_views
from pipeline.errors import DesignError
from pipeline.model.flops import training_operations
from pipeline.model.freezing import set_trainable
from pipeline.runs.session import Session
from pipeline.settings.augmentation import of_images
from pipeline.settings.run import Settings
from pipeline.signals.evidence import siblings_of
from pipeline.system.processes import MACHINE, this_machine
from pipeline.system.progress import bar, doing
from pipeline.tracking import Tracking
from pipeline.tracking.keys import PREFIX_S, TOTAL_S
from pipeline.training.device import compute_copy, run_segments
from pipeline.training.trainer import split_batches

PROBE_IMAGES = 32
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


def seconds_a_draw(arms: Sequence[Arm], test_count: int, tracking: Tracking) -> tuple[float, str]:
    """Seconds for all arms on one draw: each distinct stage once, every arm scored; how known.

    A stage takes as long as its earlier runs did on this machine; where there are none, as long as
    its operations say, at the speed of one measured step. The prefix cache is not touched.
    """
    session = Session.open(arms[0].settings, tracking, lambda _: None)
    train, val = len(session.draw.train), len(session.draw.val)
    stages = _distinct_stages(arms)
    with doing("looking for finished runs of these stages"):
        earlier = [_earlier_s(session, arm, number) for arm, number in stages]
    if all(stage_s for stage_s, _, _ in earlier):
        slowest = max(prefix_s for _, prefix_s, _ in earlier)
        scoring_s = len(arms) * test_count * slowest / (train + val)
        found = sum(count for *_, count in earlier)
        total = OVERHEAD_S + sum(stage_s for stage_s, _, _ in earlier) + slowest + scoring_s
        return total, f"as {found} finished runs of these stages took"
    with bar("measuring a training step", 2) as step:
        forward_s, step_s = _seconds_an_image(session, step)
    augments = {of_images(arm.settings.training(number).augment) for arm, number in stages}
    views = sum(distinct_views(augment) or session.settings.views or 10 for augment in augments)
    total = OVERHEAD_S + (len(arms) * test_count + train * views + val) * forward_s

    classes, every_block = len(session.draw.class_names), session.backbone.order
    whole = _operations(session.settings, classes, every_block)
    for (arm, number), (known_s, _, _) in zip(stages, earlier, strict=True):
        trainable = arm.settings.stage(number).trainable
        share = _operations(session.settings, classes, trainable) / whole
        epochs = arm.settings.training(number).epochs
        measured = epochs * (train * step_s + val * forward_s) * share
        total += known_s or measured
    return total, "by one measured training step"


def _earlier_s(session: Session, arm: Arm, number: int) -> tuple[float, float, int]:
    """What runs of a stage took on this machine without the prefix, the prefix, how many runs."""
    settings = session.resolved(arm.settings)
    recipe = replace(session, settings=settings, keys={}, done={}).recipe(number)
    host = this_machine().partition(" ")[0]
    found = [
        (run.metrics[TOTAL_S] - run.metrics[PREFIX_S], run.metrics[PREFIX_S])
        for run in siblings_of(session.tracking, recipe).values()
        if run.tags.get(MACHINE, "").partition(" ")[0] == host
    ]
    if not found:
        return 0.0, 0.0, 0
    own_s, prefix_s = zip(*found, strict=True)
    return float(np.median(own_s)), float(np.max(prefix_s)), len(found)


def _seconds_an_image(session: Session, step: Callable[[int], object]) -> tuple[float, float]:
    """A forward pass, and a training step of every block: seconds for each image of a batch."""
    pixels = session.draw.train.pixels[:PROBE_IMAGES].to(session.device)
    prepared = session.draw.train.preparation
    backbone = session.pretrained_backbone()
    segments = compute_copy(backbone.segments, session.dtype, session.device)
    set_trainable(segments, backbone.order, "adapt")
    last = next(segments[0].module.parameters())
    for _ in range(2):  # the first warms up
        started = time.perf_counter()
        outputs = run_segments(segments, prepared.normalise(pixels), session.dtype)
        loss = outputs.float().square().sum()
        loss.item()
        forward = time.perf_counter()
        loss.backward()  # type: ignore[no-untyped-call]
        assert last.grad is not None
        last.grad.sum().item()  # waits for a GPU
        over = time.perf_counter()
        step(1)
    return (forward - started) / len(pixels), (over - started) / len(pixels)


def _distinct_stages(arms: Sequence[Arm]) -> list[tuple[Arm, int]]:
    """Each stage that is trained once for all arms, with its number."""
    found: dict[str, tuple[Arm, int]] = {}
    for arm in arms:
        chain = ""
        for number in range(1, arm.last + 1):
            chain += repr((arm.settings.stage(number).trainable, arm.settings.training(number)))
            found.setdefault(chain, (arm, number))
    return list(found.values())
