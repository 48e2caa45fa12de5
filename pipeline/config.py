"""Typed settings: what a run is made of, and where each value came from.

In: layers of plain key -> value mappings, weakest first (a preset, what a parent run hands down, a
YAML file, the command line). Out: one frozen `Settings`, or a `SettingsError` that lists every
fault. Not covered: whether the data, weights or parent that a value names exist; their modules
tell that.

A key is the name of a run setting (`draw`), of a training setting (`lr`: for the stages the layer
speaks of) or of one stage's training setting (`stage2.lr`). A later layer wins over an earlier
one; inside a layer `stage2.lr` wins over `lr`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import SettingsError
from pipeline.stages import SCHEDULES, Stage, get_stage

PRESETS_DIR = Path(__file__).parent / "presets"
DEFAULT_PRESET = "digits"
MAX_STAGES = max(len(stages) for stages in SCHEDULES.values())

BackboneName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
]
Augment = Literal["none", "light", "strong"]

_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class TrainSettings(BaseModel):
    """How one stage is trained."""

    model_config = _STRICT

    epochs: int = Field(10, ge=1, le=10_000, description="passes over the training images")
    batch_size: int = Field(64, ge=2, le=100_000, description="images per optimizer step")
    optimizer: Literal["adamw", "sgd"] = Field(
        "adamw", description="sgd has Nesterov momentum 0.9"
    )
    lr: float = Field(1e-3, gt=0, le=100, description="peak learning rate of the head")
    lr_decay: float = Field(
        1.0,
        gt=0,
        le=100,
        description="block rate = lr * lr_decay ** depth, the head's depth being 0",
    )
    weight_decay: float = Field(0.01, ge=0, le=10, description="decoupled, on weights only")
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


class Settings(BaseModel):
    """Everything one run depends on; `stages` holds the training settings of each stage."""

    model_config = _STRICT

    preset: str = Field(
        DEFAULT_PRESET, description="recipe that gives every other setting a value"
    )
    data: str = Field("digits", description="digits, cifar10, cifar100, or a path to your images")
    train_per_class: int = Field(100, ge=1, description="training images a class")
    val_per_class: int = Field(100, ge=1, description="validation images a class")
    data_seed: int = Field(0, ge=0, description="the shuffle that deals images to draws")
    draw: int = Field(0, ge=0, description="which disjoint sample of the images, from 0")
    seed: int = Field(
        0, ge=0, lt=2**31, description="head initialisation, batch order, augmentation"
    )
    backbone: BackboneName = Field("resnet18", description="the pretrained classifier")
    weights: str = Field(
        "imagenet", description="imagenet, tiny_imagenet, none, or a .pth/.safetensors file"
    )
    image_size: int = Field(224, ge=32, le=1024, description="pixels a side")
    schedule: Literal["three_stage", "two_stage", "full", "lp_ft", "head_only"] = Field(
        "three_stage", description="which blocks each stage trains"
    )
    norm_stats: Literal["target", "source"] = Field(
        "target",
        description="frozen BatchNorm statistics: re-estimated on the new images, or kept",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the processor is fast at it"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to compute")
    cache: bool = Field(True, description="keep the frozen prefix's outputs (on/off)")
    cache_dir: str = Field(
        "", description="folder for downloads and caches; default ~/.cache/unfreeze"
    )
    views: int = Field(
        10, ge=0, le=1000, description="stored augmented views an image; 0: fresh ones every epoch"
    )
    reuse: bool = Field(True, description="use finished parent runs of the same content (on/off)")
    log_model: bool = Field(True, description="log a servable MLflow model (on/off)")
    stages: tuple[TrainSettings, ...] = ()

    def stage(self, number: int) -> Stage:
        """The stage of that number in this schedule."""
        return get_stage(self.schedule, number)

    def training(self, number: int) -> TrainSettings:
        """The training settings of that stage."""
        return self.stages[number - 1]


TRAIN_KEYS = tuple(TrainSettings.model_fields)
RUN_KEYS = tuple(key for key in Settings.model_fields if key != "stages")
STAGE_KEYS = tuple(f"stage{n}.{key}" for n in range(1, MAX_STAGES + 1) for key in TRAIN_KEYS)
INHERITED_KEYS = (
    *("data", "train_per_class", "val_per_class", "data_seed", "draw"),
    *("backbone", "weights", "image_size", "schedule", "norm_stats"),
)
"""What a child stage takes from its parent run and may not contradict."""


def describe_field(key: str) -> str:
    """One line of help for a run or training setting: what it is, its choices, its default."""
    info = (TrainSettings if key in TRAIN_KEYS else Settings).model_fields[key]
    choices = get_args(info.annotation)
    suffix = f" [{', '.join(map(str, choices))}]" if choices else ""
    return f"{info.description}{suffix}"


@dataclass(frozen=True)
class Layer:
    """Key -> value pairs from one place; plain training keys go to the stages `speaks_of`."""

    source: str
    values: Mapping[str, object]
    speaks_of: tuple[int, ...] = tuple(range(1, MAX_STAGES + 1))


@dataclass
class _Collected:
    """Values by model (0: the run, n: stage n), each with the place it came from."""

    values: dict[int, dict[str, object]] = field(default_factory=dict)
    sources: dict[tuple[int, str], str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def put(self, model: int, key: str, value: object, source: str) -> None:
        self.values.setdefault(model, {})[key] = value
        self.sources[model, key] = source

    def add(self, layer: Layer) -> None:
        by_precision = sorted(_flatten(layer.values).items(), key=lambda item: "." in item[0])
        for key, value in by_precision:
            if key in RUN_KEYS:
                self.put(0, key, value, layer.source)
            elif key in TRAIN_KEYS:
                for number in layer.speaks_of:
                    self.put(number, key, value, layer.source)
            elif key in STAGE_KEYS:
                stage, name = key.split(".")
                self.put(int(stage.removeprefix("stage")), name, value, layer.source)
            else:
                self.faults.append(_unknown(key, layer.source))


def _flatten(values: Mapping[str, object]) -> dict[str, object]:
    """`{"stage1": {"lr": 1}}` and `{"stage1.lr": 1}` are the same thing."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[str(key)] = value
    return flat


def _nearest(word: str, candidates: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ""


def _unknown(key: str, source: str) -> str:
    known = STAGE_KEYS if key.startswith("stage") and "." in key else (*RUN_KEYS, *TRAIN_KEYS)
    hint = _nearest(key, known) or ": --help lists every setting"
    return f"unknown setting {key} ({source}){hint}"


def _check(
    model: type[BaseModel], number: int, collected: _Collected, extra: Mapping[str, object]
) -> Any:  # noqa: ANN401 - the caller knows the model
    values = dict(collected.values.get(number, {}))
    for key, value in list(values.items()):
        annotation = model.model_fields[key].annotation
        if isinstance(value, bool) and annotation in (int, float):
            values[key] = str(value)  # or pydantic would take `true` for 1
        elif annotation is str and isinstance(value, int | float) and not isinstance(value, bool):
            values[key] = str(value)
    try:
        return model.model_validate(values | dict(extra))
    except ValidationError as err:
        for fault in err.errors():
            key = str(fault["loc"][0])
            name = f"stage{number}.{key}" if number else key
            got = fault["input"]
            hint = ""
            choices = get_args(model.model_fields[key].annotation)
            if choices and isinstance(got, str):
                hint = _nearest(got, map(str, choices))
            message = fault["msg"].removeprefix("Input ").replace("should be", "must be")
            source = collected.sources.get((number, key), "default")
            collected.faults.append(f"{name} {message}, got {got!r} ({source}){hint}")
        return None


def resolve(layers: Iterable[Layer]) -> Settings:
    """Merge layers, weakest first, into settings.

    Raises:
        SettingsError: one line for each unknown key, wrong value or stage that does not exist.
    """
    collected = _Collected()
    for layer in layers:
        collected.add(layer)
    run = _check(Settings, 0, collected, {})
    schedule = run.schedule if run is not None else "three_stage"
    stages = []
    for stage in SCHEDULES[schedule]:
        defaults = {"lr": 1e-3 if stage.deepest == "head" else 3e-4}
        for key, value in defaults.items():
            collected.values.setdefault(stage.number, {}).setdefault(key, value)
        stages.append(_check(TrainSettings, stage.number, collected, {}))
    if collected.faults:
        raise SettingsError("\n".join(dict.fromkeys(collected.faults)))
    assert isinstance(run, Settings)
    return run.model_copy(update={"stages": tuple(stages)})


def read_yaml(path: Path, source: str) -> dict[str, object]:
    """The mapping in a YAML file.

    Raises:
        SettingsError: no such file, not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise SettingsError(
            f"{source}: cannot read {path.absolute()} ({err.strerror}): pass the path of a YAML "
            "file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        where = getattr(err, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise SettingsError(f"{source}: {path}{line} is not valid YAML: mend it") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(
            f"{source}: {path} holds a {type(content).__name__}: write one `setting: value` a line"
        )
    return {str(key): value for key, value in content.items()}


def preset_names() -> list[str]:
    """The presets that ship with the package."""
    return sorted(path.stem for path in PRESETS_DIR.glob("*.yaml"))


def _preset_layer(name: str) -> Layer:
    if name not in preset_names():
        raise SettingsError(
            f"unknown preset {name}{_nearest(name, preset_names())} "
            f"(there are {', '.join(preset_names())})"
        )
    return Layer(f"preset {name}", read_yaml(PRESETS_DIR / f"{name}.yaml", "preset"))


def load_settings(
    options: Mapping[str, str],
    *,
    config: str | None = None,
    target: int | None = None,
    inherited: Mapping[str, object] | None = None,
) -> Settings:
    """Settings for an entry point.

    Args:
        options: what the command line says, key -> text.
        config: a YAML file of settings, weaker than the options.
        target: the stage that plain training settings apply to; None: every stage.
        inherited: a parent run's settings, stronger than the preset and weaker than the rest.

    Raises:
        SettingsError: see `resolve`.
    """
    numbers = Layer.speaks_of if target is None else (target,)
    said = Layer("command line", options, numbers)
    file_values = read_yaml(Path(config), f"config={config}") if config else {}
    from_file = Layer(f"config {config}", file_values, numbers)
    preset = options.get("preset") or file_values.get("preset")
    if preset is None:
        preset = (inherited or {}).get("preset", DEFAULT_PRESET)
    layers = [_preset_layer(str(preset)), Layer("default", {"preset": preset})]
    if inherited is not None:
        layers.append(Layer("parent run", inherited))
    settings = resolve([*layers, from_file, said])
    if target is not None:
        settings.stage(target)
    return settings


def plain_values(settings: Settings, stages: Iterable[int] | None = None) -> dict[str, object]:
    """Settings as the flat mapping that `resolve` reads back, of these stages only (None: all)."""
    numbers = range(1, len(settings.stages) + 1) if stages is None else stages
    values: dict[str, object] = {key: getattr(settings, key) for key in RUN_KEYS}
    for number in numbers:
        training = settings.training(number)
        values |= {f"stage{number}.{key}": getattr(training, key) for key in TRAIN_KEYS}
    return values
