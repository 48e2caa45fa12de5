"""Experiments and folders that nothing can be recorded in: refused before images are read."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

import pipeline
from pipeline.cli import main
from pipeline.errors import TrackingError
from pipeline.system.processes import owner_tags
from pipeline.tracking import Tracking
from pipeline.tracking.keys import KIND
from tests.conftest import Command, PointAt, words_of

ROOT = Path(__file__).resolve().parent.parent


def refused(command: Command, capfd: pytest.CaptureFixture[str]) -> str:
    """The one line that a stage is refused with, before images and weights are read."""
    capfd.readouterr()
    assert command("stage1") == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


@pytest.mark.parametrize("variable", ["MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", ""])
def test_an_experiment_in_the_trash_is_named_with_how_to_restore_it(
    variable: str,
    command: Command,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "gone" if variable else "Default"
    number = mlflow.create_experiment("gone") if variable else "0"
    mlflow.delete_experiment(number)
    if variable:
        monkeypatch.setenv(variable, name if variable.endswith("NAME") else number)
    line = refused(command, capfd)
    assert line.startswith(f"error: experiment {name} (id {number}) at sqlite:///")
    assert f"was deleted: restore it (`mlflow experiments restore -x {number}`) or name" in line
    mlflow.MlflowClient().restore_experiment(number)
    assert Tracking.connect().experiment_id == number


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MLFLOW_EXPERIMENT_ID", "999"),
        ("MLFLOW_RUN_ID", "f" * 32),
    ],
)
def test_what_the_environment_names_and_is_not_there(
    variable: str,
    value: str,
    command: Command,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, value)
    assert f"error: {variable}={value}: there is none at sqlite:///" in refused(command, capfd)


@pytest.mark.parametrize(
    ("tags", "status", "deleted"),
    [
        ({"kind": "stage"}, "FINISHED", False),
        ({}, "FAILED", False),
        ({"kind": "stage"}, "RUNNING", False),
        (owner_tags(), "RUNNING", False),
        ({}, "RUNNING", True),
    ],
)
@pytest.mark.parametrize("words", [["stage1", "--weights", "/nope"], ["gate", "--run_id", "x"]])
def test_a_run_that_mlflow_run_has_not_just_started_is_never_written_to(
    words: list[str],
    tags: dict[str, str],
    status: str,
    deleted: bool,
    store: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = mlflow.MlflowClient()
    run_id = client.create_run("0", tags=tags).info.run_id
    client.update_run(run_id, status=status)
    if deleted:
        client.delete_run(run_id)
    before = client.get_run(run_id).to_dictionary()
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert main(words) == 2
    assert (
        f"error: MLFLOW_RUN_ID={run_id} is not a run that `mlflow run`" in capfd.readouterr().err
    )
    assert client.get_run(run_id).to_dictionary() == before


@pytest.mark.parametrize(
    ("location", "why"),
    [
        # as behind a server that serves no artifacts: its clients write to its folder themselves
        (
            "{store}/theirs/art",
            "cannot be used from here (.*theirs is not a folder).*--serve-artif",
        ),
        ("s3://bucket/folder", "its driver is not installed, .*: pip install boto3"),
    ],
)
def test_artifacts_that_cannot_be_written_are_missed_at_once(
    location: str,
    why: str,
    store: Path,
    command: Command,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (store / "theirs").touch()
    monkeypatch.setitem(sys.modules, "boto3", None)
    mlflow.create_experiment("far", artifact_location=location.format(store=store.as_uri()))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "far")
    line = refused(command, capfd)
    assert f"keeps its artifacts in {location.format(store=store.as_uri())}, which" in line
    assert re.search(why, line)
    Tracking.connect(files=False)  # as `evaluate` does: it adds numbers, no files


def move_artifacts(store: Path, experiment: str) -> None:
    """Give an experiment the place of files that it would have on another person's machine."""
    (store / "theirs").touch()
    with closing(sqlite3.connect(store / "mlflow.db")) as database, database:
        database.execute(
            "UPDATE experiments SET artifact_location = ? WHERE name = ?",
            ((store / "theirs" / "art").as_uri(), experiment),
        )


def test_a_default_that_nobody_records_in_may_be_another_persons(
    store: Path,
    command: Command,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store's first user made `Default`, with files in a folder of their own."""
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    move_artifacts(store, "Default")
    assert command("stage1", log_model="on") == 0
    (stage1,) = Tracking.connect(data="images", files=False).find({KIND: "stage"})
    assert stage1.experiment_id != "0"
    next_stage = {"parent_run_id": stage1.run_id, "cache_dir": str(store / "cache")}
    next_stage |= {"log_model": "off", "log_pictures": "off", "epochs": "1"}
    assert main(words_of("stage2", next_stage)) == 0
    assert pipeline.load(stage1.run_id).class_names == ["apple", "berry", "cherry"]
    (model,) = mlflow.search_logged_models([stage1.experiment_id], output_format="list")
    assert (model.source_run_id, str(model.status)) == (stage1.run_id, "READY")
    move_artifacts(store, "images")
    capfd.readouterr()
    assert main(words_of("stage2", next_stage)) == 2
    assert "experiment images (id 1) at" in capfd.readouterr().err


def test_scores_are_kept_where_the_files_of_evaluate_cannot_be_written(
    store: Path, command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("stage1", test_per_class="2") == 0
    (stage1,) = Tracking.connect().find({KIND: "stage"})
    move_artifacts(store, "Default")
    capfd.readouterr()
    assert main(["evaluate", "--run_id", stage1.run_id]) == 0
    assert "is not brought up to date: cannot write MLflow's files" in capfd.readouterr().out
    tracking = Tracking.connect(files=False)
    assert "test/acc" in tracking.get(stage1.run_id).metrics
    (scored,) = tracking.find({KIND: "evaluate"})
    assert "test/acc" in scored.metrics


def test_artifacts_behind_a_server_are_the_servers_to_write(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.create_experiment("served", artifact_location="mlflow-artifacts:/9")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "served")
    Tracking.connect()


def test_a_database_below_a_file_is_refused(tmp_path: Path, point_at: PointAt) -> None:
    (tmp_path / "file").touch()
    point_at(f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(TrackingError, match=r"MLFLOW_TRACKING_URI=sqlite:.*/file is not a folder"):
        Tracking.connect()


@pytest.mark.e2e
def test_a_missing_folder_is_made_under_the_name_that_it_has(
    tmp_path: Path, point_at: PointAt
) -> None:
    point_at(f"sqlite:///{tmp_path}/new%20%25/here/mlflow.db")
    tracking = Tracking.connect()
    assert [path.name for path in tmp_path.iterdir()] == ["new %"]
    assert (tmp_path / "new %" / "here" / "mlflow.db").exists()
    assert tracking.uri == f"sqlite:///{tmp_path}/new %/here/mlflow.db"


@pytest.fixture
def read_only(tmp_path: Path) -> list[str]:
    """The words that start a program to which the folder `tmp_path/read_only` is read-only."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    mount = f"mount --bind '{folder}' '{folder}' && mount -o remount,ro,bind '{folder}'"
    words = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed")
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no folder may be mounted read-only here")
    return words


@pytest.mark.slow
def test_a_read_only_folder_is_one_line_at_once(read_only: list[str], tmp_path: Path) -> None:
    """MLflow would try for 109 seconds, for its default as for an address that was given."""
    folder = tmp_path / "read_only"
    code = (
        "import os, sys\n"
        "from pipeline.cli import main\n"
        "codes = [main(['stage1'])]\n"
        "os.environ['MLFLOW_TRACKING_URI'] = sys.argv[1]\n"
        "sys.exit([*codes, main(['stage1'])] != [2, 2])\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    done = subprocess.run(
        [*read_only, sys.executable, "-c", code, f"sqlite:///{folder}/new/mlflow.db"],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("… loading") for line in done.stdout.splitlines())
    assert ["/new/mlflow.db cannot" in line for line in lines] == [False, True]
    for line in lines:
        assert f"cannot be used (the folder {folder} may not be written)" in line
        assert "MLFLOW_TRACKING_URI=sqlite:///" in line
    assert list(folder.iterdir()) == []
