"""The same command several times at once: one trains, the others wait and may take over."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import mlflow
import pytest

from pipeline.errors import DivergedError
from pipeline.runs.resuming.once import NO_FINITE_EPOCH, Work
from pipeline.system.processes import KILLED_REASON, PROCESS
from pipeline.tracking import RunView, Tracking
from pipeline.tracking.keys import CHECKPOINT_SHA256, DIVERGED, KIND, MODEL_URI, REFIT, TICKET
from tests.conftest import Command, tiny, words_of
from tests.crowds import Crowd, crowd
from tests.test_leases import until

pytestmark = pytest.mark.slow

WAITS = "another command trains stage 1"


def stage_runs(status: str | None = None) -> list[RunView]:
    return Tracking.connect().find({KIND: "stage"}, status=status)


def run_ids(crowd: Crowd, number: int) -> set[str]:
    """The stage runs that a command names when it is over."""
    return set(re.findall(r"parent_run_id=(\w+)", crowd.out(number)))


def test_one_trains_and_the_others_wait_for_it(store: Path, image_folder: Path) -> None:
    words = words_of("stage1", tiny(image_folder, store, {"epochs": "1"}))
    with crowd(store, 3, words) as three:
        assert three.wait() == [0, 0, 0], [three.err(number) for number in range(3)]
        (run,) = stage_runs()
        assert [run_ids(three, number) for number in range(3)] == [{run.run_id}] * 3
        trained = [f"stage 1: run {run.run_id} (" in three.out(number) for number in range(3)]
        reused = [f"found run {run.run_id}" in three.out(number) for number in range(3)]
        assert sorted(trained) == [False, False, True]
        assert reused == [not did for did in trained]
    assert run.status == "FINISHED"
    assert len(run.tags[CHECKPOINT_SHA256]) == 64
    assert not Tracking.connect().find({}, status="RUNNING")


def test_a_command_that_waits_takes_over_from_one_that_is_killed(
    store: Path, image_folder: Path
) -> None:
    options = {"stage1.epochs": "40", "stage1.batch_size": "2"}
    words = words_of("main", tiny(image_folder, store, {**options, "schedule": "head_only"}))
    with crowd(store, 3, words) as three:
        until(lambda: sum(WAITS in three.out(number) for number in range(3)) == 2)
        (first,) = [run for run in stage_runs("RUNNING") if run.tags.get(TICKET)]
        killed = int(first.tags[PROCESS])
        os.kill(killed, signal.SIGKILL)
        codes = three.wait()
        number = three.pids.index(killed)
        others = [n for n in range(3) if n != number]
        assert [codes[n] for n in others] == [0, 0], [three.err(n) for n in others]
        (run,) = stage_runs("FINISHED")
        assert all(run.run_id in three.out(n) for n in others)
        assert run.run_id == first.run_id  # it goes on, perhaps before the other has looked
        assert any(f"run {first.run_id} stopped" in three.out(n) for n in others)
        assert sum(f"found run {run.run_id}" in three.out(n) for n in others) == 1
    assert len(run.tags[CHECKPOINT_SHA256]) == 64
    ended = [r for r in Tracking.connect().find({}, status=None) if r.status != "FINISHED"]
    assert {(r.status, r.tags["failure"]) for r in ended} == {("FAILED", KILLED_REASON)}


def test_a_run_that_diverged_late_and_was_stopped_is_taken_over(store: Path) -> None:
    """The tag `diverged` is that of some epoch: those before may be of use."""
    tracking, told = Tracking.connect(), list[str]()
    work = Work(tracking=tracking, say=told.append, alike={KIND: "stage"}, words="stage 1")
    ends = {}
    for name, err in (("late", KeyboardInterrupt()), ("all", DivergedError(NO_FINITE_EPOCH))):
        run = tracking.run(name, {KIND: "stage", DIVERGED: "true"}, target=False)
        with suppress(KeyboardInterrupt, DivergedError), run as log:
            raise err
        ends[name] = tracking.get(log.run_id)
    work._check_end(ends["late"])
    assert "taking over" in told[-1]
    with pytest.raises(DivergedError, match="no epoch had a finite"):
        work._check_end(ends["all"])


def test_the_model_on_all_images_is_trained_once(command: Command, store: Path) -> None:
    assert command("stage1") == 0
    (stage,) = stage_runs()
    with crowd(store, 3, words_of("refit", {"run_id": stage.run_id})) as three:
        assert three.wait() == [0, 0, 0], [three.err(number) for number in range(3)]
        (run,) = Tracking.connect().find({KIND: REFIT}, status=None)
        found = [f"found run {run.run_id}" in three.out(number) for number in range(3)]
        assert sorted(found) == [False, True, True]
        assert all(f"/runs/{run.run_id}?" in three.out(number) for number in range(3))  # its page
    assert run.status == "FINISHED"
    assert run.tags[MODEL_URI]


def test_under_mlflow_run_the_run_of_a_command_that_waited_names_the_other(
    command: Command,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command("stage1") == 0
    (run,) = stage_runs()
    with closing(sqlite3.connect(store / "mlflow.db")) as database, database:
        database.execute("update runs set end_time = end_time + 3600000")  # it ends after ...
    launched = mlflow.MlflowClient().create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", launched)
    capsys.readouterr()
    assert command("stage1") == 0  # ... this was started
    output = capsys.readouterr().out
    assert f"found run {run.run_id}" in output
    assert f"parent_run_id={run.run_id}" in output
    assert f"runs/{run.run_id}" in output
    assert [found.run_id for found in stage_runs()] == [run.run_id]
    own = Tracking.connect().get(launched)
    assert (own.name, own.tags[KIND]) == ("stage 1 · reused", "reuse")
    # the same command later trains anew
    with closing(sqlite3.connect(store / "mlflow.db")) as database, database:
        database.execute("update runs set end_time = start_time")
    assert command("stage1") == 0
    assert len(stage_runs("FINISHED")) == 2
