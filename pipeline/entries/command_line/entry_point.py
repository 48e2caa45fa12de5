"""What a row of the table of entry points says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from pipeline.settings.entry import CommandSettings, TuneSettings
from pipeline.settings.idle import idle_lines
from pipeline.settings.request import Request
from pipeline.settings.run import RUN_KEYS, TRAIN_KEYS, Settings


@dataclass(frozen=True, kw_only=True)
class EntryPoint:
    """A row: one subcommand of the command line, and one entry point of MLproject.

    Attributes:
        help: one line.
        plan: turns a request into the plan that `work` carries out; imports nothing slow.
        work: `module:function` that takes a `Command` and the plan, imported when it is called.
        own: model of the settings that this entry point alone takes.
        shared: settings of `CommandSettings`.
        study: settings of `TuneSettings`.
        run_keys: settings of a run.
        silent: settings without an effect, taken so that all stages can be given the same options;
            the last line of help names them.
        trains: which stage plain training settings are for, in words; empty: nothing is trained,
            and no YAML file is taken.
        refused: settings that the plan refuses with a reason; no help offers them.
        defaults: what holds where a setting is not given, in words, if not the setting's default.
        has_control: takes settings of the control's last stage (`control.lr`).
    """

    name: str
    help: str
    plan: Callable[[Request], Any]
    work: str
    own: type[BaseModel] | None = None
    shared: tuple[str, ...] = ("storage", "tuned")
    study: tuple[str, ...] = ()
    run_keys: tuple[str, ...] = RUN_KEYS
    trains: str = "every stage"
    silent: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    defaults: Mapping[str, str] = field(default_factory=dict)
    has_control: bool = False

    @property
    def own_keys(self) -> tuple[str, ...]:
        """Every setting of the entry point, beside the settings of a run."""
        own = self.own.model_fields if self.own else ()
        return tuple(dict.fromkeys((*own, *self.shared, *self.study)))

    @property
    def keys(self) -> tuple[str, ...]:
        """Every option of the entry point, beside the training settings of single stages."""
        of_stages = ("config", *TRAIN_KEYS) if self.trains else ()
        return (*self.own_keys, *self.run_keys, *of_stages)

    @property
    def offered(self) -> tuple[str, ...]:
        """The options that help shows and that messages name."""
        hidden = {*self.refused, *self.silent}
        return tuple(key for key in self.keys if key not in hidden)

    def idle(self, request: Request, settings: Sequence[Settings]) -> list[str]:
        """Lines on settings that were given and have no effect beside the others.

        `settings`: of all that the command runs.
        """
        own: dict[str, object] = {}
        usual: dict[str, object] = {}
        models: list[type[BaseModel]] = [TuneSettings] if self.study else []
        models += [CommandSettings, *([self.own] if self.own else [])]
        for model in models:  # what the last one says counts
            values = dict(request.own_settings(model))
            own |= {key: value for key, value in values.items() if key in self.own_keys}
            usual |= {key: field.default for key, field in model.model_fields.items()}
        return idle_lines(request, own, usual, settings, self.silent)

    def read(self, options: Mapping[str, str]) -> Request:
        """The request behind a command line's options.

        Raises:
            SettingsError: the YAML file cannot be read.
        """
        return Request.read(options, self.own_keys)
