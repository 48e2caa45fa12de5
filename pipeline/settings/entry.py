"""What an entry point takes beside the settings of a run: how long to tune, what to compare."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, field_validator
from pydantic_core import PydanticCustomError

from pipeline.settings.run import (
    ObjectiveName,
    PathText,
    ScheduleText,
    ShareName,
    StrictModel,
    setting,
)
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

    storage: str = setting(
        "",
        "where studies are kept, an Optuna URL: sqlite:///, postgresql://, or "
        f"journal:/// before a file in a shared folder; empty: {STORAGE}, or optuna.db beside "
        "MLflow's database",
    )
    tuned: bool = setting(
        False,
        "take the best settings of the finished study; of compare: tune every arm "
        "first, on draws of its own (on/off)",
    )
    joins: str = setting("", "the run of another command, which this one takes part in")


class StageSettings(StrictModel):
    """Where a stage begins."""

    parent_run_id: RunId = setting(
        "", "the stage run to continue from; auto: found by content or trained"
    )


class NumberedStageSettings(StageSettings):
    """Which stage is run."""

    number: int = setting(0, "the stage of the schedule, from 1", ge=0)


class EvaluateSettings(StrictModel):
    """Which run is scored."""

    run_id: RunId = setting("", "the stage run to evaluate")


class GateSettings(StrictModel):
    """What the gate reads."""

    run_id: RunId = setting("", "a finished stage-2 run; siblings are found")
    lines: RunId = setting("", "or a file with the lines `Stage-k Best results`")


class TuneSettings(StrictModel):
    """How long and how a study looks for better settings."""

    stage: str = setting(
        "all", "number of the stage to tune; all: each from the best of the stage before"
    )
    n_trials: int = setting(20, "trials a study, of all processes", ge=1, le=100_000)
    timeout: float = setting(
        0, "seconds after which this command ends, finished or not; 0: never", ge=0
    )
    draws: int = setting(1, "draws that a trial is scored on, from `draw` on", ge=1, le=1000)
    objective: ObjectiveName = setting(
        DEFAULT_OBJECTIVE, "what a trial is judged by, as a mean over the draws"
    )
    margin: float = setting(
        2.0, "paired standard errors by which the best trial must beat the defaults", ge=0, le=100
    )
    space: str = setting(
        "", "your search space: a file, or a folder with stage1.yaml, stage2.yaml, ..."
    )
    workers: int = setting(1, "local processes that share the cores", ge=1, le=256)
    heartbeat: int = setting(
        15, "seconds; a worker silent for four times this is given up", ge=1, le=3600
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

    question: Literal["stage2", "stage3"] = setting(
        "stage3", "the stage that is compared with going on with the stage before"
    )
    treatment: ScheduleText = setting(
        "", "a schedule or a YAML file of a schedule, instead of the question's"
    )
    control: ScheduleText = setting(
        "", "schedule to compare the treatment with, at equal optimizer steps"
    )
    metric: ShareName = setting(DEFAULT_SHARE, "what of the test images the arms are compared by")
    rope_pp: float = setting(
        ROPE_PP, "gains up to this many percentage points are not worth the stage", ge=0, lt=100
    )
    looks: str = setting(",".join(map(str, LOOKS)), "pairs after which a verdict may be given")
    threshold: float = setting(
        THRESHOLD, "posterior probability that a verdict needs", gt=0.5, lt=1
    )
    sd_pp: float = setting(1.0, "spread of gains that the forecast assumes", gt=0, le=100)
    beside: int = setting(
        0, "pairs on which full and lp_ft are run as well, for show", ge=0, le=1000
    )
    tune: bool = setting(False, "tune both arms on draws of their own first (on/off)")
    register_as: str = setting(
        "", "name in the model registry; empty: from data and backbone; off: none"
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

    backbones: str = setting("", "names with commas between them; empty: the setting `backbone`")
    schedules: str = setting(
        "full,two_stage,three_stage,lp_ft", "names, or YAML files, with commas between them"
    )
    baseline: ScheduleText = setting(
        "full", "the schedule that differences are taken to; added if missing", min_length=1
    )
    draws: int = setting(10, "paired draws that every arm is run on", ge=2, le=1000)
    metric: ShareName = setting(DEFAULT_SHARE, "what of the test images the arms are compared by")
    rope_pp: float = setting(
        ROPE_PP, "differences up to this many percentage points do not count", ge=0, lt=100
    )
    tune_draws: int = setting(1, "draws that a trial is scored on, with tuned=on", ge=1, le=1000)


class BlocksSettings(StrictModel):
    """For how many classes the network is made."""

    classes: int = setting(10, "classes of the new head", ge=2, le=100_000)


class PretrainSettings(StrictModel):
    """Where pretrained weights are written."""

    out: PathText = setting("", "the .safetensors file to write")


def describe_field(key: str, model: type[BaseModel]) -> str:
    """One line of help for a setting: what it is, its choices."""
    info = model.model_fields[key]
    choices = get_args(info.annotation)
    suffix = f" [{', '.join(filter(None, map(str, choices)))}]" if choices else ""
    return f"{info.description}{suffix}"
