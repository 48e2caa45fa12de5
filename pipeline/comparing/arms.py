"""The arms of a comparison: schedules that see the same images for the same number of steps.

In: a resolved treatment, and the name of a schedule to hold against it. Out: that schedule's
settings at equal optimizer steps. Pure functions.

Stages that an arm has in common with the treatment keep its settings, so they are the same runs.
The steps that are left go to the arm's other stages: to the first of them all that the treatment
spent before the matching one. A stage that begins as the treatment does keeps its settings, too. A
stage that goes on with the one before has the settings of the treatment's stage that it is held
against: the arms differ in what they train, not in how.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import SettingsError
from pipeline.settings.entry import DecideSettings, TuneSettings
from pipeline.settings.request import Request
from pipeline.settings.run import RUN_KEYS, TRAIN_KEYS, Settings, TrainSettings
from pipeline.settings.schedules import SCHEDULES, Schedule, schedule_of

QUESTIONS: Mapping[Literal["stage2", "stage3"], tuple[int, str]] = {
    "stage2": (2, "stage1_continued"),
    "stage3": (3, "stage2_continued"),
}
"""The stage of `three_stage` that is judged, and the control it is held against."""

EXTRA_ARMS = ("full", "lp_ft")
"""Schedules that are run for show, where `beside` asks for them."""


@dataclass(frozen=True)
class Arm:
    """A schedule up to one of its stages, whose result counts.

    Attributes:
        is_stage: what is judged is its last stage alone, against going on with the one before.
    """

    name: str
    settings: Settings
    last: int
    is_stage: bool = False

    @property
    def schedule(self) -> Schedule:
        """The schedule that its settings name."""
        return schedule_of(self.settings.schedule)

    @property
    def words(self) -> str:
        """Its name in a sentence."""
        return f"stage {self.last}" if self.is_stage else self.schedule.words


@dataclass(frozen=True)
class TunedArm:
    """An arm after tuning.

    Attributes:
        val: the chosen trial's validation metrics, means over the tuning draws, as objectives are
            named; empty where its run is gone.
        studies: name by stage number.
        run_ids: the studies' MLflow runs.
    """

    arm: Arm
    val: Mapping[str, float]
    studies: Mapping[int, str]
    run_ids: tuple[str, ...]


def arms_of(decide: DecideSettings, request: Request) -> tuple[Arm, Arm]:
    """Treatment and control.

    Raises:
        SettingsError: wrong settings, or two arms that are one.
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
        last = len(schedule.stages)
    settings = request.settings(schedule=str(schedule))
    check_comparable(settings)
    is_stage = schedule.name == "three_stage" and (last, control.name) in QUESTIONS.values()
    treatment = Arm(schedule.name, settings, last, is_stage)
    if control.name == schedule.name:
        raise SettingsError(f"treatment and control are both {control.name}: choose two schedules")
    if control.trains() == schedule.trains():
        raise SettingsError(
            f"treatment={schedule.name} and control={control.name} train the same blocks in the "
            "same stages: choose two schedules"
        )
    return treatment, at_equal_steps(treatment, control, request)


def check_comparable(settings: Settings) -> None:
    """Refuse what runs that are to be compared cannot have.

    Raises:
        SettingsError: says which setting.
    """
    if not settings.reuse:
        raise SettingsError(
            "reuse=off: arms start from common runs, which are found by content: leave reuse out"
        )
    if settings.enforce_gate:
        raise SettingsError(
            "enforce_gate=on: the gate reads finished draws, which are only made here: leave "
            "enforce_gate out"
        )


def at_equal_steps(
    treatment: Arm, schedule: Schedule, request: Request, untuned: Arm | None = None
) -> Arm:
    """Another schedule with as many optimizer steps as the treatment has up to its last stage.

    `untuned`: the treatment before it was tuned; a stage that goes on with the one before starts
    from its settings, as the stage that it is held against did.

    Raises:
        SettingsError: more stages than the treatment has steps for, or one that may stop early.
    """
    settings, ours = treatment.settings, schedule.stages
    theirs, shared = settings.stages[: treatment.last], shared_stages(treatment, schedule)
    if len(ours) > len(theirs):
        raise SettingsError(
            f"{len(ours) - shared} stages cannot share the steps of {len(theirs) - shared}: "
            "choose a schedule with fewer stages as the control, or swap treatment and control"
        )
    first = shared + 1 + len(theirs) - len(ours)  # what is left over goes to the first of its own
    alone = [(stage,) for stage in theirs]
    steps_of = [*alone[:shared], theirs[shared:first], *alone[first:]]
    own = request.of_no_stage().settings(schedule=str(schedule))
    bases: list[TrainSettings] = []
    for n in range(len(ours)):
        if n < stages_alike(treatment, schedule):
            bases.append(theirs[n])
        elif goes_on(schedule, n + 1):
            bases.append((untuned or treatment).settings.stages[first + n - shared - 1])
        else:
            bases.append(own.stages[n])
    stages = tuple(_with_steps(*both) for both in zip(bases, steps_of, strict=True))
    refuse_patience([*theirs, *stages])
    run = {key: getattr(settings, key) for key in RUN_KEYS}
    arm_settings = Settings(**{**run, "schedule": str(schedule)}).model_copy(
        update={"stages": stages}
    )
    return Arm(schedule.name, arm_settings, len(ours))


def goes_on(schedule: Schedule, number: int) -> bool:
    """Whether a stage of a schedule trains the same blocks as the one before."""
    trains = schedule.trains()
    return number > 1 and trains[number - 1] == trains[number - 2]


def stages_alike(treatment: Arm, schedule: Schedule) -> int:
    """How many stages of a schedule, from the first on, train what the treatment's train."""
    ours, theirs = schedule.trains(), treatment.schedule.trains(treatment.last)
    alike = 0
    while alike < min(len(ours), len(theirs)) and ours[alike] == theirs[alike]:
        alike += 1
    return alike


def shared_stages(treatment: Arm, schedule: Schedule) -> int:
    """How many stages a schedule at equal steps has in common with the treatment: the same runs.

    The last stage of either is never one: it has the steps that are left.
    """
    alike = stages_alike(treatment, schedule)
    return min(alike, treatment.last - 1, len(schedule.stages) - 1)


def refuse_patience(stages: Iterable[TrainSettings]) -> None:
    """Nobody knows beforehand how many steps a stage has that may stop early.

    Raises:
        SettingsError: one of them may.
    """
    for training in stages:
        if training.patience:
            raise SettingsError(
                f"patience={training.patience}: arms have equal optimizer steps, which those that "
                "stop early would not have: leave patience out (0)"
            )


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
        general: training settings that are given for no single stage; every arm has them.
        explicit: training settings of the treatment that are set by hand, by stage.
    """

    request: Request
    decide: DecideSettings
    tune: TuneSettings
    treatment: Arm
    control: Arm
    extra_arms: tuple[Arm, ...]
    general: Mapping[str, str]
    explicit: Mapping[int, set[str]]


def comparison_of(request: Request) -> Comparison:
    """What was asked for, understood; nothing slow is done.

    Raises:
        SettingsError, DesignError: what cannot be.
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
    extra = [schedule for schedule in others if len(schedule.stages) <= treatment.last]
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
    """The control's stages that are no runs of the treatment's, and what no study of them tunes.

    Steps stay equal, and what was set by hand stays: for all stages, for one that begins alike, or
    for the stage that one which goes on is held against.
    """
    control, alike = plan.control, stages_alike(plan.treatment, plan.control.schedule)
    behind = plan.treatment.last - control.last
    return {
        number: {
            "epochs",
            "batch_size",
            *plan.general,
            *(plan.explicit[number] if number <= alike else ()),
            *(plan.explicit[number + behind] if goes_on(control.schedule, number) else ()),
        }
        for number in range(shared_stages(plan.treatment, control.schedule) + 1, control.last + 1)
    }
