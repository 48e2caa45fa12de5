"""Who goes first where several processes start a run of the same content.

In: the runs of that content that are at work now. Out: the one that goes first; all others give up
their run and wait. Any store serves, and no clocks are compared: each process starts its run,
draws a ticket higher than every ticket it sees, waits for those that are still drawing, and goes
first if its ticket is the lowest, run ids between equal ones (Lamport's bakery, Communications of
the ACM 17(8), 1974).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.errors import OvertakenError
from pipeline.system.interrupts import at_once
from pipeline.system.progress import doing
from pipeline.tracking.keys import TICKET
from pipeline.tracking.run import RunLog
from pipeline.tracking.view import RunView

AT_ONCE, DRAWING = "0", ""
"""The tickets of a run that waits for nobody, and of one whose process has not drawn yet."""
_LOOK_S, _SELDOM_S = 0.1, 2.0
"""Pauses between two looks at somebody who draws, which takes a moment, or has died meanwhile."""

Find = Callable[[Mapping[str, str]], Sequence[RunView]]
"""Runs with these tags."""


@dataclass(frozen=True, kw_only=True)
class Once:
    """What is to be done once, however many processes start it.

    Attributes:
        alike: tags that runs of the same content share.
        known: finished runs of that content that do not stand for it.
    """

    alike: Mapping[str, str]
    known: Collection[str]


def first_at_work(at_work: Callable[[], Sequence[RunView]]) -> RunView | None:
    """The run that goes first; None where nobody is at work."""
    runs, pause_s = at_work(), _LOOK_S
    while any(run.tags.get(TICKET) == DRAWING for run in runs):
        with doing("another command begins the same"), at_once():
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _SELDOM_S)
        runs = at_work()
    return min(runs, key=_turn, default=None)


def take_turn(log: RunLog, once: Once, at_work: Find, finished: Find) -> None:
    """Go first with a run that was just started, `DRAWING`.

    Raises:
        OvertakenError: another process goes first, or has been there meanwhile.
    """
    alike = partial(at_work, once.alike)
    highest = max((_turn(run)[0] for run in alike()), default=0)
    log.tags({TICKET: str(highest + 1)})
    first = first_at_work(alike)
    if first and first.run_id != log.run_id:
        raise OvertakenError(f"run {first.run_id} goes first")
    if new := {run.run_id for run in finished(once.alike)} - {*once.known}:
        raise OvertakenError(f"run {new.pop()} has finished meanwhile")


def _turn(run: RunView) -> tuple[int, str]:
    """The order; runs of earlier versions come first."""
    ticket = run.tags.get(TICKET, AT_ONCE)
    return int(ticket) if ticket.isdecimal() else 0, run.run_id
