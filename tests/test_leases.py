"""Leases: marks that are renewed while work goes on, and how a silent one is told from others."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable

import pytest

from pipeline.system.leases import Watch, renewing
from pipeline.system.variables import BEAT, LEASE


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BEAT, "0.01")
    monkeypatch.setenv(LEASE, "0.05")


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_marks_are_renewed_by_one_thread_until_their_work_is_over() -> None:
    """In a process of its own: other tests may leave something in use."""
    ended = multiprocessing.get_context("spawn").Process(target=_renew_marks)
    ended.start()
    ended.join()
    assert ended.exitcode == 0


def _renew_marks() -> None:
    first, second = [0], [0]

    def fail() -> None:
        second[0] += 1
        raise OSError("the store is away")

    def renew() -> None:
        first[0] += 1

    with renewing(renew):
        with renewing(fail):  # a fault ends neither its own beats nor others'
            until(lambda: first[0] > 2 and second[0] > 2)
            assert [t.name for t in threading.enumerate()].count("leases") == 1
        failed = second[0]
        before = first[0]
        until(lambda: first[0] > before + 2)
    renewed = first[0]
    until(lambda: "leases" not in [t.name for t in threading.enumerate()])
    assert (first[0], second[0]) == (renewed, failed)
    with renewing(renew):
        until(lambda: first[0] > renewed)


def test_only_a_mark_that_stays_the_same_for_a_lease_is_silent() -> None:
    watch, end = Watch(), time.monotonic() + 0.2
    assert not watch.is_silent("dead", "1")
    assert not watch.is_due
    number = 0
    while time.monotonic() < end:
        number += 1
        assert not watch.is_silent("living", str(number))
        time.sleep(0.005)
    assert watch.is_due
    assert watch.is_silent("dead", "1")
    assert not watch.is_silent("dead", "2")  # it lives again
    watch.keep(["another"])
    time.sleep(0.06)
    assert not watch.is_due
    assert not watch.is_silent("dead", "2")
