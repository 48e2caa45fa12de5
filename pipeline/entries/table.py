"""The one table of entry points, for the command line, its help, its faults, and MLproject's test.

A row says which settings the entry point takes, how a request becomes a plan (quickly: whatever is
wrong with a setting is told before torch and MLflow are imported), and what does the work. To add
an entry point: a row here, a module that does the work, and its parameters in MLproject.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel

from pipeline.comparing.arms import Comparison, comparison_of
from pipeline.comparing.grid import Grid, grid_of
from pipeline.entries.plans import (
    PretrainPlan,
    StagePlan,
    evaluate_plan,
    gate_plan,
    numbered_stage_plan,
    pretrain_plan,
    stage_plan,
)
from pipeline.settings.entry import (
    NAMED_STAGES,
    CompareSettings,
    DecideSettings,
    EvaluateSettings,
    GateSettings,
    NumberedStageSettings,
    PretrainSettings,
    StageSettings,
    TuneSettings,
)
from pipeline.settings.request import Request
from pipeline.settings.run import (
    PLACE_KEYS,
    RUN_KEYS,
    THRESHOLD_KEYS,
    TRAIN_KEYS,
    Settings,
)
from pipeline.settings.search_space import Plan, plan_of

if TYPE_CHECKING:
    from pipeline.runs.command import Command
    from pipeline.runs.session import OnEpoch, Say

P = TypeVar("P")


@dataclass(frozen=True, kw_only=True)
class EntryPoint(Generic[P]):
    """A row: one subcommand of the command line, and one entry point of MLproject.

    Attributes:
        help: one line.
        plan: from a request to what is to be done; imports nothing slow.
        run: does the work, and imports what it needs when it is called.
        own: the settings that this entry point alone has.
        shared: settings of `CommandSettings` that it takes.
        study: settings of `TuneSettings` that it takes.
        run_keys: settings of a run that it takes; None: all, of every stage, and a YAML file.
        trains: which stage plain training settings are for, in words.
    """

    name: str
    help: str
    plan: Callable[[Request], P]
    run: Callable[[Command, P], object]
    own: type[BaseModel] | None = None
    shared: tuple[str, ...] = ("storage", "tuned")
    study: tuple[str, ...] = ()
    run_keys: tuple[str, ...] | None = None
    trains: str = "every stage"

    @property
    def own_keys(self) -> tuple[str, ...]:
        """Every setting that is none of a run's."""
        own = self.own.model_fields if self.own else ()
        return tuple(dict.fromkeys((*own, *self.shared, *self.study)))

    @property
    def keys(self) -> tuple[str, ...]:
        """Every option that it takes, beside the training settings of single stages."""
        if self.run_keys is not None:
            return (*self.own_keys, *self.run_keys)
        return (*self.own_keys, "config", *RUN_KEYS, *TRAIN_KEYS)

    def read(self, options: Mapping[str, str]) -> Request:
        """The request behind a command line's options.

        Raises:
            SettingsError: the YAML file cannot be read.
        """
        return Request.read(options, self.own_keys)


def _run_main(command: Command, plan: Settings) -> object:
    from pipeline.entries.chain import main_entry

    return main_entry(command, plan)


def _run_stage(command: Command, plan: StagePlan) -> object:
    from pipeline.entries.chain import stage_entry

    return stage_entry(command, plan)


def _run_tune(command: Command, plan: Plan) -> object:
    from pipeline.tuning.work import tune_entry

    return tune_entry(command, plan)


def _run_decide(command: Command, plan: Comparison) -> object:
    from pipeline.entries.decide import decide_entry

    return decide_entry(command, plan)


def _run_compare(command: Command, plan: Grid) -> object:
    from pipeline.entries.compare import compare_entry

    return compare_entry(command, plan)


def _run_pretrain(command: Command, plan: PretrainPlan) -> object:
    from pipeline.entries.pretrain import pretrain_entry

    return pretrain_entry(command, plan)


def _run_evaluate(command: Command, plan: EvaluateSettings) -> object:
    from pipeline.runs.scoring import evaluate_entry

    return evaluate_entry(command, plan)


def _run_gate(command: Command, plan: GateSettings) -> object:
    from pipeline.entries.gate import gate_entry

    return gate_entry(command, plan)


def _study_keys(*left_out: str) -> tuple[str, ...]:
    return tuple(key for key in TuneSettings.model_fields if key not in left_out)


def _stage(number: int) -> EntryPoint[StagePlan]:
    return EntryPoint(
        name=f"stage{number}",
        help=f"stage {number}; missing parent stages are trained first",
        plan=partial(stage_plan, number=number),
        run=_run_stage,
        own=StageSettings,
        trains=f"stage{number}",
    )


_MAIN = EntryPoint(
    name="main",
    help="every stage of the schedule, and a run that sums them up",
    plan=Request.settings,
    run=_run_main,
)
_STAGE = EntryPoint(
    name="stage",
    help="the stage that number= says, for schedules with more than three",
    plan=numbered_stage_plan,
    run=_run_stage,
    own=NumberedStageSettings,
    trains="that stage",
)
_TUNE = EntryPoint(
    name="tune",
    help="Optuna studies of each stage's settings; any number of these commands share them",
    plan=plan_of,
    run=_run_tune,
    shared=("storage", "joins"),
    study=_study_keys(),
)
_DECIDE = EntryPoint(
    name="decide",
    help="is stage 3 justified? paired runs, look by look, to a verdict and its report",
    plan=comparison_of,
    run=_run_decide,
    own=DecideSettings,
    shared=("storage", "joins"),
    study=_study_keys("stage", "space", "timeout"),
)
_COMPARE = EntryPoint(
    name="compare",
    help="which schedule, on which backbone? paired draws at equal optimizer steps",
    plan=grid_of,
    run=_run_compare,
    own=CompareSettings,
    shared=("storage", "tuned", "joins"),
    study=_study_keys("stage", "space", "timeout", "draws"),
)
_PRETRAIN = EntryPoint(
    name="pretrain",
    help="weights from scratch on labelled images, for those who have none",
    plan=pretrain_plan,
    run=_run_pretrain,
    own=PretrainSettings,
    shared=(),
)
_EVALUATE = EntryPoint(
    name="evaluate",
    help="accuracy of a finished stage run on the test split",
    plan=evaluate_plan,
    run=_run_evaluate,
    own=EvaluateSettings,
    shared=(),
    run_keys=(*PLACE_KEYS, "device", "precision", "cache_dir"),
)
_GATE = EntryPoint(
    name="gate",
    help="has stage 3 been earned? read from finished stage-2 runs, or from result lines",
    plan=gate_plan,
    run=_run_gate,
    own=GateSettings,
    shared=(),
    run_keys=(*PLACE_KEYS, "cache_dir", *THRESHOLD_KEYS),
)
_ROWS: tuple[EntryPoint[Any], ...] = (
    _MAIN,
    *map(_stage, range(1, NAMED_STAGES + 1)),
    *(_STAGE, _TUNE, _DECIDE, _COMPARE, _PRETRAIN, _EVALUATE, _GATE),
)
ENTRY_POINTS: Mapping[str, EntryPoint[Any]] = {row.name: row for row in _ROWS}


def perform(
    name: str,
    options: Mapping[str, str],
    say: Say = print,
    on_epoch: OnEpoch = lambda *_: None,
) -> Any:  # noqa: ANN401 - what comes out is the entry point's own
    """Do what an entry point does, and return what it found.

    Raises:
        PipelineError: whatever a person can mend.
    """
    entry_point = ENTRY_POINTS[name]
    request = entry_point.read(options)
    plan = entry_point.plan(request)
    from pipeline.runs.command import Command

    return entry_point.run(Command.of(request, say, on_epoch), plan)
