"""Command lines to be typed: what made a result, or what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from pipeline.data.open import NAMES
from pipeline.settings.entry import NAMED_STAGES
from pipeline.system.disk.files import typed_path
from pipeline.system.provenance import COMMAND, IS_PROJECT
from pipeline.weights.pretrained import names_a_file


def stage_entry_point(number: int) -> str:
    """What to type after `-e` for a stage of that number."""
    return f"stage{number}" if number <= NAMED_STAGES else f"stage -P number={number}"


def command_line(entry_point: str, options: Mapping[str, object]) -> str:
    """What to type; paths are absolute, since `mlflow run` starts in the project's folder."""
    values = {key: _as_typed(value) for key, value in options.items()}
    is_a_path = {"data": lambda data: data not in NAMES, "weights": names_a_file}
    is_a_path |= dict.fromkeys(("config", "cache_dir"), bool)
    for key, holds in is_a_path.items():
        if values.get(key) and holds(values[key]):
            values[key] = str(typed_path(values[key]).absolute())
    words = " ".join(f"-P {key}={shlex.quote(value)}" for key, value in values.items())
    local = " --env-manager local" if IS_PROJECT else ""
    return f"{COMMAND} {entry_point}{local} {words}"


def _as_typed(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
