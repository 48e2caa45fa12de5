"""Ctrl-C stops a command where it looks for it, a wait at once, a database after its write."""

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

from pipeline.system.interrupts import (
    ONE_PRESS_S,
    at_once,
    begun,
    check,
    stop,
    stopped_by_signals,
)
from pipeline.tuning.storage.access import open_storage

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The tests' own handlers come back."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def check_unlocked(path: Path) -> None:
    """Another connection can write at once."""
    with closing(sqlite3.connect(path, timeout=0)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")


@pytest.fixture(autouse=True)
def not_under_nohup() -> Iterator[None]:
    """A check that runs under nohup, where a terminal's end is ignored, finds it as elsewhere."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_command_at_the_next_check_and_only_once(number: signal.Signals) -> None:
    with stopped_by_signals(signal.signal):
        begun()
        check()
        signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            check()
        for later in SIGNALS:
            signal.raise_signal(later)
        check()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_wait_ends_at_once(number: signal.Signals) -> None:
    with stopped_by_signals(signal.signal):
        begun()
        with pytest.raises(KeyboardInterrupt), at_once():
            signal.raise_signal(number)
        signal.raise_signal(number)


def test_no_wait_begins_after_a_signal() -> None:
    with stopped_by_signals(signal.signal):
        begun()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), at_once():
            pytest.fail("a wait began")


def test_a_command_under_nohup_outlives_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stopped_by_signals(signal.signal):
        begun()
        signal.raise_signal(signal.SIGHUP)
        check()


def test_a_command_that_has_not_begun_ends_at_once() -> None:
    with stopped_by_signals(signal.signal), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_second_ctrl_c_ends_at_once_and_sigterm_after_ctrl_c_is_the_same_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with stopped_by_signals(signal.signal):
        begun()
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr("pipeline.system.interrupts.ONE_PRESS_S", 0.0)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_third_ctrl_c_ends_a_process_that_cannot_mark_its_runs() -> None:
    code = (
        "import signal, time\n"
        "from pipeline.system.interrupts import begun, check, stopped_by_signals\n"
        "with stopped_by_signals(signal.signal):\n"
        "    begun()\n"
        "    try:\n"
        "        while True:\n"
        "            check()\n"
        "            print('at work', flush=True)\n"
        "            time.sleep(0.1)\n"
        "    except KeyboardInterrupt:\n"
        "        print('stopping', flush=True)\n"
        "        time.sleep(60)\n"
    )
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGINT)
        assert "stopping\n" in iter(process.stdout.readline, "")
        time.sleep(ONE_PRESS_S + 0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == -signal.SIGINT


def test_handlers_come_back_and_no_signal_outlives_its_command() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with stopped_by_signals(signal.signal):
        assert signal.getsignal(signal.SIGINT) is stop
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with stopped_by_signals(signal.signal):
        begun()
        signal.raise_signal(signal.SIGINT)
    check()
    with at_once():
        pass


def test_signals_at_any_moment_leave_no_lock_behind(store: Path) -> None:
    """MLflow's and Optuna's databases, written without a pause."""
    client = mlflow.MlflowClient()
    run_id = client.create_run("0").info.run_id
    storage = open_storage(f"sqlite:///{store / 'optuna.db'}")
    study = optuna.create_study(storage=storage)
    rng, written = random.Random(0), []

    def write() -> None:
        begun()
        timer = threading.Timer(rng.uniform(0, 0.15), os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            for step in range(10_000):
                check()
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
