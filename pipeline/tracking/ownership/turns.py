"""Who goes first where several processes start a run of the same content.

In: the runs of that content that are at work now. Out: the one that goes first; all others give up
their run and wait. Any store serves, and no clocks are compared: each process starts its run,
draws a ticket higher than every ticket it sees, waits for those that are still drawing, and goes
first if its ticket is the lowest, run ids between equal ones (Lamport's bakery, Communications of
the ACM 17(8), 1974).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence, Set
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


@dataclass(frozen=True, kw_only=True)
class State:
    """How runs of one content are at one moment: those at work, and ids of the finished ones."""

    at_work: Sequence[RunView]
    finished: Set[str]


@dataclass(frozen=True, kw_only=True)
class Once:
    """What is to be done once, however many processes start it.

    Attributes:
        alike: tags that runs of the same content share.
        known: finished runs of that content that do not stand for it.
    """

    alike: Mapping[str, str]
    known: Collection[str]


def first_at_work(look: Callable[[], State]) -> tuple[RunView | None, Set[str]]:
    """The run that goes first, None where nobody is at work; and the runs finished by then."""
    state, pause_s = look(), _LOOK_S
    while any(run.tags.get(TICKET) == DRAWING for run in state.at_work):
        with doing("another command begins the same"), at_once():
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _SELDOM_S)
        state = look()
    return min(state.at_work, key=_turn, default=None), state.finished


def take_turn(log: RunLog, once: Once, state_of: Callable[[Mapping[str, str]], State]) -> None:
    """Go first with a run that was just started, `DRAWING`.

    Raises:
        OvertakenError: another process goes first, or has been there meanwhile.
    """
    look = partial(state_of, once.alike)
    highest = max((_turn(run)[0] for run in look().at_work), default=0)
    log.tags({TICKET: str(highest + 1)})
    first, finished = first_at_work(look)
    if first and first.run_id != log.run_id:
        raise OvertakenError(f"run {first.run_id} goes first")
    if new := {*finished} - {*once.known}:
        raise OvertakenError(f"run {new.pop()} has finished meanwhile")


def _turn(run: RunView) -> tuple[int, str]:
    """The order; runs of earlier versions come first."""
    ticket = run.tags.get(TICKET, AT_ONCE)
    return int(ticket) if ticket.isdecimal() else 0, run.run_id
