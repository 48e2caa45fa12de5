"""How long arms will take on this machine, before anything is trained.

In: arms, and how many test images score them. Out: an `Estimate`. A batch of training
images is rendered, passed through the frozen network, and trained on by the trainer itself; what
each takes is scaled to all images and epochs. Nothing is logged, and of the cache only the choice
of BatchNorm statistics is filled, which the first stage needs anyway.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from pipeline.cluster.dispatcher import Cluster
from pipeline.comparing.arms import Arm
from pipeline.comparing.pairs.runner import shared_prefix
from pipeline.data.augment import distinct_views
from pipeline.data.image_set import ImageSet
from pipeline.model.backbones import batch_norms
from pipeline.runs.run_stage import trainer_of
from pipeline.runs.session import Session
from pipeline.settings.augmentation import mixing_of, of_images
from pipeline.system.progress import bar
from pipeline.system.threads import computing_by
from pipeline.tracking import Tracking
from pipeline.tracking.keys import RISKS_S, TRAIN_S, VAL_S
from pipeline.training.device import compute_copy, run_segments
from pipeline.training.prefix.cache import PIXELS_PER_BATCH, images_at_once
from pipeline.training.prefix.entry import bytes_of_chain
from pipeline.training.prefix.features import (
    Features,
    LiveFeatures,
    StoredFeatures,
    rendered_on,
)

FEWEST, MOST = 64, 256
"""Images that stages are measured with: the largest batch, or so many where fewer fit well."""
REPEATS = 2
"""After one to warm up. The quickest counts: other work only ever makes one slower."""
LR = 1e-9
"""So low that nothing diverges."""
OVERHEAD_S = 4.0
"""Reading images, logging two runs or more."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What arms take here.

    Attributes:
        pair_s: seconds for all arms on one draw with one seed: each distinct stage once, every arm
            scored.
        draw_s: seconds for what seeds of a draw share: the frozen parts of its images.
        once_s: seconds for what all draws share: the frozen part of the test images, and the start
            of a cluster's processes.
        at_once: pairs that run side by side.
        seeds: pairs on each draw.
    """

    pair_s: float
    draw_s: float
    once_s: float
    at_once: int
    seeds: int = 1

    @property
    def mean_s(self) -> float:
        """Seconds for a pair and its part of what the draw's pairs share."""
        return self.pair_s + self.draw_s / self.seeds

    def seconds(self, *pairs: int) -> float:
        """Seconds for all looks; `pairs`: what each look adds, run before the next look begins."""
        total = self.once_s
        for number in pairs:
            draws = math.ceil(number / self.seeds)
            total += self.pair_s * math.ceil(number / self.at_once)
            total += self.draw_s * math.ceil(draws / self.at_once)
        return total

    @property
    def beside(self) -> str:
        """` (2 at once)`, or nothing where one draw runs after the other."""
        return f" ({self.at_once} at once)" if self.at_once > 1 else ""


def estimate(
    arms: Sequence[Arm],
    test_count: int,
    tracking: Tracking,
    cluster: Cluster | None = None,
    seeds: int = 1,
) -> Estimate:
    """What arms of one backbone will take, each scored on so many test images.

    A cluster's tasks count as fast as this machine with as many cores as a task has.
    """
    start_s = time.process_time() if cluster else 0.0  # of a task's process, as this one's was
    session = Session.open(arms[0].settings, tracking, lambda _: None)
    session.pretrained_backbone()
    stages = _distinct_stages(arms)
    with (
        computing_by(cluster.cpus if cluster else 0),
        bar("measuring training steps", 1 + len(stages)) as step,
        TemporaryDirectory() as folder,
    ):
        probe = _Probe(session=session, arms=arms, few=_few(session, arms), folder=Path(folder))
        found = _besides_training(probe, test_count)
        step(1)
        training_s = 0.0
        for arm, number in stages:
            training_s += probe.stage_s(arm, number)
            step(1)
    return replace(
        found,
        pair_s=found.pair_s + training_s,
        once_s=found.once_s + start_s,
        at_once=cluster.at_once if cluster else 1,
        seeds=seeds,
    )


def _few(session: Session, arms: Sequence[Arm]) -> ImageSet:
    """The images that stages are measured with."""
    images = session.draw.train
    batches = [arm.settings.training(number).batch_size for arm, number in _distinct_stages(arms)]
    fitting = PIXELS_PER_BATCH // images.pixels.shape[-1] ** 2
    count = min(max(*batches, min(FEWEST, fitting)), MOST, len(images))
    return ImageSet(
        pixels=images.batch(slice(0, count)),
        labels=images.labels[:count],
        digests=images.digests[:count],
        preparation=images.preparation,
    )


def _besides_training(probe: _Probe, test_count: int) -> Estimate:
    """Frozen parts, the choice of statistics, and scoring."""
    session, choice, forward = probe.session, probe.session.norm_choice, probe.forward_s
    arms = probe.arms
    train, is_target = len(session.draw.train), session.settings.norm_stats == "target"
    passes = 0
    if choice:  # norm_stats=auto; scores are empty where nothing had to be probed
        passes = 2 if choice.scores else 0
    elif is_target:
        passes = 1 if any(True for _ in batch_norms([session.backbone.model])) else 0
    draw_s = passes * train * sum(forward) + _frozen_s(probe)
    shared = [shared_prefix(session.backbone, a, arms) if probe.is_kept else 0 for a in arms]
    pair_s = OVERHEAD_S + test_count * sum(sum(forward[prefix:]) for prefix in shared)
    once_s = test_count * sum(forward[: max(shared)])
    if session.settings.weights == "none":  # each seed has a frozen network of its own
        pair_s, draw_s, once_s = pair_s + draw_s + once_s, 0.0, 0.0
    elif is_target:  # each draw has BatchNorm statistics, so a frozen network, of its own
        draw_s, once_s = draw_s + once_s, 0.0
    return Estimate(pair_s=pair_s, draw_s=draw_s, once_s=once_s, at_once=1)


def _frozen_s(probe: _Probe) -> float:
    """Seconds a draw for the outputs of frozen blocks, which the stages share."""
    draw, most = probe.session.draw, probe.session.settings.views
    seen: dict[tuple[str, str], int] = {}
    deepest = 0
    for arm, number in _distinct_stages(probe.arms):
        if probe.is_kept and (prefix := probe.prefix(arm, number)):
            deepest = max(deepest, prefix)
            augment = of_images(arm.settings.training(number).augment)
            seen["val", "none"] = len(draw.val)
            seen["train", augment] = len(draw.train) * min(most, distinct_views(augment) or most)
    forward_s = sum(probe.forward_s[:deepest])
    return sum(
        count * (probe.render_s(augment) + forward_s) for (_, augment), count in seen.items()
    )


@dataclass(kw_only=True)
class _Probe:
    """What single images cost here.

    Attributes:
        few: the images that are measured with.
        folder: for the frozen outputs of these images.
        known: what stages were measured to take, by what that depends on.
    """

    session: Session
    arms: Sequence[Arm]
    few: ImageSet
    folder: Path
    known: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    @cached_property
    def is_kept(self) -> bool:
        """Whether the outputs of frozen blocks are computed once for all epochs."""
        session = self.session
        needed = max(
            bytes_of_chain(session.backbone, arm.settings, session.draw, session.dtype)
            for arm in self.arms
        )
        return session.cache.folder is not None and needed <= session.cache.limit_bytes

    def prefix(self, arm: Arm, number: int) -> int:
        """How many segments a stage leaves frozen."""
        return self.session.backbone.frozen_segments(arm.settings.stage(number).trainable)

    def render_s(self, augment: str) -> float:
        """Seconds for a view of an image."""
        taken_s, _ = _quickest(partial(self._rendered, augment))
        return taken_s / self._at_once

    @cached_property
    def forward_s(self) -> list[float]:
        """Seconds that an image takes in each segment of the frozen network."""
        session, x = self.session, self._rendered("none")
        segments = compute_copy(
            session.backbone.segments, session.dtype, session.device, frozen=True
        )
        found = []
        for segment in segments:
            taken_s, x = _quickest(partial(run_segments, [segment], x, session.dtype))
            found.append(taken_s / self._at_once)
        return found

    @property
    def _at_once(self) -> int:
        """Images that pass through the frozen network together."""
        return min(len(self.few), images_at_once(self.few.pixels.shape[-1]))

    def _rendered(self, augment: str) -> Tensor:
        """Plain and flipped views of these images."""
        rows, device = np.arange(self._at_once), self.session.device
        pixels = self.few.batch(slice(0, self._at_once))
        return rendered_on(device, pixels, self.few, rows, rows % 2, augment)

    def stage_s(self, arm: Arm, number: int) -> float:
        """Seconds for the training and validation of a stage."""
        settings, draw = arm.settings.training(number), self.session.draw
        alike = settings.model_copy(update={"epochs": 1, "lr": 1.0, "warmup": 0.0})
        key = repr((arm.settings.stage(number).trainable, alike))
        if key not in self.known:
            self.known[key] = self._measured(arm, number)
        train_s, val_s, epoch_s = self.known[key]
        an_epoch = len(draw.train) * train_s + len(draw.val) * val_s + epoch_s
        return settings.epochs * an_epoch

    def _measured(self, arm: Arm, number: int) -> tuple[float, float, float]:
        """Seconds for training an image, for validating one, and for what an epoch has beside."""
        settings = self.session.resolved(arm.settings)
        augment, prefix = settings.training(number).augment, self.prefix(arm, number)
        is_stored = bool(self.is_kept and prefix and settings.views)
        if is_stored:  # views cost alike, whatever they show
            augment = mixing_of(augment) or "none"
        short = {"epochs": 1 + REPEATS, "patience": 0, "lr": LR, "augment": augment}
        own = replace(self.session, settings=settings).with_training(number, short)
        trainer = trainer_of(own, self.session.backbone, own.settings.stage(number))
        train = self._features(prefix, augment, is_stored=is_stored)
        is_kept = bool(self.is_kept and prefix)
        val = train if is_stored else self._features(prefix, "none", is_stored=is_kept)
        first, *rows = trainer.epochs(self.few, train, self.few, val)
        train_s, val_s, epoch_s = (
            min(row[key] for row in rows or [first]) for key in (TRAIN_S, VAL_S, RISKS_S)
        )
        return train_s / len(self.few), val_s / len(self.few), epoch_s

    def _features(self, prefix: int, augment: str, *, is_stored: bool) -> Features:
        """What a suffix is fed with, as the cache would give it."""
        session, segments = self.session, self.session.backbone.segments[:prefix]
        frozen = compute_copy(segments, session.dtype, session.device, frozen=True)
        live = LiveFeatures.of(self.few, frozen, of_images(augment), session.dtype, session.device)
        if not is_stored:
            return live
        path, rows = self.folder / f"{len(self.known)}.bin", np.arange(len(self.few))
        parts = np.array_split(rows, math.ceil(len(rows) / self._at_once))
        outputs = torch.cat([live.batch(part, np.zeros_like(part)) for part in parts])
        values = outputs.permute(0, 2, 3, 1) if outputs.ndim == 4 else outputs
        values = values.contiguous().to("cpu", session.dtype)
        values.view(-1).view(torch.uint8).numpy().tofile(path)
        return StoredFeatures(path, [1, *values.shape], session.dtype, session.device)


@torch.no_grad()
def _quickest(compute: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds, after one time to warm up, and what was computed."""
    taken = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        outputs = compute()
        outputs[(0,) * outputs.ndim].item()  # waits for a GPU
        taken.append(time.perf_counter() - started)
    return min(taken[1:]), outputs


def _distinct_stages(arms: Sequence[Arm]) -> list[tuple[Arm, int]]:
    """Each stage that is trained once for all arms, with its number."""
    found: dict[str, tuple[Arm, int]] = {}
    for arm in arms:
        chain = ""
        for number in range(1, arm.last + 1):
            chain += repr((arm.settings.stage(number).trainable, arm.settings.training(number)))
            found.setdefault(chain, (arm, number))
    return list(found.values())
