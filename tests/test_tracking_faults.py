"""Faults of MLflow's store, its disk among them, as one line of ours."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import ssl
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import requests
from mlflow.exceptions import (
    CUSTOMER_UNAUTHORIZED,
    TEMPORARILY_UNAVAILABLE,
    MlflowException,
    RestException,
)
from mlflow.store.tracking.dbmodels.models import SqlTag
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from urllib3 import HTTPSConnectionPool
from urllib3.exceptions import MaxRetryError, SSLError

from pipeline.errors import LineageError, StorageError, TrackingError, first_line
from pipeline.tracking import RunView, Tracking
from pipeline.tracking.connection.faults import translated
from tests.conftest import PointAt
from tests.postgres import free_port

URI = "sqlite:///mlflow.db"
PREAMBLE = "(raised as a result of Query-invoked autoflush"


def certificate_required() -> requests.exceptions.SSLError:
    """As urllib3 and requests wrap what a server tells after a handshake of TLS 1.3."""
    alert = ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert")
    outer = requests.exceptions.SSLError(f"HTTPSConnectionPool(host='{'h' * 200}'): {alert}")
    outer.__context__ = MaxRetryError(HTTPSConnectionPool("h"), "/", SSLError(alert))
    outer.__context__.__cause__ = outer.__context__.reason
    return outer


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            RestException({"error_code": "PERMISSION_DENIED", "message": "read-only token"}),
            r"\(403, it forbids this: .*read-only token\): ask the keeper",
        ),
        (
            MlflowException("error code 401 != 200", error_code=CUSTOMER_UNAUTHORIZED),
            r"\(401, it wants a login.*\): set MLFLOW_TRACKING_USERNAME",
        ),
        (
            RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no run x"}),
            r"no run x\): change what it names, then",
        ),
        (MlflowException("(sqlite3.OperationalError) disk I/O error"), "check the server and the"),
        (
            MlflowException("(OperationalError) database is locked", TEMPORARILY_UNAVAILABLE),
            "another program holds the file",
        ),
        (MlflowException("(Error) database or disk is full"), "free some space, then"),
        (
            MlflowException(
                f"{PREAMBLE}; consider)\n(Error) attempt to write a readonly database"
            ),
            r"\(\(Error\) attempt to write a readonly database\): choose a folder you may write",
        ),
        (certificate_required(), r"a certificate of ours: .*REQUIRED.*CLIENT_CERT_PATH"),
        (MlflowException("(Error) it is full", TEMPORARILY_UNAVAILABLE), r"full\): check the se"),
        (MlflowException("API request to http://me:qqq@host failed"), r"http://me:\*\*\*@host"),
        (OperationalError(f"{PREAMBLE}; consider)", {}, None), r"check the server and the disk"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "free some space"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "choose a folder you may write"),
    ],
)
def test_a_fault_is_named_with_what_was_being_done_where_and_what_to_do(
    fault: Exception, message: str
) -> None:
    expected = StorageError if type(fault) is OSError else TrackingError
    with pytest.raises(expected, match=message) as caught, translated("log metrics", URI):
        raise fault
    assert re.search(f"log metrics.* {URI} ", str(caught.value))
    assert "qqq" not in str(caught.value)


def test_the_cause_is_told_and_not_what_sqlalchemy_says_before_it() -> None:
    before = f"{PREAMBLE}; consider using a session.no_autoflush)"
    cause = "(sqlite3.OperationalError) attempt to write a readonly database"
    assert first_line(MlflowException(f"{before}\n{cause}\n[SQL: ...]")) == cause
    assert first_line(MlflowException(before)) == "MlflowException"


def test_a_server_that_has_gone_is_told_without_what_was_asked_of_it(
    store: Path, point_at: PointAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    uri = f"http://127.0.0.1:{free_port()}"
    point_at(uri)
    message = rf"read a run at {uri} \(Connection refused\): see whether the server"
    with pytest.raises(TrackingError, match=message), translated("read a run", uri):
        mlflow.MlflowClient().get_run("x")


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
    with pytest.raises(LineageError, match=r"artifact folder/other\.txt was deleted"):
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
            elsewhere = replace(run, files="mlflow-artifacts:/0")
            with pytest.raises(ours, match=r"read folder/file\.txt"):
                tracking.fetch(elsewhere, "folder/file.txt", tmp_path)
            # files that lie here are copied, without MLflow
            assert tracking.fetch(run, "folder/file.txt", tmp_path).read_text() == "content"


def test_of_two_that_end_the_same_run_at_once_none_fails(run: RunView, store: Path) -> None:
    """As two commands do that find a third one killed."""
    beaten = []

    def be_beaten(_mapper: object, _connection: object, tag: SqlTag) -> None:
        if tag.key == "failure" and not beaten:
            beaten.append(tag.value)
            with closing(sqlite3.connect(store / "mlflow.db")) as other, other:
                row = (tag.key, "theirs", tag.run_uuid)
                other.execute("insert into tags (key, value, run_uuid) values (?, ?, ?)", row)

    event.listen(SqlTag, "before_insert", be_beaten)
    try:
        Tracking.connect().writing(run.run_id).set_status("FAILED", "mine")
    finally:
        event.remove(SqlTag, "before_insert", be_beaten)
    assert beaten == ["mine"]
    assert Tracking.connect().get(run.run_id).tags["failure"] == "mine"


def test_a_run_that_came_to_a_good_end_keeps_no_reason_to_have_failed(run: RunView) -> None:
    tracking = Tracking.connect()
    tracking.writing(run.run_id).set_status("KILLED", "stopped")
    assert tracking.get(run.run_id).tags["failure"] == "stopped"
    tracking.writing(run.run_id).set_status("FINISHED")
    assert "failure" not in tracking.get(run.run_id).tags


def test_commands_that_start_together_share_a_new_experiment(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command creates the experiment after our look for it and before our creation."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "new")
    create = mlflow.MlflowClient.create_experiment

    def second(client: mlflow.MlflowClient, name: str) -> str:
        create(client, name)
        return create(client, name)

    monkeypatch.setattr(mlflow.MlflowClient, "create_experiment", second)
    tracking = Tracking.connect()
    assert mlflow.get_experiment(tracking.experiment_id).name == "new"
