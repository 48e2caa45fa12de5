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
from pathlib import Path
from typing import TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import SettingsError
from pipeline.settings.run import (
    DEFAULT_PRESET,
    MAX_STAGES,
    OWN_IMAGES_PRESET,
    RUN_KEYS,
    STAGE_KEYS,
    TRAIN_KEYS,
    Settings,
    TrainSettings,
)
from pipeline.settings.schedules import SCHEDULES, Stage

PRESETS_DIR = Path(__file__).parent / "presets"
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Layer:
    """Key -> value pairs of one place; plain training keys go to stages `speaks_of`."""

    source: str
    values: Mapping[str, object]
    speaks_of: tuple[int, ...] = tuple(range(1, MAX_STAGES + 1))
    said_by_user: bool = True


@dataclass(frozen=True)
class _Said:
    """A value as it was given: under which key, in which layer."""

    value: object
    key: str
    layer: Layer


@dataclass
class _Collected:
    """The strongest value of each setting, by model (0: the run, n: stage n), and faults."""

    said: dict[int, dict[str, _Said]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, layer: Layer) -> None:
        plain_first = sorted(_flatten(layer.values).items(), key=lambda item: "." in item[0])
        for key, value in plain_first:
            said = _Said(value, key, layer)
            if key in RUN_KEYS:
                self.said.setdefault(0, {})[key] = said
            elif key in TRAIN_KEYS:
                for number in layer.speaks_of:
                    self.said.setdefault(number, {})[key] = said
            elif key in STAGE_KEYS:
                stage, name = key.split(".")
                self.said.setdefault(int(stage.removeprefix("stage")), {})[name] = said
            else:
                self.faults.append(_unknown(key, layer.source))

    def check(
        self, model: type[_Model], number: int, defaults: Mapping[str, object]
    ) -> _Model | None:
        """The model of these values, or None with its faults noted."""
        said = self.said.get(number, {})
        model_or_faults = _checked(model, said, defaults)
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
                for one in self.said.get(number, {}).values()
                if "." in one.key and one.layer.said_by_user
            ]


def _checked(
    model: type[_Model], said: Mapping[str, _Said], defaults: Mapping[str, object]
) -> _Model | list[str]:
    """The model of these values, or a line for each fault."""
    values = {key: _as_text(model, key, one.value) for key, one in said.items()}
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
            got = f"got {fault['input']!r} ({said[key].layer.source})"
            faults.append(f"{said[key].key} {message}, {got}{hint}")
        return faults


def load_own(model: type[_Model], options: Mapping[str, str]) -> _Model:
    """What the command line says of a study or a decision; keys of other models are passed over.

    Raises:
        SettingsError: one line for each wrong value.
    """
    layer = Layer("command line", options)
    keys = set(model.model_fields)
    said = {key: _Said(value, key, layer) for key, value in options.items() if key in keys}
    checked = _checked(model, said, {})
    if isinstance(checked, list):
        raise SettingsError("\n".join(checked))
    return checked


def said_of_stage(
    options: Mapping[str, str], config: str | None, target: int | None, number: int
) -> set[str]:
    """The training settings of a stage that a person has set, by options or in a file."""
    values = {**(read_yaml(Path(config), f"config={config}") if config else {}), **options}
    flat = _flatten(values)
    plain = target in (None, number)
    return {key for key in TRAIN_KEYS if f"stage{number}.{key}" in flat or (plain and key in flat)}


def _as_text(model: type[BaseModel], key: str, value: object) -> object:
    """Text where pydantic would take `true` for 1, or refuse 7 as the name of a folder."""
    annotation = model.model_fields[key].annotation
    is_bool = isinstance(value, bool)
    odd = annotation in (int, float) if is_bool else annotation is str
    return str(value) if odd and isinstance(value, int | float) else value


def _flatten(values: Mapping[str, object]) -> dict[str, object]:
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


def _preset_layer(name: str) -> Layer:
    if name not in preset_names():
        raise SettingsError(
            f"unknown preset {name}{nearest(name, preset_names())} "
            f"(there are {', '.join(preset_names())})"
        )
    values = read_yaml(PRESETS_DIR / f"{name}.yaml", "preset")
    return Layer(f"preset {name}", values, said_by_user=False)


def load_settings(
    options: Mapping[str, str],
    *,
    config: str | None = None,
    target: int | None = None,
    inherited: Mapping[str, object] | None = None,
) -> Settings:
    """Settings for an entry point.

    Args:
        options: what the command line says, key -> text.
        config: a YAML file of settings, weaker than the options.
        target: the stage that plain training settings apply to; None: every stage.
        inherited: a parent run's settings, stronger than the preset and weaker than the rest.

    Raises:
        SettingsError: see `resolve`.
    """
    numbers = Layer.speaks_of if target is None else (target,)
    said = Layer("command line", options, numbers)
    file_values = read_yaml(Path(config), f"config={config}") if config else {}
    from_file = Layer(f"config {config}", file_values, numbers)
    preset = options.get("preset") or file_values.get("preset")
    if preset is None:
        data = options.get("data") or file_values.get("data") or "digits"
        usual = DEFAULT_PRESET if data == "digits" else OWN_IMAGES_PRESET
        preset = (inherited or {}).get("preset", usual)
    layers = [_preset_layer(str(preset)), Layer("default", {"preset": preset})]
    if inherited is not None:
        layers.append(Layer("parent run", inherited, said_by_user=False))
    settings = resolve([*layers, from_file, said])
    if target is not None:
        settings.stage(target)
    return settings
