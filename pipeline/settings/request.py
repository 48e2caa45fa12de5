"""A request: the options of one command and its YAML file, each read once.

In: the command line's options, key -> text. Out: a `Request`, from which an entry point's plan
takes its settings. `layers.py` says which of several values for a setting wins.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pydantic import BaseModel

from pipeline.errors import SettingsError
from pipeline.settings.entry import OF_ENTRY_POINTS, UNSET, CommandSettings
from pipeline.settings.layers import (
    COMMAND_LINE,
    CONTROL,
    Given,
    Layer,
    as_typed,
    control_key,
    flatten,
    preset_layer,
    resolve,
    validated,
)
from pipeline.settings.run import DEFAULT_PRESET, OWN_IMAGES_PRESET, TRAIN_KEYS, Settings
from pipeline.settings.schedules import schedule_of
from pipeline.system.disk.files import typed_path
from pipeline.system.disk.yaml_file import read_yaml
from pipeline.system.network.addresses import without_password

Model = TypeVar("Model", bound=BaseModel)
SCHEDULE_KEYS = ("schedule", "treatment", "control", "baseline", "schedules")
"""Settings that name schedules, with commas between them where there are several."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One command, read.

    Attributes:
        options: settings of a run from the command line, key -> text.
        own: the entry point's own settings from the command line, key -> text.
        config: path of the YAML file of settings; empty: none.
        file: the settings of a run in that file, weaker than the options.
        own_in_file: the entry point's own settings in that file.
        of_others: settings in that file that are other entry points' own, which ask for them.
        target: the stage that plain training settings apply to; None: every stage.
        control: training settings of a decision's control alone, key -> text.
        control_in_file: those of them that only the file gives.
    """

    options: Mapping[str, str]
    own: Mapping[str, str] = field(default_factory=dict)
    config: str = ""
    file: Mapping[str, object] = field(default_factory=dict)
    own_in_file: Mapping[str, object] = field(default_factory=dict)
    of_others: tuple[str, ...] = ()
    target: int | None = None
    control: Mapping[str, str] = field(default_factory=dict)
    control_in_file: Collection[str] = ()

    @classmethod
    def read(cls, options: Mapping[str, str], own_keys: Collection[str] = ()) -> Request:
        """The request behind a command line; `own_keys`: settings of the entry point, not of runs.

        Raises:
            SettingsError: the YAML file, or that of a schedule, cannot be read.
        """
        for key, text in options.items():
            _refuse_nul(key, text, COMMAND_LINE)
        config = options.get("config", "")
        config = "" if config in UNSET else config
        file = _read_config(config) if config else {}
        not_given = {"config", *({"preset"} if options.get("preset") in UNSET else ())}
        of_runs = {key: text for key, text in options.items() if key not in not_given}
        own = {key: of_runs.pop(key) for key in own_keys if key in of_runs}
        of_control = _of_control(file)
        own_in_file = {key: _with_commas(file.pop(key)) for key in own_keys if key in file}
        of_others = tuple(key for key in file if key in OF_ENTRY_POINTS)
        file = {key: value for key, value in file.items() if key not in of_others}
        if "control" not in own_keys:
            of_others += tuple(f"{CONTROL}{key}" for key in of_control)
            of_control = {}
        apart = {name: of_runs.pop(key) for key in options if (name := control_key(key))}
        for values in (of_runs, own, file, own_in_file):  # schedules in files are read once, too
            values.update({k: _spelled_out(values[k]) for k in SCHEDULE_KEYS if values.get(k)})
        return cls(
            options=of_runs,
            own=own,
            config=config,
            file=file,
            own_in_file=own_in_file,
            of_others=of_others,
            control={**of_control, **apart},
            control_in_file=of_control.keys() - apart.keys(),
        )

    def for_stage(self, number: int | None) -> Request:
        """The same with plain training settings for one stage (None: for every stage)."""
        return replace(self, target=number)

    def of_no_stage(self) -> Request:
        """The same without the settings of single stages."""

        def general(values: Mapping[str, object]) -> dict[str, object]:
            return {key: v for key, v in values.items() if not key.startswith("stage")}

        options = {key: str(text) for key, text in general(self.options).items()}
        return replace(self, options=options, file=general(self.file))

    @property
    def general(self) -> dict[str, str]:
        """Settings that are given for no single stage: in the file, or on the command line."""
        plain = self.of_no_stage()
        return {key: str(value) for key, value in {**plain.file, **plain.options}.items()}

    @property
    def typed(self) -> dict[str, str]:
        """The options to type for the same command, except what `CommandSettings` holds."""
        shared = CommandSettings.model_fields
        own = {key: text for key, text in self.own.items() if key not in shared}
        apart = self.control.keys() - set(self.control_in_file)
        own |= {f"{CONTROL}{key}": self.control[key] for key in self.control if key in apart}
        return {**self.options, **own, **({"config": self.config} if self.config else {})}

    @property
    def typed_storage(self) -> dict[str, str]:
        """The storage of studies as it was typed; an address with a password is not shown."""
        url = self.own.get("storage", "")
        return {"storage": url} if url and without_password(url) == url else {}

    def explicit_keys(self, number: int) -> set[str]:
        """The training settings of a stage that are given by hand: as options or in the file."""
        given = flatten({**self.file, **self.options})
        plain = self.target in (None, number)
        return {k for k in TRAIN_KEYS if f"stage{number}.{k}" in given or (plain and k in given)}

    def note_on_earlier_stages(self, settings: Settings) -> str:
        """A note on training settings that the target alone has, not the stages before it.

        Empty where there is no such stage, or where they have the same values anyway.
        """
        given = flatten({**self.file, **self.options})
        own, before = self.target or 1, range(1, self.target or 1)
        apart = [
            key
            for key in TRAIN_KEYS
            if key in given
            and any(
                f"stage{n}.{key}" not in given
                and getattr(settings.training(n), key) != getattr(settings.training(own), key)
                for n in before
            )
        ]
        if not apart:
            return ""
        said = ", ".join(f"{key}={given[key]}" for key in apart)
        theirs = "; ".join(
            f"stage {n} has "
            + ", ".join(f"{key} {getattr(settings.training(n), key)}" for key in apart)
            for n in before
        )
        return (
            f"{said}: for stage {own} alone. Earlier stages that have to be trained keep their "
            f"own values ({theirs}): -P stage1.{apart[0]}= and the like set these"
        )

    def own_settings(self, model: type[Model], **overrides: str) -> Model:
        """The entry point's own settings of this model; `overrides`: stronger values.

        Raises:
            SettingsError: one line for each wrong value.
        """
        layers = (
            Layer(source=f"config {self.config}", values=self.own_in_file),
            Layer(source=COMMAND_LINE, values={**self.own, **overrides}),
        )
        given = {
            key: Given(layer.values[key], key, layer)
            for layer in layers
            for key in model.model_fields.keys() & layer.values.keys()
        }
        faults: list[str] = []
        own = validated(model, given, faults)
        if own is None:
            raise SettingsError("\n".join(faults))
        return own

    def settings(
        self, inherited: Mapping[str, object] | None = None, run_id: str = "", **overrides: str
    ) -> Settings:
        """Settings of a run.

        Args:
            inherited: a parent run's settings, stronger than the preset and weaker than the rest.
            run_id: the id of that run.
            overrides: options that are stronger than the command line.

        Raises:
            SettingsError: see `resolve`.
        """
        options: dict[str, str] = {**self.options, **overrides}
        preset = options.get("preset") or self.file.get("preset")
        if preset is None:
            data = options.get("data") or self.file.get("data") or "digits"
            usual = DEFAULT_PRESET if data == "digits" else OWN_IMAGES_PRESET
            preset = (inherited or {}).get("preset", usual)
        layers = [preset_layer(str(preset)), Layer(source="default", values={"preset": preset})]
        if inherited is not None:
            layers.append(Layer(source=f"run {run_id}", values=inherited, by_user=False))
        layers.append(Layer(source=f"config {self.config}", values=self.file, stage=self.target))
        settings = resolve(
            [*layers, Layer(source=COMMAND_LINE, values=options, stage=self.target)]
        )
        if self.target is not None:
            settings.stage(self.target)  # or SettingsError: the schedule is shorter
        return settings

    def given_for_control(self, key: str) -> Given:
        """A setting of the control, and where it was given."""
        source = f"config {self.config}" if key in self.control_in_file else COMMAND_LINE
        layer = Layer(source=source, values={})
        return Given(self.control[key], f"{CONTROL}{key}", layer)

    def check(self) -> None:
        """Refuse wrong settings now, where a finished run is to complete them later.

        Raises:
            SettingsError: see `resolve`.
        """
        self.settings()


def _read_config(config: str) -> dict[str, object]:
    """The settings in a YAML file.

    Raises:
        SettingsError: it cannot be read, or gives a setting twice: `stage1.lr`, `lr` of `stage1`.
    """
    file = read_yaml(typed_path(config, "config"), f"config={config}")
    inner = [
        f"{key}.{name}" for key, one in file.items() if isinstance(one, Mapping) for name in one
    ]
    if twice := [key for key in inner if key in file]:
        raise SettingsError(f"config={config}: {twice[0]} is given twice, in two ways: keep one")
    for key, value in flatten(file).items():
        _refuse_nul(key, value, f"config {config}")
    return file


def _of_control(file: dict[str, object]) -> dict[str, str]:
    """The training settings of a decision's control alone, taken out of a file's settings."""
    if isinstance(inner := file.get("control"), Mapping):
        del file["control"]
        file |= {f"{CONTROL}{key}": value for key, value in inner.items()}
    return {name: as_typed(file.pop(key)) for key in list(file) if (name := control_key(key))}


def _with_commas(value: object) -> object:
    """A list as it is typed: `looks: [5, 10]` means `5,10`."""
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _refuse_nul(key: str, value: object, source: str) -> None:
    """No path, name or database can hold that character."""
    if isinstance(value, str) and "\0" in value:
        raise SettingsError(
            f"{key} holds a NUL character, got {value[:200]!r} ({source}): leave the character out"
        )


def _spelled_out(schedules: object) -> str:
    """The same schedules without their files: by name, or spelled out."""
    return ",".join(str(schedule_of(text.strip())) for text in str(schedules).split(","))
