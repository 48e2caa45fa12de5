"""A grid of arms: every schedule on every backbone, all with the same optimizer steps.

In: what was typed. Out: a `Grid`. Pure functions. Steps are those of the default schedule with the
same settings; how another schedule shares them out is told in `arms.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from pipeline.comparing.arms import Arm, at_equal_steps, check_comparable, said_of_all
from pipeline.errors import SettingsError
from pipeline.settings.entry import COMPARE_KEYS, TUNE_KEYS, CompareSettings, TuneSettings
from pipeline.settings.layers import load_own, load_settings, nearest, said_of_stage
from pipeline.settings.run import TRAIN_KEYS, BackboneName, ScheduleName
from pipeline.settings.schedules import SCHEDULES

REFERENCE = "three_stage"
"""The schedule whose settings say how many steps there are."""
BACKBONE_WORD = "{backbone}"


@dataclass(frozen=True)
class Grid:
    """What is compared.

    Attributes:
        arms: by backbone, in the order of the schedules, the baseline first.
        said: training settings given by hand, by stage of the reference schedule (0: for all
            stages of all schedules); no study tunes them.
        options: everything that was typed.
    """

    compare: CompareSettings
    tune: TuneSettings
    arms: Mapping[str, tuple[Arm, ...]]
    said: Mapping[int, set[str]]
    options: Mapping[str, str]


def grid_of(options: Mapping[str, str], config: str | None) -> Grid:
    """What was typed, understood; nothing slow is done.

    Raises:
        SettingsError: what cannot be.
    """
    compare = load_own(CompareSettings, options)
    words = {key: value for key, value in options.items() if key in TUNE_KEYS and key != "draws"}
    tune = load_own(TuneSettings, {**words, "draws": str(compare.tune_draws)})
    own = {*COMPARE_KEYS, *TUNE_KEYS}
    plain = {key: value for key, value in options.items() if key not in own}
    if schedule := said_of_all(plain, config).get("schedule"):
        raise SettingsError(
            f"schedule={schedule}: pass -P schedules=<names with commas between them>"
        )
    if compare.backbones and "backbone" in plain:
        raise SettingsError(
            f"backbone={plain['backbone']} and backbones={compare.backbones}: give one of the two"
        )
    schedules = _names("schedules", compare.schedules, get_args(ScheduleName))
    schedules = [compare.baseline, *(n for n in schedules if n != compare.baseline)]
    if len(schedules) < 2:
        raise SettingsError(
            f"schedules={compare.schedules} with baseline={compare.baseline}: two are needed to "
            "compare, add one"
        )
    if compare.backbones:
        backbones = _names("backbones", compare.backbones, get_args(BackboneName))
    else:
        backbones = [load_settings(plain, config=config).backbone]
    said = {0: {key for key in said_of_all(plain, config) if key in TRAIN_KEYS}}
    for number in range(1, len(SCHEDULES[REFERENCE]) + 1):
        said[number] = said_of_stage(plain, config, None, number)
    arms = {name: _arms(name, schedules, plain, config) for name in backbones}
    typed = {**options, **({"config": config} if config else {})}
    return Grid(compare, tune, arms, said, typed)


def said_of_arm(grid: Grid, arm: Arm, number: int) -> set[str]:
    """Training settings of an arm's stage that were given by hand.

    `stage2.lr` speaks of the reference schedule's stage 2, and of every schedule that begins so.
    """
    ours = [step.trainable for step in SCHEDULES[arm.name][:number]]
    theirs = [step.trainable for step in SCHEDULES[REFERENCE][:number]]
    return grid.said[0] | (grid.said[number] if ours == theirs else set())


def _arms(
    backbone: str, schedules: Iterable[str], options: Mapping[str, str], config: str | None
) -> tuple[Arm, ...]:
    """Every schedule on one backbone."""
    plain = {**options, "backbone": backbone, "schedule": REFERENCE}
    settings = load_settings(plain, config=config)
    plain["weights"] = settings.weights.replace(BACKBONE_WORD, backbone)
    if other := re.search(r"\{\w+\}", plain["weights"]):
        raise SettingsError(
            f"weights={settings.weights}: {other[0]} is not known: write {BACKBONE_WORD}"
        )
    settings = load_settings(plain, config=config)
    check_comparable(settings)
    reference = Arm(REFERENCE, settings, len(SCHEDULES[REFERENCE]))
    del plain["schedule"]
    return tuple(
        reference if name == REFERENCE else at_equal_steps(reference, name, plain, config)
        for name in schedules
    )


def _names(key: str, text: str, known: tuple[str, ...]) -> list[str]:
    """The names in a list with commas.

    Raises:
        SettingsError: one that is not known, or stands twice.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            hint = nearest(name, known) or f": choose from {', '.join(known)}"
            raise SettingsError(f"{key} names {name!r}, which is not known{hint}")
        if names.count(name) > 1:
            raise SettingsError(f"{key} names {name} twice, got {text!r}: keep one")
    return names
