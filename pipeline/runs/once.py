"""The same stage at once, by several commands: one trains, the others wait for its run.

In: a session and a stage's number. Out: silence where nobody else is at that stage; else a line,
and a wait until the other's run has ended or its owner is dead.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from functools import partial

from pipeline.errors import DivergedError, LineageError
from pipeline.runs.session import Session
from pipeline.system.interrupts import at_once
from pipeline.system.leases import lease_s
from pipeline.system.processes import is_alive
from pipeline.system.progress import doing
from pipeline.tracking import RunView, keys
from pipeline.tracking.turns import Once, first_at_work

LOOK_S = 1.0


def once(session: Session, number: int, known: Collection[str]) -> Once:
    """What makes a stage's runs the same; `known`: finished ones that do not count."""
    return Once(alike=_alike(session, number), known=known)


def finished(session: Session, number: int, until: float | None = None) -> set[str]:
    """Ids of the stage's finished runs; `until`: of those that had ended at that time."""
    found = session.tracking.find(_alike(session, number))
    return {run.run_id for run in found if until is None or run.ended_ms < 1000 * until}


def wait_for_others(session: Session, number: int) -> None:
    """Wait while another command trains the stage.

    Raises:
        DivergedError: the other command's run diverged, as this one's would.
    """
    alike = _alike(session, number)
    at_work = partial(session.tracking.owners.at_work, alike)
    while other := first_at_work(at_work):
        session.say(_words(number, other))
        with doing(f"waiting for run {other.run_id}, stage {number} by another command"):
            while any(run.run_id == other.run_id for run in at_work()):
                with at_once():
                    time.sleep(LOOK_S)
        _check_end(session, number, other)


def _alike(session: Session, number: int) -> dict[str, str]:
    return {keys.KIND: "stage", keys.LINEAGE_KEY: session.key(number)}


def _words(number: int, other: RunView) -> str:
    """Who is waited for."""
    if is_alive(other.tags) is None:
        return (
            f"stage {number}: run {other.run_id} says that it is at work, elsewhere or before a "
            f"restart: waiting for it, as long as its owner gives a sign every {lease_s():g} s"
        )
    return f"another command trains stage {number} (run {other.run_id}): waiting for it"


def _check_end(session: Session, number: int, other: RunView) -> None:
    """Refuse to repeat what cannot end in another way; tell who goes on otherwise."""
    try:
        run = session.tracking.get(other.run_id)
    except LineageError:
        return  # given up for a run that goes first
    if run.status == "FINISHED":
        return
    why = run.tags.get(keys.FAILURE, "it did not finish")
    if run.tags.get(keys.DIVERGED) == "true":
        raise DivergedError(why, run.run_id)
    session.say(f"stage {number}: run {run.run_id} came to nothing ({why}): taking over")
    session.tracking.owners.end_abandoned(at_once=True)  # what the run was part of
