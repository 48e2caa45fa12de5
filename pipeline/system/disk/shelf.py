"""A folder of files that can be made again, within a limit: what fits, and what goes for it.

In: sizes that a command is about to write. Out: room for them, or a `NoRoomError`. The limit holds
for everything in the folder, half-written files at the size they will have. For room the entries
that were used longest ago go first, never one that a living process uses: such an entry has a
mark, an empty file that names the process and that the process keeps fresh (`cache_parts.py`).

An entry is `KEY.bin` with `KEY.json`, whose time of change is that of the last use; a scratch file
is one process's alone and goes with its use. Whoever makes room or begins a use holds a lock of
the folder meanwhile. A size is stated on the terminal before it is taken, where it is `TOLD_BYTES`
or more; later sizes again where all together are beyond what was stated, which doubles.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from pipeline.system.disk.cache_parts import PARTS, USE, is_left_behind, touch
from pipeline.system.disk.files import holding, lock_for_all
from pipeline.system.disk.sizes import disk_of, in_words
from pipeline.system.leases import renewing
from pipeline.system.processes import owner_mark
from pipeline.system.progress import say

VALUES, ABOUT = ".bin", ".json"
TOLD_BYTES = 10_000_000
LEFT_BYTES, LEFT_SHARE = 1_000_000_000, 100
"""Left free for others: a gigabyte, of a small disk a hundredth."""
_LOCK = "room.lock"
_lock = threading.RLock()
_used: Counter[Path] = Counter()
"""Marks of use and scratch files of this process, and how often each is used."""
_beating: list[AbstractContextManager[None]] = []
_numbers = count()


class NoRoomError(Exception):
    """What is wanted does not fit, beside what living processes use."""

    def __init__(self, needed_bytes: int, room: Room) -> None:
        super().__init__()
        self.needed_bytes, self.room = needed_bytes, room

    def __str__(self) -> str:
        return self.words()

    def words(self, needed_bytes: int = 0) -> str:
        """What would do, at least so many bytes, and what there is."""
        has = f"the disk has room for {in_words(max(0, self.room.most_bytes))}"
        if not self.room.by_disk:
            has = f"the limit is {in_words(self.room.most_bytes)} (cache_limit)"
        return f"would need {in_words(max(needed_bytes, self.needed_bytes))}, {has}"


@dataclass(frozen=True)
class Room:
    """The most that the folder may hold now, and whether it is the disk that says so."""

    most_bytes: int
    by_disk: bool


class Use:
    """A file that this process uses as long as this object lives, or until `end`."""

    def __init__(self, mark: Path) -> None:
        with _lock:
            _used[mark] += 1
            if not _beating:
                _beating.append(renewing(lambda: touch(list(_used))))
                _beating[0].__enter__()  # until the process ends
        self.path = mark
        self._end = weakref.finalize(self, _let_go, mark, os.getpid())

    def end(self) -> None:
        """The file is used no more."""
        self._end()


def _let_go(mark: Path, process: int) -> None:
    """Remove a mark that is used no more; a forked process has none of its own."""
    if process != os.getpid():
        return
    with _lock:
        _used[mark] -= 1
        if _used[mark] <= 0:
            del _used[mark]
            with suppress(OSError):
                mark.unlink()


@dataclass
class _Stated:
    """What this process has taken in all, and what was stated of it."""

    taken_bytes: int = 0
    stated_bytes: int = 0


_stated = _Stated()


@dataclass(frozen=True)
class Shelf:
    """A folder with a limit; made when first written to."""

    folder: Path
    limit_bytes: int

    def use(self, values: Path) -> Use:
        """Keep an entry, there or not yet, from being removed for others.

        Raises:
            OSError: the folder cannot be written.
        """
        mark = values.with_name(f"{values.stem}.{owner_mark()}{USE}")
        with self._held():
            mark.touch()
            return Use(mark)

    def scratch(self, name: str, size_bytes: int, what: str) -> Use:
        """A new file of this process alone, with room for so many bytes; `what` is told.

        Raises:
            NoRoomError: it does not fit.
            OSError: the folder cannot be written.
        """
        part = self.folder / f"{name}-{next(_numbers)}.{owner_mark()}.tmp"
        self.make_room({part: size_bytes}, what)
        return Use(part)

    @property
    def scratch_bytes(self) -> int:
        """What scratch files and half-written ones of living processes take."""
        return sum(_size(part) for part in self._parts() if not is_left_behind(part))

    def fitting(self, sizes: Mapping[Path, int]) -> list[Path]:
        """The entries that fit together, of `sizes`: bytes of each, the most wanted entry first.

        Raises:
            NoRoomError: the first alone does not fit.
            OSError: the folder cannot be read.
        """
        first, *_ = sizes
        with self._held():
            room = self._room()
            kept = self._kept_bytes({path.stem for path in sizes})
        left = room.most_bytes - kept
        if left < sizes[first]:
            raise NoRoomError(kept + sizes[first], room)
        chosen: list[Path] = []
        for path, size in sizes.items():
            if size <= left:
                chosen.append(path)
                left -= size
        return chosen

    def make_room(self, sizes: Mapping[Path, int], what: str, keep: Collection[str] = ()) -> None:
        """Make files of these sizes, empty as yet; entries go for them, `keep` aside.

        Raises:
            NoRoomError: they do not fit.
            OSError: the folder cannot be written, or the disk not be asked for so much.
        """
        needed = sum(sizes.values())
        with self._held():
            room, kept = self._room(), self._kept_bytes(keep)
            if kept + needed > room.most_bytes:
                raise NoRoomError(kept + needed, room)
            self._remove_oldest(room.most_bytes - needed, keep)
            self._tell(needed, what)
            made: list[Path] = []
            try:
                for path, size in sizes.items():
                    made.append(path)
                    with path.open("wb") as file:
                        file.truncate(size)
            except OSError:
                for path in made:
                    path.unlink(missing_ok=True)
                raise

    @contextmanager
    def _held(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with holding(lock_for_all(self.folder / _LOCK)):
            yield

    def _room(self) -> Room:
        """The limit, or less where the disk is nearly full: others need some of it, too."""
        files = [*self._parts(), *self._entries()]
        disk = disk_of(self.folder)
        on_disk = sum(map(_written, files))
        most = on_disk + disk.free - min(LEFT_BYTES, disk.total // LEFT_SHARE)
        return Room(min(most, self.limit_bytes), by_disk=most < self.limit_bytes)

    def _kept_bytes(self, keep: Collection[str]) -> int:
        """What stays in any case: what is used or half written, and the entries of `keep`."""
        stay = {*keep, *used_keys(self.folder)}
        entries = (entry for entry in self._entries() if entry.stem in stay)
        return self.scratch_bytes + sum(map(_size, entries))

    def _parts(self) -> list[Path]:
        return [part for kind in PARTS for part in self.folder.glob(f"*{kind}")]

    def _entries(self) -> list[Path]:
        return list(self.folder.glob(f"*{VALUES}"))

    def _remove_oldest(self, most_bytes: int, keep: Collection[str]) -> None:
        """Remove what was used longest ago until no more is left than that."""
        for part in filter(is_left_behind, self._parts()):
            part.unlink(missing_ok=True)
        total = sum(_size(path) for path in (*self._parts(), *self._entries()))
        stay = {*keep, *used_keys(self.folder)}
        for entry in sorted(self._entries(), key=_last_use):
            if total <= most_bytes:
                return
            if entry.stem not in stay:
                total -= _size(entry)
                remove_entry(entry)

    def _tell(self, needed: int, what: str) -> None:
        _stated.taken_bytes += needed
        taken = _stated.taken_bytes
        if taken < max(TOLD_BYTES, 2 * _stated.stated_bytes):
            return
        _stated.stated_bytes = taken
        limit = f"{in_words(self.limit_bytes)} (cache_limit)"
        if taken == needed:
            say(f"disk: {in_words(needed)} for {what} in {_shown(self.folder)}, of {limit}")
            return
        say(
            f"disk: {in_words(needed)} more for {what} in {_shown(self.folder)}; with that "
            f"{in_words(taken)} by this command, of {limit}"
        )


def new_command() -> None:
    """From now on sizes are stated anew."""
    _stated.taken_bytes = _stated.stated_bytes = 0


def used_keys(folder: Path) -> set[str]:
    """The entries of a folder that living processes use."""
    marks = (mark for mark in folder.glob(f"*{USE}") if not is_left_behind(mark))
    return {mark.name.partition(".")[0] for mark in marks}


def remove_entry(entry: Path) -> None:
    """Remove an entry, its description first."""
    for kind in (ABOUT, VALUES, ".lock"):
        entry.with_suffix(kind).unlink(missing_ok=True)


def _last_use(entry: Path) -> float:
    """When an entry was used last; values without a description go first."""
    with suppress(OSError):
        return entry.with_suffix(ABOUT).stat().st_mtime
    return 0.0


def _written(path: Path) -> int:
    """Bytes of a file that are on the disk."""
    with suppress(OSError):
        return path.stat().st_blocks * 512
    return 0


def _size(path: Path) -> int:
    """Bytes that a file has, or will have; 0 where another process has removed it."""
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _shown(folder: Path) -> str:
    """The folder as people write it: `~` for their home."""
    home = Path("~").expanduser()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)
