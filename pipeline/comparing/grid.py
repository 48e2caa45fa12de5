"""A grid of arms: every schedule on every backbone, all with the same optimizer steps.

In: what was typed. Out: a `Grid`. Pure functions. Steps are those of the schedule with the most
stages, `three_stage` among them, with the same settings; `arms.py` says how another schedule
shares the steps.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.comparing.arms import (
    OF_STEPS,
    Arm,
    at_equal_steps,
    check_comparable,
    check_distinct,
)
from pipeline.errors import SettingsError
from pipeline.settings.entry import CompareSettings, TuneSettings
from pipeline.settings.layers import flatten
from pipeline.settings.request import Request
from pipeline.settings.run import TRAIN_KEYS, Settings
from pipeline.settings.schedules import SCHEDULES, Schedule, schedule_of

REFERENCE = SCHEDULES["three_stage"]
"""The schedule whose settings say how many steps there are, unless one compared is longer."""
BACKBONE_WORD = "{backbone}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is compared.

    Attributes:
        arms: by backbone, in the order of the schedules, the baseline first.
        general: training settings given by hand for no single stage; no study tunes them.
        reference: the schedule whose settings say how many steps there are.
        explicit: training settings given by hand, by stage of the reference.
        unheeded: lines on settings of single stages that an arm does not have.
        options: everything that was typed.
    """

    compare: CompareSettings
    tune: TuneSettings
    arms: Mapping[str, tuple[Arm, ...]]
    general: set[str]
    reference: Schedule
    explicit: Mapping[int, set[str]]
    unheeded: tuple[str, ...]
    options: Mapping[str, str]

    @property
    def baseline(self) -> str:
        """The name of the schedule that differences are taken to."""
        return next(iter(self.arms.values()))[0].name


def compare_plan(request: Request) -> Grid:
    """What was asked for, understood; nothing slow is done.

    Raises:
        SettingsError: what cannot be.
    """
    compare = request.own_settings(CompareSettings)
    tune = request.own_settings(TuneSettings, draws=str(compare.tune_draws))
    general = request.general
    if schedule := general.get("schedule"):
        raise SettingsError(
            f"schedule={schedule}: pass -P schedules=<names with commas between them>"
        )
    if compare.backbones and (backbone := request.options.get("backbone")):
        raise SettingsError(
            f"backbone={backbone} and backbones={compare.backbones}: give one of the two"
        )
    schedules = _schedules(compare)
    if len(schedules) < 2:
        raise SettingsError(
            f"schedules={compare.schedules} with baseline={compare.baseline}: two are needed to "
            "compare, add one"
        )
    if compare.backbones:
        backbones = [name.strip() for name in compare.backbones.split(",")]
        _refuse_doubles("backbones", compare.backbones, backbones)
    else:
        backbones = [request.of_no_stage().settings(schedule=compare.baseline).backbone]
    reference = _reference(schedules, backbones, request.of_no_stage())
    arms = {name: _arms(name, schedules, reference, request) for name in backbones}
    of_all = {key for key in general if key in TRAIN_KEYS}
    explicit = {n: request.explicit_keys(n) for n in range(1, reference.count + 1)}
    typed = request.settings(schedule=str(reference), backbone=backbones[0])
    given = flatten({**request.file, **request.options})
    lines = [line for arm in arms[backbones[0]] for line in _unheeded(arm, typed, given)]
    return Grid(
        compare=compare,
        tune=tune,
        arms=arms,
        general=of_all,
        reference=reference,
        explicit=explicit,
        unheeded=tuple(lines),
        options={**request.typed, **request.typed_storage},
    )


def _reference(
    schedules: Sequence[Schedule], backbones: Iterable[str], request: Request
) -> Schedule:
    """The schedule with the most stages; `REFERENCE` counts where every network has its blocks."""
    baseline = str(schedules[0])
    orders = (request.settings(schedule=baseline, backbone=name).order for name in backbones)
    usual = [REFERENCE] if all(map(REFERENCE.fits, orders)) else []
    return max((*usual, *schedules), key=lambda schedule: schedule.count)


def _unheeded(arm: Arm, typed: Settings, given: Collection[str]) -> Iterator[str]:
    """Lines on settings of single stages, among those `given`, that an arm has otherwise."""
    for number in range(1, arm.last + 1):
        own, wanted = arm.settings.training(number), typed.training(number)
        keys = [k for k in TRAIN_KEYS if f"stage{number}.{k}" in given and k not in OF_STEPS]
        lost = [key for key in keys if getattr(own, key) != getattr(wanted, key)]
        if lost:
            names = ", ".join(f"stage{number}.{key}" for key in lost)
            yield (
                f"note: {names}: not for {arm.name}, whose stage {number} is another than that of "
                f"{typed.chain.name}; a plain {lost[0]} is for every stage of every schedule"
            )


def explicit_keys_of_arm(grid: Grid, arm: Arm, number: int) -> set[str]:
    """Training settings of an arm's stage that were given by hand.

    `stage2.lr` means the reference schedule's stage 2, and that of every schedule that begins so.
    """
    alike = arm.schedule.trains(number) == grid.reference.on(arm.schedule.blocks).trains(number)
    return grid.general | (grid.explicit[number] if alike else set())


def _schedules(compare: CompareSettings) -> list[Schedule]:
    """The schedules that are compared, the baseline first.

    Raises:
        SettingsError: one that is not known, or two that cannot be told apart.
    """
    baseline = schedule_of(compare.baseline)
    named = [schedule_of(word.strip()) for word in compare.schedules.split(",")]
    _refuse_doubles("schedules", compare.schedules, [schedule.name for schedule in named])
    others = [schedule for schedule in named if schedule != baseline]
    return [baseline, *others]


def _arms(
    backbone: str, schedules: Iterable[Schedule], reference: Schedule, request: Request
) -> tuple[Arm, ...]:
    """Every schedule on one backbone."""
    weights = request.settings(backbone=backbone, schedule=str(reference)).weights
    named = weights.replace(BACKBONE_WORD, backbone)
    if other := re.search(r"\{\w+\}", named):
        raise SettingsError(f"weights={weights}: {other[0]} is not known: write {BACKBONE_WORD}")
    own = {**request.options, "backbone": backbone, "weights": named}
    request = replace(request, options=own)
    settings = request.settings(schedule=str(reference))
    check_comparable(settings)
    longest = Arm(name=reference.name, settings=settings, last=reference.count)
    check_distinct([schedule.on(settings.order) for schedule in schedules])
    return tuple(
        longest if schedule == reference else at_equal_steps(longest, schedule, request)
        for schedule in schedules
    )


def _refuse_doubles(key: str, text: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"{key} names {name} twice, got {text!r}: keep one")
