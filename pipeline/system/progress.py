"""How far a command is: bars on a terminal, a line every few seconds elsewhere, never silence.

In: `bar` around work that can be counted, `doing` around work that cannot, `loading` around the
import of a library that is slow. Out: on a terminal bars with the time that is left, and the time
that uncounted work takes; elsewhere a line where nothing was printed for `SILENT_S`. Nothing is
shown before `shown` is entered: as a library the code is silent. Lines of results go through
`say`, above the bars.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.system.text import printable

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")
SILENT_S = 4.0
"""After so long without a line, where there is no terminal, one says what is being done."""
QUIET_S = 2.0
"""After so long without anything on a terminal it shows that there is work."""
STILL_S = 1.0
"""After so long on a terminal the time that has passed is shown anew."""
_PLAIN = "{desc} … {elapsed}"


class _Screen:
    """What is under way, the outermost first, and when a line was printed last."""

    def __init__(self, *, is_terminal: bool) -> None:
        self.is_terminal = is_terminal
        self.bars: list[tqdm[Any]] = []
        self.printed = time.monotonic()
        self.ended = threading.Event()
        self.lock = threading.RLock()
        self.idle: list[tqdm[Any]] = []
        self.waits = False

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        with self.lock:
            self.heard()
            if self.bars and self.is_terminal:
                from tqdm import tqdm

                tqdm.write(line, file=sys.stdout)
                sys.stdout.flush()
            else:
                print(line, flush=True)

    def warn(self, line: str) -> None:
        """Print a line on stderr, above the bars."""
        with self.lock:
            self.heard()
            if self.bars and self.is_terminal:
                from tqdm import tqdm

                tqdm.write(line, file=sys.stderr)
            else:
                print(line, file=sys.stderr, flush=True)

    def heard(self) -> None:
        """Something is shown: what stood in for silence goes."""
        self.printed = time.monotonic()
        while self.idle:
            self.idle.pop().close()

    def watch(self) -> None:
        """Keep the time that is shown going; elsewhere, say what is being done."""
        while not self.ended.wait(STILL_S):
            with self.lock:
                if self.waits:
                    continue
                if self.is_terminal:
                    quiet = time.monotonic() - self.printed > QUIET_S
                    if quiet and not self.bars and not self.idle:
                        self.idle.append(_new_bar("working", None, sys.stderr))
                    for one in (*self.bars, *self.idle):
                        one.refresh()
                elif time.monotonic() - self.printed > SILENT_S:
                    self.say(f"… {', '.join(map(_in_words, self.bars)) or 'working'}")


_screen: _Screen | None = None


@contextmanager
def shown() -> Iterator[Callable[[str], None]]:
    """Show progress on this process's terminal; gives the function that prints lines."""
    global _screen
    before, screen = _screen, _Screen(is_terminal=sys.stderr.isatty())
    _screen = screen
    threading.Thread(target=screen.watch, daemon=True).start()
    try:
        yield screen.say
    finally:
        screen.ended.set()
        with screen.lock:
            screen.heard()
        _screen = before


def say(line: str) -> None:
    """Print a line above the bars; as a library the code is silent."""
    if _screen:
        _screen.say(printable(line))


def warn(line: str) -> None:
    """Say on stderr what cannot wait for the end, also where nothing else is shown."""
    (_screen or _Screen(is_terminal=False)).warn(line)


@contextmanager
def bar(what: str, total: int | None, *, done: int = 0) -> Iterator[Callable[[int], object]]:
    """Work of so many steps (None: it cannot be counted); gives a function for steps done."""
    screen = _screen
    if screen is None:
        yield lambda _: None
        return
    with screen.lock:
        if screen.is_terminal:
            screen.heard()
        place = sys.stderr if screen.is_terminal else _Nowhere()
        new = _new_bar(what, total, place, done)
        screen.bars.append(new)
    try:
        yield new.update
    finally:
        with screen.lock:
            screen.bars.remove(new)
            new.close()
            if screen.is_terminal:
                screen.printed = time.monotonic()


def _new_bar(what: str, total: int | None, place: Any, done: int = 0) -> tqdm[Any]:  # noqa: ANN401
    from tqdm import tqdm

    return tqdm(
        desc=what,
        total=total,
        initial=done,
        leave=False,
        dynamic_ncols=True,
        mininterval=0.0 if isinstance(place, _Nowhere) else 0.2,  # where nothing is drawn
        miniters=1,
        file=place,
        bar_format=None if total else _PLAIN,
    )


def doing(what: str) -> AbstractContextManager[object]:
    """Work that cannot be counted."""
    return bar(what, None)


@contextmanager
def waiting() -> Iterator[None]:
    """Nothing is done until a person wants something: silence is right."""
    if _screen:
        _screen.waits = True
    try:
        yield
    finally:
        if _screen:
            _screen.waits = False


@contextmanager
def loading(library: str, module: str) -> Iterator[None]:
    """The import of a library; without a terminal a line at once, where it is not imported yet.

    A thread cannot say so meanwhile: Python waits while the system reads such a library.
    """
    with doing(f"loading {library}"):
        if _screen and not _screen.is_terminal and module not in sys.modules:
            _screen.say(f"… loading {library}")
        yield


def counted(items: Iterable[Item], what: str, total: int, *, done: int = 0) -> Iterator[Item]:
    """The items, each a step of a bar that begins at `done` of `total`."""
    with bar(what, total, done=done) as step:
        for item in items:
            yield item
            step(1)


class _Nowhere:
    """Takes what a bar would draw."""

    def write(self, _: str) -> None:
        """Drop the text."""

    def flush(self) -> None:
        """Nothing is kept."""


def _in_words(one: tqdm[Any]) -> str:
    elapsed = float(one.format_dict["elapsed"])
    if not one.total:
        return f"{one.desc}: {elapsed:.0f} s so far" if elapsed >= 1 else str(one.desc)
    # from the last step on what is left gets less, however long the next one takes
    done, until = one.last_print_n - one.initial, one.last_print_t
    left = (one.total - one.last_print_n) * (until - one.start_t) / done if done else 0.0
    left -= time.time() - until
    ahead = f", about {left:.0f} s left" if left > 0 else ""
    return f"{one.desc}: {one.n / one.total:.0%} after {elapsed:.0f} s{ahead}"
