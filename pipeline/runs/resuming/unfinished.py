"""What a run that is being trained has come to, so that the same command goes on with it.

In: the state of a trainer after an epoch, and the key of what is trained. Out: a file in the
cache's folder, `unfinished/KEY.RUN.state`, there from the beginning of run RUN and removed once
the run is finished. The same command finds the file by its key, in whatever process, and goes on
in run RUN. Where `mlflow run` has started a run for the command, that run takes the state over and
run RUN is deleted.

Writing costs at most the share `KEEP_SHARE` of the time that is trained: a state that would cost
more is not written, and what is lost is worth less than that. A state of other libraries, of
another device or of another parent would not lead to the same bits, and is left alone. Not
covered: a state within an epoch.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pipeline.errors import (
    AwayError,
    FreezingError,
    RunStopped,
    StorageError,
    TrainingError,
)
from pipeline.runs.resuming.stopped import (
    ENDING,
    LOCK,
    OWNER,
    is_stopped,
    run_of,
    state_path,
    sweep,
    unfinished_folder,
)
from pipeline.runs.session import Session
from pipeline.system.disk.files import locked
from pipeline.system.disk.sealed import read_about, read_sealed, write_sealed
from pipeline.system.processes import owner_tags
from pipeline.system.variables import KEEP_SHARE, number
from pipeline.tracking import RunLog, RunView, Tracking
from pipeline.tracking.keys import IS_TRIAL, KIND, NESTED_UNDER, PARENT_CHECKPOINT_SHA256, Tags
from pipeline.tracking.ownership.turns import Once
from pipeline.training.trainer_state import State

FORMAT = 1
GUESS_S, GUESS_BYTES_PER_S = 0.02, 1e8
"""What a state is taken to cost before one has been written."""
NOTHING = (0, 0)
"""Stage and epochs in a file without a state: its run goes on, from the first epoch."""


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A state of the content that is wanted; `run`: None where the store has it no more."""

    path: Path
    about: dict[str, Any]
    run: RunView | None


@dataclass(kw_only=True)
class Unfinished:
    """The state of one run: found at its beginning, kept after its epochs, removed at its end.

    Attributes:
        origin: what computes the run, and what the run starts from.
        is_nested: pages show the run within another one.
        found: what a stopped run had come to; None: the run begins.
        goes_on: the run that had come to it and is written on; empty: a new run.
        earlier_s: seconds that the run took before it was stopped.
    """

    folder: Path
    key: str
    origin: str
    say: Callable[[str], None]
    share: float
    is_nested: bool
    found: State | None = None
    goes_on: str = ""
    earlier_s: float = 0.0
    _run_id: str = ""
    _former: _Candidate | None = None
    _began: float = 0.0
    _trains_since: float | None = None
    _at_border: Callable[[], State] | None = None
    _spent_s: float = 0.0
    _cost_s: float | None = None
    _kept: tuple[int, int] = NOTHING

    @contextmanager
    def claimed(self, tracking: Tracking, tags: Tags) -> Iterator[None]:
        """Look for a state; other processes wait until the run that goes on has its new owner."""
        with ExitStack() as held:
            if self.share and self.folder.is_dir():
                with suppress(StorageError):  # a folder of others: nothing is found
                    held.enter_context(locked(self.folder / LOCK))
                    sweep(self.folder)
                    self._look(tracking, tags)
            yield

    def _look(self, tracking: Tracking, tags: Tags) -> None:
        """Take the furthest state whose run was stopped; other such states are of no use."""
        stopped = [one for one in self._candidates(tracking) if is_stopped(one.run, one.about)]
        for one in sorted(stopped, key=lambda one: one.about["done"], reverse=True):
            is_bare = tuple(one.about["done"]) == NOTHING
            content = None if self._former or is_bare else self._content(one.path)
            if self._former or not (content or (is_bare and one.run)):
                _remove(one.path)
                continue
            self.found, self._former = content, one
            self.earlier_s = one.about["elapsed_s"]
            if (run := one.run) and run.experiment_id == tracking.experiment_id:
                is_alike = all(run.tags.get(tag) == tags.get(tag) for tag in (IS_TRIAL, KIND))
                is_nested = bool(run.tags.get(NESTED_UNDER))
                self.goes_on = run.run_id if is_alike and is_nested == self.is_nested else ""

    def _candidates(self, tracking: Tracking) -> Iterator[_Candidate]:
        for path in list(self.folder.glob(f"{self.key}.*{ENDING}")):
            about = self._about(path)
            if about and about["origin"] == self.origin:
                run = run_of(tracking, path)
                if run and run.status == "FINISHED":
                    _remove(path)
                else:
                    yield _Candidate(path=path, about=about, run=run)

    def _about(self, path: Path) -> dict[str, Any] | None:
        try:
            about = read_about(path)
            if about.get("format") != FORMAT:
                raise ValueError(f"its format is {about.get('format')}, not {FORMAT}")
        except (OSError, ValueError) as err:
            self._pass_over(path, err)
            return None
        return about

    def _content(self, path: Path) -> State | None:
        try:
            content = io.BytesIO(read_sealed(path)[1])
        except (OSError, ValueError) as err:
            self._pass_over(path, err)
            return None
        state: State = torch.load(content, "cpu", weights_only=True)
        return state

    def _pass_over(self, path: Path, err: Exception) -> None:
        self.say(f"note: the state that a stopped command left is of no use ({err}): removed")
        _remove(path)

    def begin(self, tracking: Tracking, run_id: str) -> None:
        """The state is that of this run from now on; a stopped run that is another is deleted."""
        self._run_id, self._began = run_id, time.perf_counter()
        if self.share and not self._former:  # a command that is killed now leaves its run, too
            self._put(NOTHING, lambda _: None)
        if (former := self._former) and former.path != self._path:
            with suppress(OSError):
                former.path.replace(self._path)
            if former.run:
                tracking.writing(former.run.run_id).delete()

    @property
    def _path(self) -> Path:
        return state_path(self.folder, self.key, self._run_id)

    def epoch_begins(self) -> None:
        """From now on the weights are those of no epoch."""
        self._at_border = None
        if self._trains_since is None:
            self._trains_since = time.perf_counter()

    def epoch_over(self, state: Callable[[], State]) -> None:
        """Keep the state after an epoch, if that is worth what it costs.

        `state` may be asked for the state until the next epoch begins.
        """
        self._at_border = state
        assert self._trains_since is not None
        trained_s = time.perf_counter() - self._trains_since - self._spent_s
        if self._cost_s is None:
            self._cost_s = GUESS_S + _size(state()) / GUESS_BYTES_PER_S
        if self._spent_s + self._cost_s <= self.share * trained_s:
            self._write(state())

    def all_over(self, state: Callable[[], State]) -> None:
        """No further epoch begins: a fault from now on leaves the state after the last epoch."""
        self._at_border = state

    def _write(self, state: State) -> None:
        started = time.perf_counter()
        self._put(_done(state), partial(torch.save, state))
        self._cost_s = time.perf_counter() - started
        self._spent_s += self._cost_s

    def _put(self, done: tuple[int, int], write: Callable[[BinaryIO], object]) -> None:
        """Write the file, or tell that it cannot be written; `done`: how far its content is."""
        about = {
            "format": FORMAT,
            "done": done,
            "origin": self.origin,
            "elapsed_s": self.earlier_s + time.perf_counter() - self._began,
            OWNER: owner_tags(),
        }
        try:
            write_sealed(self._path, about, write)
            self._kept = done
        except OSError as err:
            self.share = 0.0
            self.say(
                f"note: what the training has come to cannot be kept in {self.folder} "
                f"({err.strerror or err}): a stopped command would begin this stage anew"
            )

    def end(self, err: BaseException | None = None) -> None:
        """The run is finished, or was ended by `err`: keep the state only if it is of use."""
        if not self._run_id:
            return
        stopped_for_good = isinstance(err, RunStopped) and not err.goes_on
        if err is None or stopped_for_good or isinstance(err, TrainingError | FreezingError):
            self._at_border = None
            _remove(self._path)
        elif self._at_border and self.share:  # nothing is trained any more: any cost is worth it
            state = self._at_border()
            if _done(state) != self._kept:
                self._write(state)
        if isinstance(err, AwayError) and any(self._kept) and not hasattr(err, "__notes__"):
            err.add_note(f"what has been trained is kept in {self.folder}")


@contextmanager
def run_that_goes_on(
    session: Session,
    key: str,
    name: str,
    tags: Tags,
    *,
    target: bool,
    nested_under: str | None,
    once: Once | None = None,
) -> Iterator[tuple[RunLog, Unfinished]]:
    """A run as `Tracking.run` starts it, or the one that was stopped; and its state.

    `key`: digest of what the weights depend on; the same goes on with the state. `once`: as in
    `Tracking.run`.

    Raises:
        OvertakenError: another command trains the same; only where it is to be trained `once`.
    """
    tracking = session.tracking
    unfinished = Unfinished(
        folder=unfinished_folder(session.settings),
        key=key,
        origin=f"{session.made_with}; from {tags.get(PARENT_CHECKPOINT_SHA256, '')}",
        say=session.say,
        share=number(KEEP_SHARE) if session.settings.reuse else 0.0,
        is_nested=nested_under is not None,
    )
    run = partial(tracking.run, name, tags, target=target, nested_under=nested_under, once=once)
    try:
        with ExitStack() as running:
            with unfinished.claimed(tracking, tags):
                log = running.enter_context(run(goes_on=unfinished.goes_on))
                unfinished.begin(tracking, log.run_id)
            try:
                yield log, unfinished
            except BaseException as err:
                unfinished.end(err)  # before a server that is away is waited for
                raise
    except BaseException as err:
        unfinished.end(err)
        raise
    unfinished.end()


def _remove(path: Path) -> None:
    """A state that is of no use; one in a folder of others stays there."""
    with suppress(OSError):
        path.unlink()


def _done(state: State) -> tuple[int, int]:
    """How far a state is: the stage, where a run has several, and the epochs of the stage."""
    return state.get("stage", 0), state["done"]


def _size(value: object) -> int:
    """Bytes of the tensors in a state."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0
