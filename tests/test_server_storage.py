"""Optuna's storage in PostgreSQL while the server is restarted, and once it stays away."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from pipeline.errors import AwayError
from pipeline.system.variables import SERVER_WAIT
from pipeline.tuning.storage.access import open_storage
from pipeline.tuning.storage.server import ServerStorage, engine_of_server
from tests.postgres import Postgres


def test_a_trial_outlives_a_server_that_is_restarted(
    postgres: Postgres, capfd: pytest.CaptureFixture[str]
) -> None:
    storage = open_storage(postgres.url("restarted"), heartbeat_s=1)
    assert isinstance(storage, ServerStorage)
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    postgres.stop()
    with ThreadPoolExecutor(1) as other:  # a heartbeat's thread does not wait
        missed = other.submit(storage.record_heartbeat, trial._trial_id)
        with pytest.raises(StorageInternalError, match="exception is raised"):
            missed.result()
        start = threading.Timer(0.5, postgres.start)
        start.start()
        trial.set_user_attr("kept", 1)
        start.join()
        other.submit(storage.record_heartbeat, trial._trial_id).result()
    trial.report(0.5, 1)
    study.tell(trial, 1.0)
    (stored,) = study.get_trials()
    assert (stored.state, stored.value) == (TrialState.COMPLETE, 1.0)
    assert stored.user_attrs == {"kept": 1}
    assert stored.intermediate_values == {1: 0.5}
    err = capfd.readouterr().err
    assert "the storage at postgresql://postgres@127.0.0.1" in err
    assert "is away" in err
    assert "is back" in err


def test_trials_are_read_as_patiently_though_optuna_keeps_them(postgres: Postgres) -> None:
    """Its cache asks another method than that of the storage."""
    study = optuna.create_study(storage=open_storage(postgres.url("read")))
    study.ask()
    postgres.stop()
    start = threading.Timer(0.5, postgres.start)
    start.start()
    assert len(study.get_trials(deepcopy=False)) == 1
    start.join()


def test_a_server_that_stays_away_is_given_up(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SERVER_WAIT, "1")
    storage = open_storage(postgres.url("given_up"))
    study = optuna.create_study(storage=storage)
    postgres.stop()
    try:
        with pytest.raises(AwayError, match=r"the storage at .* has stayed away for"):
            study.set_user_attr("key", 1)
    finally:
        postgres.start()


def test_what_a_url_says_of_its_connections_stands() -> None:
    given = engine_of_server("postgresql+psycopg://host/db?connect_timeout=3")["connect_args"]
    assert "connect_timeout" not in given
    assert given["tcp_user_timeout"] > 0
    assert "connect_args" not in engine_of_server("mysql+pymysql://host/db")
