"""The life of a trial in Optuna's storage: its heartbeat, its end, and whether it is run again.

A trial whose worker was lost or interrupted does not count: the trial is queued again with the
same settings, and its repetition counts. In: trials. Out: their outcomes, the best of them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Literal

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from pipeline.tuning.storage.access import STORAGE_FAULTS, Storage, experiments_known

DEFAULTS = "defaults"
"""User attribute of the first trial, which has the settings that an untuned run would have."""
REASON = "reason"
"""User attribute of trials that ended early: absent where a worker was lost."""
RUN_ID = "run_id"
"""User attribute of a trial, and of a study: its run in MLflow."""
RETRIES = 3
"""How often a trial is queued again; the defaults, which every trial is compared with, always."""
_SHOWN_REASONS = 2

Outcome = Literal["complete", "pruned", "failed", "interrupted", "running", "waiting"]
_OUTCOMES: dict[TrialState, Outcome] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def outcome(trial: FrozenTrial) -> Outcome:
    """What became of a trial; `failed`: by its own settings, `interrupted`: by anything else."""
    if trial.state == TrialState.FAIL:
        return "failed" if REASON in trial.user_attrs else "interrupted"
    return _OUTCOMES[trial.state]


def outcomes(trials: Sequence[FrozenTrial]) -> dict[Outcome, int]:
    """How many trials came to what."""
    found = [outcome(trial) for trial in trials]
    names: tuple[Outcome, ...] = (*_OUTCOMES.values(), "failed", "interrupted")
    return {name: found.count(name) for name in names}


def finished_of(counts: Mapping[Outcome, int]) -> int:
    """How many trials came to an end that counts."""
    return counts["complete"] + counts["pruned"] + counts["failed"]


def why_all_failed(trials: Sequence[FrozenTrial]) -> str:
    """The reasons of a study's failures, if its trials came to nothing else; else empty."""
    counts = outcomes(trials)
    if not counts["failed"] or counts["complete"] or counts["pruned"]:
        return ""
    reasons = Counter(str(t.user_attrs[REASON]) for t in trials if outcome(t) == "failed")
    shown = [f"{count} x {reason}" for reason, count in reasons.most_common(_SHOWN_REASONS)]
    more = len(reasons) - len(shown)
    return "; ".join(shown) + (f"; and {more} other reasons" if more else "")


def queued_again(trials: Sequence[FrozenTrial]) -> set[int]:
    """Numbers of the trials that others repeat."""
    return {number for trial in trials for number in trial.system_attrs.get("retry_history", [])}


def queue_interrupted(study: optuna.Study) -> None:
    """Queue every interrupted trial once more, unless it has been; one process at a time."""
    trials = study.get_trials(deepcopy=True)
    done = queued_again(trials)
    for trial in trials:
        if outcome(trial) == "interrupted" and trial.number not in done:
            limit = None if DEFAULTS in trial.user_attrs else RETRIES
            with experiments_known():
                RetryHeartbeatStaleTrialCallback(max_retry=limit)(study, trial)


def best_of(trials: Sequence[FrozenTrial], *, maximised: bool) -> FrozenTrial | None:
    """The completed trial with the best value, the earliest of equals; None without any."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    sign = -1.0 if maximised else 1.0
    return min(done, key=lambda trial: (sign * (trial.value or 0.0), trial.number), default=None)


def default_of(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The completed trial with the defaults; None without one."""
    done = (t for t in trials if DEFAULTS in t.user_attrs and t.state == TrialState.COMPLETE)
    return next(done, None)


@contextmanager
def beating(storage: Storage, trials: Callable[[], Sequence[int]]) -> Iterator[None]:
    """Record every few seconds that whoever runs these trials, by their ids, is alive.

    A beat that a storage misses is not the last one, as it would be in `Study.optimize`.
    """
    over = threading.Event()

    def beat() -> None:
        while not over.wait(storage.heartbeat_interval):
            for trial_id in trials():
                with suppress(*STORAGE_FAULTS):
                    storage.record_heartbeat(trial_id)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def is_given_up(err: BaseException) -> bool:
    """Whether a trial of ours was ended by another process, which took this one for lost."""
    return isinstance(err, UpdateFinishedTrialError) or str(err).startswith("Cannot tell a ")
