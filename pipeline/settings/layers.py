"""Settings from a preset, a parent run, a file and the command line, weakest first.

In: layers of plain key -> value mappings, weakest first (a preset, what a parent run hands down, a
YAML file, the command line). Out: one frozen `Settings`, or a `SettingsError` that lists every
fault. Not covered: whether the data, weights or parent that a value names exist; their modules
tell that.

A key is the name of a run setting (`draw`), of a training setting (`lr`: for the stages the layer
speaks of) or of one stage's training setting (`stage2.lr`). A later layer wins over an earlier
one; inside a layer `stage2.lr` wins over `lr`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import SettingsError
from pipeline.settings.run import (
    MAX_STAGES,
    RUN_KEYS,
    STAGE_KEYS,
    TRAIN_KEYS,
    Settings,
    TrainSettings,
)
from pipeline.settings.schedules import SCHEDULES, Stage

COMMAND_LINE = "command line"
PRESETS_DIR = Path(__file__).parent / "presets"
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Layer:
    """Key -> value pairs of one place; plain training keys go to stages `speaks_of`."""

    source: str
    values: Mapping[str, object]
    speaks_of: tuple[int, ...] = tuple(range(1, MAX_STAGES + 1))
    by_user: bool = True


@dataclass(frozen=True)
class Given:
    """A value as it was given: under which key, in which layer."""

    value: object
    key: str
    layer: Layer


@dataclass
class _Collected:
    """The strongest value of each setting, by model (0: the run, n: stage n), and faults."""

    given: dict[int, dict[str, Given]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, layer: Layer) -> None:
        plain_first = sorted(flatten(layer.values).items(), key=lambda item: "." in item[0])
        for key, value in plain_first:
            given = Given(value, key, layer)
            if key in RUN_KEYS:
                self.given.setdefault(0, {})[key] = given
            elif key in TRAIN_KEYS:
                for number in layer.speaks_of:
                    self.given.setdefault(number, {})[key] = given
            elif key in STAGE_KEYS:
                stage, name = key.split(".")
                self.given.setdefault(int(stage.removeprefix("stage")), {})[name] = given
            else:
                self.faults.append(_unknown(key, layer.source))

    def check(
        self, model: type[_Model], number: int, defaults: Mapping[str, object]
    ) -> _Model | None:
        """The model of these values, or None with its faults noted."""
        model_or_faults = checked(model, self.given.get(number, {}), defaults)
        if isinstance(model_or_faults, list):
            self.faults += model_or_faults
            return None
        return model_or_faults

    def refuse_stages_beyond(self, schedule: str) -> None:
        """Note settings that a person gave to a stage which the schedule does not have."""
        count = len(SCHEDULES[schedule])
        for number in range(count + 1, MAX_STAGES + 1):
            self.faults += [
                f"{one.key} ({one.layer.source}): schedule {schedule} has {count} "
                f"stage{'s' if count > 1 else ''}: leave it out or choose another schedule"
                for one in self.given.get(number, {}).values()
                if "." in one.key and one.layer.by_user
            ]


def checked(
    model: type[_Model], given: Mapping[str, Given], defaults: Mapping[str, object]
) -> _Model | list[str]:
    """The model of these values, or a line for each fault."""
    values = {key: _as_text(model, key, one.value) for key, one in given.items()}
    try:
        return model.model_validate({**defaults, **values})
    except ValidationError as err:
        faults = []
        for fault in err.errors():
            key = str(fault["loc"][0])
            choices = map(str, get_args(model.model_fields[key].annotation))
            hint = nearest(str(fault["input"]), choices)
            message = (
                fault["msg"]
                .removeprefix("Input ")
                .removeprefix("String ")
                .replace("should be", "must be")
            )
            got = f"got {fault['input']!r} ({given[key].layer.source})"
            faults.append(f"{given[key].key} {message}, {got}{hint}")
        return faults


def _as_text(model: type[BaseModel], key: str, value: object) -> object:
    """Text where pydantic would take `true` for 1, or refuse 7 as the name of a folder."""
    annotation = model.model_fields[key].annotation
    is_bool = isinstance(value, bool)
    odd = annotation in (int, float) if is_bool else annotation is str
    return str(value) if odd and isinstance(value, int | float) else value


def flatten(values: Mapping[str, object]) -> dict[str, object]:
    """`{"stage1": {"lr": 1}}` and `{"stage1.lr": 1}` are the same thing."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[str(key)] = value
    return flat


def nearest(word: str, candidates: Iterable[str]) -> str:
    """`: did you mean …?`, or nothing where no candidate is close."""
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ""


def _unknown(key: str, source: str) -> str:
    known = STAGE_KEYS if key.startswith("stage") and "." in key else (*RUN_KEYS, *TRAIN_KEYS)
    hint = nearest(key, known) or ": --help lists every setting"
    return f"unknown setting {key} ({source}){hint}"


def resolve(layers: Iterable[Layer]) -> Settings:
    """Merge layers, weakest first, into settings.

    Raises:
        SettingsError: one line for each unknown key, wrong value or stage that does not exist.
    """
    collected = _Collected()
    for layer in layers:
        collected.add(layer)
    run = collected.check(Settings, 0, {})
    schedule = run.schedule if run is not None else "three_stage"
    collected.refuse_stages_beyond(schedule)
    stages = [
        collected.check(TrainSettings, stage.number, _stage_defaults(stage))
        for stage in SCHEDULES[schedule]
    ]
    if run is None or None in stages or collected.faults:
        raise SettingsError("\n".join(dict.fromkeys(collected.faults)))
    return run.model_copy(update={"stages": tuple(stages)})


def _stage_defaults(stage: Stage) -> dict[str, object]:
    """Training defaults that depend on what a stage trains (measured: docs/reference.md).

    A new head wants a high rate, pretrained blocks a tenth of it, and a stage that goes on from
    blocks which the stage before has fitted to these images a third of that again.
    """
    if stage.deepest == "head":
        return {"lr": 3e-3}
    before = SCHEDULES[stage.schedule][: stage.number - 1]
    return {"lr": 1e-4 if any(one.deepest != "head" for one in before) else 3e-4}


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


def preset_names() -> list[str]:
    """The presets that ship with the package."""
    return sorted(path.stem for path in PRESETS_DIR.glob("*.yaml"))


@cache
def preset_layer(name: str) -> Layer:
    """The settings of a preset, its file read once.

    Raises:
        SettingsError: no such preset; names the nearest.
    """
    if name not in preset_names():
        raise SettingsError(
            f"unknown preset {name}{nearest(name, preset_names())} "
            f"(there are {', '.join(preset_names())})"
        )
    values = read_yaml(PRESETS_DIR / f"{name}.yaml", "preset")
    return Layer(f"preset {name}", values, by_user=False)
