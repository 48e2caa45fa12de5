"""Which code and which packages made a result."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

DISTRIBUTION = "how-far-to-unfreeze"
PACKAGE_DIR = Path(__file__).resolve().parent.parent
PROJECT_DIR = PACKAGE_DIR.parent
IS_CLONE = (PROJECT_DIR / "MLproject").exists()
"""A clone of the repository, which `mlflow run` can start; else the package was installed."""
IS_PROJECT = IS_CLONE and Path(sys.argv[0]).name != "unfreeze"
"""Whether `mlflow run .` can be typed: who types `unfreeze` may be in any folder."""


def typed(entry_point: str) -> str:
    """An entry point as it is typed, before `-P name=value`: in this environment, as that works.

    `mlflow run` would else make an environment of its own, of several gigabytes.
    """
    if IS_PROJECT:
        return f"mlflow run . -e {entry_point} --env-manager local"
    return f"unfreeze {entry_point}"


def requirements_of(packages: Sequence[str]) -> list[str]:
    """`name==version` of installed packages, without local build marks such as `+cu126`."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in packages]


def libraries(*others: str) -> str:
    """The versions of the libraries that a result depends on to its last bit.

    `others`: distributions that make the network, beside the three that every result depends on.
    """
    import torch

    named = (f"{name} {version(name)}" for name in ("torchvision", "pillow", *others))
    return ", ".join([f"torch {torch.__version__}", *named])


def git_commit() -> str:
    """The project's commit, `-dirty` where tracked files differ from it; else the version."""
    if not IS_CLONE:
        return f"{DISTRIBUTION} {version(DISTRIBUTION)}"
    if not (PROJECT_DIR / ".git").exists():
        return "unknown"

    def git(*words: str) -> str:
        run = subprocess.run(
            ["git", "-C", str(PROJECT_DIR), *words], capture_output=True, text=True, check=False
        )
        return run.stdout.strip() if run.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        dirty = git("status", "--porcelain", "--untracked-files=no")
    except OSError:
        return "unknown"
    return f"{commit}{'-dirty' if dirty else ''}" if commit else "unknown"
