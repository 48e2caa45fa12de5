"""Seconds from `mlflow run --env-manager local` to the first training step, taken apart."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.tools import ROOT, Task, timed

IMPORTS = """
import gc; gc.set_threshold(100_000, 50, 100)  # as the command line does
import matplotlib.figure, mlflow, pandas, pyarrow.parquet, safetensors.torch, torch, torchvision
mlflow.MlflowClient().search_experiments()
"""
EMPTY_PROJECT = 'name: empty\nentry_points:\n  main:\n    command: "python -c pass"\n'


def first_step_s(words: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Seconds until a one-epoch stage 1 has printed its epoch, less the epoch itself."""
    started = time.perf_counter()
    with subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout
        for line in process.stdout:
            if b"epoch 1/1" in line:
                seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} failed")
    return seconds


def startup(task: Task, folder: Path, rounds: int = 5) -> dict[str, float]:
    """Medians over interleaved rounds, with a full cache and a data base that exists."""
    python, scripts = sys.executable, Path(sys.executable).parent
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PATH": path}
    settings = {"preset": "cifar10_small", "data": task.data, "weights": task.weights}
    settings |= {"cache_dir": str(folder / "cache"), "epochs": "1", "reuse": "off"}
    empty = folder / "empty"
    empty.mkdir()
    (empty / "MLproject").write_text(EMPTY_PROJECT)
    launch = [str(scripts / "mlflow"), "run", "--env-manager", "local"]
    words = [word for key, value in settings.items() for word in ("-P", f"{key}={value}")]
    ours = [*launch, str(ROOT), "-e", "stage1", *words]
    found: dict[str, list[float]] = {"mlflow": [], "imports": [], "ours": []}
    for round_ in range(rounds + 1):
        seconds = {
            "mlflow": timed([*launch, str(empty)], cwd=folder, env=environment)[1],
            "imports": timed([python, "-c", IMPORTS], cwd=folder, env=environment)[1],
            "ours": first_step_s(ours, folder, environment),
        }
        if round_:  # the first fills the cache and makes the data base
            for name, value in seconds.items():
                found[name].append(value)
    return {name: statistics.median(values) for name, values in found.items()}
