"""Leases: who works on something renews a mark of it, and who watches it tells life from death.

In: a function that renews a mark, while work goes on; elsewhere a mark as it is read now. Out: for
how long the mark has stayed the same, by the watcher's own clock: no clocks of two machines are
compared. Marks are renewed every `beat_s()` by one thread a process; a mark that stays the same
for `lease_s()` is that of a dead process.
Not covered: a process that is stopped (SIGSTOP) for longer counts as dead on other machines.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from pipeline.system.variables import BEAT, LEASE, number


def beat_s() -> float:
    """Seconds between two renewals."""
    return number(BEAT)


def lease_s() -> float:
    """Seconds without a renewal after which whoever should renew is dead."""
    return number(LEASE)


@dataclass(eq=False)
class _Mark:
    """A mark of this process; `lock` is held while the mark is renewed."""

    renew: Callable[[], object]
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_over: bool = False

    def beat(self) -> None:
        """Renew the mark, unless the work is over; a fault of the store is not the last word."""
        with self.lock, suppress(Exception):
            if not self.is_over:
                self.renew()


@dataclass
class _Heart:
    """Every mark of this process, and the thread that renews them while there are any."""

    marks: list[_Mark] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    beats: bool = False

    def add(self, mark: _Mark) -> None:
        """Renew a mark from now on."""
        with self.changed:
            self.marks.append(mark)
            self.changed.notify_all()  # the thread may be half through a long pause
            if not self.beats:
                self.beats = True
                threading.Thread(target=self._beat, daemon=True, name="leases").start()

    def remove(self, mark: _Mark) -> None:
        """Renew a mark no more, and wait for a renewal that is under way."""
        with mark.lock:
            mark.is_over = True
        with self.changed:
            self.marks.remove(mark)
            if not self.marks:
                self.changed.notify_all()

    def _beat(self) -> None:
        while True:
            with self.changed:
                if self.marks:
                    self.changed.wait(beat_s())
                if not self.marks:
                    self.beats = False
                    return
                marks = list(self.marks)
            for mark in marks:
                mark.beat()


_heart = _Heart()


@contextmanager
def renewing(renew: Callable[[], object]) -> Iterator[None]:
    """Renew a mark while this lasts; a renewal that fails is silent, and not the last one."""
    mark = _Mark(renew)
    _heart.add(mark)
    try:
        yield
    finally:
        _heart.remove(mark)


@dataclass
class Watch:
    """Marks of others, since when each has been as it is."""

    seen: dict[str, tuple[str, float]] = field(default_factory=dict)

    def is_silent(self, what: str, mark: str) -> bool:
        """Whether a mark has stayed the same for a lease, since it was first read here."""
        now = time.monotonic()
        before, since = self.seen.get(what, ("", now))
        if what not in self.seen or before != mark:
            self.seen[what] = (mark, now)
            return False
        return now - since >= lease_s()

    def keep(self, what: Collection[str]) -> None:
        """Watch no others any more."""
        self.seen = {key: seen for key, seen in self.seen.items() if key in what}

    @property
    def is_due(self) -> bool:
        """Whether a mark has not been read for a lease: to read it again may tell."""
        now = time.monotonic()
        return any(now - since >= lease_s() for _, since in self.seen.values())
