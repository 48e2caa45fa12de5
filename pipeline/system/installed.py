"""Whether the libraries that the project declares are all here: installing can be interrupted.

In: nothing; only the standard library is imported. Out: the names that lack, and what to do about
that. MLflow uses an environment again that was being built when `mlflow run .` was stopped
(mlflow/mlflow#8306), and so does pip.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path

from pipeline.system.provenance import DISTRIBUTION, IS_CLONE, PROJECT_DIR

_MODULES = {
    "markdown-it-py": "markdown_it",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
"""What is imported of a distribution, where its name says something else."""


class IncompleteError(Exception):
    """A declared library is missing, whole or in part; `str()` is the line for people."""

    def __init__(self, missing: str) -> None:
        super().__init__(f"this environment is incomplete (no {missing}): {_advice()}")


def declared() -> list[str]:
    """The names of the distributions that the project needs."""
    if IS_CLONE:
        lines = (PROJECT_DIR / "requirements.txt").read_text(encoding="utf-8").splitlines()
    else:
        every = metadata.requires(DISTRIBUTION) or []
        lines = [line for line in every if "extra ==" not in line]
    found = (re.match(r"[\w.-]+", line) for line in lines)
    return [name[0] for name in found if name]


def check_installed() -> None:
    """Refuse to start without a declared library.

    Raises:
        IncompleteError: names those that are missing.
    """
    missing = []
    for name in declared():
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise IncompleteError(f"{', '.join(missing[:3])}{more}")


def explain(err: ModuleNotFoundError) -> None:
    """Raise the same as an `IncompleteError` where a declared library lacks the module.

    A library that is unpacked in part lacks a module of its own, or one that it imports. What a
    person's own code imports is left alone.
    """
    ours = {_MODULES.get(name, name) for name in declared()}
    frame = err.__traceback__
    importers = []
    while frame:
        importers.append(str(frame.tb_frame.f_globals.get("__name__", "")).partition(".")[0])
        frame = frame.tb_next
    importer = next((name for name in reversed(importers) if name != "importlib"), "")
    if (err.name or "").partition(".")[0] in ours or importer in ours:
        raise IncompleteError(f"module {err.name}") from None


def _advice() -> str:
    """How to make the environment whole."""
    prefix = Path(sys.prefix)
    built = Path(os.environ.get("MLFLOW_ENV_ROOT") or Path.home() / ".mlflow" / "envs")
    if built.resolve() in prefix.resolve().parents:
        return (
            f"`mlflow run` was stopped while it built {prefix}: delete that folder "
            f"(rm -r {shlex.quote(str(prefix))}) and run the same command again"
        )
    what = f"-e {shlex.quote(str(PROJECT_DIR))}" if IS_CLONE else DISTRIBUTION
    return f"install what it lacks: {sys.executable} -m pip install {what}"
