"""What a person typed, understood: the input of every entry point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.runs.session import OnEpoch, Say


@dataclass(frozen=True)
class Command:
    """What was typed, and where to report.

    Attributes:
        options: settings, key -> text.
        config: a YAML file of settings.
        parent_run_id: the run that a stage continues from.
        tuned: take the settings of the finished studies that match.
        storage: Optuna's URL for studies; empty: OPTUNA_STORAGE, or `optuna.db` beside MLflow's
            database.
        joins: the run of another command, in whose studies or decision this one takes part.
    """

    options: Mapping[str, str]
    config: str | None = None
    parent_run_id: str | None = None
    tuned: bool = False
    storage: str = ""
    joins: str = ""
    say: Say = print
    on_epoch: OnEpoch = field(default=lambda *_: None)
