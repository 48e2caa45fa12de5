"""The one table of entry points, for the command line, its help, its faults, and MLproject's test.

A row says which settings the entry point takes, which function makes a plan of a request, and
which does the work. A wrong setting is refused by the plan, before torch and MLflow are imported.
To add an entry point: a row here, a module that does the work, and an entry in MLproject.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from pipeline.comparing.arms import Comparison, decide_plan
from pipeline.comparing.grid import Grid, compare_plan
from pipeline.entries.command_line.entry_point import EntryPoint
from pipeline.entries.command_line.plans import (
    FROM_SCRATCH,
    PRETRAIN_DEFAULTS,
    app_plan,
    blocks_plan,
    clean_plan,
    evaluate_plan,
    gate_plan,
    main_plan,
    predict_plan,
    pretrain_plan,
    refit_plan,
    stage_plan,
    start_plan,
)
from pipeline.settings.entry import (
    NAMED_STAGES,
    AppSettings,
    BlocksSettings,
    CleanSettings,
    CommandSettings,
    CompareSettings,
    DecideSettings,
    EvaluateSettings,
    GateSettings,
    NumberedStageSettings,
    PredictSettings,
    PretrainSettings,
    RefitSettings,
    StageSettings,
    StartSettings,
    TuneSettings,
)
from pipeline.settings.run import PLACE_KEYS, RUN_KEYS, THRESHOLD_KEYS, Settings
from pipeline.settings.search_space import tune_plan
from pipeline.system.progress import loading

if TYPE_CHECKING:
    from pipeline.runs.session import OnEpoch, Say

GATE_KEYS = tuple(key for key in THRESHOLD_KEYS if key.startswith("gate_"))
OF_STAGE_3 = (*GATE_KEYS, "enforce_gate")
"""What only a command that may train stage 3 reads."""
OF_CHILDREN = ("signal_confidence", "signal_spread_p")
"""Thresholds of signals that compare a run with its parent."""
NOT_FOR_ARMS = ("schedule", "reuse", "enforce_gate")
"""What `decide` and `compare` set themselves."""


def _study_keys(*left_out: str) -> tuple[str, ...]:
    return tuple(key for key in TuneSettings.model_fields if key not in left_out)


def _run_keys(*left_out: str) -> tuple[str, ...]:
    return tuple(key for key in RUN_KEYS if key not in left_out)


_OF_THE_RUN = "that of the run"
_NO_EFFECT = {1: ("reuse", *OF_CHILDREN, *OF_STAGE_3), 2: OF_STAGE_3}
"""Settings without an effect on a stage, by its number."""
_OF_STAGE = {1: "stage 1, from pretrained weights"}
_ROWS = (
    EntryPoint(
        name="start",
        help="look before you train: the data, what backbones are worth, costs, what to type",
        plan=start_plan,
        work="entries.start:start_entry",
        own=StartSettings,
        shared=(),
    ),
    EntryPoint(
        name="main",
        help="every stage of the schedule, and a run that sums them up",
        plan=main_plan,
        work="entries.chain:main_entry",
    ),
    *(
        EntryPoint(
            name=f"stage{number}",
            help=_OF_STAGE.get(number, f"stage {number}; missing parent stages are trained first"),
            plan=partial(stage_plan, number=number),
            work="entries.chain:stage_entry",
            own=StageSettings,
            silent=_NO_EFFECT.get(number, ()),
            trains=f"stage {number}",
            refused=("parent_run_id",) if number == 1 else (),
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
        defaults={"number": "none"},
    ),
    EntryPoint(
        name="tune",
        help="an Optuna study of each stage's settings, shared by any number of such commands",
        plan=tune_plan,
        work="tuning.work:tune_entry",
        own=TuneSettings,
        shared=("storage",),
    ),
    EntryPoint(
        name="decide",
        help="is stage 3 justified? paired runs, look by look, to a verdict and its report",
        plan=decide_plan,
        work="entries.decide:decide_entry",
        own=DecideSettings,
        shared=("storage",),
        study=_study_keys("stage", "space", "timeout"),
        run_keys=_run_keys(*NOT_FOR_ARMS),
        refused=NOT_FOR_ARMS,
        has_control=True,
    ),
    EntryPoint(
        name="compare",
        help="which schedule, on which backbone? paired draws at equal optimizer steps",
        plan=compare_plan,
        work="entries.compare:compare_entry",
        own=CompareSettings,
        shared=("storage", "tuned"),
        study=_study_keys("stage", "space", "timeout", "draws"),
        run_keys=_run_keys(*NOT_FOR_ARMS),
        silent=GATE_KEYS,
        refused=NOT_FOR_ARMS,
    ),
    EntryPoint(
        name="pretrain",
        help="weights of your own, trained from scratch on labelled images",
        plan=pretrain_plan,
        work="entries.pretrain:pretrain_entry",
        own=PretrainSettings,
        shared=(),
        run_keys=_run_keys(*FROM_SCRATCH),
        silent=(*OF_CHILDREN, *OF_STAGE_3),
        trains="the backbone",
        refused=tuple(FROM_SCRATCH),
        defaults={
            **{key: f"{value}, or that of the preset" for key, value in PRETRAIN_DEFAULTS.items()},
            **dict.fromkeys(("train_per_class", "val_per_class"), "from the smallest class"),
            **dict.fromkeys(("data", "preset"), "none"),
        },
    ),
    EntryPoint(
        name="blocks",
        help="the blocks of a network: what each stage of the schedule would release",
        plan=blocks_plan,
        work="entries.blocks:blocks_entry",
        own=BlocksSettings,
        shared=(),
        run_keys=("preset", "backbone", "blocks", "weights", "image_size", "schedule"),
        trains="",
    ),
    EntryPoint(
        name="clean",
        help="what caches and runs occupy on this disk, and removing what can be made again",
        plan=clean_plan,
        work="entries.clean:clean_entry",
        own=CleanSettings,
        shared=(),
        run_keys=("cache_dir",),
        trains="",
    ),
    EntryPoint(
        name="evaluate",
        help="accuracy of a finished stage run on the test split",
        plan=evaluate_plan,
        work="runs.scoring:evaluate_entry",
        own=EvaluateSettings,
        shared=(),
        run_keys=(*PLACE_KEYS, "device", "precision", "cache_dir", "cache_limit"),
        trains="",
        defaults=dict.fromkeys((*PLACE_KEYS, "precision"), _OF_THE_RUN),
    ),
    EntryPoint(
        name="refit",
        help="the recipe of a stage run or a decision, trained on all images: the model to use",
        plan=refit_plan,
        work="entries.refit:refit_entry",
        own=RefitSettings,
        shared=(),
        run_keys=(*PLACE_KEYS, "device", "precision", "cache_dir", "cache_limit", "reuse"),
        trains="",
        defaults=dict.fromkeys((*PLACE_KEYS, "precision"), _OF_THE_RUN),
    ),
    EntryPoint(
        name="predict",
        help="what a model says of pictures of yours: a CSV file and a short table",
        plan=predict_plan,
        work="entries.predict:predict_entry",
        own=PredictSettings,
        shared=(),
        run_keys=(),
        trains="",
    ),
    EntryPoint(
        name="app",
        help="a page on this machine: try the model on a picture, see what it looks at",
        plan=app_plan,
        work="app.serve:app_entry",
        own=AppSettings,
        shared=(),
        run_keys=(*PLACE_KEYS, "cache_dir"),
        trains="",
        defaults=dict.fromkeys(PLACE_KEYS, _OF_THE_RUN),
    ),
    EntryPoint(
        name="gate",
        help="has stage 3 been earned? read from finished stage-2 runs, or from result lines",
        plan=gate_plan,
        work="entries.gate:gate_entry",
        own=GateSettings,
        shared=(),
        run_keys=(*PLACE_KEYS, "cache_dir", *THRESHOLD_KEYS),
        silent=tuple(key for key in THRESHOLD_KEYS if key not in GATE_KEYS),
        trains="",
        defaults=dict.fromkeys(PLACE_KEYS, _OF_THE_RUN),
    ),
)
ENTRY_POINTS: Mapping[str, EntryPoint] = {row.name: row for row in _ROWS}


def settings_in(plan: object) -> list[Settings]:
    """The settings of all that a plan runs; none where a run hands its own down."""
    if isinstance(plan, Comparison):
        return [plan.treatment.settings, plan.control.settings]
    if isinstance(plan, Grid):
        return [arm.settings for arms in plan.arms.values() for arm in arms]
    settings = getattr(plan, "settings", plan)
    inherits = bool(getattr(plan, "parent_run_id", ""))
    return [settings] if isinstance(settings, Settings) and not inherits else []


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
    started, row = time.time(), ENTRY_POINTS[name]
    request = row.read(options)
    plan = row.plan(request)
    for line in row.idle(getattr(plan, "request", request), settings_in(plan)):
        say(line)
    shared = request.own_settings(CommandSettings)
    with loading("PyTorch", "torch"):
        from pipeline.runs.command import Command
        from pipeline.training.out_of_memory import explained

        work = resolve_name(f"pipeline.{row.work}")
    command = Command(
        request=request, **shared.model_dump(), say=say, on_epoch=on_epoch, started=started
    )
    with explained(row.offered):
        return work(command, plan)
