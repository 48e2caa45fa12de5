"""Which code and which packages made a result."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parent.parent.parent


def requirements_of(packages: Sequence[str]) -> list[str]:
    """`name==version` of installed packages, without local build marks such as `+cu126`."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in packages]


def git_commit() -> str:
    """The project's commit, `-dirty` where tracked files differ from it; `unknown` outside git."""
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
