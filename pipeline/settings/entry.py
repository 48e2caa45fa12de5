"""What single entry points take beside the settings of a run: how long to tune, what to compare.

Unknown keys are refused, as in `run.py`.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from pipeline.settings.run import STRICT, ObjectiveName, PathText, ScheduleText, ShareName
from pipeline.stats.design import LOOKS, ROPE_PP, THRESHOLD, Design, parse_looks
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


class CommandSettings(BaseModel):
    """What several entry points take, whatever they do."""

    model_config = STRICT

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


class StageSettings(BaseModel):
    """Where a stage begins."""

    model_config = STRICT

    parent_run_id: RunId = Field(
        "", description="the stage run to continue from; auto: found by content or trained"
    )


class NumberedStageSettings(StageSettings):
    """Which stage it is."""

    number: int = Field(0, ge=0, description="the stage of the schedule, from 1")


class EvaluateSettings(BaseModel):
    """Which run is scored."""

    model_config = STRICT

    run_id: RunId = Field("", description="the stage run to evaluate")


class GateSettings(BaseModel):
    """What the gate reads."""

    model_config = STRICT

    run_id: RunId = Field("", description="a finished stage-2 run; siblings are found")
    lines: RunId = Field("", description="or a file with the lines `Stage-k Best results`")


class TuneSettings(BaseModel):
    """How long and how a study looks for better settings."""

    model_config = STRICT

    stage: str = Field(
        "all",
        description="the number of the stage to tune; all: each from the best of the one before",
    )
    n_trials: int = Field(20, ge=1, le=100_000, description="trials a study, whoever runs them")
    timeout: float = Field(
        0, ge=0, description="seconds after which this command ends, study or no; 0: never"
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
        15, ge=1, le=3600, description="seconds; a worker silent for four times that is given up"
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


class DecideSettings(BaseModel):
    """What a decision compares, and when there is enough evidence."""

    model_config = STRICT

    question: Literal["stage2", "stage3"] = Field(
        "stage3", description="is that stage justified over going on with the one before?"
    )
    treatment: ScheduleText = Field(
        "", description="any schedule, or a YAML file of one, instead of the question's"
    )
    control: ScheduleText = Field(
        "", description="the schedule it is held against, at equal optimizer steps"
    )
    metric: ShareName = Field(
        DEFAULT_SHARE, description="what of the test images the arms are compared by"
    )
    rope_pp: float = Field(
        ROPE_PP, description="gains up to this many percentage points are not worth it"
    )
    looks: str = Field(
        ",".join(map(str, LOOKS)), description="numbers of pairs after which a verdict may fall"
    )
    threshold: float = Field(THRESHOLD, description="posterior probability at which it falls")
    sd_pp: float = Field(
        1.0, gt=0, le=100, description="spread of gains assumed in what is printed beforehand"
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

    @property
    def design(self) -> Design:
        """What counts as a gain, and when there is enough evidence.

        Raises:
            DesignError: a value that cannot be used.
        """
        return Design(self.rope_pp, parse_looks(self.looks), self.threshold)

    @model_validator(mode="after")
    def _has_a_design(self) -> DecideSettings:
        _ = self.design
        return self


class CompareSettings(BaseModel):
    """Which backbones and schedules are compared, and on how many draws."""

    model_config = STRICT

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
        description="the schedule that differences are taken to; added if it is missing",
    )
    draws: int = Field(10, ge=2, le=1000, description="paired draws that every arm is run on")
    metric: ShareName = Field(
        DEFAULT_SHARE, description="what of the test images the arms are compared by"
    )
    rope_pp: float = Field(
        ROPE_PP, description="differences up to this many percentage points do not count"
    )
    tune_draws: int = Field(
        1, ge=1, le=1000, description="draws that a trial is scored on, with tuned=on"
    )

    @field_validator("rope_pp")
    @classmethod
    def _is_of_a_design(cls, rope_pp: float) -> float:
        return Design(rope_pp).rope_pp


class PretrainSettings(BaseModel):
    """Where pretrained weights are written."""

    model_config = STRICT

    out: PathText = Field("", description="the .safetensors file to write")


def describe_field(key: str, model: type[BaseModel]) -> str:
    """One line of help for a setting: what it is, its choices."""
    info = model.model_fields[key]
    choices = get_args(info.annotation)
    suffix = f" [{', '.join(filter(None, map(str, choices)))}]" if choices else ""
    return f"{info.description}{suffix}"
