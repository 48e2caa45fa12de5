"""Who writes a run or a file: what is known of a process from where, and what is never guessed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.system.processes import (
    KILLED_REASON,
    MACHINE,
    NAMESPACE,
    PROCESS,
    STARTED,
    is_abandoned,
    is_abandoned_mark,
    is_gone,
    owner_mark,
    owner_tags,
)
from pipeline.tracking import Tracking

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
        assert not is_abandoned({**tags, key: "another"})
    assert not is_abandoned_mark("0" * 16 + mark[16:])
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
