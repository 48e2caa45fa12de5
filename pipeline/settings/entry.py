"""What an entry point takes beside the settings of a run: how long to tune, what to compare."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from pipeline.settings.run import ObjectiveName, ScheduleText, ShareName, StrictModel
from pipeline.stats.design import LOOKS, ROPE_PP, THRESHOLD, Design
from pipeline.stats.metrics import DEFAULT_OBJECTIVE, DEFAULT_SHARE

NAMED_STAGES = 3
"""Stages with entry points of their own, `stage1` to `stage3`; `stage` runs any."""
UNSET = ("", "auto", "none")
"""What MLproject passes for a parameter that was not given."""
STORAGE = "OPTUNA_STORAGE"
"""Environment variable for `storage`, which Optuna's own command line knows too. Other users of a
machine see the words of a command, passwords among them, and not its environment."""

RunId = Annotated[str, BeforeValidator(lambda text: "" if text in UNSET else text)]
"""The id of a run, or a file, that MLproject may pass as not given."""


class CommandSettings(StrictModel):
    """What several entry points take, whatever they do."""

    storage: str = Field(
        "",
        description="where studies are kept, an Optuna URL: sqlite:///, postgresql://, or "
        f"journal:/// before a file in a shared folder; empty: {STORAGE}, or optuna.db beside "
        "MLflow's database",
    )
    tuned: bool = Field(
        False,
        description="take the best settings of the finished study; of compare: tune every arm "
        "first, on draws of its own (on/off)",
    )
    joins: str = Field("", description="the run of another command, which this one takes part in")


class StageSettings(StrictModel):
    """Where a stage begins."""

    parent_run_id: RunId = Field(
        "", description="the stage run to continue from; auto: found by content or trained"
    )


class NumberedStageSettings(StageSettings):
    """Which stage is run."""

    number: int = Field(0, ge=0, description="the stage of the schedule, from 1")


class EvaluateSettings(StrictModel):
    """Which run is scored."""

    run_id: RunId = Field("", description="the stage run to evaluate")


class GateSettings(StrictModel):
    """What the gate reads."""

    run_id: RunId = Field("", description="a finished stage-2 run; siblings are found")
    lines: RunId = Field("", description="or a file with the lines `Stage-k Best results`")


class TuneSettings(StrictModel):
    """How long and how a study looks for better settings."""

    stage: str = Field(
        "all",
        description="number of the stage to tune; all: each from the best of the stage before",
    )
    n_trials: int = Field(20, ge=1, le=100_000, description="trials a study, of all processes")
    timeout: float = Field(
        0, ge=0, description="seconds after which this command ends, finished or not; 0: never"
    )
    draws: int = Field(
        1, ge=1, le=1000, description="draws that a trial is scored on, from `draw` on"
    )
    objective: ObjectiveName = Field(
        DEFAULT_OBJECTIVE, description="what a trial is judged by, as a mean over the draws"
    )
    margin: float = Field(
        2.0,
        ge=0,
        le=100,
        description="paired standard errors by which the best trial must beat the defaults",
    )
    space: str = Field(
        "", description="your search space: a file, or a folder with stage1.yaml, stage2.yaml, ..."
    )
    workers: int = Field(1, ge=1, le=256, description="local processes that share the cores")
    heartbeat: int = Field(
        15, ge=1, le=3600, description="seconds; a worker silent for four times this is given up"
    )

    @field_validator("stage")
    @classmethod
    def _is_a_number_or_all(cls, stage: str) -> str:
        if stage != "all" and not re.fullmatch("[1-9][0-9]{0,3}", stage):
            raise PydanticCustomError("stage", "must be all, or the number of a stage")
        return stage


def usable_name(text: str) -> str:
    """The text as a name that the model registry takes and finds again: `im:ages` is `im-ages`."""
    return re.sub(r"^\W+", "", re.sub(r"[/:'?\t\n]", "-", text))


class DecideSettings(StrictModel):
    """What a decision compares, and when there is enough evidence."""

    question: Literal["stage2", "stage3"] = Field(
        "stage3", description="the stage that is compared with going on with the stage before"
    )
    treatment: ScheduleText = Field(
        "", description="a schedule or a YAML file of a schedule, instead of the question's"
    )
    control: ScheduleText = Field(
        "", description="schedule to compare the treatment with, at equal optimizer steps"
    )
    metric: ShareName = Field(
        DEFAULT_SHARE, description="what of the test images the arms are compared by"
    )
    rope_pp: float = Field(
        ROPE_PP,
        ge=0,
        lt=100,
        description="gains up to this many percentage points are not worth the stage",
    )
    looks: str = Field(
        ",".join(map(str, LOOKS)), description="pairs after which a verdict may be given"
    )
    threshold: float = Field(
        THRESHOLD, gt=0.5, lt=1, description="posterior probability that a verdict needs"
    )
    sd_pp: float = Field(
        1.0, gt=0, le=100, description="spread of gains that the forecast assumes"
    )
    beside: int = Field(
        0, ge=0, le=1000, description="pairs on which full and lp_ft are run as well, for show"
    )
    tune: bool = Field(False, description="tune both arms on draws of their own first (on/off)")
    register_as: str = Field(
        "", description="name in the model registry; empty: from data and backbone; off: none"
    )

    @field_validator("register_as")
    @classmethod
    def _is_usable(cls, name: str) -> str:
        if name != usable_name(name):
            raise PydanticCustomError(
                "name", "must begin with a letter or digit and hold none of / : ' ?"
            )
        return name

    @field_validator("looks")
    @classmethod
    def _rise(cls, looks: str) -> str:
        parts = [part.strip() for part in looks.split(",")]
        numbers = [int(part) if re.fullmatch("[0-9]{1,9}", part) else 0 for part in parts]
        if numbers[0] < 2 or numbers != sorted(set(numbers)):
            raise PydanticCustomError(
                "looks",
                "must be whole numbers of pairs, at least 2, each larger than the one before "
                "(such as 5,10,20)",
            )
        return looks

    @property
    def design(self) -> Design:
        """What counts as a gain, and when there is enough evidence."""
        return Design(self.rope_pp, tuple(map(int, self.looks.split(","))), self.threshold)


class CompareSettings(StrictModel):
    """Which backbones and schedules are compared, and on how many draws."""

    backbones: str = Field(
        "", description="names with commas between them; empty: the one that `backbone` says"
    )
    schedules: str = Field(
        "full,two_stage,three_stage,lp_ft",
        description="names, or YAML files, with commas between them",
    )
    baseline: ScheduleText = Field(
        "full",
        min_length=1,
        description="the schedule that differences are taken to; added if missing",
    )
    draws: int = Field(10, ge=2, le=1000, description="paired draws that every arm is run on")
    metric: ShareName = Field(
        DEFAULT_SHARE, description="what of the test images the arms are compared by"
    )
    rope_pp: float = Field(
        ROPE_PP,
        ge=0,
        lt=100,
        description="differences up to this many percentage points do not count",
    )
    tune_draws: int = Field(
        1, ge=1, le=1000, description="draws that a trial is scored on, with tuned=on"
    )


class PretrainSettings(StrictModel):
    """Where pretrained weights are written."""

    out: str = Field("", description="the .safetensors file to write")


def describe_field(key: str, model: type[BaseModel]) -> str:
    """One line of help for a setting: what it is, its choices."""
    info = model.model_fields[key]
    choices = get_args(info.annotation)
    suffix = f" [{', '.join(filter(None, map(str, choices)))}]" if choices else ""
    return f"{info.description}{suffix}"
