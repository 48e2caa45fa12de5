"""What a run is made of: typed settings, their ranges and their defaults.

`TrainSettings` says how one stage is trained, `Settings` everything else a run depends on.
`layers.py` fills both from presets, files and the command line.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from pipeline.settings.schedules import SCHEDULES, Stage, schedule_of
from pipeline.stats.metrics import DEFAULT_OBJECTIVE, OBJECTIVES, SHARES

DEFAULT_PRESET = "digits"
OWN_IMAGES_PRESET = "images"

BackboneName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
]
ScheduleText = Annotated[str, AfterValidator(lambda text: str(schedule_of(text)) if text else "")]
"""A schedule: the name of a built-in one, a file, or spelled out, which a file's becomes."""
Augment = Literal["none", "light", "strong"]
if TYPE_CHECKING:
    ObjectiveName: TypeAlias = str
    ShareName: TypeAlias = str
else:  # the table of metrics is the one list of names
    ObjectiveName, ShareName = Literal[tuple(OBJECTIVES)], Literal[SHARES]


class StrictModel(BaseModel):
    """Settings that refuse unknown keys and numbers that are not finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )


class TrainSettings(StrictModel):
    """How one stage is trained."""

    epochs: int = Field(10, ge=1, le=10_000, description="passes over the training images")
    batch_size: int = Field(64, ge=2, le=100_000, description="images per optimizer step")
    optimizer: Literal["adamw", "sgd"] = Field(
        "adamw", description="sgd has Nesterov momentum 0.9"
    )
    lr: float = Field(
        3e-4,
        gt=0,
        le=100,
        description="peak learning rate; 3e-3 where only the head trains, 1e-4 after a "
        "stage that trained pretrained blocks",
    )
    lr_decay: float = Field(
        1.0,
        gt=0,
        le=100,
        description="block rate = lr * lr_decay ** depth, the head's depth being 0",
    )
    weight_decay: float = Field(
        0.01, ge=0, le=10, description="of weights, not of biases and norms"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share spread over all classes")
    l2_sp: float = Field(0.0, ge=0, le=100, description="pull towards the weights it started from")
    augment: Augment = Field("light", description="light: flips; strong: flips, crops, colour")
    norm: Literal["adapt", "keep"] = Field(
        "adapt",
        description="trainable BatchNorm: adapt its statistics, or keep those it came with",
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps that ramp the rate up")
    clip_norm: float = Field(0.0, ge=0, description="largest gradient norm; 0: no clipping")
    patience: int = Field(
        0, ge=0, description="stop after this many epochs without a better one; 0: never"
    )
    select: ObjectiveName = Field(
        DEFAULT_OBJECTIVE, description="the best epoch by this is the stage's result; ties by loss"
    )

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Without what runs of earlier versions did not have, so that keys stay what they were."""
        values: dict[str, object] = plain(self)
        if self.select == DEFAULT_OBJECTIVE:
            del values["select"]
        return values


class Thresholds(StrictModel):
    """Where a signal or the gate changes its mind; they read a run, never change its weights."""

    signal_saturation_acc: float = Field(
        0.99, gt=0, le=1, description="training accuracy that counts as saturated"
    )
    signal_early_share: float = Field(
        0.25, gt=0, le=1, description="train_acc_saturates: within this share of the epochs"
    )
    signal_spike_share: float = Field(
        0.5, gt=0, le=1, description="no_early_spike: saturated after this share of the epochs"
    )
    signal_confidence: float = Field(
        0.9, gt=0.5, lt=1, description="val_acc_gain: one-sided confidence that there is a gain"
    )
    signal_loss_rise: float = Field(
        0.05, ge=0, description="val_loss_rises: ends by this share above its own minimum"
    )
    signal_spread_p: float = Field(
        0.1, gt=0, lt=1, description="unstable_across_runs: p of the paired variance test"
    )
    gate_flat: float = Field(
        0.05, ge=0, description="loss is flat if its last fifth spans at most this share"
    )
    gate_ceiling: float = Field(
        0.97, gt=0, le=1, description="validation accuracy beyond which there is no headroom"
    )
    gate_min_gain: float = Field(
        0.005, ge=0, description="a smaller gain from stage 1 to 2 is flat: no headroom"
    )
    gate_memorising_acc: float = Field(
        0.995, gt=0, le=1, description="training accuracy of a stage that memorises"
    )
    gate_memorising_gap: float = Field(
        0.2, ge=0, description="nats by which its validation loss stays above its training loss"
    )
    enforce_gate: bool = Field(
        False, description="refuse to start stage 3 unless the gate says promising (on/off)"
    )


class Settings(Thresholds):
    """Everything one run depends on; `stages` holds the training settings of each stage."""

    preset: str = Field(
        DEFAULT_PRESET, description="recipe for all else; images, where data is not digits"
    )
    data: str = Field(
        "digits", min_length=1, description="digits, cifar10, cifar100, or a path to your images"
    )
    label_column: str = Field(
        "", description="column of the classes in parquet files; empty: label, or a usual name"
    )
    image_column: str = Field(
        "", description="column of the images in parquet files; empty: img, image, or a usual name"
    )
    skip_unreadable: bool = Field(
        False, description="go on without images that cannot be read, and list them (on/off)"
    )
    train_per_class: int = Field(100, ge=1, description="training images a class")
    val_per_class: int = Field(100, ge=1, description="validation images a class")
    test_per_class: int = Field(
        0, ge=0, description="images a class set aside as test split, where the data has none"
    )
    data_seed: int = Field(0, ge=0, description="the shuffle that deals images to draws")
    draw: int = Field(0, ge=0, description="which disjoint sample of the images, from 0")
    seed: int = Field(
        0, ge=0, lt=2**31, description="head initialisation, batch order, augmentation"
    )
    backbone: BackboneName = Field("resnet18", description="the pretrained classifier")
    weights: str = Field(
        "imagenet",
        min_length=1,
        description="imagenet, tiny_imagenet, none, IMAGENET1K_V1, or a .pth/.safetensors file",
    )
    image_size: int = Field(224, ge=32, le=1024, description="pixels a side")
    schedule: ScheduleText = Field(
        "three_stage",
        min_length=1,
        description=f"which blocks each stage trains: {', '.join(SCHEDULES)}, or a YAML file",
    )
    norm_stats: Literal["auto", "source", "target"] = Field(
        "auto",
        description="BatchNorm statistics to start from: the weights' own (source), those of the "
        "training images (target), or whichever a probe on the training images finds better",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the processor is fast at it"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to compute")
    cache: bool = Field(True, description="keep the frozen prefix's outputs (on/off)")
    cache_dir: str = Field(
        "", description="folder for downloads and caches; empty: ~/.cache/unfreeze"
    )
    cache_limit: float = Field(
        20.0, gt=0, description="gigabytes of disk for the frozen prefix's outputs"
    )
    views: int = Field(
        10, ge=0, le=1000, description="stored augmented views an image; 0: fresh ones every epoch"
    )
    reuse: bool = Field(True, description="use finished parent runs of the same content (on/off)")
    log_model: bool = Field(True, description="log a servable MLflow model (on/off)")
    stages: tuple[TrainSettings, ...] = ()

    def stage(self, number: int) -> Stage:
        """The stage of that number in this schedule."""
        return schedule_of(self.schedule).stage(number)

    def training(self, number: int) -> TrainSettings:
        """The training settings of that stage."""
        return self.stages[number - 1]


TRAIN_KEYS = tuple(TrainSettings.model_fields)
RUN_KEYS = tuple(key for key in Settings.model_fields if key != "stages")
THRESHOLD_KEYS = tuple(Thresholds.model_fields)
INHERITED_KEYS = (
    *("data", "label_column", "image_column", "skip_unreadable"),
    *("train_per_class", "val_per_class", "test_per_class", "data_seed", "draw"),
    *("backbone", "weights", "image_size", "schedule", "norm_stats"),
)
"""What a child stage takes from its parent run and may not contradict."""
PLACE_KEYS = ("data", "label_column", "image_column", "skip_unreadable", "weights")
"""Where images and weights stand: another place may hold the same, as their digests show."""


def plain_values(settings: Settings, stages: Iterable[int] | None = None) -> dict[str, object]:
    """Settings as the flat mapping that `resolve` reads back, of these stages only (None: all)."""
    numbers = range(1, len(settings.stages) + 1) if stages is None else stages
    values: dict[str, object] = {key: getattr(settings, key) for key in RUN_KEYS}
    for number in numbers:
        training = settings.training(number)
        values |= {f"stage{number}.{key}": getattr(training, key) for key in TRAIN_KEYS}
    return values
