"""Settings from a preset, a parent run, a file and the command line, weakest first.

In: layers of plain key -> value mappings, weakest first (a preset, what a parent run hands down, a
YAML file, the command line). Out: one frozen `Settings`, or a `SettingsError` that lists every
fault. Not covered: whether the data, weights or parent that a value names exist; their modules
tell that.

A key is the name of a run setting (`draw`), of a training setting (`lr`: for the stages the layer
speaks of) or of one stage's training setting (`stage2.lr`). A later layer wins over an earlier
one; inside a layer `stage2.lr` wins over `lr`. A preset serves every schedule, so presets have no
`stage2.lr`, but rates by what a stage trains, under the names of `LEARNING_RATES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from pipeline.errors import SettingsError
from pipeline.settings.entry import OF_ENTRY_POINTS
from pipeline.settings.run import RUN_KEYS, TRAIN_KEYS, Settings, TrainSettings
from pipeline.settings.schedules import (
    DECAY_WITHOUT_BATCH_NORM,
    LEARNING_RATES,
    SCHEDULES,
    Schedule,
)
from pipeline.system.disk.yaml_file import did_you_mean, read_yaml

COMMAND_LINE = "command line"
PRESETS_DIR = Path(__file__).parent / "presets"
FIRST_OF_DEPTHWISE = "where some blocks of a pretrained depthwise network follow the head alone"
"""Of `norm` in a preset: near the weights' own images such blocks do better with `keep`."""
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Key -> value pairs of one place; plain training keys are for `stage` (None: for all)."""

    source: str
    values: Mapping[str, object]
    stage: int | None = None
    by_user: bool = True


@dataclass(frozen=True)
class Given:
    """A value as it was given: under which key, in which layer."""

    value: object
    key: str
    layer: Layer


def split_stage_key(key: str) -> tuple[int | None, str]:
    """`stage2.lr` is (2, lr), `lr` is (None, lr)."""
    found = re.fullmatch(r"stage([1-9][0-9]{0,3})\.(\w+)", key)
    return (int(found[1]), found[2]) if found else (None, key)


CONTROL = "control."
"""Before a training setting: of the control's last stage alone."""


def control_key(key: str) -> str | None:
    """The training setting that `control.lr` sets for the control's last stage; else None."""
    name = key.removeprefix(CONTROL)
    return name if key.startswith(CONTROL) and name in TRAIN_KEYS else None


def hint_for(key: str, known: Iterable[str] = (*RUN_KEYS, *TRAIN_KEYS)) -> str:
    """What an unknown setting was probably meant to be."""
    number, _ = split_stage_key(key)
    if number is not None:
        known = [f"stage{number}.{name}" for name in TRAIN_KEYS]
    elif key.startswith(CONTROL):
        known = [f"{CONTROL}{name}" for name in TRAIN_KEYS]
    return did_you_mean(key, known) or ": --help lists every setting"


def validated(
    model: type[_Model], given: Mapping[str, Given], faults: list[str], **defaults: object
) -> _Model | None:
    """The model of these values; or None, with a line for each fault added to `faults`."""
    values = {key: _as_text(model, key, one.value) for key, one in given.items()}
    try:
        return model.model_validate({**defaults, **values})
    except ValidationError as err:
        for fault in err.errors():
            key, value = str(fault["loc"][0]), fault["input"]
            choices = map(str, get_args(model.model_fields[key].annotation))
            known = fault.get("ctx", {})
            meant = [known["meant"]] if "meant" in known else choices
            place = f" ({given[key].layer.source})" if given[key].layer.source else ""
            todo = did_you_mean(value, meant) if isinstance(value, str) else ""
            todo = f": write {known['called']}, the name here" if "called" in known else todo
            faults.append(
                f"{given[key].key} {in_plain_words(fault)}, got {shown(value)}{place}"
                f"{todo or what_to_give(model, key, given[key].key, fault)}"
            )
        return None


def shown(value: object) -> str:
    """A value of any size as a line shows it."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


_MOST_SHOWN = 200
_GIVE = {
    bool: "give on or off",
    int: "give a whole number",
    float: "give a number",
}
_LIMITS = {"ge": "of {} or more", "gt": "above {}", "le": "up to {}", "lt": "below {}"}
"""Pydantic's names of limits, in words."""


def what_to_give(model: type[BaseModel], key: str, given_as: str, fault: Mapping[str, Any]) -> str:
    """`: give a whole number of 1 or more, up to 9, or leave epochs out`."""
    if fault["type"] == "network":
        return ""  # its reason ends with what to do
    field = model.model_fields[key]
    limits = [
        words.format(getattr(limit, name))
        for name, words in _LIMITS.items()
        for limit in field.metadata
        if hasattr(limit, name)
    ]
    kinds = [words for kind, words in _GIVE.items() if field.annotation is kind]
    others = {"literal_error": "choose one of these", "string_too_short": "name one"}
    kinds = kinds or [others.get(fault["type"], "correct it")]
    return f": {kinds[0]}{' ' * bool(limits)}{', '.join(limits)}, or leave {given_as} out"


_WANTED = {
    "bool": "must be on or off",
    "int": "must be a whole number",
    "float": "must be a number",
    "string": "must be text",
}
"""By how the name of pydantic's fault begins."""


def in_plain_words(fault: Mapping[str, Any]) -> str:
    """What a value must be, without the words of pydantic, whose fault this is."""
    kind, _, what = str(fault["type"]).partition("_")
    if what == "too_short":
        return "must not be empty"
    if kind in _WANTED:
        return _WANTED[kind]
    message = str(fault["msg"]).removeprefix("Input ").removeprefix("String ")
    return message.replace("should be", "must be")


def _as_text(model: type[BaseModel], key: str, value: object) -> object:
    """Text where pydantic would take `true` for 1, or refuse 7 as the name of a folder.

    Where `off` is one of several words, `false` means that.
    """
    annotation = model.model_fields[key].annotation
    if isinstance(value, bool) and annotation is not bool:
        return str(value).lower() if annotation in (int, float, str) else as_typed(value)
    return str(value) if annotation is str and isinstance(value, int | float) else value


def as_typed(value: object) -> str:
    """A value as it is typed after `-P key=`."""
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def flatten(values: Mapping[str, object]) -> dict[str, object]:
    """`{"stage1": {"lr": 1}}` and `{"stage1.lr": 1}` are the same thing."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[str(key)] = value
    return flat


def resolve(layers: Iterable[Layer]) -> Settings:
    """Merge layers, weakest first, into settings.

    Raises:
        SettingsError: one line for each unknown key, wrong value or stage that does not exist.
    """
    run: dict[str, Given] = {}
    training: list[tuple[int | None, str, Given]] = []
    faults: list[str] = []
    rates, kept = dict(LEARNING_RATES), dict[str, object]()
    for layer in layers:
        plain_first = sorted(flatten(layer.values).items(), key=lambda item: "." in item[0])
        for key, value in plain_first:
            given = Given(value, key, layer)
            number, name = split_stage_key(key)
            if key in RUN_KEYS:
                run[key] = given
            elif name in TRAIN_KEYS:
                training.append((number or layer.stage, name, given))
            elif (kind := key.removeprefix("lr.")) in rates and not layer.by_user:
                rates[kind] = float(str(value))
            elif key == f"norm.{FIRST_OF_DEPTHWISE}" and not layer.by_user:
                kept = {"norm": value}
            else:
                hint = hint_for(key, (*RUN_KEYS, *TRAIN_KEYS, *OF_ENTRY_POINTS))
                faults.append(f"unknown setting {key} ({layer.source}){hint}")
    settings = validated(Settings, run, faults)
    settings = settings.as_weights_want() if settings else None
    schedule = settings.chain if settings else SCHEDULES["three_stage"]
    faults += [
        f"{given.key} ({given.layer.source}): schedule {schedule.name} has {schedule.length}: "
        "leave it out or choose another schedule"
        for number, _, given in training
        if "." in given.key and given.layer.by_user and (number or 0) > len(schedule.stages)
    ]
    stages = []
    batch_norm = settings is None or settings.has_batch_norm
    decay = {} if batch_norm else {"weight_decay": DECAY_WITHOUT_BATCH_NORM}
    for number in range(1, len(schedule.stages) + 1):
        own = {name: given for stage, name, given in training if stage in (None, number)}
        lr = schedule.default_lr(number, has_batch_norm=batch_norm, rates=rates)
        norm = (
            kept
            if settings and settings.is_pretrained_depthwise and _follows_head(schedule, number)
            else {}
        )
        stages.append(validated(TrainSettings, own, faults, lr=lr, **decay, **norm))
    if settings is None or faults:
        raise SettingsError("\n".join(dict.fromkeys(faults)))
    return settings.model_copy(update={"stages": tuple(stages)})


def _follows_head(schedule: Schedule, number: int) -> bool:
    """Whether a stage trains some pretrained blocks, and all stages before it the head alone."""
    *before, stage = schedule.stages[:number]
    trains_some = 1 < len(stage.trainable) < len(schedule.blocks)
    return bool(before) and trains_some and all(one.is_probe for one in before)


def preset_names() -> list[str]:
    """The presets that ship with the package."""
    return sorted(path.stem for path in PRESETS_DIR.glob("*.yaml"))


@cache
def preset_layer(name: str) -> Layer:
    """The settings of a preset, its file read once.

    Raises:
        SettingsError: no such preset; names those with a name that is near.
    """
    if name not in (known := preset_names()):
        hint = did_you_mean(name, known)
        raise SettingsError(
            f"unknown preset {name}{hint} (there are {', '.join(known)})"
            f"{'' if hint else ': choose one of these'}"
        )
    values = read_yaml(PRESETS_DIR / f"{name}.yaml", "preset")
    return Layer(source=f"preset {name}", values=values, by_user=False)
