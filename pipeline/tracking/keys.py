"""Names of the tags and metrics that are read back, or that more than one module writes.

A metric `m` of `stats.metrics.METRICS` is logged by epoch as `val/m`, at the selected epoch as
`best/val_m`, and on the test split as `test/m`. Where several stages or draws share a run its name
follows theirs: `stage2/val_m`, `draw0/val_m`.
"""

from __future__ import annotations

from pipeline.stats.metrics import METRICS

NOTE, NESTED_UNDER = "mlflow.note.content", "mlflow.parentRunId"
"""MLflow's own tags: a run's description, and the run that MLflow's pages show a run under."""
KIND, FAILURE, GIT_COMMIT = "kind", "failure", "git_commit"
"""Of every run: `stage`, `study`, ...; the reason of its end; the code that made the run."""

STAGE, SCHEDULE, TRAINS, DRAW, SEED = "stage", "schedule", "trains", "draw", "seed"
PRECISION, SETTINGS, EPOCHS = "precision", "settings", "epochs"
"""Of a stage run: the precision that was computed in; all settings, as JSON; planned epochs."""
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
IS_TRIAL, COMPLETED = "is_trial", "completed"
"""Of a trial's stage run: made without pictures; has been given its pictures since."""

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

TRAIN_LOSS, TRAIN_ACC = "train/loss", "train/acc"
"""Running averages over the batches of an epoch."""
VAL_LOSS, VAL_ACC = "val/loss", "val/acc"
CURVES = (TRAIN_LOSS, TRAIN_ACC, VAL_LOSS, VAL_ACC)
VAL = {name: f"val/{name}" for name in METRICS}
TEST = {name: f"test/{name}" for name in METRICS}
EPOCH_METRICS = (TRAIN_LOSS, TRAIN_ACC, *VAL.values())
"""What a finished run repeats at its selected epoch, by `at_best`."""

TRAIN_S, VAL_S = "time/train_s", "time/val_s"
"""Seconds that an epoch spent on training and on validation."""
SELECTED_EPOCH = "best/epoch"
TRAINABLE = "parameters/trainable"
TOTAL_S, PREFIX_S = "time/total_s", "time/prefix_s"
PEAK_MIB = "memory/peak_mib"
PARENT_VAL_ACC = f"{SIGNAL_METRICS}parent_val_acc"
STAGE0 = "stage0/"
"""Of the metrics of stage 0: `stage0/logreg_val_acc`, ..., and what was chosen."""
NEAR_DUPLICATES = {part: f"data/near_duplicates_{part}" for part in ("val", "test")}
"""Images of a part that look like images of another, by part."""
COPIES_OF_POOL, SEEN_IN_TRAINING = "test/copies_of_pool", "test/seen_in_training"
"""Test images that are copies of images in the pool; of these, those that the run has met."""


def flat(name: str) -> str:
    """A metric's name within a name or a table: `val/acc` is `val_acc`."""
    return name.replace("/", "_")


def draw_run_id(draw: int) -> str:
    """The tag in which a trial names its stage run on a draw."""
    return f"draw{draw}_run_id"


def at_best(name: str) -> str:
    """The name of a metric at the selected epoch."""
    return f"best/{flat(name)}"
