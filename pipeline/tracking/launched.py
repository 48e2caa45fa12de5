"""Runs that `mlflow run` started, where others go, and the one thing it gets wrong about them.

`mlflow run` means to keep a final status that our code has set, but compares text with numbers
there and marks every interrupted run FAILED after our process has ended (seen in MLflow 3.17).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from pipeline.provenance import PROJECT_DIR

if TYPE_CHECKING:
    from mlflow import MlflowClient


def outlast_mlflow_run(run_id: str) -> None:
    """Leave a process behind that sets KILLED once more."""
    code = f"from pipeline.tracking.launched import keep_killed; keep_killed({run_id!r})"
    subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=PROJECT_DIR,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def keep_killed(run_id: str, seconds: float = 20.0) -> None:
    """Watch a run; once its status is changed, set it to KILLED again and return."""
    import mlflow

    client = mlflow.MlflowClient()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if client.get_run(run_id).info.status != "KILLED":
            client.set_terminated(run_id, "KILLED")
            return
        time.sleep(0.3)


def experiment_id(client: MlflowClient, launched: str | None) -> str:
    """The experiment that runs are written to: the launched run's, or as the environment says."""
    if launched:
        return str(client.get_run(launched).info.experiment_id)
    if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return experiment_id
    if name := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        return _experiment_called(client, name)
    return "0"


def _experiment_called(client: MlflowClient, name: str) -> str:
    """The id of an experiment, which is created if need be: by one of those who ask at once."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException as err:
            found = client.get_experiment_by_name(name)
            if err.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
    return str(found.experiment_id)
