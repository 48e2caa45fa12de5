"""What entry points are asked for, understood before anything slow is imported.

In: a `Request`. Out: a plan, or a `SettingsError`. Pure functions. Entry points with larger plans
have these beside what they mean: `search_space.py`, `arms.py`, `grid.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.errors import GateError, SettingsError
from pipeline.settings.entry import (
    BlocksSettings,
    EvaluateSettings,
    GateSettings,
    NumberedStageSettings,
    PretrainSettings,
    StageSettings,
)
from pipeline.settings.request import Request
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
"""What random weights want, where no preset and no option sets another value."""


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        request: plain training settings are for this stage.
        settings: before a parent run hands its own down.
        parent_run_id: empty: the parent is found or trained.
    """

    number: int
    request: Request
    settings: Settings
    parent_run_id: str


@dataclass(frozen=True)
class PretrainPlan:
    """`sized`, `val_sized`: the number of images a class to train, to validate on, is given."""

    out: str
    settings: Settings
    sized: bool
    val_sized: bool


def stage_plan(request: Request, number: int = 0) -> StagePlan:
    """The plan of stage `number`; 0: of the request's own `number`.

    Where a parent run is given, its schedule decides later whether there is such a stage.

    Raises:
        SettingsError: a wrong setting, or no such stage.
    """
    model = StageSettings if number else NumberedStageSettings
    own = request.own_settings(model)
    if isinstance(own, NumberedStageSettings):
        number = own.number
    if not number:
        raise SettingsError("number is not given: pass -P number=<a stage of the schedule>")
    targeted = request.for_stage(number)
    settings = request.settings() if own.parent_run_id else targeted.settings()
    return StagePlan(number, targeted, settings, own.parent_run_id)


def evaluate_plan(request: Request) -> EvaluateSettings:
    """Which run is scored; the run itself hands its settings down.

    Raises:
        SettingsError: a wrong setting, or no run.
    """
    request.settings()
    own = request.own_settings(EvaluateSettings)
    if not own.run_id:
        raise SettingsError("run_id is not given: pass -P run_id=<a finished stage run>")
    return own


def gate_plan(request: Request) -> GateSettings:
    """What the gate reads.

    Raises:
        SettingsError: a threshold out of range.
        GateError: neither a run nor lines, or both.
    """
    request.settings()
    own = request.own_settings(GateSettings)
    if bool(own.lines) != bool(own.run_id):
        return own
    if own.lines:
        raise GateError(
            f"gate takes run_id or lines, got both ({own.run_id}, {own.lines}): leave one out"
        )
    raise GateError(
        "gate needs -P run_id=<a finished stage-2 run> or -P lines=<a file with the result lines "
        "of stages 1 and 2>"
    )


def pretrain_plan(request: Request) -> PretrainPlan:
    """The settings of a run from random weights, and where its weights go.

    Raises:
        SettingsError: a wrong setting, or one that would not be pretraining.
    """
    own = request.own_settings(PretrainSettings)
    if not own.out.endswith(".safetensors"):
        fault = f"out={own.out} does not end in .safetensors" if own.out else "out is not given"
        raise SettingsError(f"{fault}: say where the weights go: pass -P out=<path>.safetensors")
    general = request.general
    for key, value in FROM_SCRATCH.items():
        if general.get(key, value) != value:
            raise SettingsError(
                f"{key}={general[key]}: pretraining means {key}={value}: leave it out"
            )
    if "data" not in general:
        raise SettingsError(
            "data is not given: pass -P data=<labelled images of your domain> to pretrain on"
        )
    defaults = {} if "preset" in general else PRETRAIN_DEFAULTS
    by_hand = {*general, *request.explicit_keys(1)}
    left = {key: value for key, value in defaults.items() if key not in by_hand}
    full = replace(request, options={**left, **request.options, **FROM_SCRATCH})
    sized = "train_per_class" in general, "val_per_class" in general
    return PretrainPlan(own.out, full.settings(), *sized)


@dataclass(frozen=True)
class BlocksPlan:
    """Which network, for how many classes."""

    settings: Settings
    classes: int


def blocks_plan(request: Request) -> BlocksPlan:
    """The plan behind a request.

    Raises:
        SettingsError: a wrong setting.
    """
    return BlocksPlan(request.settings(), request.own_settings(BlocksSettings).classes)
