"""The arms of a comparison: schedules that see the same images for the same number of steps.

In: a resolved treatment, and a schedule to compare it with. Out: that schedule's settings at equal
optimizer steps. Pure functions.

Stages that an arm has in common with the treatment keep its settings, so they are the same runs.
The arm's other stages share the steps that are left: the first of them gets all that the treatment
spent before the matching stage. A stage that begins as the treatment does keeps the treatment's
settings, too. A stage that continues the one before has the settings of the treatment's stage in
its place: the arms differ in what they train, not in how, unless settings such as `control.lr=`
say otherwise. `differences` tells in what they differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, takewhile
from typing import Literal

from pipeline.errors import SettingsError
from pipeline.settings.entry import DecideSettings, TuneSettings
from pipeline.settings.layers import validated
from pipeline.settings.request import Request
from pipeline.settings.run import TRAIN_KEYS, Settings, TrainSettings
from pipeline.settings.schedules import SCHEDULES, Schedule, schedule_of
from pipeline.system.text import count_of

QUESTIONS: Mapping[Literal["stage2", "stage3"], tuple[int, str]] = {
    "stage2": (2, "stage1_continued"),
    "stage3": (3, "stage2_continued"),
}
"""The stage of `three_stage` that is judged, and its control."""

OF_STEPS = ("epochs", "batch_size", "patience")
"""Training settings that decide how many optimizer steps a stage has."""
EXTRA_ARMS = ("full", "lp_ft")
"""Schedules that are run for show, where `beside` asks for them."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A schedule up to stage `last`; `is_stage`: that stage alone is judged."""

    name: str
    settings: Settings
    last: int
    is_stage: bool = False

    @property
    def schedule(self) -> Schedule:
        """The schedule in the settings."""
        return self.settings.chain

    @property
    def words(self) -> str:
        """The arm's name in a sentence."""
        return f"stage {self.last}" if self.is_stage else self.schedule.words


@dataclass(frozen=True, kw_only=True)
class TunedArm:
    """An arm after tuning.

    Attributes:
        val: the chosen trial's validation metrics by objective, means over the tuning draws; empty
            where its run is gone.
        studies: names by stage number.
        run_ids: the studies' MLflow runs.
    """

    arm: Arm
    val: Mapping[str, float]
    studies: Mapping[int, str]
    run_ids: tuple[str, ...]


def arms_of(decide: DecideSettings, request: Request) -> tuple[Arm, Arm]:
    """Treatment and control.

    Raises:
        SettingsError: wrong settings, or both arms are the same.
    """
    if bool(decide.treatment) != bool(decide.control):
        raise SettingsError(
            f"treatment={decide.treatment or '?'} control={decide.control or '?'}: give both, or "
            "neither and a question"
        )
    last, name = QUESTIONS[decide.question]
    schedule, control = SCHEDULES["three_stage"], SCHEDULES[name]
    if decide.treatment:
        schedule, control = schedule_of(decide.treatment), schedule_of(decide.control)
        last = schedule.count
    settings = request.settings(schedule=str(schedule))
    check_comparable(settings)
    is_stage = schedule.name == "three_stage" and (last, control.name) in QUESTIONS.values()
    treatment = Arm(name=schedule.name, settings=settings, last=last, is_stage=is_stage)
    check_distinct([one.on(settings.order) for one in (schedule, control)])
    arm = at_equal_steps(treatment, control, request)
    return treatment, with_own_settings(arm, request)


def check_distinct(schedules: Sequence[Schedule]) -> None:
    """Refuse schedules, on the blocks of one network, that cannot be told apart.

    Raises:
        SettingsError: two train the same blocks in the same stages, or have one name.
    """
    for one, other in combinations(schedules, 2):
        if one.trains() == other.trains():
            raise SettingsError(
                f"schedules {one.name} and {other.name} train the same blocks in the same stages: "
                "choose two that differ"
            )
        if one.name == other.name:
            raise SettingsError(f"two schedules are called {one.name}: rename one of the files")


def check_comparable(settings: Settings) -> None:
    """Raise SettingsError for settings with which no runs can be compared."""
    if not settings.reuse:
        raise SettingsError(
            "reuse=off: the arms start from common runs, which this command finds by content: "
            "leave reuse out"
        )
    if settings.enforce_gate:
        raise SettingsError(
            "enforce_gate=on: the gate judges by finished runs, and this command trains those "
            "runs itself: leave enforce_gate out"
        )


def at_equal_steps(
    treatment: Arm, schedule: Schedule, request: Request, untuned: Arm | None = None
) -> Arm:
    """Another schedule with as many optimizer steps as the treatment has up to its last stage.

    `untuned`: the treatment before it was tuned, whose settings continued stages start from.

    Raises:
        SettingsError: more stages than the treatment has steps for, or a stage may stop early.
    """
    settings, schedule = treatment.settings, schedule.on(treatment.settings.order)
    ours = schedule.stages
    theirs, shared = settings.stages[: treatment.last], _shared_stages(treatment, schedule)
    if len(ours) > len(theirs):
        raise SettingsError(
            f"{count_of(len(ours) - shared, 'stage')} cannot share the steps of "
            f"{count_of(len(theirs) - shared, 'stage')}: choose a schedule with fewer stages as "
            "the control, or swap treatment and control"
        )
    # steps that are left over go to the first stage that is not shared
    first = shared + 1 + len(theirs) - len(ours)
    alone = [(stage,) for stage in theirs]
    steps_of = [*alone[:shared], theirs[shared:first], *alone[first:]]
    own = request.of_no_stage().settings(schedule=str(schedule))
    bases: list[TrainSettings] = []
    for n in range(len(ours)):
        if n < _stages_alike(treatment, schedule):
            bases.append(theirs[n])
        elif _is_continued(schedule, n + 1):
            bases.append((untuned or treatment).settings.stages[first + n - shared - 1])
        else:
            bases.append(own.stages[n])
    stages = tuple(_with_steps(*both) for both in zip(bases, steps_of, strict=True))
    for training in (*theirs, *stages):
        if training.patience:
            raise SettingsError(
                f"patience={training.patience}: arms have equal optimizer steps, which stages "
                "that stop early would not have: leave patience out (0)"
            )
    arm_settings = settings.model_copy(update={"schedule": str(schedule), "stages": stages})
    return Arm(name=schedule.name, settings=arm_settings, last=len(ours))


def with_own_settings(control: Arm, request: Request) -> Arm:
    """The control with settings of its own for its last stage (`control.lr=1e-4`).

    Raises:
        SettingsError: a wrong value, or one that would change the number of steps.
    """
    given = request.control
    if steps := [key for key in OF_STEPS if key in given]:
        where = request.given_for_control(steps[0]).layer.source
        raise SettingsError(
            f"control.{steps[0]}={given[steps[0]]} ({where}): both arms have equal optimizer "
            f"steps: leave it out, or pass -P stage{control.last}.{steps[0]}= for both"
        )
    if not given:
        return control
    faults = list[str]()
    typed = {key: request.given_for_control(key) for key in given}
    base = control.settings.training(control.last).model_dump()
    defaults = {key: value for key, value in base.items() if key not in given}
    own = validated(TrainSettings, typed, faults, **defaults)
    if own is None:
        raise SettingsError("\n".join(faults))
    return replace(control, settings=control.settings.with_training(control.last, dict(own)))


def differences(treatment: Arm, control: Arm) -> list[str]:
    """How the arms' last stages are trained otherwise, beside their steps: `lr 3 against 1`."""
    ours, theirs = (arm.settings.training(arm.last) for arm in (treatment, control))
    both = ((key, getattr(ours, key), getattr(theirs, key)) for key in TRAIN_KEYS)
    return [f"{key} {a} against {b}" for key, a, b in both if a != b and key not in OF_STEPS]


def _is_continued(schedule: Schedule, number: int) -> bool:
    """Whether a stage of a schedule trains the same blocks as the one before."""
    trains = schedule.trains()
    return number > 1 and trains[number - 1] == trains[number - 2]


def _stages_alike(treatment: Arm, schedule: Schedule) -> int:
    """How many stages of a schedule, from the first on, train what the treatment's train."""
    both = zip(schedule.trains(), treatment.schedule.trains(treatment.last), strict=False)
    return len(list(takewhile(lambda stages: stages[0] == stages[1], both)))


def _shared_stages(treatment: Arm, schedule: Schedule) -> int:
    """How many runs a schedule at equal steps has in common with the treatment.

    The last stage of either is never in common: it has the steps that are left.
    """
    return min(_stages_alike(treatment, schedule), treatment.last - 1, len(schedule.stages) - 1)


def _with_steps(base: TrainSettings, group: Sequence[TrainSettings]) -> TrainSettings:
    """`base` for as many steps as the stages of the group have together, to the nearest epoch."""
    batch = group[-1].batch_size
    epochs = round(sum(stage.epochs * batch / stage.batch_size for stage in group))
    return base.model_copy(update={"epochs": max(1, epochs), "batch_size": batch})


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is to be decided, and how.

    Attributes:
        extra_arms: arms that may be run for show.
        general: training settings of every stage of every arm, as typed.
        explicit: names of the treatment's training settings that are set by hand, by stage.
    """

    request: Request
    decide: DecideSettings
    tune: TuneSettings
    treatment: Arm
    control: Arm
    extra_arms: tuple[Arm, ...]
    general: Mapping[str, str]
    explicit: Mapping[int, set[str]]


def decide_plan(request: Request) -> Comparison:
    """The comparison behind a request; nothing slow is done.

    Raises:
        SettingsError, DesignError: a setting that cannot be used.
    """
    decide, tune = request.own_settings(DecideSettings), request.own_settings(TuneSettings)
    general = request.general
    if schedule := general.get("schedule"):
        raise SettingsError(
            f"schedule={schedule}: a decision is between two: pass -P "
            "treatment=<schedule> -P control=<schedule>, or a question"
        )
    treatment, control = arms_of(decide, request)
    judged = (treatment.name, control.name)
    others = [SCHEDULES[name] for name in EXTRA_ARMS if name not in judged]
    extra = [schedule for schedule in others if schedule.count <= treatment.last]
    return Comparison(
        request=request,
        decide=decide,
        tune=tune,
        treatment=treatment,
        control=control,
        extra_arms=tuple(at_equal_steps(treatment, one, request) for one in extra),
        general={key: text for key, text in general.items() if key in TRAIN_KEYS},
        explicit={n: request.explicit_keys(n) for n in range(1, treatment.last + 1)},
    )


def own_stages(plan: Comparison) -> dict[int, set[str]]:
    """The control's own stages, and the settings that no study of these stages may tune.

    Steps stay equal, and what was set by hand stays: for all stages, for a stage that begins as
    the treatment does, or for the treatment's stage in the place of a continued one.
    """
    treatment, control = plan.treatment, plan.control
    alike, behind = _stages_alike(treatment, control.schedule), treatment.last - control.last
    kept = {}
    for number in range(_shared_stages(treatment, control.schedule) + 1, control.last + 1):
        kept[number] = {"epochs", "batch_size", *plan.general}
        if number <= alike:
            kept[number] |= plan.explicit[number]
        if _is_continued(control.schedule, number):
            kept[number] |= plan.explicit[number + behind]
    kept[control.last] |= set(plan.request.control)
    return kept
