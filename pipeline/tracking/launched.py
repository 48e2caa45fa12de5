"""Runs that `mlflow run` started, and the one thing it gets wrong about them.

`mlflow run` means to keep a final status that our code has set, but compares text with numbers
there and marks every interrupted run FAILED after our process has ended (seen in MLflow 3.17).
"""

from __future__ import annotations

import subprocess
import sys
import time

from pipeline.system.provenance import PROJECT_DIR


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
