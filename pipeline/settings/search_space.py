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
from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import get_args

from pipeline.errors import SettingsError
from pipeline.settings.entry import TuneSettings
from pipeline.settings.layers import Given, Layer, shown, validated
from pipeline.settings.request import Request
from pipeline.settings.run import TRAIN_KEYS, Settings, TrainSettings
from pipeline.settings.schedules import SCHEDULES, Schedule
from pipeline.system.disk.files import typed_path
from pipeline.system.disk.yaml_file import did_you_mean, key_lines, read_yaml
from pipeline.system.provenance import IS_CLONE, PACKAGE_DIR, PROJECT_DIR

SPACES_DIR = (PROJECT_DIR if IS_CLONE else PACKAGE_DIR) / "search_spaces"
_RANGE_KEYS = {"low", "high", "step", "log"}
_EXAMPLE = "write lines like `lr: {low: 1.0e-4, high: 1.0e-2, log: true}`"


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both included; `log`: uniform in the logarithm."""

    low: float
    high: float
    _: KW_ONLY
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

    The file is the schedule's own, else that of a built-in schedule which begins as this schedule
    does; for another chain of stages, that of the built-in stage which has the same part in its
    chain.
    """
    chain = schedule.trains(number)
    alike = [
        known
        for known in SCHEDULES.values()
        if known.fits(schedule.blocks) and known.on(schedule.blocks).trains(number) == chain
    ]
    for known in sorted(alike, key=lambda known: known != schedule):
        path = SPACES_DIR / ("" if known.name == "three_stage" else known.name)
        if (path / f"stage{number}.yaml").exists():
            return path / f"stage{number}.yaml"
    *before, blocks = chain
    if not before:
        return SPACES_DIR / "two_stage" / "stage1.yaml"
    if before[-1] == blocks:
        file = "stage1_continued/stage2" if blocks == ("head",) else "stage2_continued/stage3"
        return SPACES_DIR / f"{file}.yaml"
    return SPACES_DIR / ("stage2.yaml" if before[-1] == ("head",) else "stage3.yaml")


@dataclass(frozen=True)
class TunePlan:
    """The studies that `tune` works on: the space of each stage to be tuned, in order."""

    tune: TuneSettings
    settings: Settings
    spaces: Mapping[int, SearchSpace]


def tune_plan(request: Request) -> TunePlan:
    """The plan of entry point tune; settings fixed by hand are taken out of the spaces.

    Raises:
        SettingsError: a wrong setting or space, or nothing is left to tune.
    """
    tune = request.own_settings(TuneSettings)
    target = None if tune.stage == "all" else int(tune.stage)
    request = request.for_stage(target)
    settings = request.settings()
    spaces = {}
    for n in [target] if target else range(1, len(settings.stages) + 1):
        space = read_space(_space_path(tune, settings, n))
        spaces[n] = space.without(request.explicit_keys(n), f"stage {n}")
    return TunePlan(tune, settings, spaces)


def _space_path(tune: TuneSettings, settings: Settings, number: int) -> Path:
    if not tune.space:
        return default_space(settings.chain, number)
    path = typed_path(tune.space, "space")
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except OSError:  # reading the file says why
        return path
    if is_folder:
        return path / f"stage{number}.yaml"
    if tune.stage == "all" and len(settings.stages) > 1 and is_there:
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
    content = read_yaml(path, f"space={path}")
    if not content:
        raise SettingsError(f"space={path} holds no ranges: {_EXAMPLE}")
    faults: dict[str, ValueError] = {}
    dimensions: dict[str, Range | Choices] = {}
    for key, given in content.items():
        try:
            dimensions[key] = _dimension(key, given)
        except ValueError as err:
            faults[key] = err
    if faults:
        lines = key_lines(path)
        raise SettingsError("\n".join(f"{path}:{lines.get(k, 1)}: {f}" for k, f in faults.items()))
    return SearchSpace(str(path), dimensions)


def _dimension(key: str, given: object) -> Range | Choices:
    """What a setting may be.

    Raises:
        ValueError: the rest of the fault's line.
    """
    if key not in TRAIN_KEYS:
        hint = did_you_mean(key, TRAIN_KEYS) or f": a space may hold {', '.join(TRAIN_KEYS)}"
        raise ValueError(f"unknown training setting {key}{hint}")
    if isinstance(given, list):
        values = tuple(_value(key, one) for one in given)
        if not values or len(set(values)) < len(values):
            raise ValueError(
                f"{key} must be a list of one or more different values, got {shown(given)}: write "
                "each once"
            )
        return Choices(values)
    if choices := get_args(TrainSettings.model_fields[key].annotation):
        raise ValueError(
            f"{key} must be a list of {', '.join(choices)}, got {shown(given)}: write them in [ ]"
        )
    if TrainSettings.model_fields[key].annotation is str:
        raise ValueError(
            f"{key} must be a list of its values, got {shown(given)}: write them in [ ]"
        )
    if not isinstance(given, dict) or not {"low", "high"} <= given.keys() <= _RANGE_KEYS:
        raise ValueError(
            f"{key} must be a list, or a range with low, high and, if wanted, step or log, "
            f"got {shown(given)}: {_EXAMPLE}"
        )
    return _range(key, given)


def _range(key: str, given: Mapping[str, object]) -> Range:
    low, high = _value(key, given["low"]), _value(key, given["high"])
    step, log = given.get("step"), given.get("log", False)
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    if low >= high:
        raise ValueError(
            f"{key}: low must be below high, got low {low} and high {high}: write the lower first"
        )
    if not isinstance(log, bool) or (log and (low <= 0 or "step" in given)):
        raise ValueError(
            f"{key}: log is true or false, and true with low > 0 and no step, got "
            f"{shown(dict(given))}: leave log out, or correct the others"
        )
    if "step" not in given:
        return Range(low=low, high=high, log=log)
    try:
        width = float(str(step))
        fits = (
            0 < width <= high - low and _on_grid(high - low, width) and type(low)(width) == width
        )
    except (ValueError, OverflowError):  # no number, NaN or infinity
        fits = False
    if not fits:
        raise ValueError(
            f"{key}: steps of {step} do not lead from {low} to {high}: "
            "write a step of which high - low is a multiple"
        )
    return Range(low=low, high=high, step=type(low)(width), log=log)


def _value(key: str, given: object) -> str | int | float:
    """A value as the setting's own type, inside the setting's own limits."""
    faults: list[str] = []
    given_alone = {key: Given(given, key, Layer(source="", values={}))}
    settings = validated(TrainSettings, given_alone, faults, lr=1.0)
    if settings is None:
        raise ValueError(*faults)
    value = getattr(settings, key)
    assert isinstance(value, str | int | float)
    return value


def _on_grid(distance: float, step: float) -> bool:
    return math.isclose(distance / step, round(distance / step), abs_tol=1e-9)
