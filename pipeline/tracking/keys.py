"""Names of the tags and metrics that are read back, or that more than one module writes.

A metric `m` of `stats.metrics.METRICS` is logged by epoch as `m/val` (accuracy and loss) or as
`more/val_m`, at the selected epoch as `selected/val_m`, and on the test split as `test/m`. Where
several stages or draws share a run its name follows theirs: `stage2/val_m`, `draw0/val_m`.
MLflow's pages sort groups of charts by name: `acc/train`, `acc/val`, `loss/train` and `loss/val`
come first and together, what blocks did comes last.

Runs of earlier versions have other names (`train/acc`, `best/val_acc`, `drift/head`): `current`
turns them into those of today where runs are read. Tags that no person looks for are stored with
`z.` before their name, fewer of them in earlier versions.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence

from pipeline.stats.metrics import METRICS

Tags = Mapping[str, str]
"""Values by the names of tags."""
NAME, NOTE, NESTED_UNDER = "mlflow.runName", "mlflow.note.content", "mlflow.parentRunId"
"""MLflow's own tags: a run's name, description, and the run that pages show a run under."""
KIND, FAILURE, GIT_COMMIT = "kind", "failure", "git_commit"
"""Of every run: `stage`, `study`, ...; the reason of its end; the code that made the run."""

STAGE, SCHEDULE, TRAINS, DRAW, SEED = "stage", "schedule", "trains", "draw", "seed"
PRECISION, SETTINGS = "precision", "settings"
"""Of a stage run: the precision that was computed in; all settings, as JSON."""
DATA, DATA_SHA256, POOL = "data", "data_sha256", "pool_sha256"
"""The data set's name, the digest of the draw, and of what the draw was dealt from."""
TEST_AS_STORED = "test_stored_sha256"
"""The test split's files as they were when a stage was trained."""
TEST_SHA256, TEST_PRECISION = "test_sha256", "test_precision"
"""What the metrics `test/...` were measured on, and how."""
MADE_WITH = "made_with"
"""Versions of libraries and the device that computed a stage run, or all runs of a decision."""
LINEAGE_KEY, RECIPE_KEY = "lineage_key", "recipe_key"
WEIGHTS_SHA256, CHECKPOINT_SHA256, MODEL_URI = "weights_sha256", "checkpoint_sha256", "model_uri"
NETWORK_SHA256 = "network_sha256"
"""Of a factory's source files and of blocks that a person chose; absent where there are none."""
PARENT_RUN_ID, PARENT_CHECKPOINT_SHA256 = "parent_run_id", "parent_checkpoint_sha256"
NO_PARENT = "none"
"""The value of both at a chain's first stage."""
DIVERGED = "diverged"
"""Of a stage run whose loss was no number in some epoch."""
TICKET = "owner.ticket"
"""Of a stage run: the lowest goes first where several train the same (`ownership/turns.py`)."""
IS_TRIAL, COMPLETED = "is_trial", "completed"
"""Of a trial's stage run: made without pictures; has been given its pictures since."""
WITHOUT_PICTURES = "without_pictures"
"""Of a stage run made with `log_pictures=off`."""
NORM_STATS_REASON = "norm_stats_reason"
"""Why `norm_stats=auto` came to its value, in this stage or before; absent: a value was given."""
WHERE_THEY_APPLY = frozenset(
    {
        *(NETWORK_SHA256, TEST_AS_STORED, IS_TRIAL, WITHOUT_PICTURES),
        *(NORM_STATS_REASON, "kernels", "tuned_by"),
    }
)
"""Tags that a stage run begins with only where they have something to say."""

SIGNAL_TAGS, SIGNAL_METRICS = "signal.", "signal/"
GATE_PRIOR, GATE_GAINS = "gate.prior", "gate.consistent_gains"
STUDY, TRIAL = "study", "trial"
VERDICT, VERDICT_QUESTION, VERDICT_PAIRS = "verdict", "verdict.question", "verdict.pairs"
DECISION_RUN_ID = "decision_run_id"
REFIT = "refit"
"""The kind of a run on training and validation images together: nobody's evidence or sibling."""
CHAMPION_RUN_ID = "champion_run_id"
"""Of a decision: the run whose model was registered."""
COMPARED_RUN_ID = "compared_run_id"
"""Of a refit: a stage run whose chain shows what the verdict is about, stage after stage."""

_MORE = "more/"


def by_epoch(metric: str, side: str) -> str:
    """Under which name a metric's value on a side, `train` or `val`, is logged by epoch."""
    return f"{metric}/{side}" if metric in ("acc", "loss") else f"{_MORE}{side}_{metric}"


TRAIN_LOSS, TRAIN_ACC = "loss/train", "acc/train"
"""Running averages over the batches of an epoch."""
VAL_LOSS, VAL_ACC = "loss/val", "acc/val"
CURVES = (TRAIN_LOSS, TRAIN_ACC, VAL_LOSS, VAL_ACC)
VAL = {name: by_epoch(name, "val") for name in METRICS}
TEST = {name: f"test/{name}" for name in METRICS}
EPOCH_METRICS = (TRAIN_LOSS, TRAIN_ACC, *VAL.values())
"""What a finished run repeats at its selected epoch, by `at_best`."""

TRAIN_S, VAL_S, RISKS_S = "time/train_s", "time/val_s", "time/risks_s"
"""Seconds that an epoch spent on training, on validation and on measuring risks."""
SELECTED_EPOCH = "selected/epoch"
RISKS = "risk/"
"""Before the names of what blocks did by epoch, and of gaps: `risk/drift/head`."""
TRAINABLE = "parameters/trainable"
TOTAL_S, PREFIX_S = "time/total_s", "time/prefix_s"
PEAK_MIB = "memory/peak_mib"
PARENT_VAL_ACC = f"{SIGNAL_METRICS}parent_val_acc"
STAGE0 = "stage0/"
"""Of the metrics of stage 0: `stage0/logreg_val_acc`, ..., and what was chosen."""
NEAR_DUPLICATES = {part: f"near_duplicates/{part}" for part in ("val", "test")}
"""Images of a part that look like images of another, by part."""
COPIES_OF_POOL, SEEN_IN_TRAINING = "test/copies_of_pool", "test/seen_in_training"
"""Test images that are copies of images in the pool; of these, those that the run has met."""


FOR_PROGRAMS = frozenset(
    {
        *(GIT_COMMIT, SETTINGS, PRECISION, DATA_SHA256, POOL, TEST_AS_STORED, TEST_SHA256),
        *(TEST_PRECISION, MADE_WITH, WEIGHTS_SHA256, CHECKPOINT_SHA256, NETWORK_SHA256),
        *(PARENT_CHECKPOINT_SHA256, IS_TRIAL, COMPLETED, VERDICT_QUESTION),
        WITHOUT_PICTURES,
        *("frozen_sha256", "weights_report", "norm_stats", NORM_STATS_REASON, "kernels"),
        *("preset", "backbone", "weights", "storage_place"),
        *(LINEAGE_KEY, RECIPE_KEY, DATA, TRAINS, DECISION_RUN_ID, CHAMPION_RUN_ID),
        *(COMPARED_RUN_ID, "best_trial_run_id", "chosen_trial_run_id", "tuned_by"),
        *("owner.machine", "owner.process", "owner.pid_namespace", "owner.process_started"),
        *("owner.beat", TICKET),
    }
)
"""Tags that are stored behind all others, so that at most 15 of a run are for people."""
_FOR_PROGRAMS = re.compile(r"verdict\..+|gate\.(?!prior).+|chosen\..+|run\..+|draw\d+_run_id")
"""More of these: a run's description tells them in words."""
_REFUSED = re.compile(r"[^/\w.\- :]")
"""What MLflow takes in no metric's name."""
_LONGEST = 180
"""Letters of a name's ending; MLflow takes 250 for the whole name."""
_BEHIND = "z."
_SIDES = ("train", "val")
_FORMER_NEAR_DUPLICATES = "data/near_duplicates_"
_FORMER_RISKS = ("gap/", "drift/", "cka/", "grad_norm/", "grad_relative/")


def is_for_programs(name: str) -> bool:
    """Whether no person looks for a tag."""
    return name in FOR_PROGRAMS or _FOR_PROGRAMS.fullmatch(name) is not None


def stored_tag(name: str) -> str:
    """The name under which a tag is stored."""
    return f"{_BEHIND}{name}" if is_for_programs(name) else name


def tags_as_named(stored: Mapping[str, str]) -> dict[str, str]:
    """A run's tags by their names here; what stands under today's name counts."""
    moved = {k.removeprefix(_BEHIND): v for k, v in stored.items() if k.startswith(_BEHIND)}
    return {k: v for k, v in stored.items() if not k.startswith(_BEHIND)} | moved


def current(metric: str) -> str:
    """Today's name of a metric, given that or the name that it had in earlier versions."""
    group, _, rest = metric.partition("/")
    if group in METRICS and rest == "val":
        return VAL[group]
    if group in _SIDES:
        return by_epoch(rest, group)
    if metric.startswith(_FORMER_NEAR_DUPLICATES):
        return f"near_duplicates/{metric.removeprefix(_FORMER_NEAR_DUPLICATES)}"
    if group == "best" and rest.partition("_")[0] in ("epoch", *_SIDES):
        return f"selected/{rest}"
    return f"{RISKS}{metric}" if metric.startswith(_FORMER_RISKS) else metric


def former(metric: str) -> tuple[str, ...]:
    """The names that a metric by epoch had in earlier versions, the latest first."""
    if metric.startswith(_MORE):
        side, _, name = metric.removeprefix(_MORE).partition("_")
        return f"{name}/{side}", f"{side}/{name}"
    group, _, side = metric.partition("/")
    if side in _SIDES:
        return (f"{side}/{group}",)
    return (metric.removeprefix(RISKS),) if metric.startswith(RISKS) else ()


def flat(name: str) -> str:
    """A metric's name within a name or a table: `acc/val` is `val_acc`, `test/acc` `test_acc`."""
    if name.startswith(_MORE):
        return name.removeprefix(_MORE)
    first, _, second = name.partition("/")
    return f"{second}_{first}" if second in _SIDES else f"{first}_{second}"


def endings(names: Sequence[str]) -> list[str]:
    """What the names of metrics end with, of each of these: in MLflow's letters, no two alike.

    Brackets are left out, other letters become `-`; of names that then are alike, the second ends
    with 2. Long names lose their ends.
    """
    plain = [_REFUSED.sub("-", re.sub("[()]", "", name))[:_LONGEST] for name in names]
    before = [plain[:number].count(name) for number, name in enumerate(plain)]
    return [f"{name} {n + 1}" if n else name for name, n in zip(plain, before, strict=True)]


def draw_run_id(draw: int) -> str:
    """The tag in which a trial names its stage run on a draw."""
    return f"draw{draw}_run_id"


def as_logged(value: float) -> float:
    """A metric's value: for infinity, MLflow's databases hold the largest number there is."""
    return math.copysign(math.inf, value) if abs(value) == sys.float_info.max else value


def at_best(name: str) -> str:
    """The name of a metric at the selected epoch."""
    return f"selected/{flat(name)}"
