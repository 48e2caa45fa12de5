"""Who writes a run or a file: what is known of a process from where, and what is never guessed."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.system.processes import (
    BEAT,
    KILLED_REASON,
    MACHINE,
    NAMESPACE,
    PROCESS,
    STARTED,
    is_abandoned,
    is_abandoned_mark,
    is_alive,
    is_alive_mark,
    is_gone,
    owner_mark,
    owner_tags,
)
from pipeline.system.variables import BEAT as BEAT_S
from pipeline.system.variables import LEASE as LEASE_S
from pipeline.tracking import Tracking
from pipeline.tracking.ownership.owners import OLD_S
from tests.test_leases import until

ROOT = Path(__file__).resolve().parent.parent
TELL = (
    "import json; from pipeline.system.processes import *; "
    "print(json.dumps([owner_tags(), owner_mark()]))"
)
NO_PROC = not Path("/proc/self/stat").exists()
needs_proc = pytest.mark.skipif(NO_PROC, reason="this system has no /proc")


@pytest.fixture
def sleeper() -> Iterator[tuple[subprocess.Popen[str], dict[str, str], str]]:
    """A process that lives, its tags and its mark."""
    code = f"{TELL}; import sys; sys.stdout.flush(); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    tags, mark = json.loads(process.stdout.readline())
    yield process, tags, mark
    process.kill()
    process.communicate()


def test_a_process_is_gone_once_it_has_ended(
    sleeper: tuple[subprocess.Popen[str], dict[str, str], str],
) -> None:
    process, tags, mark = sleeper
    assert not is_abandoned(tags)
    assert not is_abandoned_mark(mark)
    assert NO_PROC or (is_alive(tags) and is_alive_mark(mark))
    process.kill()
    if not NO_PROC:  # a zombie still has its number, as in a container that reaps none
        end = time.monotonic() + 30
        while not is_abandoned(tags) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(process.pid, 0)
        assert is_abandoned(tags)
    process.wait()
    assert is_abandoned(tags)
    assert is_abandoned_mark(mark)
    # what cannot be seen from here is never gone, nor what an earlier version recorded
    for key in (MACHINE, NAMESPACE):
        assert is_alive({**tags, key: "another"}) is None
    assert is_alive_mark("0" * 16 + mark[16:]) is None
    if not NO_PROC:
        assert not is_abandoned({key: tags[key] for key in (MACHINE, PROCESS)})


@needs_proc
def test_another_process_with_the_same_number_is_not_taken_for_the_owner() -> None:
    tags = owner_tags()
    assert int(tags[STARTED]) > 0
    assert is_abandoned({**tags, STARTED: str(int(tags[STARTED]) - 1)})
    place, number, started = owner_mark().split("-")
    assert is_abandoned_mark(f"{place}-{number}-{int(started) - 1}")


@pytest.mark.parametrize(
    "number", [pytest.param(str(os.getpid()), id="own"), "", "x", "-1", "1.5", "9" * 20]
)
def test_no_process_of_unknown_start_or_without_a_number_is_gone(number: str) -> None:
    assert not is_gone(number, "")
    assert not {".", "/"} & set(owner_mark())  # a mark fits into a file name between dots


# Containers: the same host name, the same boot, processes that cannot see each other


@pytest.fixture(params=["--mount-proc", ""], ids=["its own /proc", "the host's /proc"])
def contained(request: pytest.FixtureRequest) -> list[str]:
    """The words that start a program in a PID namespace of its own."""
    words = ["unshare", "--pid", "--fork", *filter(None, [request.param])]
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed")
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no PID namespace may be made here")
    return words


def inside(contained: list[str], code: str, *words: str) -> str:
    done = subprocess.run(
        [*contained, sys.executable, "-c", code, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_living_process_is_not_dead_to_another_container(contained: list[str]) -> None:
    """Nobody in there has its number, or somebody else has."""
    code = "import json, sys; from pipeline.system.processes import *\n"
    code += "t, m = json.loads(sys.argv[1])\n"
    code += "print(is_abandoned(t), is_abandoned_mark(m), len(owner_mark().split('-')))"
    about = json.dumps([owner_tags(), owner_mark()])
    assert inside(contained, code, about).split() == ["False", "False", "3"]


def test_a_process_of_another_container_is_not_dead_to_us(contained: list[str]) -> None:
    tags, mark = json.loads(inside(contained, TELL))
    assert tags[MACHINE] == owner_tags()[MACHINE]
    assert tags[NAMESPACE] != owner_tags()[NAMESPACE]
    assert not is_abandoned(tags)
    assert not is_abandoned_mark(mark)


def test_a_living_run_is_not_ended_by_a_command_in_another_container(
    contained: list[str], store: Path
) -> None:
    code = """
from pipeline.tracking import Tracking
from pipeline.tracking.ownership.owners import OLD_S
from tests.test_leases import until
tracking = Tracking.connect()
with tracking.run("another command", {}, target=True) as log:
    print(log.run_id)
"""
    tracking = Tracking.connect()
    with tracking.run("a run", {}, target=True) as log:
        other = inside(contained, code).split()[-1]
        assert tracking.get(log.run_id).status == "RUNNING"
    assert tracking.get(other).status == "FINISHED"
    assert "failure" not in tracking.get(log.run_id).tags


def test_a_killed_command_is_ended_by_the_next_one_in_the_same_container(store: Path) -> None:
    code = """
import os
from pipeline.tracking import Tracking
from pipeline.tracking.ownership.owners import OLD_S
from tests.test_leases import until
with Tracking.connect().run("killed", {}, target=True) as log:
    print(log.run_id, flush=True)
    os._exit(9)
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        words,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    tracking, killed = Tracking.connect(), done.stdout.split()[-1]
    assert tracking.get(killed).status == "RUNNING"
    with tracking.run("the next command", {}, target=True):
        assert tracking.get(killed).status == "FAILED"
        assert tracking.get(killed).tags["failure"] == KILLED_REASON


# Leases: owners that cannot be looked up from here


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BEAT_S, "0.05")
    monkeypatch.setenv(LEASE_S, "3")


REBOOTED = {MACHINE: f"{owner_tags()[MACHINE].split()[0]} another-boot"}
ELSEWHERE = {MACHINE: "another-machine its-boot"}
OTHER_CONTAINER = {NAMESPACE: "pid:[1]"}


def left_running(tracking: Tracking, tags: dict[str, str]) -> str:
    return tracking.start("left", {**owner_tags(), **tags})


def status(tracking: Tracking, run_id: str) -> tuple[str, str | None]:
    run = tracking.get(run_id)
    return run.status, run.tags.get("failure")


@pytest.mark.usefixtures("quick", "store")
def test_a_run_is_dead_once_its_owner_gives_no_sign_for_a_lease() -> None:
    tracking = Tracking.connect()
    dead = [left_running(tracking, tags) for tags in (REBOOTED, ELSEWHERE, OTHER_CONTAINER)]
    living = left_running(tracking, ELSEWHERE)
    with tracking.owners.renewing(living):
        with tracking.run("the next command", {}, target=True):
            assert [status(tracking, i)[0] for i in (*dead, living)] == ["RUNNING"] * 4

            def look() -> bool:  # every run of the command looks again, once a lease is over
                with tracking.run("a part of the command", {}, target=False):
                    return {status(tracking, run_id)[0] for run_id in dead} == {"FAILED"}

            until(look)
        assert {status(tracking, run_id) for run_id in dead} == {("FAILED", KILLED_REASON)}
        assert status(tracking, living) == ("RUNNING", None)


@pytest.mark.usefixtures("quick", "store")
def test_runs_of_earlier_versions_have_a_day_and_those_of_others_for_ever(store: Path) -> None:
    tracking = Tracking.connect()
    young, old = (tracking.start("of an earlier version", ELSEWHERE) for _ in range(2))
    foreign = tracking.start("of another program", {})
    with closing(sqlite3.connect(store / "mlflow.db")) as database, database:
        database.execute(
            "update runs set start_time = start_time - ? where run_uuid != ?",
            (int(OLD_S * 1000) + 1, young),
        )
    until(lambda: len(tracking.owners.at_work({})) == 2)
    assert status(tracking, old) == ("FAILED", KILLED_REASON)
    assert {run.run_id for run in tracking.owners.at_work({})} == {young, foreign}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("contained", ["--mount-proc"], indirect=True)
def test_a_run_of_another_container_lives_as_long_as_its_process(
    contained: list[str], store: Path
) -> None:
    code = """
import os, sys
from pipeline.tracking import Tracking
with Tracking.connect().run("in a container", {}, target=True) as log:
    print(log.run_id, flush=True)
    sys.stdin.read()
    os._exit(9)
"""
    words = [*contained, sys.executable, "-c", code]
    process = subprocess.Popen(
        words,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    run_id = process.stdout.readline().strip()
    owners = Tracking.connect().owners
    beats = set()

    def watched() -> bool:
        (run,) = owners.at_work({})
        beats.add(run.tags[BEAT])
        return len(beats) > 30  # of more than a lease together

    until(watched)
    process.communicate("")
    until(lambda: not owners.at_work({}))
    assert status(Tracking.connect(), run_id) == ("FAILED", KILLED_REASON)
