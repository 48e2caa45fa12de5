"""Servers that go away: what was asked of one is asked again, until it answers or time is over.

In: a question to a server (MLflow's, its artifacts', its database, Optuna's storage) and how to
tell that a fault means "away". Out: the answer; lines on stderr that say which server is away, how
long the command waits, and when the server is back. The main thread waits for
`SERVER_WAIT` seconds at most; metrics that are sent in the background wait while training goes on,
and for as long as it does. Other threads do not wait: they find faults as MLflow raises them.

Asking twice must not count twice: where it would, `mend` finds what the first question has done.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from pipeline.errors import AwayError
from pipeline.system.interrupts import asked, at_once
from pipeline.system.progress import doing, warn
from pipeline.system.variables import SERVER_WAIT, number

_Result = TypeVar("_Result")
TIMEOUT, RETRIES = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
ANSWER_S, LONGEST_ANSWER_S, LAST_ANSWER_S = 10, 120, 2
"""How long MLflow waits for an answer: at first, once a server has been slow, once it is lost."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 10.0
AGAIN_S = 45.0
"""After so long a line says that a server is still away."""
LOOK_S = 0.2
_SLOW = "too long"
"""Word of faults where a server is reached and does not answer."""


@dataclass(frozen=True)
class Away:
    """Which server is away, and how that shows."""

    server: str
    reason: str


@dataclass(kw_only=True)
class _Outage:
    """A server that is away.

    Attributes:
        waits_since: when the command began to wait for the server; None while work goes on.
        told: when a line said so last, and whether that line said that the command waits.
        is_lost: the command has given the server up.
    """

    away: Away
    since: float
    waits_since: float | None = None
    told: tuple[float, bool] | None = None
    is_lost: bool = False


def ask_briefly() -> None:
    """Have MLflow give up an unanswered question soon, and leave asking again to `Patience`."""
    os.environ.setdefault(RETRIES, "0")
    _answer_within(ANSWER_S)


def _answer_within(seconds: int) -> None:
    """Change how long MLflow waits for an answer, unless the user has said how long."""
    if os.environ.get(TIMEOUT) in (None, *_given):
        _given[:] = [str(seconds)]
        os.environ[TIMEOUT] = str(seconds)


_given = [str(ANSWER_S)]
"""What this process, or the one that started it, has set; any other value is the user's."""


class Patience:
    """Asks servers again while they are away; `tell_away` says whether a fault means that."""

    def __init__(self, tell_away: Callable[[BaseException], Away | None]) -> None:
        self._tell_away = tell_away
        self._wait_s = number(SERVER_WAIT)
        self._outages: dict[str, _Outage] = {}
        self._lock = threading.RLock()
        self._thread = threading.local()

    def in_background(self, over: threading.Event) -> None:
        """This thread sends what the command need not wait for, until `over` is set."""
        self._thread.over = over

    def call(
        self, do: Callable[[], _Result], mend: Callable[[], _Result | None] | None = None
    ) -> _Result:
        """What `do` gives, asked again while a server is away; within another call, asked once.

        `mend`: asked before `do` is repeated: what the attempt whose answer was lost has come to,
        None if it came to nothing.

        Raises:
            AwayError: a server stayed away for too long.
        """
        if not self._waits():
            return do()
        try:
            with self._within():
                return do()
        except Exception as err:
            away, fault = self._tell_away(err), err
            if away is None:
                raise
        if hasattr(self._thread, "over"):
            return self._again(away, fault, do, mend)
        with doing(f"waiting for {away.server}"):
            return self._again(away, fault, do, mend)

    def _waits(self) -> bool:
        if getattr(self._thread, "is_within", False):
            return False
        is_main = threading.current_thread() is threading.main_thread()
        return is_main or hasattr(self._thread, "over")

    @contextmanager
    def _within(self) -> Iterator[None]:
        self._thread.is_within = True
        try:
            yield
        finally:
            self._thread.is_within = False

    def _again(
        self,
        away: Away,
        fault: Exception,
        do: Callable[[], _Result],
        mend: Callable[[], _Result | None] | None,
    ) -> _Result:
        """Pause and repeat until a server answers; `fault`: of the attempt before."""
        pause_s = FIRST_PAUSE_S
        over = getattr(self._thread, "over", None)
        while True:
            outage = self._outage(away)
            if over:
                self._pause_aside(outage, fault, pause_s, over)
            else:
                self._pause(outage, fault, pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            try:
                # what is repeated may be cut short by a signal: asking once more does no harm
                with self._within(), nullcontext() if over else at_once():
                    found = mend() if mend else None
                    if found is None:
                        found = do()
            except Exception as err:
                new, fault = self._tell_away(err), err
                if new is None:
                    self._end(outage)
                    raise
                if new.server != away.server:
                    self._end(outage)
                away = new
            else:
                self._end(outage)
                return found

    def _outage(self, away: Away) -> _Outage:
        """The outage that a fault belongs to; a server that is only slow is given more time."""
        with self._lock:
            new = _Outage(away=away, since=time.monotonic())
            outage = self._outages.setdefault(away.server, new)
            outage.away = away
        if _SLOW in away.reason and not outage.is_lost:
            given = int(os.environ.get(TIMEOUT) or ANSWER_S)
            _answer_within(min(max(2 * given, ANSWER_S), LONGEST_ANSWER_S))
        return outage

    def _pause_aside(
        self, outage: _Outage, fault: Exception, pause_s: float, over: threading.Event
    ) -> None:
        """Pause beside the main thread.

        Raises:
            Exception: `fault`, once the run has ended or the server is given up.
        """
        if not over.is_set():
            self._tell(outage)
        if over.wait(pause_s) or outage.is_lost:
            _raise_anew(fault)

    def _pause(self, outage: _Outage, fault: Exception, pause_s: float) -> None:
        """Pause in the main thread.

        Raises:
            AwayError: the server has stayed away for too long.
            Exception: `fault`, where a signal has asked for the end, or the server is given up.
        """
        if asked() or outage.is_lost:
            _answer_within(LAST_ANSWER_S)
            _raise_anew(fault)
        left_s = self._left_s(outage)
        with at_once():
            time.sleep(min(pause_s, left_s))
        given_s = int(os.environ.get(TIMEOUT) or ANSWER_S)
        _answer_within(min(given_s, max(LAST_ANSWER_S, math.ceil(left_s - pause_s))))

    def _left_s(self, outage: _Outage) -> float:
        """How much longer the command waits; tells so.

        Raises:
            AwayError: no longer.
        """
        now, away = time.monotonic(), outage.away
        with self._lock:
            outage.waits_since = outage.waits_since or now
            left_s = outage.waits_since + self._wait_s - now
            if left_s > 0:
                self._tell(outage)
                return left_s
            outage.is_lost = True
        _answer_within(LAST_ANSWER_S)
        raise AwayError(
            f"{away.server} has stayed away for {_in_words(now - outage.since)} ({away.reason}): "
            "see to it that the server answers, then run the same command again: it goes on from "
            "what is finished, caches included"
        )

    def wait_for(self, sent: Future[_Result]) -> _Result:
        """What the background has come to; the command waits for that now.

        Raises:
            AwayError: a server has stayed away for too long.
        """
        with at_once():
            while not sent.done():
                try:
                    return sent.result(LOOK_S)
                except TimeoutError:
                    for outage in list(self._outages.values()):
                        self._left_s(outage)
        return sent.result()

    def _tell(self, outage: _Outage) -> None:
        """Say that a server is away: at once, when the command begins to wait, now and then."""
        now, waits_since = time.monotonic(), outage.waits_since
        with self._lock:
            waits = waits_since is not None
            if outage.told and outage.told[1] >= waits and now - outage.told[0] < AGAIN_S:
                return
            away_s = now - outage.since
            is_news = outage.told is None or away_s < LONGEST_PAUSE_S
            still = "away" if is_news else f"still away after {_in_words(away_s)}"
            outage.told = now, waits
        what = "work goes on, what it records waits"
        if waits_since is not None:
            left_s = waits_since + self._wait_s - now
            what = f"the command waits for the server, {_in_words(left_s)} at most ({SERVER_WAIT})"
        warn(f"note: {outage.away.server} is {still} ({outage.away.reason}): {what}")

    def _end(self, outage: _Outage) -> None:
        with self._lock:
            ended = self._outages.pop(outage.away.server, None)
        if ended:
            _answer_within(ANSWER_S)
            if ended.told:
                away_s = time.monotonic() - ended.since
                warn(f"note: {ended.away.server} is back after {_in_words(away_s)}")


def _raise_anew(fault: Exception) -> NoReturn:
    """Raise a fault; what it came from, which says most, is kept whatever is handled now."""
    raise fault from fault.__cause__ or fault.__context__


def _in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
