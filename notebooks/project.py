"""What the notebooks share: a tracking store for each, and `mlflow run` with this interpreter.

In: the notebook's name. Out: a new folder `runs/<name>-<time>` with MLflow's database and
artifacts, and the project's entry points as functions. Nothing here reads results: the notebooks
do that themselves, through MLflow's and Optuna's own functions.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import matplotlib.pyplot as plt
import mlflow

ROOT = Path(__file__).resolve().parent.parent
TRAIN, VAL, GREY = "#5b8db8", "#c8553d", "#4c4c4c"
"""Colours of the pictures that the project itself logs."""


def set_up(name: str) -> Path:
    """Start from nothing: MLFLOW_TRACKING_URI names a new database until the kernel ends."""
    store = ROOT / "notebooks" / "runs" / f"{name}-{datetime.now():%Y-%m-%d-%H%M%S}"
    store.mkdir(parents=True)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    mlflow.set_tracking_uri(f"sqlite:///{store / 'mlflow.db'}")
    experiment = mlflow.create_experiment(name, (store / "artifacts").as_uri())
    mlflow.set_experiment(experiment_id=experiment)
    plt.rcParams |= {
        "figure.dpi": 100,
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    return store


def mlflow_run(entry_point: str, only: str = "", /, **settings: object) -> None:
    """`mlflow run . -e ENTRY_POINT -P key=value ...` in the clone; shows what it prints.

    Args:
        entry_point: one of MLproject.
        only: show only the lines that hold this text.
        settings: what is passed with -P; `**{"stage1.epochs": 2}` for names with a dot.

    Raises:
        RuntimeError: the run failed; with what it had to say.
    """
    pairs = [word for key, value in settings.items() for word in ("-P", f"{key}={value}")]
    words = ["mlflow", "run", ".", "-e", entry_point, "--env-manager", "local", *pairs]
    print(f"$ {_shown(shlex.join(words))}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdout
        for line in process.stdout:
            if only in line:
                print(_shown(line), end="")
        if process.wait() != 0:
            errors.seek(0)
            raise RuntimeError(_shown(errors.read()))


def _shown(text: str) -> str:
    """Paths as they are seen from the clone."""
    return text.replace(f"{ROOT}{os.sep}", "")
