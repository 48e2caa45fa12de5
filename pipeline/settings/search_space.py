"""What a study may try: `search_spaces/*.yaml` as typed ranges.

In: a YAML mapping of training settings, each with a range or a list of choices. Out: a
`SearchSpace`, or a `SettingsError` that lists every fault with its line. Not covered: how values
are chosen; `tuning/` leaves that to Optuna.

    lr: {low: 1.0e-4, high: 1.0e-2, log: true}
    epochs: {low: 5, high: 20, step: 5}
    augment: [none, light, strong]
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import SettingsError, first_line
from pipeline.settings.entry import TuneSettings
from pipeline.settings.request import Request
from pipeline.settings.run import TRAIN_KEYS, Settings, TrainSettings
from pipeline.settings.schedules import SCHEDULES, Schedule, schedule_of
from pipeline.settings.yaml_file import nearest
from pipeline.system.provenance import IS_CLONE, PACKAGE_DIR, PROJECT_DIR

SPACES_DIR = (PROJECT_DIR if IS_CLONE else PACKAGE_DIR) / "search_spaces"
_RANGE_KEYS = ("low", "high", "step", "log")
_EXAMPLE = "write lines like `lr: {low: 1.0e-4, high: 1.0e-2, log: true}`"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `log`: uniform in the logarithm."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    def holds(self, value: object) -> bool:
        """Whether the value lies in the range and on its grid."""
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        return self.step is None or _on_grid(value - self.low, self.step)


@dataclass(frozen=True)
class Choices:
    """One of these values."""

    values: tuple[str | int | float, ...]

    def holds(self, value: object) -> bool:
        """Whether the value is one of them."""
        return value in self.values


@dataclass(frozen=True)
class SearchSpace:
    """Training setting -> what it may be. `source`: the file it was read from."""

    source: str
    dimensions: Mapping[str, Range | Choices]

    def plain(self) -> dict[str, object]:
        """As a mapping that JSON and digests take."""
        return {key: asdict(dimension) for key, dimension in self.dimensions.items()}

    def holds(self, values: Mapping[str, object]) -> bool:
        """Whether these settings are a point of the space."""
        return all(d.holds(values[key]) for key, d in self.dimensions.items())

    def without(self, fixed: Collection[str], stage: str) -> SearchSpace:
        """The space without settings that are fixed by hand; SettingsError where none is left."""
        if left := {key: d for key, d in self.dimensions.items() if key not in fixed}:
            return SearchSpace(self.source, left)
        raise SettingsError(
            f"{stage}: every setting of {self.source} is fixed by hand "
            f"({', '.join(self.dimensions)}): leave one to be tuned"
        )


def default_space(schedule: Schedule, number: int) -> Path:
    """The file for a stage where the user gives none.

    It is that of the first built-in schedule which begins so; for another chain of stages, that of
    the built-in stage which has the same part in its chain.
    """
    chain = schedule.trains(number)
    same = [name for name, known in SCHEDULES.items() if known.trains(number) == chain]
    if not same:
        return SPACES_DIR / _SPACE_BY_PART[_part(chain)]
    folder = SPACES_DIR if same[0] == "three_stage" else SPACES_DIR / same[0]
    return folder / f"stage{number}.yaml"


_SPACE_BY_PART = {
    "head first": "stage1.yaml",
    "head continued": "stage1_continued/stage2.yaml",
    "blocks with a new head": "two_stage/stage1.yaml",
    "first blocks": "stage2.yaml",
    "more blocks": "stage3.yaml",
    "blocks continued": "stage2_continued/stage3.yaml",
}


def _part(chain: Sequence[tuple[str, ...]]) -> str:
    """What the last stage of a chain does: a key of `_SPACE_BY_PART`."""
    *before, blocks = chain
    if len(blocks) == 1:
        return "head continued" if before else "head first"
    if not before:
        return "blocks with a new head"
    if before[-1] == blocks:
        return "blocks continued"
    return "first blocks" if len(before[-1]) == 1 else "more blocks"


@dataclass(frozen=True)
class Plan:
    """What `tune` was asked for: the space of each stage to be tuned, in order."""

    tune: TuneSettings
    settings: Settings
    spaces: Mapping[int, SearchSpace]


def plan_of(request: Request) -> Plan:
    """The plan behind a request; settings fixed by hand are taken out of the spaces.

    Raises:
        SettingsError: a wrong setting or space, or nothing is left to tune.
    """
    tune = request.own_settings(TuneSettings)
    target = None if tune.stage == "all" else int(tune.stage)
    request = request.for_stage(target)
    settings = request.settings()
    numbers = [target] if target else range(1, len(settings.stages) + 1)
    spaces = {}
    for n in numbers:
        space = read_space(_space_path(tune, settings, n))
        spaces[n] = space.without(request.explicit_keys(n), f"stage {n}")
    return Plan(tune, settings, spaces)


def _space_path(tune: TuneSettings, settings: Settings, number: int) -> Path:
    path = Path(tune.space)
    if not tune.space:
        return default_space(schedule_of(settings.schedule), number)
    if path.is_dir():
        return path / f"stage{number}.yaml"
    if tune.stage == "all" and len(settings.stages) > 1 and path.exists():
        raise SettingsError(
            f"space={path} is one file for {len(settings.stages)} stages: pass -P stage=<a "
            "number>, or a folder with stage1.yaml, stage2.yaml, ..."
        )
    return path


def read_space(path: Path) -> SearchSpace:
    """The space in a YAML file.

    Raises:
        SettingsError: no such file, not YAML, or ranges that cannot be; a line for each fault,
            with the file and the line in it.
    """
    faults: list[str] = []
    dimensions: dict[str, Range | Choices] = {}
    for line, key, given, doubled in _entries(path):
        where = f"{path}:{line}"
        if key in dimensions:
            faults.append(f"{where}: {key} stands here twice: keep one")
            continue
        try:
            if doubled:
                raise ValueError(f"{key} names {doubled} twice: keep one")
            dimensions[key] = _dimension(key, given)
        except ValueError as err:
            faults.append(f"{where}: {err}")
    if faults:
        raise SettingsError("\n".join(faults))
    return SearchSpace(str(path), dimensions)


def _entries(path: Path) -> list[tuple[int, str, object, str]]:
    """Each entry of a YAML mapping: its line, key, value, and a word that stands twice in it."""
    try:
        text = path.read_text(encoding="utf-8")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        entries = [
            (
                key.start_mark.line + 1,
                str(loader.construct_object(key, deep=True)),
                loader.construct_object(value, deep=True),
                _doubled(value),
            )
            for key, value in pairs
        ]
    except (OSError, UnicodeDecodeError) as err:
        raise SettingsError(
            f"space={path}: cannot be read ({err}): pass a YAML file of ranges"
        ) from None
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise SettingsError(
            f"{where}: not YAML ({getattr(err, 'problem', None) or first_line(err)}): {_EXAMPLE}"
        ) from None
    if not entries:
        raise SettingsError(f"{path}: holds no ranges: {_EXAMPLE}")
    return entries


def _doubled(node: yaml.Node) -> str:
    """The first word that a mapping holds twice; YAML itself would keep the last."""
    words = [str(key.value) for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    return next((word for word in words if words.count(word) > 1), "")


def _dimension(key: str, given: object) -> Range | Choices:
    """What a setting may be.

    Raises:
        ValueError: the rest of the fault's line.
    """
    if key not in TRAIN_KEYS:
        hint = nearest(key, TRAIN_KEYS) or f": a space may hold {', '.join(TRAIN_KEYS)}"
        raise ValueError(f"unknown training setting {key}{hint}")
    if isinstance(given, list):
        return _choices(key, given)
    words = get_args(TrainSettings.model_fields[key].annotation)
    if words:
        raise ValueError(f"{key} takes a list of {', '.join(words)}, got {given!r}")
    if not isinstance(given, dict):
        raise ValueError(
            f"{key} must be a range like {{low: 1, high: 9}} or a list, got {given!r}"
        )
    return _range(key, given)


def _choices(key: str, given: list[object]) -> Choices:
    if not given:
        raise ValueError(f"{key} has an empty list: give one value or more")
    values = tuple(_value(key, one) for one in given)
    if len(set(values)) < len(values):
        raise ValueError(f"{key} names a value twice, got {given}: keep one")
    return Choices(values)


def _range(key: str, given: Mapping[Any, object]) -> Range:
    unknown = [str(word) for word in given if word not in _RANGE_KEYS]
    if unknown:
        raise ValueError(
            f"{key}: unknown word {unknown[0]}{nearest(unknown[0], _RANGE_KEYS)}: a range has "
            "low, high and, if wanted, step or log"
        )
    missing = [word for word in ("low", "high") if word not in given]
    if missing:
        raise ValueError(f"{key}: the range has no {' and no '.join(missing)}, got {dict(given)}")
    low, high = _value(key, given["low"]), _value(key, given["high"])
    log = given.get("log", False)
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    if low >= high:
        what = "reversed" if low > high else "empty"
        raise ValueError(f"{key}: the range is {what}, got low {low} and high {high}: low < high")
    if not isinstance(log, bool):
        raise ValueError(f"{key}: log is true or false, got {log!r}")
    if log and (low <= 0 or "step" in given):
        raise ValueError(f"{key}: a log range needs low > 0 and no step, got {dict(given)}")
    step = _step(key, given["step"], low, high) if "step" in given else None
    return Range(low, high, step, log)


def _step(key: str, given: object, low: float, high: float) -> float:
    if isinstance(given, bool):
        raise ValueError(f"{key}: step is a number, got {given}")
    try:
        step = TypeAdapter(type(low)).validate_python(given)
    except ValidationError as err:
        raise ValueError(f"{key}: step {_fault(err)}, got {given!r}") from None
    if not math.isfinite(step) or step <= 0 or not _on_grid(high - low, step):
        raise ValueError(
            f"{key}: steps of {step} do not lead from {low} to {high}: "
            "high - low must be a multiple of step"
        )
    return step


def _value(key: str, given: object) -> str | int | float:
    """A value as the setting's own type, inside the setting's own limits."""
    field = TrainSettings.model_fields[key]
    kind: Any = (
        Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    )
    try:
        if isinstance(given, bool) and not get_args(field.annotation):
            raise ValueError(f"{key} is a number, got {given}")
        value = TypeAdapter(kind).validate_python(given)
    except ValidationError as err:
        raise ValueError(f"{key} {_fault(err)}, got {given!r}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key} must be a finite number, got {given!r}")
    assert isinstance(value, str | int | float)
    return value


def _fault(err: ValidationError) -> str:
    return err.errors()[0]["msg"].removeprefix("Input ").replace("should be", "must be")


def _on_grid(distance: float, step: float) -> bool:
    return math.isclose(distance / step, round(distance / step), abs_tol=1e-9)
