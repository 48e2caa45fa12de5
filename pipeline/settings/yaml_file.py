"""One YAML mapping in a file, and the nearest of the names that it might have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

import yaml

from pipeline.errors import SettingsError


def nearest(word: str, candidates: Iterable[str]) -> str:
    """`: did you mean …?`, or nothing where no candidate is close."""
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ""


def read_yaml(path: Path, source: str) -> dict[str, object]:
    """The mapping in a YAML file.

    Raises:
        SettingsError: no such file, not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise SettingsError(
            f"{source}: cannot read {path.absolute()} ({err.strerror}): pass the path of a YAML "
            "file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        where = getattr(err, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise SettingsError(f"{source}: {path}{line} is not valid YAML: mend it") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(
            f"{source}: {path} holds a {type(content).__name__}: write one `setting: value` a line"
        )
    return {str(key): value for key, value in content.items()}
