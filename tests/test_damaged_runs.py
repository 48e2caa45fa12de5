"""Runs whose tags or metrics were edited or deleted: one line that names run and loss.

The runs are an earlier version's, whose tags have no `z.` before their names.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from pipeline.cli import main
from pipeline.runs.session import CHECKPOINT
from tests.conftest import words_of
from tests.test_earlier_version import FIRST, SECOND, THIRD
from tests.test_run_stage import artifact, runs

ON_SECOND = {"gate": {"run_id": SECOND}, "stage3": {"parent_run_id": SECOND}}


def delete_metrics(store: Path, run_id: str) -> None:
    with closing(sqlite3.connect(store / "mlflow.db")) as database, database:
        for table in ("metrics", "latest_metrics"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (run_id,))


@pytest.mark.parametrize(
    ("entry_point", "tag", "value", "told"),
    [
        ("gate", "settings", "{broken", "its tag settings is damaged: use another run"),
        ("gate", "settings", "{}", "lacks the setting stage2.epochs"),
        ("gate", "draw", "x", "its tag draw is damaged"),
        ("gate", "", None, "lacks the metric selected/epoch: use another run"),
        ("evaluate", "settings", "[1, 2]", "its tag settings is damaged"),
        ("evaluate", "stage", "x", "its tag stage is damaged"),
        ("evaluate", "checkpoint_sha256", None, "lacks the tag checkpoint_sha256"),
        ("stage3", "settings", None, "lacks the tag settings"),
        ("stage3", "settings", '{"nonsense": 1}', f"unknown setting nonsense (run {SECOND})"),
        ("stage3", "lineage_key", None, "lacks the tag lineage_key"),
        ("stage3", "", None, "lacks the metric selected/val_acc"),
    ],
)
def test_a_run_that_was_damaged_is_named_with_what_it_lacks(
    entry_point: str,
    tag: str,
    value: str | None,
    told: str,
    finished_chain: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    client, run_id = mlflow.MlflowClient(), THIRD if entry_point == "evaluate" else SECOND
    if not tag:
        delete_metrics(finished_chain, run_id)
    elif value is None:
        client.delete_tag(run_id, tag)
    else:
        kept = client.get_run(run_id).data.tags["settings"]
        more = value.startswith('{"')
        value = json.dumps({**json.loads(kept), **json.loads(value)}) if more else value
        client.set_tag(run_id, tag, value)
    assert main(words_of(entry_point, ON_SECOND.get(entry_point, {"run_id": run_id}))) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert told in line
    assert run_id in line
    assert "RUNNING" not in set(runs()["status"])


def test_a_checkpoint_of_another_stage_is_refused_though_its_digest_is_the_tagged_one(
    finished_chain: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    client = mlflow.MlflowClient()
    artifact(SECOND, CHECKPOINT).write_bytes(artifact(FIRST, CHECKPOINT).read_bytes())
    digest = client.get_run(FIRST).data.tags["checkpoint_sha256"]
    client.set_tag(SECOND, "checkpoint_sha256", digest)
    assert main(words_of("stage3", {"parent_run_id": SECOND})) == 2
    error = capfd.readouterr().err
    assert f"run {SECOND}" in error
    assert "is of stage 1 of three_stage, not of stage 2 of three_stage" in error
