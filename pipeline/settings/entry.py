"""What an entry point takes beside the settings of a run: how long to tune, what to compare."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, field_validator
from pydantic_core import PydanticCustomError

from pipeline.settings.cluster import ClusterSettings
from pipeline.settings.fields import (
    ObjectiveName,
    PathText,
    ScheduleText,
    ShareName,
    StrictModel,
    setting,
)
from pipeline.stats.design import Design
from pipeline.stats.metrics import DEFAULT_OBJECTIVE, DEFAULT_SHARE

NAMED_STAGES = 3
"""Stages with entry points of their own, `stage1` to `stage3`; `stage` runs any."""
MOST_PAIRS = 1000
"""Of a decision; the forecast of many more would not fit into memory."""
REMOVABLE = ("cache", "trials", "failed")
"""What `clean` can remove: what can be computed, or trained, again."""
UNSET = ("", "auto", "none")
"""Words that stand for a setting that is not given; earlier versions of MLproject passed them."""
STORAGE = "OPTUNA_STORAGE"
"""Environment variable for `storage`, which Optuna's own command line knows, too. Other users of a
machine see the words of a command, a password among them, and not the command's environment."""

OptionalText = Annotated[str, BeforeValidator(lambda text: "" if text in UNSET else text)]
"""Text that is empty where a word of `UNSET` is given."""


class CommandSettings(StrictModel):
    """Settings of studies and workers, which several entry points share."""

    storage: str = setting(
        "",
        "where studies are kept, an Optuna URL: sqlite:///, postgresql://, or "
        f"journal:/// before a file in a shared folder; empty: {STORAGE}, or optuna.db beside "
        "MLflow's database",
    )
    tuned: bool = setting(
        False,
        "take the best settings of the finished study; of compare: tune every arm "
        "first, on draws that the comparison does not use, if there are any (on/off)",
    )


class StageSettings(StrictModel):
    """Where a stage begins."""

    parent_run_id: OptionalText = setting(
        "", "run to continue from, with the settings that it hands down; empty: found or trained"
    )


class NumberedStageSettings(StageSettings):
    """Which stage is run."""

    number: int = setting(0, "stage of the schedule, from 1; must be given", ge=0)


class EvaluateSettings(StrictModel):
    """Which run is scored."""

    run_id: OptionalText = setting("", "id of the finished stage run to evaluate; must be given")


class GateSettings(StrictModel):
    """What the gate reads."""

    run_id: OptionalText = setting("", "id of a finished stage-2 run; sibling runs are found")
    lines: OptionalText = setting(
        "", "instead of run_id: a file with the lines `Stage-k Best results`"
    )


class TuneSettings(ClusterSettings):
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
        DEFAULT_OBJECTIVE, "validation metric that a trial is judged by, as a mean over the draws"
    )
    margin: float = setting(
        2.0,
        "paired standard errors by which a single trial must beat the defaults; the best of many "
        "must lead by more, so that trials that are all alike lead as seldom; 0: by nothing",
        ge=0,
        le=100,
    )
    space: str = setting(
        "", "search space of your own: a file, or a folder with stage1.yaml, stage2.yaml, ..."
    )
    heartbeat: int = setting(
        15,
        "seconds between signs of life of a trial; after four without one it is given up",
        ge=1,
        le=3600,
    )

    @field_validator("stage")
    @classmethod
    def _is_a_number_or_all(cls, stage: str) -> str:
        if stage != "all" and not re.fullmatch("[1-9][0-9]{0,3}", stage):
            raise PydanticCustomError("stage", "must be all, or the number of a stage")
        return stage


def usable_name(text: str) -> str:
    """A name that the model registry takes and finds again: `im:ages` becomes `im-ages`."""
    return re.sub(r"^\W+", "", re.sub(r"[/:'?\t\n]", "-", text))


def _is_usable(name: str) -> str:
    if name != usable_name(name):
        raise PydanticCustomError(
            "name", "must begin with a letter or digit and hold none of / : ' ?"
        )
    return name


RegisteredName = Annotated[str, AfterValidator(_is_usable)]
REGISTER_AS = "name in the model registry; empty: from data and backbone"


class RefitSettings(StrictModel):
    """What is trained on all images, and on which."""

    run_id: OptionalText = setting(
        "", "id of a finished stage run, or of a decision; must be given"
    )
    refit: Literal["auto", "all", "draw"] = setting(
        "auto",
        "all: every image outside the test split; draw: training and validation images of the "
        "run's draw; auto: all, unless they are more than ten times those of the draw",
    )
    register_as: RegisteredName = setting("", f"{REGISTER_AS}; off: none")


class ModelSettings(StrictModel):
    """Which model is used."""

    run_id: OptionalText = setting("", "id of the run whose model is used; empty: see model")
    model: OptionalText = setting(
        "", "a model of the registry (models:/NAME@champion); empty: the only champion there is"
    )


class PredictSettings(ModelSettings):
    """What is predicted, and where the answers go."""

    images: PathText = setting(
        "", "folder, pattern ('shots/*.jpg') or file of pictures; must be given"
    )
    out: PathText = setting("predictions.csv", "the CSV file to write", min_length=1)


class AppSettings(ModelSettings):
    """Where the page is, and where pictures are kept."""

    port: int = setting(0, "port of the page on 127.0.0.1; 0: a free one", ge=0, le=65535)
    keep: PathText = setting(
        "collected",
        "folder, one folder a class, for pictures that are kept with their right label",
        min_length=1,
    )


class DecideSettings(StrictModel):
    """What a decision compares, and when there is enough evidence."""

    question: Literal["stage2", "stage3"] = setting(
        "stage3", "the stage that is compared with going on with the stage before"
    )
    treatment: ScheduleText = setting(
        "", "schedule, or YAML file of one, that is judged instead of the question's stage"
    )
    control: ScheduleText = setting(
        "",
        "schedule, or YAML file of one, to compare the treatment with, at equal optimizer steps",
    )
    metric: ShareName = setting(
        DEFAULT_SHARE, "metric of the test images by which the arms are compared"
    )
    rope_pp: float = setting(
        Design.rope_pp,
        "gains up to this many percentage points are not worth the stage",
        ge=0,
        lt=100,
    )
    looks: str = setting(
        ",".join(map(str, Design.looks)),
        "pairs after which a verdict may be given; a decision is continued with further numbers",
    )
    threshold: float = setting(
        Design.threshold,
        "posterior probability that a verdict needs after 5, 10, 20, 40, 80 or 160 pairs; after "
        "other numbers a fifth of the error is allowed",
        gt=0.5,
        lt=1,
    )
    seeds: int = setting(
        1, "seeds on each draw; a pair is then their mean, which costs as many runs", ge=1, le=100
    )
    sd_pp: float = setting(
        1.0, "spread of pairs' gains, beside chance, that the forecast assumes", gt=0, le=100
    )
    beside: int = setting(
        0,
        "pairs on which full and lp_ft are run as well; they do not count for the verdict",
        ge=0,
        le=1000,
    )
    tune: bool = setting(
        False, "tune both arms first, on draws that no pair uses, if there are any (on/off)"
    )
    register_as: RegisteredName = setting("", f"{REGISTER_AS}; off: none")
    refit: Literal["auto", "all", "draw", "off"] = setting(
        "auto",
        "train the recommended arm once more: on all images outside the test split, on training "
        "and validation images of the first draw (draw), or on all unless they are more than ten "
        "times those of a draw (auto); off: the model of the first pair is registered",
    )

    @field_validator("looks")
    @classmethod
    def _rise(cls, looks: str) -> str:
        parts = [part.strip() for part in looks.split(",")]
        numbers = [int(part) if re.fullmatch("[0-9]{1,9}", part) else 0 for part in parts]
        in_range = numbers[0] >= 2 and numbers[-1] <= MOST_PAIRS
        if not in_range or numbers != sorted(set(numbers)):
            raise PydanticCustomError(
                "looks",
                f"must be whole numbers of pairs, at least 2 and at most {MOST_PAIRS}, each "
                "larger than the one before (such as 5,10,20)",
            )
        return looks

    @property
    def design(self) -> Design:
        """What counts as a gain, and when there is enough evidence."""
        looks = tuple(map(int, self.looks.split(",")))
        return Design(rope_pp=self.rope_pp, looks=looks, threshold=self.threshold)


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
    metric: ShareName = setting(
        DEFAULT_SHARE, "metric of the test images by which the arms are compared"
    )
    rope_pp: float = setting(
        Design.rope_pp, "differences up to this many percentage points do not count", ge=0, lt=100
    )
    tune_draws: int = setting(1, "draws that a trial is scored on, with tuned=on", ge=1, le=1000)


class StartSettings(StrictModel):
    """Which backbones are tried."""

    backbones: str = setting(
        "", "names with commas between them; empty: every one whose weights are on this machine"
    )


class CleanSettings(StrictModel):
    """What is removed."""

    remove: str = setting(
        "", "cache, trials, failed, or several with commas between them; empty: nothing"
    )

    @field_validator("remove")
    @classmethod
    def _is_removable(cls, text: str) -> str:
        if not {part.strip() for part in text.split(",")} - {""} <= set(REMOVABLE):
            raise PydanticCustomError("remove", f"must be words out of {', '.join(REMOVABLE)}")
        return text


class BlocksSettings(StrictModel):
    """For how many classes the network is made."""

    classes: int = setting(10, "classes of the new head", ge=2, le=100_000)


class PretrainSettings(StrictModel):
    """Where pretrained weights are written."""

    out: PathText = setting("", "the .safetensors file to write; must be given")


_MODELS = [m for m in [*vars().values()] if isinstance(m, type) and issubclass(m, StrictModel)]
OF_ENTRY_POINTS = frozenset(key for model in _MODELS for key in model.model_fields)
"""Every setting that some entry point has for itself: what the models of this file hold."""
