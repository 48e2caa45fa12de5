"""What the stages of one command share: images, pretrained weights, the cache, the store.

In: settings and a tracking store. Out: a `Session`, from which a stage takes its starting weights,
its suffix's inputs and its lineage key.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.base import Source
from pipeline.data.cache import cache_folder, shelf_of
from pipeline.data.image_set import ImageSet
from pipeline.data.sampling.draws import Draw, draw_in
from pipeline.errors import LineageError
from pipeline.model.backbones import Backbone, build_backbone
from pipeline.runs.lineage import check_images, lineage_key, recipe_key
from pipeline.runs.messages.next_step import as_asked
from pipeline.runs.messages.origins import made_with
from pipeline.runs.sources import source_and_weights
from pipeline.settings.augmentation import Augment, of_images
from pipeline.settings.run import Settings
from pipeline.settings.schedules import Stage
from pipeline.system.memory import keep_freed_memory
from pipeline.tracking import RunView, Tracking, keys
from pipeline.tracking.history import History, Summary
from pipeline.training.device import (
    compute_repeatably,
    emulation_note,
    pick_device,
    pick_precision,
    with_kernels,
)
from pipeline.training.mixing import mixing_line
from pipeline.training.norm.choice import NormStatsChoice, choose_norm_stats
from pipeline.training.norm.stats import calibrate_norm_stats
from pipeline.training.prefix.cache import PrefixCache
from pipeline.training.prefix.entry import bytes_of_chain
from pipeline.training.prefix.features import Features
from pipeline.weights.checkpoints import load_checkpoint
from pipeline.weights.pretrained import Pretrained

CHECKPOINT = "checkpoint/checkpoint.safetensors"

Say = Callable[[str], None]
OnEpoch = Callable[[Stage, History], None]


@dataclass(kw_only=True)
class Session:
    """What the stages of one command share.

    Attributes:
        backbone: one model for all stages: each sets all its weights before it begins.
        initial: what the seed drew and no pretrained tensor replaces: the new head, or everything.
        keys: lineage keys by stage number, an adopted parent's among them.
        done: stages that this command has found or trained.
        tuned_by: the study that a stage's training settings were taken from, by stage number.
        is_trial: log what other stages and people need of a trial: no pictures, no served model.
        role: what a stage is run for, in the names of runs: `pair 3`, `trial 4`; empty: itself.
        advice: what else to do where a given run cannot be used, for messages.
        test_as_stored: digest of the test split's files; empty where there is none.
        norm_choice: what `norm_stats=auto` came to here; None: it did so in a parent's command,
            or another value was given.
        norm_reason: why it came to that, here or there; empty: another value was given.
    """

    settings: Settings
    tracking: Tracking
    source: Source
    draw: Draw
    backbone: Backbone
    pretrained: Pretrained
    device: torch.device
    dtype: torch.dtype
    cache: PrefixCache
    say: Say
    on_epoch: OnEpoch
    initial: Mapping[str, Tensor]
    keys: dict[int, str] = field(default_factory=dict)
    done: dict[int, Summary] = field(default_factory=dict)
    tuned_by: dict[int, str] = field(default_factory=dict)
    is_trial: bool = False
    role: str = ""
    advice: str = ""
    test_as_stored: str = ""
    norm_choice: NormStatsChoice | None = None
    norm_reason: str = ""

    def __post_init__(self) -> None:
        for number in range(1, len(self.settings.stages) + 1):
            mixing_line(self.backbone, self.settings, number)  # refused before any training

    @classmethod
    def open(
        cls,
        settings: Settings,
        tracking: Tracking,
        say: Say,
        on_epoch: OnEpoch = lambda *_: None,
        deal: Callable[[Source, Settings], Draw] = draw_in,
    ) -> Session:
        """Read the images and weights that the settings name; `deal`: which of the images."""
        keep_freed_memory()
        say(f"preset {settings.preset}; every setting is in the run's settings.json")
        device = pick_device(settings.device)
        compute_repeatably(device)
        source, weights = source_and_weights(settings)
        draw = deal(source, settings)
        say(
            f"{settings.data}: {len(draw.train)} training and {len(draw.val)} validation images "
            f"of {len(draw.class_names)} classes, draw {settings.draw}; dealt from "
            f"{source.classes_in_words}"
        )
        notes = (*source.notes, *draw.notes, emulation_note(settings.precision, device))
        for line in filter(None, (draw.dealt, *(note and f"note: {note}" for note in notes))):
            say(line)
        size, classes = settings.image_size, len(draw.class_names)
        backbone = build_backbone(settings.backbone, classes, size, settings.seed, settings.blocks)
        pretrained = weights.fitted(backbone)
        say(pretrained.report)
        state = backbone.model.state_dict()
        initial = {n: t.clone() for n, t in state.items() if n not in pretrained.tensors}
        session = cls(
            settings=settings,
            tracking=tracking,
            source=source,
            draw=draw,
            backbone=backbone,
            pretrained=pretrained,
            device=device,
            dtype=pick_precision(settings.precision, device),
            cache=PrefixCache.on(shelf_of(settings)),
            say=say,
            on_epoch=on_epoch,
            initial=initial,
            test_as_stored=source.test_digest(),
        )
        session.settings = session.resolved(settings)
        return session

    def resolved(self, settings: Settings) -> Settings:
        """The settings with `norm_stats=auto` replaced by what these images and weights call for.

        Raises:
            WeightsError: the weights give no finite features under either choice.
        """
        if settings.norm_stats != "auto":
            return settings
        if self.norm_choice is None:
            self.backbone.put({**self.initial, **self.pretrained.tensors})
            self.norm_choice = choose_norm_stats(
                self.backbone, self.draw.train, self.dtype, self.device, self._norm_stats_folder
            )
            self.norm_reason = self.norm_choice.reason
            self.say(self.norm_choice.line)
        return settings.model_copy(update={"norm_stats": self.norm_choice.value})

    @property
    def asked(self) -> Settings:
        """The settings with `norm_stats=auto` as it was asked for, not as what it came to."""
        return as_asked(self.settings, self.norm_reason)

    @property
    def _norm_stats_folder(self) -> Path | None:
        return cache_folder(self.settings) / "norm_stats" if self.settings.cache else None

    def with_training(self, number: int, values: Mapping[str, object]) -> Session:
        """A session with other training settings for a stage, without what depended on them."""
        return replace(
            self,
            settings=self.settings.with_training(number, values),
            keys={n: key for n, key in self.keys.items() if n < number},
            done={n: summary for n, summary in self.done.items() if n < number},
            tuned_by=dict(self.tuned_by),
        )

    def check_images(self, run: RunView) -> None:
        """Refuse a run of other images or classes; a note says where moved images are now.

        Raises:
            LineageError: the run's images or classes are not the session's.
        """
        if note := check_images(run, self.settings, self.draw.fingerprint, self.advice):
            self.say(note)

    @property
    def precision(self) -> str:
        """What blocks are computed in: `float32`, `bfloat16` or `float16`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def made_with(self) -> str:
        """What computes here: versions of libraries and a device, as runs record them."""
        return made_with(self.device, self.backbone.name)

    @property
    def _network(self) -> str:
        """What lineage has of the network beside its name; runs with a larger head are others."""
        return self.backbone.identity + ("; head redrawn" if self.backbone.head_redrawn else "")

    def key(self, number: int) -> str:
        """The lineage key of a stage."""
        if number not in self.keys:
            self.keys[number] = lineage_key(
                self.settings,
                self.settings.stage(number),
                fingerprint=self.draw.fingerprint,
                network=self._network,
                weights_digest=self.pretrained.digest,
                precision=with_kernels(self.precision),
                parent_key=self.key(number - 1) if number > 1 else None,
            )
        return self.keys[number]

    def recipe(self, number: int, trained: int | None = None, former: str | None = None) -> str:
        """The recipe key: what runs of this stage that differ only in draw or seed share.

        `trained`: count the training settings up to that stage only (None: this one's too).
        `former`: the key of earlier versions, to which the data set had that name or digest.
        """
        return recipe_key(
            self.settings,
            self.settings.stage(number),
            trained=number if trained is None else trained,
            former=former is not None,
            data=self.draw.pool if former is None else former,
            class_names=self.draw.class_names,
            network=self._network,
            weights_digest=self.pretrained.digest,
            precision=with_kernels(self.precision),
        )

    def note_recipe(self, number: int) -> None:
        """Have the siblings of a stage's run brought up to date when the command ends."""
        if number > 1:
            self.tracking.recipes_met.add(self.recipe(number))

    def pretrained_backbone(self) -> Backbone:
        """The backbone with the pretrained weights, calibrated where the settings say so."""
        self.backbone.put({**self.initial, **self.pretrained.tensors})
        assert self.settings.norm_stats != "auto", "`resolved` comes first"
        if self.settings.norm_stats == "target":
            calibrate_norm_stats(
                self.backbone, self.draw.train, self.dtype, self.device, self._norm_stats_folder
            )
        return self.backbone

    def restore(self, run: RunView) -> Backbone:
        """The backbone with the weights of a finished stage run, their digests verified.

        Raises:
            LineageError: the checkpoint is missing or damaged, or does not fit; names the run.
        """
        sha256 = run.tags[keys.CHECKPOINT_SHA256]
        wanted = run.tags[keys.SCHEDULE], run.number(keys.STAGE)
        with tempfile.TemporaryDirectory() as folder:
            try:
                self._check_network(run)
                path = self.tracking.fetch(run, CHECKPOINT, Path(folder))
                names = self.draw.class_names
                info = load_checkpoint(path, sha256, self.backbone, self.pretrained, names)
                if (info.schedule, info.stage) != wanted:
                    raise LineageError(
                        f"the checkpoint is of stage {info.stage} of {info.schedule}, not of "
                        f"stage {wanted[1]} of {wanted[0]}"
                    )
            except LineageError as err:
                raise LineageError(
                    f"run {run.run_id} ({run.name}): {err}: use another run{self.advice}"
                ) from None
        return self.backbone

    def _check_network(self, run: RunView) -> None:
        """Refuse the checkpoint of a factory's network that has changed since."""
        here, there = self.backbone.identity, run.tags.get(keys.NETWORK_SHA256)
        if there is not None and there != here:
            raise LineageError(
                f"the source files or blocks of {self.backbone.name} are others than those of the "
                f"checkpoint ({there[:12]}…, now {here[:12]}…): put the earlier files back"
            )

    def prefix_features(
        self, backbone: Backbone, stage: Stage, digests: Mapping[str, str]
    ) -> tuple[Features, Features]:
        """The suffix's inputs for training and validation; fills the cache for later stages.

        `digests`: those of the backbone's frozen tensors, name -> SHA-256.
        """
        settings = self.settings
        augment = settings.training(stage.number).augment
        later = [
            backbone.frozen_segments(step.trainable)
            for step in settings.chain.stages[stage.number :]
            if of_images(settings.training(step.number).augment) == of_images(augment)
        ]

        def features(images: ImageSet, augment: Augment, views: int) -> Features:
            return self.cache.features(
                backbone,
                backbone.frozen_segments(stage.trainable),
                images,
                augment=augment,
                views=views,
                dtype=self.dtype,
                device=self.device,
                also=later,
                digests=digests,
            )

        self.cache.needed_bytes = bytes_of_chain(backbone, settings, self.draw, self.dtype)
        train = features(self.draw.train, augment, settings.views)
        # validation images are never varied: one view, kept even where training views are fresh
        return train, features(self.draw.val, "none", 1)
