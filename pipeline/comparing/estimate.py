"""How long arms will take on this machine, before anything is trained.

In: arms, and how many test images score them. Out: an `Estimate`. A stage takes what its earlier
runs took here; where there are none, what epochs of a few images by the same trainer take. The
frozen part and scoring take what a pass over these images says. Nothing is logged or kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from pipeline.cluster.hands import Cluster
from pipeline.comparing.arms import Arm
from pipeline.comparing.pairs.runner import shared_prefix
from pipeline.data.augment import distinct_views
from pipeline.data.image_set import ImageSet
from pipeline.runs.run_stage import trainer_of
from pipeline.runs.session import Session
from pipeline.settings.augmentation import of_images
from pipeline.signals.evidence import siblings_of
from pipeline.system.processes import MACHINE, this_machine
from pipeline.system.progress import bar, doing
from pipeline.system.threads import computing_by
from pipeline.tracking import Tracking
from pipeline.tracking.keys import PREFIX_S, TOTAL_S, TRAIN_S, VAL_S
from pipeline.training.device import compute_copy, run_segments
from pipeline.training.prefix.cache import PrefixCache
from pipeline.training.prefix.features import rendered_on

FEWEST, MOST, PIXELS = 16, 64, 64 * 96 * 96
"""Images that are measured with: as many as have so many pixels, within these limits."""
REPEATS = 2
"""What counts is the quickest: other work, and what begins, only ever make one slower."""
MOST_BYTES = 2**30
"""Of the disk, for the frozen outputs of these images."""
OVERHEAD_S = 4.0
"""Reading images, logging two runs or more."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What arms take here.

    Attributes:
        draw_s: seconds for all arms on one draw: each distinct stage once, every arm scored.
        once_s: seconds for what all draws share: the frozen part of the test images.
        at_once: draws that run side by side.
        how: how that is known.
    """

    draw_s: float
    once_s: float
    at_once: int
    how: str

    def seconds(self, draws: int) -> float:
        """For so many draws."""
        return self.once_s + self.draw_s * math.ceil(draws / self.at_once)

    @property
    def beside(self) -> str:
        """` (2 at once)`, or nothing where one draw runs after the other."""
        return f" ({self.at_once} at once)" if self.at_once > 1 else ""


def estimate(
    arms: Sequence[Arm], test_count: int, tracking: Tracking, cluster: Cluster | None = None
) -> Estimate:
    """What arms of one backbone will take, each scored on so many test images.

    A cluster's tasks count as fast as this machine with as many cores as a task has.
    """
    session = Session.open(arms[0].settings, tracking, lambda _: None)
    stages = _distinct_stages(arms)
    with doing("looking for finished runs of these stages"):
        earlier = [_earlier_s(session, arm, number) for arm, number in stages]
    unknown = sum(not known_s for known_s, _ in earlier)
    with (
        computing_by(cluster.cpus if cluster else 0),
        bar("measuring training steps", 1 + unknown) as step,
        TemporaryDirectory() as folder,
    ):
        few = _few(session.draw.train)
        forward = _forward_s(session, few)
        step(1)
        draw_s, once_s = _besides_training(session, arms, test_count, forward)
        probe = _Probe(session=session, few=few, cache=PrefixCache(Path(folder), MOST_BYTES))
        for (arm, number), (known_s, _) in zip(stages, earlier, strict=True):
            draw_s += known_s or probe.stage_s(arm, number)
            step(0 if known_s else 1)
    found = sum(count for _, count in earlier)
    how = "by measured training steps" if unknown else f"as {found} finished runs took"
    at_once = cluster.at_once if cluster else 1
    return Estimate(draw_s=draw_s, once_s=once_s, at_once=at_once, how=how)


def _besides_training(
    session: Session, arms: Sequence[Arm], test_count: int, forward: Sequence[float]
) -> tuple[float, float]:
    """Seconds a draw, and once, for frozen parts, the choice of statistics, and scoring.

    `forward`: seconds for an image in each segment.
    """
    backbone, settings = session.backbone, session.settings
    train, val = len(session.draw.train), len(session.draw.val)
    draw_s, once_s = OVERHEAD_S, 0.0
    if session.norm_choice:
        draw_s += 2 * train * sum(forward)
    if is_kept := session.cache.folder is not None:
        augments, deepest = set(), 0
        for arm, number in _distinct_stages(arms):
            augments.add(of_images(arm.settings.training(number).augment))
            trainable = arm.settings.stage(number).trainable
            deepest = max(deepest, backbone.frozen_segments(trainable))
        most = settings.views
        views = sum(min(most, distinct_views(augment) or most) for augment in augments)
        draw_s += (train * views + val) * sum(forward[:deepest])
    shared = [shared_prefix(backbone, arm, arms) if is_kept else 0 for arm in arms]
    draw_s += test_count * sum(sum(forward[prefix:]) for prefix in shared)
    shared_s = test_count * sum(forward[: max(shared)])
    if settings.norm_stats == "target":  # each draw has its own
        draw_s += shared_s
    else:
        once_s += shared_s
    return draw_s, once_s


def _earlier_s(session: Session, arm: Arm, number: int) -> tuple[float, int]:
    """What runs of a stage took on this machine without the prefix; how many runs."""
    settings = session.resolved(arm.settings)
    recipe = replace(session, settings=settings, keys={}, done={}).recipe(number)
    host = this_machine().partition(" ")[0]
    found = [
        run.metrics[TOTAL_S] - run.metrics[PREFIX_S]
        for run in siblings_of(session.tracking, recipe).values()
        if run.tags.get(MACHINE, "").partition(" ")[0] == host
    ]
    return (float(np.median(found)), len(found)) if found else (0.0, 0)


def _few(images: ImageSet) -> ImageSet:
    """The images that are measured with."""
    count = min(MOST, max(FEWEST, PIXELS // images.pixels.shape[-1] ** 2), len(images))
    return ImageSet(
        pixels=images.batch(slice(0, count)),
        labels=images.labels[:count],
        digests=images.digests[:count],
        preparation=images.preparation,
    )


@torch.no_grad()
def _forward_s(session: Session, few: ImageSet) -> list[float]:
    """Seconds that an image takes in each segment of the frozen network."""
    backbone, dtype, device = session.pretrained_backbone(), session.dtype, session.device
    segments = compute_copy(backbone.segments, dtype, device, frozen=True)
    rows = np.arange(len(few))
    pixels = few.batch(slice(0, len(few)))
    shown = rendered_on(device, pixels, few, rows, np.zeros_like(rows), "none")
    rounds: list[list[float]] = []
    for _ in range(1 + REPEATS):
        x, taken = shown, []
        for segment in segments:
            started = time.perf_counter()
            x = run_segments([segment], x, dtype)
            x.flatten()[0].item()  # waits for a GPU
            taken.append((time.perf_counter() - started) / len(few))
        rounds.append(taken)
    return [min(times) for times in zip(*rounds[1:], strict=True)]


@dataclass(kw_only=True)
class _Probe:
    """Stages on a few images, by the trainer that will train them.

    Attributes:
        cache: keeps the frozen outputs of these images.
        known: seconds for training and for validating an image, by what they depend on.
    """

    session: Session
    few: ImageSet
    cache: PrefixCache
    known: dict[str, tuple[float, float]] = field(default_factory=dict)

    def stage_s(self, arm: Arm, number: int) -> float:
        """Seconds for the training and validation of a stage."""
        settings, draw = arm.settings.training(number), self.session.draw
        alike = settings.model_copy(update={"epochs": 1, "lr": 1.0, "warmup": 0.0})
        key = repr((arm.settings.stage(number).trainable, alike))
        if key not in self.known:
            self.known[key] = self._image_s(arm, number)
        train_s, val_s = self.known[key]
        return settings.epochs * (len(draw.train) * train_s + len(draw.val) * val_s)

    def _image_s(self, arm: Arm, number: int) -> tuple[float, float]:
        """What an image costs: the first epoch warms up, the quickest of the others counts."""
        own = replace(self.session, settings=self.session.resolved(arm.settings), keys={}, done={})
        is_kept = self.session.cache.folder is not None and own.settings.views > 0
        short: dict[str, object] = {"epochs": 1 + REPEATS, "patience": 0}
        if is_kept:  # stored views cost alike, whatever they show
            short["augment"] = "none"
        own = own.with_training(number, short)
        stage, backbone = own.settings.stage(number), own.pretrained_backbone()
        features = (self.cache if is_kept else own.cache).features(
            backbone,
            backbone.frozen_segments(stage.trainable),
            self.few,
            augment=own.settings.training(number).augment,
            views=own.settings.views,
            dtype=own.dtype,
            device=own.device,
        )
        trainer = trainer_of(own, backbone, stage)
        _, *rows = trainer.epochs(self.few, features, self.few, features)
        train_s, val_s = (min(row[key] for row in rows) for key in (TRAIN_S, VAL_S))
        return train_s / len(self.few), val_s / len(self.few)


def _distinct_stages(arms: Sequence[Arm]) -> list[tuple[Arm, int]]:
    """Each stage that is trained once for all arms, with its number."""
    found: dict[str, tuple[Arm, int]] = {}
    for arm in arms:
        chain = ""
        for number in range(1, arm.last + 1):
            chain += repr((arm.settings.stage(number).trainable, arm.settings.training(number)))
            found.setdefault(chain, (arm, number))
    return list(found.values())
