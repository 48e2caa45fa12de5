"""Faults of MLflow's store, its disk among them, as one line of ours."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from pipeline.errors import LineageError, StorageError, TrackingError
from pipeline.tracking import RunView, Tracking
from pipeline.tracking.faults import translated

URI = "sqlite:///mlflow.db"


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "choose a folder you may write")],
)
def test_a_disk_under_the_artifacts_is_named_with_what_to_do(number: int, advice: str) -> None:
    with pytest.raises(StorageError) as caught, translated("store a file", URI):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith(f"cannot write MLflow's files (store a file) to {URI} ")
    assert advice in str(caught.value)


def test_a_fault_of_mlflow_is_named_with_what_was_being_done() -> None:
    with pytest.raises(TrackingError) as caught, translated("store a file", URI):
        raise MlflowException("gone")
    assert str(caught.value).startswith(f"MLflow could not store a file at {URI} (gone)")


@pytest.fixture
def run(store: Path) -> RunView:
    """A finished run with one artifact."""
    tracking = Tracking.connect()
    with tracking.run("a run", {}, target=False) as log:
        log.text("content", "folder/file.txt")
    return tracking.get(log.run_id)


def test_an_artifact_that_is_there_and_cannot_be_read_is_no_missing_one(
    run: RunView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = Tracking.connect()
    assert tracking.fetch(run, "folder/file.txt", tmp_path).read_text() == "content"
    with pytest.raises(LineageError, match=r"has no artifact folder/other\.txt: it was deleted"):
        tracking.fetch(run, "folder/other.txt", tmp_path)
    faults = {
        OSError(errno.ENOSPC, "No space left on device"): StorageError,
        MlflowException("503: the server is away"): TrackingError,
    }
    for fault, ours in faults.items():

        def fail(*_: object, fault: Exception = fault) -> None:
            raise fault

        with monkeypatch.context() as patch:
            patch.setattr(mlflow.MlflowClient, "download_artifacts", fail)
            with pytest.raises(ours, match=r"read folder/file\.txt"):
                tracking.fetch(run, "folder/file.txt", tmp_path)


def test_a_run_that_came_to_a_good_end_keeps_no_reason_to_have_failed(run: RunView) -> None:
    tracking = Tracking.connect()
    tracking.set_status(run.run_id, "KILLED", "stopped")
    assert tracking.get(run.run_id).tags["failure"] == "stopped"
    tracking.set_status(run.run_id, "FINISHED")
    assert "failure" not in tracking.get(run.run_id).tags


def test_commands_that_start_together_share_a_new_experiment(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one creates it between our looking for it and our creating it."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "new")
    create = mlflow.MlflowClient.create_experiment

    def second(client: mlflow.MlflowClient, name: str) -> str:
        create(client, name)
        return create(client, name)

    monkeypatch.setattr(mlflow.MlflowClient, "create_experiment", second)
    found = mlflow.MlflowClient().get_experiment_by_name
    tracking = Tracking.connect()
    experiment = found("new")
    assert experiment
    assert tracking.experiment_id == experiment.experiment_id
