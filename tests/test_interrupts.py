"""Ctrl-C stops a command at once, but for a database at work: there, after its transaction."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import mlflow
import optuna
import pytest
from sqlalchemy import create_engine, event, text

from pipeline.system.interrupts import PARENT, end_with_parent, stopped_by_signals
from pipeline.tuning.storage import open_storage

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The tests' own handlers come back."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def check_unlocked(path: Path) -> None:
    """Another connection can write at once."""
    with closing(sqlite3.connect(path, timeout=0)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_once_and_only_once(number: signal.Signals) -> None:
    with stopped_by_signals(signal.signal):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        for later in (signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(later)


@pytest.mark.parametrize("moment", ["before_cursor_execute", "after_cursor_execute", "commit"])
def test_a_transaction_that_a_signal_finds_open_is_ended_first(
    moment: str, tmp_path: Path
) -> None:
    path = tmp_path / "some.db"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE seen (number INTEGER)"))
    event.listen(engine, moment, lambda *_: signal.raise_signal(signal.SIGINT), once=True)
    committed = []

    def insert() -> None:
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO seen VALUES (1)"))
        committed.append(True)
        time.sleep(10)

    with stopped_by_signals(signal.signal), pytest.raises(KeyboardInterrupt):
        insert()
    assert committed
    check_unlocked(path)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT number FROM seen").fetchall() == [(1,)]
    engine.dispose()


def test_signals_at_any_moment_leave_no_lock_behind(store: Path) -> None:
    """MLflow's and Optuna's databases, written without a pause."""
    client = mlflow.MlflowClient()
    run_id = client.create_run("0").info.run_id
    storage = open_storage(f"sqlite:///{store / 'optuna.db'}")
    study = optuna.create_study(storage=storage)
    rng, written = random.Random(0), []

    def write() -> None:
        timer = threading.Timer(rng.uniform(0, 0.15), os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            for step in range(10_000):
                client.log_metric(run_id, "value", step)
                study.set_user_attr("value", step)
                written.append(step)
        finally:
            timer.cancel()

    for _number in range(25):
        with stopped_by_signals(signal.signal), pytest.raises(KeyboardInterrupt):
            write()
        check_unlocked(store / "mlflow.db")
        check_unlocked(store / "optuna.db")
    assert len(written) > 25


def test_a_worker_stops_once_the_command_that_started_it_is_gone(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    worker = (
        "import pathlib, signal, time\n"
        "from pipeline.system.interrupts import end_with_parent, stopped_by_signals\n"
        "try:\n"
        "    with stopped_by_signals(signal.signal):\n"
        "        end_with_parent()\n"
        "        print('started', flush=True)\n"
        "        time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        f"    pathlib.Path({str(ended)!r}).write_text('stopped')\n"
    )
    starter = (
        "import subprocess, sys\n"
        f"worker = subprocess.Popen([sys.executable, '-c', {worker!r}])\n"
        "worker.wait()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.kill()
    process.wait()
    end = time.monotonic() + 30
    while not ended.exists():
        assert time.monotonic() < end, "the worker goes on"
        time.sleep(0.1)
    process.stdout.close()


def test_a_worker_whose_command_is_gone_before_it_looks_stops_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    monkeypatch.setenv(PARENT, str(gone.pid))

    def work() -> None:
        end_with_parent()
        time.sleep(30)

    with stopped_by_signals(signal.signal), pytest.raises(KeyboardInterrupt):
        work()
