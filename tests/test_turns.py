"""Who goes first: one of many that start the same, whatever their clocks say."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest

from pipeline.errors import OvertakenError
from pipeline.tracking import Tracking
from pipeline.tracking.keys import KIND, LINEAGE_KEY, TICKET
from pipeline.tracking.ownership.turns import Once, first_at_work

SAME = {KIND: "stage", LINEAGE_KEY: "a key"}


def once(*known: str) -> Once:
    return Once(alike=SAME, known=known)


def test_one_of_many_goes_first_and_the_others_leave_nothing(store: Path) -> None:
    """Eight at a time, until one has done it; a run of other content is in nobody's way."""
    start, inside, overtaken = threading.Barrier(8), [], []
    trackings = [Tracking.connect() for _ in range(8)]

    def work(tracking: Tracking) -> None:
        start.wait()
        try:
            with tracking.run("same", SAME, target=False, once=once()) as log:
                inside.append(log.run_id)
                leave.wait(60)
        except OvertakenError:
            overtaken.append(True)
            if len(overtaken) == 7:  # all but the first, which is at work meanwhile
                leave.set()

    leave = threading.Event()
    threads = [threading.Thread(target=work, args=(one,)) for one in trackings]
    with trackings[0].run("other", {**SAME, LINEAGE_KEY: "another key"}, target=False):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (len(inside), len(overtaken)) == (1, 7)
    left = trackings[0].find(SAME, status=None)
    assert [(run.run_id, run.status) for run in left] == [(i, "FINISHED") for i in inside]


@pytest.mark.usefixtures("store")
def test_what_has_finished_meanwhile_is_not_done_again() -> None:
    tracking = Tracking.connect()
    with tracking.run("first", SAME, target=False, once=once()) as log:
        first = log.run_id
    with (
        pytest.raises(OvertakenError, match=first),
        tracking.run("again", SAME, target=False, once=once()),
    ):
        raise AssertionError
    with tracking.run("again", SAME, target=False, once=once(first)):  # which is damaged, say
        pass


@pytest.mark.usefixtures("store")
def test_a_run_that_is_there_goes_before_one_that_comes_whatever_their_times() -> None:
    tracking = Tracking.connect()
    with tracking.run("first", SAME, target=False, once=once()) as log:
        for _ in range(6):  # ids are random: some are lower than that of the first
            with suppress(OvertakenError), tracking.run("n", SAME, target=False, once=once()):
                raise AssertionError
        (left,) = tracking.owners.at_work(SAME)
        assert left.run_id == log.run_id
        first, _ = first_at_work(lambda: tracking.owners.state_of(SAME))
        assert first
        assert first.run_id == log.run_id


@pytest.mark.usefixtures("store")
def test_a_run_that_finishes_while_its_owner_is_looked_up_is_among_the_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracking = Tracking.connect()
    with tracking.run("first", SAME, target=False) as log:
        before = [tracking.find(SAME, status=None)]
    find = tracking.find
    monkeypatch.setattr(
        tracking.owners, "_find", lambda tags, *, status: (before or [find(tags)]).pop()
    )
    monkeypatch.setattr(tracking.owners, "is_dead", lambda _: True)
    state = tracking.owners.state_of(SAME)
    assert (state.at_work, state.finished) == ([], {log.run_id})
    assert tracking.get(log.run_id).status == "FINISHED"


@pytest.mark.usefixtures("store")
def test_the_run_of_mlflow_is_free_again_where_another_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = mlflow.MlflowClient()
    launched = client.create_run("0", tags={"mlflow.source.name": "by mlflow run"})
    run_id = launched.info.run_id
    others = Tracking.connect()
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    tracking = Tracking.connect("a command")
    with tracking.explained():
        with others.run("first", SAME, target=False, once=once()) as log:
            with (
                pytest.raises(OvertakenError, match=log.run_id),
                tracking.run("same", SAME, target=True, once=once()),
            ):
                raise AssertionError
            run = tracking.get(run_id)
            assert run.status == "RUNNING"
            assert not {LINEAGE_KEY, TICKET, KIND, "failure"} & run.tags.keys()
        with tracking.run("same", SAME, target=True, once=once(log.run_id)) as second:
            assert second.run_id == run_id
    run = tracking.get(run_id)
    assert run.status == "FINISHED"
    assert run.tags[LINEAGE_KEY] == SAME[LINEAGE_KEY]
    assert run.tags["mlflow.source.name"] == "by mlflow run"
