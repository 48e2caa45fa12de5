"""A clean copy of the project, and programs started in it as a user would start them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICK = {
    "train_per_class": "10",
    "val_per_class": "10",
    "image_size": "32",
    "stage1.epochs": "1",
    "stage2.epochs": "1",
    "stage3.epochs": "1",
    "log_pictures": "off",
}
SMALLER = {
    **QUICK,
    "backbone": "mobilenet_v3_small",
    "weights": "none",
    "norm_stats": "target",  # random weights learn nothing under their own
}
"""Where how the command is started counts, not what is trained."""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that git knows (all of them where there is no git), in a folder of their own."""
    target = tmp_path / "clone"
    if not (ROOT / ".git").exists():
        ignored = shutil.ignore_patterns(".*", "__pycache__", "mlruns", "mlflow.db*")
        shutil.copytree(ROOT, target, ignore=ignored)
        return target
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "clone"]):
        own = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        own += ["-c", "core.compression=0"]  # weights do not become smaller
        subprocess.run(["git", *own, *words], cwd=target, check=True)
    return target


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """This interpreter first on PATH, caches in the test's own folder, no MLflow settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "XDG_CACHE_HOME": str(tmp_path / "xdg"), "COLUMNS": "200"}


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def mlflow_run(clone: Path, environment: dict[str, str], tmp_path: Path) -> Run:
    """`mlflow run . -e ENTRY_POINT -P key=value ...` in the clone."""

    def run(
        entry_point: str,
        *words: str,
        env: dict[str, str] | None = None,
        quick: dict[str, str] = QUICK,
        **options: str,
    ) -> subprocess.CompletedProcess[str]:
        settings = {**quick, "cache_dir": str(tmp_path / "cache"), **options}
        pairs = [w for k, v in settings.items() for w in ("-P", f"{k}={v}")]
        manager = () if "--env-manager" in words else ("--env-manager", "local")
        return subprocess.run(
            [*("mlflow", "run", ".", "-e", entry_point), *manager, *words, *pairs],
            cwd=clone,
            env={**environment, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
        )

    return run
