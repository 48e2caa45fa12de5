"""What a run is made of: typed settings, their ranges and their defaults.

`TrainSettings` says how one stage is trained, `Settings` everything else a run depends on.
`layers.py` fills both from presets, files and the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from pipeline.model import often
from pipeline.settings.augmentation import Augment
from pipeline.settings.fields import (
    AUTO,
    BackboneText,
    BlocksText,
    DeviceText,
    NumbersText,
    ObjectiveName,
    PathText,
    PerClass,
    Pixels,
    ScheduleText,
    SizeText,
    StrictModel,
    setting,
)
from pipeline.settings.schedules import SCHEDULES, Schedule, Stage, schedule_of
from pipeline.settings.thresholds import Thresholds
from pipeline.stats.metrics import DEFAULT_OBJECTIVE
from pipeline.system.disk.files import name_of, typed_path
from pipeline.weights.inputs import input_config

DEFAULT_PRESET = "digits"
OWN_IMAGES_PRESET = "images"


class TrainSettings(StrictModel):
    """How one stage is trained."""

    epochs: int = setting(10, "passes over the training images", ge=1, le=10_000)
    batch_size: int = setting(64, "images per optimizer step", ge=2, le=100_000)
    optimizer: Literal["adamw", "sgd"] = setting("adamw", "adamw, or sgd with Nesterov momentum")
    lr: float = Field(gt=0, le=100, description="peak learning rate")
    """No default of its own: the schedule knows what the stage trains."""
    lr_decay: float = setting(
        1.0,
        "a block's learning rate is lr * lr_decay ** depth, depth being 0 for the head, 1 for the "
        "last block before the head, and so on towards the image; below 1 blocks nearer the image "
        "learn more slowly, above 1 faster",
        gt=0,
        le=100,
    )
    weight_decay: float = setting(
        0.01, "weight decay; biases and normalisation layers have none", ge=0, le=10
    )
    label_smoothing: float = setting(
        0.0, "share of each label that is spread over all classes", ge=0, lt=1
    )
    l2_sp: float = setting(
        0.0, "L2-SP penalty: pulls weights towards those the stage starts from", ge=0, le=100
    )
    augment: Augment = setting(
        "light",
        "none, light (flips) or strong (flips, crops and colour); randaugment or trivialaugment; "
        "erasing; mixup or cutmix; several are joined by +",
    )
    norm: Literal["adapt", "keep"] = setting(
        "adapt", "trainable BatchNorm layers adapt their running statistics, or keep them"
    )
    warmup: float = setting(
        0.1, "share of the optimizer steps in which the rate rises to its peak", ge=0, lt=1
    )
    clip_norm: float = setting(0.0, "largest gradient norm; 0: no clipping", ge=0)
    patience: int = setting(
        0, "training stops after this many epochs without a better one; 0: never", ge=0
    )
    select: ObjectiveName = setting(
        DEFAULT_OBJECTIVE,
        "validation metric whose best epoch is the stage's result; ties go by loss",
    )

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Without what runs of earlier versions did not have, so that keys stay what they were."""
        values: dict[str, object] = plain(self)
        if self.select == DEFAULT_OBJECTIVE:
            del values["select"]
        return values


class ExperimentSettings(StrictModel):
    """What is run: images, backbone, weights, schedule, seeds."""

    preset: str = setting(
        DEFAULT_PRESET, "recipe of defaults; left out: digits, or images for other data"
    )
    data: PathText = setting(
        "digits", "digits, cifar10, cifar100, or a path to your images", min_length=1
    )
    label_column: str = setting(
        "", "column of the classes in parquet or CSV files; empty: label, or a usual name"
    )
    image_column: str = setting(
        "",
        "column of the images in parquet or CSV files; empty: img, image, file, or a usual name",
    )
    skip_unreadable: bool = setting(
        False, "go on without images that cannot be read, and list them (on/off)"
    )
    labels: PathText = setting(
        "",
        "CSV file with a column of image files and one of labels; empty: labels.csv or "
        "_classes.csv in the folder, else the folders are the classes",
    )
    group: str = setting(
        "",
        "what stays in one part (a patient, a camera, a burst): a column of the CSV or parquet "
        "file, or a regular expression on the image's path below the folder, such as "
        r"patient_(\d+)",
    )
    train_per_class: PerClass = setting(
        AUTO, "training images a class; auto: all that validation and test leave"
    )
    val_per_class: PerClass = setting(
        AUTO,
        "validation images a class; auto: a fifth of each class, or a third of train_per_class "
        "where train_per_class is a number",
    )
    test_per_class: PerClass = setting(
        AUTO,
        "images a class set aside as test split, where the data has none; auto: a fifth of each "
        "class, and none where train_per_class and val_per_class are both numbers",
    )
    data_seed: int = setting(0, "seed of the shuffle that deals images to draws", ge=0)
    draw: int = setting(0, "which disjoint sample of the images, from 0", ge=0)
    seed: int = setting(
        0, "seed of head initialisation, batch order and augmentation", ge=0, lt=2**31
    )
    backbone: BackboneText = setting(
        "resnet18",
        "the pretrained classifier: of torchvision (resnet18, convnext_tiny, vit_b_16), of timm "
        "(timm:vit_small_patch14_dinov2.lvd142m), or your own function (package.module:build)",
        min_length=1,
    )
    blocks: BlocksText = setting(
        "auto",
        "how the network is cut into blocks: as its library groups it (auto), a number of blocks "
        "between stem and head, or a YAML file of patterns of parameter names",
    )
    weights: PathText = setting(
        "imagenet",
        "imagenet or pretrained (what the network's library publishes), tiny_imagenet, none, "
        "IMAGENET1K_V1, or a .pth/.safetensors file",
        min_length=1,
    )
    image_size: Pixels = setting(
        224, "pixels a side; 0: the size that the weights were trained at"
    )
    interpolation: Literal["auto", "bilinear", "bicubic", "lanczos"] = setting(
        "auto", "how pictures are resized; auto: as those that the weights were trained on"
    )
    crop: float = setting(
        1.0,
        "share of a picture's central square, a side, that is kept; many weights were validated "
        "with 0.875, which loses 2 to 4 points on CIFAR-10",
        gt=0,
        le=1,
    )
    mean: NumbersText = setting(
        "auto",
        "mean of each channel, values from 0 to 1 with commas between them; auto: that of the "
        "images that the weights were trained on",
    )
    std: NumbersText = setting("auto", "standard deviation of each channel, as mean")
    schedule: ScheduleText = setting(
        "three_stage",
        f"which blocks each stage trains: {', '.join(SCHEDULES)}, or a YAML file of stages",
        min_length=1,
    )
    norm_stats: Literal["auto", "source", "target"] = setting(
        "auto",
        "BatchNorm statistics of the weights (source), of the training images (target), or the "
        "better of both in a probe on the training images (auto)",
    )
    views: int = setting(
        10, "stored augmented views an image; 0: fresh views every epoch", ge=0, le=1000
    )


class MachineSettings(StrictModel):
    """Where a run is computed, and what is kept of it."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        "float32, bfloat16, float16 (with a scaled loss), or auto: bfloat16 where the processor "
        "is fast at it, float16 on CUDA devices that are fast at that alone",
    )
    device: DeviceText = setting(
        "auto", "processor that computes: auto, cpu, cuda, cuda:1 (the second of several), mps"
    )
    cache: bool = setting(True, "keep the frozen prefix's outputs on disk (on/off)")
    cache_dir: PathText = setting(
        "", "folder for downloads and caches; empty: unfreeze in $XDG_CACHE_HOME or ~/.cache"
    )
    cache_limit: SizeText = setting(
        "20GB",
        "disk for the frozen prefix's outputs and decoded images (500 MB, 2GiB, bytes, or 10% of "
        "the disk); what was used longest ago goes first; 20GB hold three stages of a ResNet-18 "
        "on 20,000 images at 224 px",
    )
    reuse: bool = setting(True, "take finished runs of the same content, if any (on/off)")
    log_model: bool = setting(True, "log a servable MLflow model (on/off)")
    log_pictures: bool = setting(
        True, "draw pictures of a stage run and list its mistakes: a second a run (on/off)"
    )


class Settings(Thresholds, MachineSettings, ExperimentSettings):
    """Everything one run depends on; `stages` holds the training settings of each stage."""

    stages: tuple[TrainSettings, ...] = ()

    @property
    def data_name(self) -> str:
        """What the images are called in the names of runs."""
        return name_of(typed_path(self.data))

    def to_be_shown(self) -> Settings:
        """The settings with what people look at and use: pictures and the served model."""
        return self.model_copy(update={"log_model": True, "log_pictures": True})

    def as_weights_want(self) -> Settings:
        """The settings with `auto` replaced by what the weights were trained on."""
        wanted = input_config(self.backbone, self.weights)
        texts: dict[str, str] = {"interpolation": wanted.interpolation}
        texts |= {key: ",".join(map(str, getattr(wanted, key))) for key in ("mean", "std")}
        found: dict[str, object] = {k: v for k, v in texts.items() if getattr(self, k) == AUTO}
        if not self.image_size:
            found["image_size"] = wanted.size
        if self.test_per_class == AUTO and AUTO not in (self.train_per_class, self.val_per_class):
            found["test_per_class"] = 0  # as before there was `auto`
        return self.model_copy(update=found)

    @property
    def by_content(self) -> bool:
        """Whether images are dealt by their content, in shares or groups, not by number alone."""
        sizes = (self.train_per_class, self.val_per_class, self.test_per_class)
        return AUTO in sizes or bool(self.group)

    @property
    def chain(self) -> Schedule:
        """The schedule on the network's blocks.

        Raises:
            SettingsError: the network has no such blocks.
        """
        return schedule_of(self.schedule).on(self.order)

    @property
    def has_batch_norm(self) -> bool:
        """Whether the network has BatchNorm; transformers and ConvNeXt have none."""
        return often.has_batch_norm(self.backbone, self.image_size)

    @property
    def is_pretrained_depthwise(self) -> bool:
        """Whether the network has depthwise convolutions, and BatchNorm with statistics."""
        has_statistics = self.weights != "none" and self.has_batch_norm
        return has_statistics and often.is_depthwise(self.backbone, self.image_size)

    @property
    def order(self) -> tuple[str, ...]:
        """The network's blocks, head first."""
        return often.block_order(self.backbone, self.image_size, self.blocks)

    def stage(self, number: int) -> Stage:
        """The stage of that number in this schedule."""
        return self.chain.stage(number)

    def training(self, number: int) -> TrainSettings:
        """The training settings of that stage."""
        return self.stages[number - 1]

    def with_training(self, number: int, values: Mapping[str, object]) -> Settings:
        """The settings with these training settings for that stage."""
        training = self.training(number).model_copy(update=dict(values))
        stages = (*self.stages[: number - 1], training, *self.stages[number:])
        return self.model_copy(update={"stages": stages})


TRAIN_KEYS = tuple(TrainSettings.model_fields)
RUN_KEYS = tuple(key for key in Settings.model_fields if key != "stages")
THRESHOLD_KEYS = tuple(Thresholds.model_fields)
INHERITED_KEYS = (
    *("data", "label_column", "image_column", "labels", "group", "skip_unreadable"),
    *("train_per_class", "val_per_class", "test_per_class", "data_seed", "draw"),
    *("backbone", "blocks", "weights", "schedule", "norm_stats"),
    *("image_size", "interpolation", "crop", "mean", "std"),
)
"""What a child stage takes from its parent run and may not contradict."""
PLACE_KEYS = ("data", "label_column", "image_column", "labels", "skip_unreadable", "weights")
"""Where images and weights stand: another place may hold the same content, by digest."""


def plain_values(settings: Settings, stages: Iterable[int] | None = None) -> dict[str, object]:
    """Settings as the flat mapping that `resolve` reads back, of these stages only (None: all)."""
    numbers = range(1, len(settings.stages) + 1) if stages is None else stages
    values: dict[str, object] = {key: getattr(settings, key) for key in RUN_KEYS}
    for number in numbers:
        training = settings.training(number)
        values |= {f"stage{number}.{key}": getattr(training, key) for key in TRAIN_KEYS}
    return values
