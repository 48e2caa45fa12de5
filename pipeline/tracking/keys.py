"""Names of tags and metrics that more than one module reads or writes.

A metric `m` of `stats.metrics.METRICS` is logged by epoch as `val/m`, at the selected epoch as
`best/val_m`, and on the test split as `test/m`. Where several stages or draws share a run its name
follows theirs: `stage2/val_m`, `draw0/val_m`.
"""

from __future__ import annotations

from pipeline.stats.metrics import METRICS

POOL = "pool_sha256"
"""The tag that says what a run's draw was dealt from."""
TEST_AS_STORED = "test_stored_sha256"
"""The test split's files as they were when a stage was trained."""

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
TOTAL_S = "time/total_s"
PARENT_VAL_ACC = "signal/parent_val_acc"


def flat(name: str) -> str:
    """A metric's name within a name or a table: `val/acc` is `val_acc`."""
    return name.replace("/", "_")


def at_best(name: str) -> str:
    """The name of a metric at the selected epoch."""
    return f"best/{flat(name)}"
