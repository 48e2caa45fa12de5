"""What a run is made of: typed settings, their ranges and their defaults.

`TrainSettings` says how one stage is trained, `Settings` everything else a run depends on.
`layers.py` fills both from presets, files and the command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
)
from pydantic_core import PydanticCustomError

from pipeline.model.inputs import input_config
from pipeline.model.often import BLOCKS, OFTEN
from pipeline.settings.augmentation import Augment
from pipeline.settings.schedules import SCHEDULES, Schedule, Stage, schedule_of
from pipeline.stats.metrics import DEFAULT_OBJECTIVE, OBJECTIVES, SHARES
from pipeline.system.files import name_of, typed_path

AUTO = "auto"
_Value = TypeVar("_Value")
DEFAULT_PRESET = "digits"
OWN_IMAGES_PRESET = "images"

ScheduleText = Annotated[str, AfterValidator(lambda text: str(schedule_of(text)) if text else "")]
"""A schedule: the name of a built-in one, a file, or spelled out, which a file's becomes."""


def _known_network(name: str) -> str:
    if name not in OFTEN:
        from pipeline.model.networks import check_name  # torch is slow to import

        check_name(name)
    return name


def _usable_blocks(text: str) -> str:
    if text != "auto" and not re.fullmatch("[1-9][0-9]{0,2}", text):
        if not text.endswith((".yaml", ".yml")):
            raise PydanticCustomError(
                "blocks", "must be auto, a number, or the path of a .yaml file"
            )
        typed_path(text, "blocks")
    return text


def numbers_of(text: str) -> tuple[float, ...]:
    """The numbers in a text, with commas between them."""
    return tuple(float(part) for part in text.split(","))


def _three_numbers(text: str) -> str:
    if text == AUTO:
        return text
    try:
        numbers = numbers_of(text)
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not all(0 <= number <= 1 for number in numbers):
        raise PydanticCustomError("numbers", "must be auto, or three numbers from 0 to 1")
    return text


BackboneText = Annotated[str, AfterValidator(_known_network)]
"""A network's name, as `backbones.build_backbone` takes it."""
NumbersText = Annotated[str, AfterValidator(_three_numbers)]
BlocksText = Annotated[str, AfterValidator(_usable_blocks)]


def _with_a_home(text: str, info: ValidationInfo) -> str:
    typed_path(text, info.field_name or "")
    return text


PathText = Annotated[str, AfterValidator(_with_a_home)]
"""A path, or a name that may stand in its place; the home folder that it begins with is there."""
if TYPE_CHECKING:
    ObjectiveName: TypeAlias = str
    ShareName: TypeAlias = str
else:  # the table of metrics lists the names
    ObjectiveName, ShareName = Literal[tuple(OBJECTIVES)], Literal[SHARES]


def setting(default: _Value, description: str, **limits: Any) -> _Value:  # noqa: ANN401
    """A field with its help text; `limits`: pydantic's own (`ge`, `gt`, `min_length`, …)."""
    field: _Value = Field(default, description=description, **limits)
    return field


class StrictModel(BaseModel):
    """Settings that refuse unknown keys and numbers that are not finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )


class TrainSettings(StrictModel):
    """How one stage is trained."""

    epochs: int = setting(10, "passes over the training images", ge=1, le=10_000)
    batch_size: int = setting(64, "images per optimizer step", ge=2, le=100_000)
    optimizer: Literal["adamw", "sgd"] = setting("adamw", "sgd has Nesterov momentum 0.9")
    lr: float = setting(
        3e-4,
        "peak learning rate; 3e-3 where only the head trains, 1e-4 after a "
        "stage that trained pretrained blocks",
        gt=0,
        le=100,
    )
    lr_decay: float = setting(
        1.0, "block rate = lr * lr_decay ** depth, the head's depth being 0", gt=0, le=100
    )
    weight_decay: float = setting(0.01, "of weights, not of biases and norms", ge=0, le=10)
    label_smoothing: float = setting(0.0, "share spread over all classes", ge=0, lt=1)
    l2_sp: float = setting(0.0, "pull towards the weights it started from", ge=0, le=100)
    augment: Augment = setting(
        "light",
        "none, light (flips) or strong (flips, crops, colour); randaugment or trivialaugment; "
        "erasing; mixup or cutmix; several are joined by +",
    )
    norm: Literal["adapt", "keep"] = setting(
        "adapt", "statistics of trainable BatchNorm: adapt or keep them"
    )
    warmup: float = setting(0.1, "share of the steps that ramp the rate up", ge=0, lt=1)
    clip_norm: float = setting(0.0, "largest gradient norm; 0: no clipping", ge=0)
    patience: int = setting(0, "stop after this many epochs without a better one; 0: never", ge=0)
    select: ObjectiveName = setting(
        DEFAULT_OBJECTIVE, "the best epoch by this is the stage's result; ties by loss"
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

    signal_saturation_acc: float = setting(
        0.99, "training accuracy that counts as saturated", gt=0, le=1
    )
    signal_early_share: float = setting(
        0.25, "train_acc_saturates: within this share of the epochs", gt=0, le=1
    )
    signal_spike_share: float = setting(
        0.5, "no_early_spike: saturated after this share of the epochs", gt=0, le=1
    )
    signal_confidence: float = setting(
        0.9, "val_acc_gain: one-sided confidence that there is a gain", gt=0.5, lt=1
    )
    signal_loss_rise: float = setting(
        0.05, "val_loss_rises: ends by this share above its own minimum", ge=0
    )
    signal_spread_p: float = setting(
        0.1, "unstable_across_runs: p of the paired variance test", gt=0, lt=1
    )
    gate_flat: float = setting(
        0.05, "loss is flat if its last fifth spans at most this share", ge=0
    )
    gate_ceiling: float = setting(
        0.97, "validation accuracy beyond which there is no headroom", gt=0, le=1
    )
    gate_min_gain: float = setting(
        0.005, "a smaller gain from stage 1 to 2 is flat: no headroom", ge=0
    )
    gate_memorising_acc: float = setting(
        0.995, "training accuracy of a stage that memorises", gt=0, le=1
    )
    gate_memorising_gap: float = setting(
        0.2, "nats by which its validation loss stays above its training loss", ge=0
    )
    enforce_gate: bool = setting(
        False, "refuse to start stage 3 unless the gate says promising (on/off)"
    )


class Settings(Thresholds):
    """Everything one run depends on; `stages` holds the training settings of each stage."""

    preset: str = setting(DEFAULT_PRESET, "recipe for all else; images, where data is not digits")
    data: PathText = setting(
        "digits", "digits, cifar10, cifar100, or a path to your images", min_length=1
    )
    label_column: str = setting(
        "", "column of the classes in parquet files; empty: label, or a usual name"
    )
    image_column: str = setting(
        "", "column of the images in parquet files; empty: img, image, or a usual name"
    )
    skip_unreadable: bool = setting(
        False, "go on without images that cannot be read, and list them (on/off)"
    )
    train_per_class: int = setting(100, "training images a class", ge=1)
    val_per_class: int = setting(100, "validation images a class", ge=1)
    test_per_class: int = setting(
        0, "images a class set aside as test split, where the data has none", ge=0
    )
    data_seed: int = setting(0, "the shuffle that deals images to draws", ge=0)
    draw: int = setting(0, "which disjoint sample of the images, from 0", ge=0)
    seed: int = setting(0, "head initialisation, batch order, augmentation", ge=0, lt=2**31)
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
    image_size: int = setting(
        224, "pixels a side; 0: the size that the weights were trained at", ge=0, le=1024
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
        f"which blocks each stage trains: {', '.join(SCHEDULES)}, or a YAML file",
        min_length=1,
    )
    norm_stats: Literal["auto", "source", "target"] = setting(
        "auto",
        "where BatchNorm statistics come from: the weights (source), the training "
        "images (target), or the better of both in a probe on the training images (auto)",
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "auto: bfloat16 where the processor is fast at it"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "where to compute")
    cache: bool = setting(True, "keep the frozen prefix's outputs (on/off)")
    cache_dir: PathText = setting("", "folder for downloads and caches; empty: ~/.cache/unfreeze")
    cache_limit: float = setting(20.0, "gigabytes of disk for the frozen prefix's outputs", gt=0)
    views: int = setting(
        10, "stored augmented views an image; 0: fresh views every epoch", ge=0, le=1000
    )
    reuse: bool = setting(True, "use finished parent runs of the same content (on/off)")
    log_model: bool = setting(True, "log a servable MLflow model (on/off)")
    stages: tuple[TrainSettings, ...] = ()

    @property
    def data_name(self) -> str:
        """What the images are called in the names of runs."""
        return name_of(typed_path(self.data))

    def as_weights_want(self) -> Settings:
        """The settings with `auto` replaced by what the weights were trained on."""
        wanted = input_config(self.backbone, self.weights)
        texts = {"interpolation": wanted.interpolation}
        texts |= {key: ",".join(map(str, getattr(wanted, key))) for key in ("mean", "std")}
        found: dict[str, object] = {k: v for k, v in texts.items() if getattr(self, k) == AUTO}
        if not self.image_size:
            found["image_size"] = wanted.size
        return self.model_copy(update=found)

    @property
    def chain(self) -> Schedule:
        """The schedule on the network's blocks.

        Raises:
            SettingsError: the network has no such blocks.
        """
        return schedule_of(self.schedule).on(self.order)

    @property
    def order(self) -> tuple[str, ...]:
        """The network's blocks, head first."""
        if self.backbone in OFTEN and self.blocks == "auto":
            return BLOCKS
        from pipeline.model.backbones import block_order

        return block_order(self.backbone, self.image_size, self.blocks)

    def stage(self, number: int) -> Stage:
        """The stage of that number in this schedule."""
        return self.chain.stage(number)

    def training(self, number: int) -> TrainSettings:
        """The training settings of that stage."""
        return self.stages[number - 1]


TRAIN_KEYS = tuple(TrainSettings.model_fields)
RUN_KEYS = tuple(key for key in Settings.model_fields if key != "stages")
THRESHOLD_KEYS = tuple(Thresholds.model_fields)
INHERITED_KEYS = (
    *("data", "label_column", "image_column", "skip_unreadable"),
    *("train_per_class", "val_per_class", "test_per_class", "data_seed", "draw"),
    *("backbone", "blocks", "weights", "schedule", "norm_stats"),
    *("image_size", "interpolation", "crop", "mean", "std"),
)
"""What a child stage takes from its parent run and may not contradict."""
PLACE_KEYS = ("data", "label_column", "image_column", "skip_unreadable", "weights")
"""Where images and weights stand: another place may hold the same content, by digest."""


def plain_values(settings: Settings, stages: Iterable[int] | None = None) -> dict[str, object]:
    """Settings as the flat mapping that `resolve` reads back, of these stages only (None: all)."""
    numbers = range(1, len(settings.stages) + 1) if stages is None else stages
    values: dict[str, object] = {key: getattr(settings, key) for key in RUN_KEYS}
    for number in numbers:
        training = settings.training(number)
        values |= {f"stage{number}.{key}": getattr(training, key) for key in TRAIN_KEYS}
    return values
