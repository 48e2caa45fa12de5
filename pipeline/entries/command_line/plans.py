"""Plans of entry points, made before anything slow is imported and before anything is written.

In: a `Request`. Out: a plan, or a `SettingsError`. Pure functions. Larger plans stand beside
what they are made of: `tune_plan` in `search_space.py`, `decide_plan` in `arms.py`, `compare_plan`
in `grid.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.errors import GateError, SettingsError
from pipeline.settings.entry import (
    AppSettings,
    BlocksSettings,
    CleanSettings,
    EvaluateSettings,
    GateSettings,
    NumberedStageSettings,
    PredictSettings,
    PretrainSettings,
    RefitSettings,
    StageSettings,
    StartSettings,
)
from pipeline.settings.fields import AUTO
from pipeline.settings.request import Request
from pipeline.settings.run import Settings

FROM_SCRATCH = {"schedule": "full", "weights": "none", "norm_stats": "source"}
"""Settings that make a run a pretraining; other values are refused."""
PRETRAIN_DEFAULTS = {
    "image_size": "64",
    "augment": "strong",
    "epochs": "30",
    "lr": "1e-3",
    "weight_decay": "0.05",
    "views": "0",
}
"""Values that suit random weights, where no preset and no option sets another."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage.

    Attributes:
        request: plain training settings are for this stage.
        settings: without what a given parent run hands down.
        parent_run_id: empty: the parent is found or trained.
    """

    number: int
    request: Request
    settings: Settings
    parent_run_id: str


@dataclass(frozen=True, kw_only=True)
class PretrainPlan:
    """A backbone from random weights.

    Attributes:
        out: the file that the weights are written to.
        has_train_size: `train_per_class` is given.
        has_val_size: `val_per_class` is given.
    """

    out: str
    settings: Settings
    has_train_size: bool
    has_val_size: bool


def main_plan(request: Request) -> Settings:
    """The settings of every stage.

    Raises:
        SettingsError: a wrong setting.
    """
    return request.settings()


@dataclass(frozen=True)
class StartPlan:
    """The images, and the backbones that are tried on them; none: those that are here."""

    settings: Settings
    backbones: tuple[str, ...]


def start_plan(request: Request) -> StartPlan:
    """The plan behind a request.

    Raises:
        SettingsError: a wrong setting, or a backbone that nobody knows.
    """
    text = request.own_settings(StartSettings).backbones
    names = tuple(filter(None, (name.strip() for name in text.split(","))))
    for name in names:
        request.settings(backbone=name)
    return StartPlan(request.settings(), tuple(dict.fromkeys(names)))


@dataclass(frozen=True)
class CleanPlan:
    """What is removed, words out of `REMOVABLE`; the settings name the cache's folder."""

    settings: Settings
    remove: frozenset[str]


def clean_plan(request: Request) -> CleanPlan:
    """The plan behind a request.

    Raises:
        SettingsError: something that cannot be removed.
    """
    text = request.own_settings(CleanSettings).remove
    words = frozenset(filter(None, (word.strip() for word in text.split(","))))
    return CleanPlan(request.settings(), words)


def stage_plan(request: Request, number: int = 0) -> StagePlan:
    """The plan of stage `number`; 0: of the request's own `number`.

    Where a parent run is given, the parent's schedule decides later whether there is such a stage.

    Raises:
        SettingsError: a wrong setting, no such stage, or a parent of the first stage.
    """
    model = StageSettings if number else NumberedStageSettings
    own = request.own_settings(model)
    if isinstance(own, NumberedStageSettings):
        number = own.number
    if not number:
        raise SettingsError("number is not given: pass -P number=<a stage of the schedule>")
    if number == 1 and own.parent_run_id:
        raise SettingsError(
            f"parent_run_id={own.parent_run_id}: stage 1 starts from pretrained weights: leave "
            "parent_run_id out"
        )
    targeted = request.for_stage(number)
    return StagePlan(
        number=number,
        request=targeted,
        settings=request.settings() if own.parent_run_id else targeted.settings(),
        parent_run_id=own.parent_run_id,
    )


def evaluate_plan(request: Request) -> EvaluateSettings:
    """The run to score, which hands its settings down.

    Raises:
        SettingsError: a wrong setting, or no run.
    """
    request.check()
    own = request.own_settings(EvaluateSettings)
    if not own.run_id:
        raise SettingsError("run_id is not given: pass -P run_id=<a finished stage run>")
    return own


def refit_plan(request: Request) -> RefitSettings:
    """The run whose recipe is trained on all images.

    Raises:
        SettingsError: a wrong setting, or no run.
    """
    request.check()
    own = request.own_settings(RefitSettings)
    if not own.run_id:
        raise SettingsError(
            "run_id is not given: pass -P run_id=<a finished stage run, or a decision>"
        )
    return own


def predict_plan(request: Request) -> PredictSettings:
    """The pictures and the model.

    Raises:
        SettingsError: a wrong setting, or no pictures.
    """
    own = request.own_settings(PredictSettings)
    if not own.images:
        raise SettingsError("images is not given: pass -P images=<a folder, pattern or file>")
    return own


def app_plan(request: Request) -> AppSettings:
    """The model, the page and the folder for pictures.

    Raises:
        SettingsError: a wrong setting.
    """
    request.check()
    return request.own_settings(AppSettings)


def gate_plan(request: Request) -> GateSettings:
    """The run, or the file of lines, that the gate reads.

    Raises:
        SettingsError: a threshold out of range.
        GateError: neither a run nor lines, or both.
    """
    request.check()
    own = request.own_settings(GateSettings)
    if bool(own.lines) != bool(own.run_id):
        return own
    if own.lines:
        raise GateError(
            f"gate takes run_id or lines, got both ({own.run_id}, {own.lines}): leave one out"
        )
    raise GateError(
        "gate needs run_id or lines, got neither: pass -P run_id=<a finished stage-2 run> or "
        "-P lines=<a file with the result lines of stages 1 and 2>"
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
    return PretrainPlan(
        out=own.out,
        settings=full.settings(),
        has_train_size=general.get("train_per_class", AUTO) != AUTO,
        has_val_size=general.get("val_per_class", AUTO) != AUTO,
    )


@dataclass(frozen=True)
class BlocksPlan:
    """Which network, for how many classes; `misfit`: why the usual schedule is not for it."""

    settings: Settings
    classes: int
    misfit: str = ""


def blocks_plan(request: Request) -> BlocksPlan:
    """The plan behind a request.

    Raises:
        SettingsError: a wrong setting.
    """
    classes = request.own_settings(BlocksSettings).classes
    try:
        return BlocksPlan(request.settings(), classes)
    except SettingsError as err:
        if "schedule" in request.general:
            raise
        try:  # the table says which blocks a schedule could name
            return BlocksPlan(request.settings(schedule="head_only"), classes, str(err))
        except SettingsError:
            raise err from None
