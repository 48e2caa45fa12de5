"""Runs the trials of a study that have been asked for, one after the other, in this process.

In: a study and a trial of it. Out: the trial told, its run logged. A trial that storage or MLflow
would not record is queued again, and run again once both can be written.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from optuna.trial import Trial, TrialState

from pipeline.errors import AwayError, TrackingError, first_line
from pipeline.runs.find_or_run import find_or_run
from pipeline.settings.schedules import Stage
from pipeline.system.text import numbered
from pipeline.tracking.history import History
from pipeline.tuning.report import log_trial
from pipeline.tuning.storage.access import STORAGE_FAULTS, Storage, patiently
from pipeline.tuning.storage.server import ServerStorage
from pipeline.tuning.storage.trial_state import RETRIES, is_given_up
from pipeline.tuning.study import Study
from pipeline.tuning.trials.objective import Ending, TrialObjective, TrialSetup, check_deadline

_Result = TypeVar("_Result")


def with_patience(
    storage: Storage, do: Callable[[], _Result], say: Callable[[str], None]
) -> _Result:
    """Do something with a storage, and wait while the storage is away."""
    if isinstance(storage, ServerStorage):
        return storage.patience.call(do)
    return patiently(do, STORAGE_FAULTS, say)


@dataclass
class TrialRunner:
    """A study, and what its trials need in this process.

    Attributes:
        waits_for: numbers of other commands' trials that a line has told of.
    """

    study: Study
    setup: TrialSetup
    waits_for: set[int] = field(default_factory=set)

    def tell_wait(self) -> None:
        """Tell, where no trial is left to begin, which trials of other commands are waited for.

        Each is told of once. A command that was killed cannot say so: its trials fall silent.
        """
        trials = with_patience(self.study.storage, lambda: self.study.trials, self.setup.say)
        running = {trial.number for trial in trials if trial.state == TrialState.RUNNING}
        if new := sorted(running - self.waits_for):
            self.waits_for |= running
            self.setup.say(
                f"study {self.study.name}: waiting for {numbered('trial', new)} of another "
                "command; if that command was killed, this one waits for "
                f"{self.study.storage.grace_period} s without a sign of life at most, then runs "
                "the trial again"
            )

    def train_parents(self, draw: int) -> None:
        """The checkpoint that trials on a draw start from: found, or trained.

        Raises:
            OutOfTime: the command's time is over; the epochs that are done are kept.
        """
        if not (before := self.study.spec.stage.number - 1):
            return
        session = self.setup.sessions[draw]

        def heed(stage: Stage, history: History) -> None:
            session.on_epoch(stage, history)
            check_deadline(self.setup.deadline)

        check_deadline(self.setup.deadline)
        find_or_run(replace(session, on_epoch=heed), before, self.setup.run_id)

    def run(self, trial: Trial) -> None:
        """One trial, by the objective of its study."""
        self.attempt(trial, TrialObjective(self.study.spec, self.setup))

    def attempt(self, trial: Trial, objective: Callable[[Trial], Ending]) -> None:
        """One trial, and its end told.

        Where the storage or MLflow is away the trial is given up, and run again once both can be
        written; a trial that is lost again and again ends the command, which can be repeated.
        """
        study, setup = self.study, self.setup
        try:
            ending = objective(trial)
            study.optuna.tell(trial, ending.value, ending.state)
        except (TrackingError, *STORAGE_FAULTS) as err:
            if with_patience(study.storage, partial(study.interrupt, trial), setup.say):
                setup.say(f"note: a trial was lost ({first_line(err)}): it will be run again")
            if isinstance(err, AwayError) or study.times_lost(trial) > RETRIES:
                raise
            writable = partial(setup.tracking.writing(setup.run_id).set_status, "RUNNING")
            patiently(writable, (TrackingError,), setup.say)
            return
        except BaseException as err:
            if is_given_up(err):
                setup.say(f"note: trial {trial.number} was given up meanwhile: result dropped")
                return
            with suppress(*STORAGE_FAULTS):  # a fault of the storage must not hide this error
                study.interrupt(trial)
            raise
        log = partial(log_trial, study, setup.tracking, setup.run_id, trial.number)
        patiently(log, (TrackingError,), setup.say)
