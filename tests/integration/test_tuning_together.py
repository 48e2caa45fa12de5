"""Many processes on one study: started at once, killed, cut off; nothing is lost or left open."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.books import read_books
from tests.conftest import NETS, TINY, words_of
from tests.forked import Forked, wait_until
from tests.integration.conftest import ROOT
from tests.postgres import Postgres

pytestmark = pytest.mark.slow

ENDED = ("COMPLETE", "PRUNED")


Start = Callable[..., Forked]


@pytest.fixture
def start(tmp_path: Path, image_folder: Path, environment: dict[str, str]) -> Iterator[Start]:
    """Start a worker in an empty folder, with a small space: `start(storage=…, n_trials="4")`."""
    folder = tmp_path / "work"
    folder.mkdir()
    space = tmp_path / "space.yaml"
    space.write_text("lr: {low: 1.0e-4, high: 1.0e-2, log: true}\nlabel_smoothing: [0.0, 0.1]\n")
    common = {**TINY, "data": str(image_folder), "cache_dir": str(folder / "cache")}
    common |= {"space": str(space), "stage": "1", "heartbeat": "1", "stage1.epochs": "2"}
    where = {
        **environment,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(NETS)]),
        "OMP_NUM_THREADS": "1",
    }

    def begin(tracking: str = "", **options: str) -> Forked:
        store = {"MLFLOW_TRACKING_URI": tracking} if tracking else {}
        words = words_of("tune", {**common, **options})
        output = tmp_path / f"output-{len(workers)}.txt"
        workers.append(forked.start(words, folder, output, {**where, **store}))
        return workers[-1]

    workers: list[Forked] = []
    yield begin
    for worker in workers:
        worker.kill()


def wait_for(text: str, worker: Forked) -> None:
    wait_until(lambda: text in worker.said(), worker)


def check_books(storage: str, tracking: str, wanted: int) -> None:
    """The only study has its trials, each once, and MLflow says the same of every one."""
    books = read_books(storage, tracking)
    ((name, trials),) = books["studies"].items()
    states = [trial["state"] for trial in trials]
    assert sum(state in ENDED for state in states) == wanted
    assert not {"RUNNING", "WAITING"} & set(states)
    # the command's own run of a killed worker is nobody's to close
    left = [r for r in books["runs"] if r["status"] == "RUNNING" and r["tags"]["kind"] != "tune"]
    assert left == []
    own = [run for run in books["runs"] if run["tags"].get("study") == name]
    assert [r["status"] for r in own if r["tags"]["kind"] == "study"] == ["FINISHED"]
    finished = {
        int(run["tags"]["trial"]): run["value"]
        for run in own
        if run["tags"]["kind"] == "trial" and run["status"] == "FINISHED"
    }
    complete = {t["number"]: t["value"] for t in trials if t["state"] == "COMPLETE"}
    assert finished == pytest.approx(complete)


def trials_of(storage: str, tracking: str) -> list[dict[str, Any]]:
    """The trials of the only study; none before there is one."""
    studies = list(read_books(storage, tracking)["studies"].values())
    return studies[0] if studies else []


def wait_for_trial(storage: str, tracking: str) -> None:
    end = time.monotonic() + 60
    while not any(trial["run_id"] for trial in trials_of(storage, tracking)):
        assert time.monotonic() < end, "no trial began"
        time.sleep(0.2)


def test_processes_start_at_once_on_an_empty_folder(start: Start, tmp_path: Path) -> None:
    workers = [start(n_trials="6") for _ in range(5)]
    assert [worker.wait() for worker in workers] == [0] * 5, workers[0].said()
    databases = (f"sqlite:///{tmp_path / 'work' / name}.db" for name in ("optuna", "mlflow"))
    check_books(*databases, wanted=6)


def test_processes_start_at_once_on_an_empty_postgresql(start: Start, postgres: Postgres) -> None:
    storage, tracking = postgres.url("optuna_start"), postgres.url("mlflow_start")
    workers = [start(tracking, storage=storage, n_trials="6") for _ in range(5)]
    assert [worker.wait() for worker in workers] == [0] * 5, workers[0].said()
    check_books(storage, tracking, wanted=6)


@pytest.mark.parametrize("kind", ["postgresql", "journal"])
def test_a_worker_lost_among_others_costs_only_its_trial(
    kind: str, start: Start, postgres: Postgres, tmp_path: Path
) -> None:
    storage, tracking = postgres.url("optuna_lost"), postgres.url(f"mlflow_lost_{kind}")
    if kind == "journal":
        storage = f"journal:///{tmp_path}/optuna.journal"
    options = {"storage": storage, "n_trials": "4", "stage1.epochs": "60"}
    lost, other = start(tracking, **options), start(tracking, **options)
    for worker in (lost, other):
        wait_for("of 4 trials so far", worker)
    wait_for_trial(storage, tracking)
    os.kill(lost.pid, signal.SIGKILL)
    assert other.wait() == 0, other.said()
    check_books(storage, tracking, wanted=4)


def test_postgresql_is_cut_off_and_comes_back(start: Start, postgres: Postgres) -> None:
    storage, tracking = postgres.url("optuna_cut"), postgres.url("mlflow_cut")
    options = {"storage": storage, "n_trials": "2", "stage1.epochs": "200"}
    worker = start(tracking, **options)
    wait_for("trial 0: ", worker)
    postgres.stop()
    wait_for("note: ", worker)
    postgres.start()
    assert worker.wait() == 0, worker.said()
    check_books(storage, tracking, wanted=2)


def test_ctrl_c_ends_local_tasks_cleanly(start: Start, tmp_path: Path) -> None:
    command = start(n_trials="50", workers="2", **{"stage1.epochs": "500"})
    wait_for("2 tasks at once", command)
    storage, tracking = (
        f"sqlite:///{tmp_path / 'work' / name}.db" for name in ("optuna", "mlflow")
    )
    wait_for_trial(storage, tracking)
    os.killpg(command.pid, signal.SIGINT)
    assert command.wait() == 130
    states = [trial["state"] for trial in trials_of(storage, tracking)]
    assert "RUNNING" not in states
    assert "WAITING" in states  # to be run again
    runs = read_books(storage, tracking)["runs"]
    assert {run["status"] for run in runs} <= {"KILLED", "FINISHED", "FAILED"}
