"""Settings in words, for the help of the command line and for docs/settings.md.

In: the settings' models and the presets. Out: what a setting is, and what holds where nothing is
given.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Literal, get_args, get_origin

from pydantic import BaseModel

from pipeline.settings.layers import FIRST_OF_DEPTHWISE, flatten, preset_layer, preset_names
from pipeline.settings.run import (
    THRESHOLD_KEYS,
    ExperimentSettings,
    MachineSettings,
    TrainSettings,
)
from pipeline.settings.schedules import (
    DECAY_WITHOUT_BATCH_NORM,
    LEARNING_RATES,
    WITHOUT_BATCH_NORM,
)
from pipeline.settings.thresholds import Thresholds

RUN_GROUPS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("what is run", ExperimentSettings),
    ("how a stage is trained", TrainSettings),
    ("where a run is computed, and what is kept of it", MachineSettings),
    ("thresholds of signals and of the gate", Thresholds),
)
"""Every setting of a run, in the order in which they are shown."""


def meaning(key: str, model: type[BaseModel]) -> str:
    """What a setting is, with its choices where the description does not name them."""
    info = model.model_fields[key]
    description = info.description or ""
    literal = get_origin(info.annotation) is Literal
    choices = [c for c in map(str, get_args(info.annotation)) if c] if literal else []
    if all(choice in description for choice in choices):
        choices = []
    if key == "preset":
        choices = preset_names()
    return f"{description}: {', '.join(choices)}" if choices else description


def default_in_words(key: str, model: type[BaseModel]) -> str:
    """What holds where nothing is given; empty where the meaning tells.

    A preset is part of every run, so the values that presets set instead are named.
    """
    info = model.model_fields[key]
    words = [_shown(info.default)]
    if info.is_required():  # lr
        rates = ", ".join(f"{rate:g} {what}" for what, rate in LEARNING_RATES.items())
        other = f"the latter two divided by {WITHOUT_BATCH_NORM}"
        words = [rates, f"for networks without BatchNorm {other}"]
        for what in LEARNING_RATES:
            words += _with_presets(f"{key}.{what}", f" {what}")
    if key == "weight_decay":
        words.append(f"{DECAY_WITHOUT_BATCH_NORM:g} for networks without BatchNorm")
    if key == "norm":
        words += _with_presets(f"{key}.{FIRST_OF_DEPTHWISE}", f" {FIRST_OF_DEPTHWISE},")
    words += _with_presets(key, usual=words[0])
    return "; ".join(filter(None, words))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


@cache
def _with_presets(key: str, where: str = "", usual: str = "") -> list[str]:
    """The values that presets set in place of the usual one, where, and which presets do."""
    found: dict[str, list[str]] = {}
    for name in preset_names():
        values = flatten(preset_layer(name).values)
        if key in values and _shown(values[key]) != usual:
            found.setdefault(_shown(values[key]), []).append(name)
    return [f"{value}{where} with preset {' or '.join(names)}" for value, names in found.items()]


def without_thresholds(values: Mapping[str, object]) -> dict[str, object]:
    """What a run was made with: no thresholds of signals, which stand in `settings.json`."""
    return {key: value for key, value in values.items() if key not in THRESHOLD_KEYS}
