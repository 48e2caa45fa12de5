"""What `pretrain` was asked for, understood before anything slow is imported.

In: what was typed. Out: a plan, or a `SettingsError`. Pure functions. Other entry points that have
settings of their own keep them beside what they mean: `search_space.py`, `arms.py`, `grid.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.comparing.arms import said_of_all
from pipeline.errors import SettingsError
from pipeline.settings.entry import PRETRAIN_KEYS, PretrainSettings
from pipeline.settings.layers import load_own, load_settings, said_of_stage
from pipeline.settings.run import Settings

FROM_SCRATCH = {"schedule": "full", "weights": "none", "norm_stats": "source"}
"""What pretraining means; other values for these are refused."""
PRETRAIN_DEFAULTS = {
    "image_size": "64",
    "augment": "strong",
    "epochs": "30",
    "lr": "1e-3",
    "weight_decay": "0.05",
    "views": "0",
}
"""What random weights want, where neither a preset nor anybody says otherwise."""


@dataclass(frozen=True)
class PretrainPlan:
    """`sized`, `val_sized`: somebody has said how many images a class to train, to validate on."""

    out: str
    settings: Settings
    sized: bool
    val_sized: bool


def pretrain_plan(options: Mapping[str, str], config: str | None) -> PretrainPlan:
    """The settings of a run from random weights, and where its weights go.

    Raises:
        SettingsError: a wrong setting, or one that would not be pretraining.
    """
    own = load_own(PretrainSettings, options)
    if not own.out.endswith(".safetensors"):
        fault = f"out={own.out} does not end in .safetensors" if own.out else "out is not given"
        raise SettingsError(f"{fault}: say where the weights go: pass -P out=<path>.safetensors")
    plain = {key: value for key, value in options.items() if key not in PRETRAIN_KEYS}
    said = said_of_all(plain, config)
    for key, value in FROM_SCRATCH.items():
        if said.get(key, value) != value:
            raise SettingsError(
                f"{key}={said[key]}: pretraining means {key}={value}: leave it out"
            )
    if "data" not in said:
        raise SettingsError(
            "data is not given: pass -P data=<labelled images of your domain> to pretrain on"
        )
    defaults = {} if "preset" in said else PRETRAIN_DEFAULTS
    set_by_hand = {*said, *said_of_stage(plain, config, None, 1)}
    left = {key: value for key, value in defaults.items() if key not in set_by_hand}
    settings = load_settings({**left, **plain, **FROM_SCRATCH}, config=config)
    return PretrainPlan(own.out, settings, "train_per_class" in said, "val_per_class" in said)
