"""Command lines to be typed: what made a result, or what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping

from pipeline.data.open import NAMES
from pipeline.settings.entry import NAMED_STAGES
from pipeline.settings.layers import as_typed
from pipeline.system.disk.files import seen, typed_path
from pipeline.system.provenance import typed
from pipeline.weights.pretrained import names_a_file

_PATHS: dict[str, Callable[[str], bool]] = {
    "data": lambda data: data not in NAMES,
    "weights": names_a_file,
    "blocks": lambda blocks: blocks.endswith((".yaml", ".yml")),
    "storage": lambda storage: "://" not in storage,  # a journal's plain name
    **dict.fromkeys(("config", "cache_dir", "space"), bool),
}
"""Settings that may be paths of this folder, and which of their values are."""


def stage_entry_point(number: int) -> str:
    """What to type after `-e` for a stage of that number."""
    return f"stage{number}" if number <= NAMED_STAGES else f"stage -P number={number}"


def command_line(entry_point: str, options: Mapping[str, object]) -> str:
    """What to type."""
    return f"{typed(entry_point)} {as_words(options)}"


def as_words(options: Mapping[str, object]) -> str:
    """Options; paths are absolute, since `mlflow run` starts in the project's folder."""
    values = {key: as_typed(value) for key, value in options.items()}
    for key, is_a_path in _PATHS.items():
        if values.get(key) and is_a_path(values[key]):
            values[key] = str(typed_path(values[key]).absolute())
    if (labels := values.get("labels")) and not _is_in(values.get("data", ""), labels):
        here = typed_path(labels)  # else in a folder that is named in a file or by a run
        values["labels"] = str(here.absolute()) if seen(here.is_file) else labels
    return " ".join(f"-P {key}={shlex.quote(value)}" for key, value in values.items())


def _is_in(data: str, labels: str) -> bool:
    """Whether a CSV file is named by its place in the folder of images, where it is looked for."""
    return bool(data) and seen((typed_path(data) / typed_path(labels)).is_file)
