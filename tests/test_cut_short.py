"""Ctrl-C while libraries are imported is no fault of theirs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

HALF_IMPORTED = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:  # as code in C does
    pass
raise RecursionError("half imported")
"""


@pytest.mark.parametrize("interrupted", [True, False])
def test_a_failed_import_is_told_only_where_no_signal_came(
    interrupted: bool, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text(HALF_IMPORTED if interrupted else "raise RecursionError")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path / 'mlflow.db'}"
    words = [sys.executable, "-m", "pipeline", "stage1", "--preset", "digits", "--data", "digits"]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ("Traceback" in done.stderr) != interrupted, done.stderr
    assert ("stopped" in done.stderr) == interrupted
    assert done.returncode == (130 if interrupted else 1)
