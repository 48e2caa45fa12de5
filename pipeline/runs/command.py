"""One command: what was asked for, and where to report; entry points take it and a plan."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.runs.session import OnEpoch, Say
from pipeline.settings.entry import CommandSettings
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
        joins: the run of another command, in whose studies or decision this one takes part.
    """

    request: Request
    tuned: bool = False
    storage: str = ""
    joins: str = ""
    say: Say = print
    on_epoch: OnEpoch = field(default=lambda *_: None)

    @classmethod
    def of(
        cls, request: Request, say: Say = print, on_epoch: OnEpoch = lambda *_: None
    ) -> Command:
        """The command of a request."""
        own = request.own_settings(CommandSettings)
        return cls(request=request, **own.model_dump(), say=say, on_epoch=on_epoch)
