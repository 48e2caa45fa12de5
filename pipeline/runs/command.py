"""One command, as entry points take it beside their plan."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pipeline.runs.session import OnEpoch, Say
from pipeline.settings.request import Request


@dataclass(frozen=True, kw_only=True)
class Command:
    """What was asked for, and where to report.

    Attributes:
        request: for what only a run can complete, and to be typed again; plans are made from it
            once, before.
        tuned: take the settings of the finished studies that match.
        storage: Optuna's URL for studies; empty: OPTUNA_STORAGE, or `optuna.db` beside MLflow's
            database.
        started: when, in seconds as `time.time` gives them.
    """

    request: Request
    tuned: bool = False
    storage: str = ""
    started: float = field(default_factory=time.time)
    say: Say = print
    on_epoch: OnEpoch = field(default=lambda *_: None)
