"""Optuna's storage in a database server, each of whose questions waits while the server is away.

In: the URL of a database server. Out: Optuna's own storage, patient. Optuna does not ask twice;
what counts twice if it is asked twice (a new trial, the turn of a waiting one) is left to whoever
asks, under the lock that goes with it. Not covered: a server that is reached and hangs for longer
than TCP allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial, wraps
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import PendingRollbackError, SQLAlchemyError

from pipeline.system.network.addresses import without_password
from pipeline.tracking.connection.away import away_database
from pipeline.tracking.connection.faults import causes_of
from pipeline.tracking.connection.patience import Away, Patience

_CONNECT_S = 10
_KEPT_ALIVE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
}
"""How soon libpq finds that a server that was connected is out of reach; the last one in ms."""
ASKED_AGAIN = (
    *("set_study_user_attr", "set_study_system_attr", "set_trial_param"),
    *("set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr"),
    *("get_study_id_from_name", "get_study_name_from_id", "get_study_directions"),
    *("get_study_user_attrs", "get_study_system_attrs", "get_all_studies", "get_trial"),
    *("get_all_trials", "get_best_trial", "get_trial_id_from_study_id_trial_number"),
    *("get_trial_param", "get_trial_user_attrs", "get_trial_system_attrs", "record_heartbeat"),
    *("_get_trials", "_get_stale_trial_ids"),  # Optuna's cache of trials asks these
)
"""What does the same however often it is asked."""


def engine_of_server(url: str) -> dict[str, Any]:
    """How a connection to a database server is opened: given up soon, tried before it is used."""
    parts = make_url(url)
    found: dict[str, Any] = {"pool_pre_ping": True}
    if parts.get_backend_name() == "postgresql" and "psycopg" in parts.get_driver_name():
        own = {"connect_timeout": _CONNECT_S, **_KEPT_ALIVE}
        found["connect_args"] = {k: v for k, v in own.items() if k not in parts.query}
    return found


class ServerStorage(RDBStorage):
    """RDBStorage in a database server."""

    def __init__(self, url: str, **named: Any) -> None:  # noqa: ANN401 - Optuna's own
        self._name = f"the storage at {without_password(url)}"
        self.patience = Patience(self._tell_away)
        super().__init__(url, **named)

    def _tell_away(self, err: BaseException) -> Away | None:
        """Whether the server is away; the session whose connection was lost is left behind."""
        away = away_database(err, self._name)
        if away is None and any(isinstance(c, PendingRollbackError) for c in causes_of(err)):
            away = Away(self._name, "the connection was lost")
        if away:
            with suppress(SQLAlchemyError):
                self.remove_session()
        return away

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Change a trial's state; an end that was stored though its answer was lost is kept."""
        change = partial(super().set_trial_state_values, trial_id, state, values)
        if not state.is_finished():
            return change()

        def stored() -> bool | None:
            trial = RDBStorage.get_trial(self, trial_id)
            given = list(values) if values is not None else None
            return True if (trial.state, trial.values) == (state, given) else None

        return self.patience.call(change, stored)


def _patient(name: str) -> Callable[..., object]:
    method = getattr(RDBStorage, name)

    @wraps(method)
    def patiently(self: ServerStorage, *args: object, **named: object) -> object:
        try:
            return self.patience.call(partial(method, self, *args, **named))
        except (StorageInternalError, SQLAlchemyError) as err:
            self._tell_away(err)  # a thread that does not wait goes on with a new session
            raise

    return patiently


for _name in ASKED_AGAIN:
    setattr(ServerStorage, _name, _patient(_name))
