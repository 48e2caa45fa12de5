"""The one table of entry points, for the command line, its help, its faults, and MLproject's test.

A row says which settings the entry point takes, how a request becomes a plan (quickly: whatever is
wrong with a setting is told before torch and MLflow are imported), and what does the work. To add
an entry point: a row here, a module that does the work, and its parameters in MLproject.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from pipeline.comparing.arms import comparison_of
from pipeline.comparing.grid import grid_of
from pipeline.entries.plans import (
    blocks_plan,
    evaluate_plan,
    gate_plan,
    pretrain_plan,
    stage_plan,
)
from pipeline.settings.entry import (
    NAMED_STAGES,
    BlocksSettings,
    CommandSettings,
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
from pipeline.settings.run import PLACE_KEYS, RUN_KEYS, THRESHOLD_KEYS, TRAIN_KEYS
from pipeline.settings.search_space import plan_of

if TYPE_CHECKING:
    from pipeline.runs.session import OnEpoch, Say


@dataclass(frozen=True, kw_only=True)
class EntryPoint:
    """A row: one subcommand of the command line, and one entry point of MLproject.

    Attributes:
        help: one line.
        plan: from a request to what is to be done; imports nothing slow.
        work: `module:function` that takes a `Command` and the plan, imported when it is called.
        own: the settings that this entry point alone has.
        shared: settings of `CommandSettings` that it takes.
        study: settings of `TuneSettings` that it takes.
        run_keys: settings of a run that it takes; None: all, of every stage, and a YAML file.
        trains: which stage plain training settings are for, in words.
    """

    name: str
    help: str
    plan: Callable[[Request], Any]
    work: str
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


def _study_keys(*left_out: str) -> tuple[str, ...]:
    return tuple(key for key in TuneSettings.model_fields if key not in left_out)


_ROWS = (
    EntryPoint(
        name="main",
        help="every stage of the schedule, and a run that sums them up",
        plan=Request.settings,
        work="entries.chain:main_entry",
    ),
    *(
        EntryPoint(
            name=f"stage{number}",
            help=f"stage {number}; missing parent stages are trained first",
            plan=partial(stage_plan, number=number),
            work="entries.chain:stage_entry",
            own=StageSettings,
            trains=f"stage{number}",
        )
        for number in range(1, NAMED_STAGES + 1)
    ),
    EntryPoint(
        name="stage",
        help="the stage that number= says, for schedules with more than three",
        plan=stage_plan,
        work="entries.chain:stage_entry",
        own=NumberedStageSettings,
        trains="that stage",
    ),
    EntryPoint(
        name="tune",
        help="Optuna studies of each stage's settings; any number of these commands share them",
        plan=plan_of,
        work="tuning.work:tune_entry",
        shared=("storage", "joins"),
        study=_study_keys(),
    ),
    EntryPoint(
        name="decide",
        help="is stage 3 justified? paired runs, look by look, to a verdict and its report",
        plan=comparison_of,
        work="entries.decide:decide_entry",
        own=DecideSettings,
        shared=("storage", "joins"),
        study=_study_keys("stage", "space", "timeout"),
    ),
    EntryPoint(
        name="compare",
        help="which schedule, on which backbone? paired draws at equal optimizer steps",
        plan=grid_of,
        work="entries.compare:compare_entry",
        own=CompareSettings,
        shared=("storage", "tuned", "joins"),
        study=_study_keys("stage", "space", "timeout", "draws"),
    ),
    EntryPoint(
        name="pretrain",
        help="weights from scratch on labelled images, for those who have none",
        plan=pretrain_plan,
        work="entries.pretrain:pretrain_entry",
        own=PretrainSettings,
        shared=(),
    ),
    EntryPoint(
        name="blocks",
        help="the blocks of a network: what each stage of the schedule would release",
        plan=blocks_plan,
        work="entries.blocks:blocks_entry",
        own=BlocksSettings,
        shared=(),
        run_keys=("backbone", "blocks", "image_size", "schedule"),
    ),
    EntryPoint(
        name="evaluate",
        help="accuracy of a finished stage run on the test split",
        plan=evaluate_plan,
        work="runs.scoring:evaluate_entry",
        own=EvaluateSettings,
        shared=(),
        run_keys=(*PLACE_KEYS, "device", "precision", "cache_dir"),
    ),
    EntryPoint(
        name="gate",
        help="has stage 3 been earned? read from finished stage-2 runs, or from result lines",
        plan=gate_plan,
        work="entries.gate:gate_entry",
        own=GateSettings,
        shared=(),
        run_keys=(*PLACE_KEYS, "cache_dir", *THRESHOLD_KEYS),
    ),
)
ENTRY_POINTS: Mapping[str, EntryPoint] = {row.name: row for row in _ROWS}


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
    row = ENTRY_POINTS[name]
    request = row.read(options)
    plan = row.plan(request)
    shared = request.own_settings(CommandSettings)
    from pipeline.runs.command import Command

    command = Command(request=request, **shared.model_dump(), say=say, on_epoch=on_epoch)
    return resolve_name(f"pipeline.{row.work}")(command, plan)
