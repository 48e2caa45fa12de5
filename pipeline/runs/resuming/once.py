"""The same work at once, by several commands: one trains, the others wait for its run.

In: what is to be trained, known by the tags of its runs. Out: silence where nobody else is at it;
else a line, and a wait until the other's run has ended or its owner is dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from pipeline.errors import DivergedError, LineageError, OvertakenError
from pipeline.runs.session import Session
from pipeline.system.interrupts import at_once
from pipeline.system.leases import lease_s
from pipeline.system.processes import is_alive
from pipeline.system.progress import doing
from pipeline.tracking import RunView, Tracking, keys
from pipeline.tracking.keys import Tags
from pipeline.tracking.ownership.turns import Once, first_at_work

LOOK_S = 1.0
NO_FINITE_EPOCH = "no epoch had a finite validation loss"
"""Within the tag `failure` of a run that would end so again. The tag `diverged` does not tell:
other epochs of such a run may be of use."""
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What comes out alike, whichever command does it.

    Attributes:
        alike: tags that its runs share, and no others have.
        words: what is trained, for lines.
    """

    tracking: Tracking
    say: Callable[[str], None]
    alike: Tags
    words: str

    @classmethod
    def of_stage(cls, session: Session, number: int) -> Work:
        """One stage of a session."""
        return cls(
            tracking=session.tracking,
            say=session.say,
            alike={keys.KIND: "stage", keys.LINEAGE_KEY: session.key(number)},
            words=f"stage {number}",
        )

    def finished(self, until: float | None = None) -> set[str]:
        """Ids of the finished runs; `until`: of those that had ended at that time."""
        found = self.tracking.find(self.alike)
        return {run.run_id for run in found if until is None or run.ended_ms < 1000 * until}

    def once(
        self,
        known: Set[str],
        find: Callable[[], Result | None],
        do: Callable[[Once], Result],
    ) -> Result:
        """Do the work; where another command does or has done it meanwhile, find its result.

        `known`: finished runs that do not count. `find` gives None where the runs that have
        finished since are of no use. `do` raises OvertakenError where another command goes first.
        """
        while True:
            new = self.wait_for_others() - known
            if new and (found := find()) is not None:
                return found
            known |= new  # damaged ones
            with suppress(OvertakenError):
                return do(Once(alike=self.alike, known=known))

    def wait_for_others(self) -> set[str]:
        """Wait while another command does the work; returns ids of the runs finished by then.

        Raises:
            DivergedError: the other command's run diverged, as this one's would.
        """
        look = partial(self.tracking.owners.state_of, self.alike)
        while True:
            other, finished = first_at_work(look)
            if not other:
                return {*finished}
            self.say(self._waits_for(other))
            with doing(f"waiting for run {other.run_id}, {self.words} by another command"):
                while any(run.run_id == other.run_id for run in look().at_work):
                    with at_once():
                        time.sleep(LOOK_S)
            self._check_end(other)

    def _waits_for(self, other: RunView) -> str:
        if is_alive(other.tags) is None:
            return (
                f"{self.words}: run {other.run_id} says that it is at work, elsewhere or before a "
                "restart: waiting for it, as long as its owner gives a sign every "
                f"{lease_s():g} s"
            )
        return f"another command trains {self.words} (run {other.run_id}): waiting for it"

    def _check_end(self, other: RunView) -> None:
        """Refuse to repeat what cannot end in another way; tell who goes on otherwise."""
        try:
            run = self.tracking.get(other.run_id)
        except LineageError:
            return  # given up for a run that goes first
        if run.status == "FINISHED":
            return
        why = run.tags.get(keys.FAILURE, "it did not finish")
        if NO_FINITE_EPOCH in why:
            raise DivergedError(why, run.run_id)
        self.say(f"{self.words}: run {run.run_id} stopped ({why}): taking over")
        self.tracking.owners.end_abandoned(at_once=True)  # what the run was part of
