"""One command at work on one study: asks for trials, has them run, and sums the study up.

In: a `Spec`, its sessions and a storage. Out: a `Tuned`: the study, and what it chose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from pipeline.cluster.dispatcher import Cluster
from pipeline.errors import TrackingError
from pipeline.runs.session import Session
from pipeline.settings.entry import TuneSettings
from pipeline.system.interrupts import check
from pipeline.system.progress import bar
from pipeline.system.text import count_of
from pipeline.tracking import Tracking
from pipeline.tuning.choose import Choice, choose
from pipeline.tuning.mirror import reconcile, study_run
from pipeline.tuning.report import log_study, summary
from pipeline.tuning.spec import Spec
from pipeline.tuning.storage.access import (
    STORAGE_FAULTS,
    Storage,
)
from pipeline.tuning.storage.trial_state import beating, outcomes
from pipeline.tuning.study import CHOICE, CHOSEN, FINISHED, Study
from pipeline.tuning.trials.objective import OutOfTime, TrialSetup, check_deadline
from pipeline.tuning.trials.runner import TrialRunner, with_patience
from pipeline.tuning.trials.tasks import run_on


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A study after this command's work on it.

    Attributes:
        settings: of the chosen trial; empty before any trial is complete.
        finished: the study has all its trials.
    """

    study: Study
    run_id: str
    choice: Choice | None
    settings: Mapping[str, object]
    finished: bool

    @property
    def number(self) -> int:
        """The stage that was tuned."""
        return self.study.spec.stage.number


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One command at work on one study; `cluster`: where its trials run, None: here."""

    spec: Spec
    sessions: Mapping[int, Session]
    tracking: Tracking
    storage: Storage
    tune: TuneSettings
    deadline: float | None
    say: Callable[[str], None]
    cluster: Cluster | None = None

    def work(self) -> Tuned:
        """Run trials until the study has as many as are wanted, or time is over."""
        first = next(iter(self.sessions.values()))
        study = Study.join(self.storage, self.spec, first.settings.seed)
        run_id = study_run(study, first, self.say)
        study.end_lost_trials()
        with self.tracking.owners.renewing(run_id):
            self._go_on(study, run_id)
        return self._tuned(study, run_id)

    def _go_on(self, study: Study, run_id: str) -> None:
        if (finished := study.finished()) >= self.tune.n_trials:
            self.say(f"study {study.name} has its {count_of(finished, 'trial')}: none is added")
        else:
            self.say(f"study {study.name}: {finished} of {self.tune.n_trials} trials so far")
            self.tracking.writing(run_id).set_status("RUNNING")
        try:
            self._loop(study, run_id)
        except OutOfTime as err:
            self.say(f"note: {err}: the same command goes on with the study")
        except BaseException:  # a storage that is away as well must not hide this error
            with suppress(*STORAGE_FAULTS, TrackingError):
                self._sum_up(study, run_id)
            raise
        self._sum_up(study, run_id)

    def _tuned(self, study: Study, run_id: str) -> Tuned:
        choice = choose(study, self.tracking, self.tune.margin)
        is_finished = study.finished() >= self.tune.n_trials
        settings = choice.trial.params if choice else {}
        return Tuned(
            study=study, run_id=run_id, choice=choice, settings=settings, finished=is_finished
        )

    def _loop(self, study: Study, run_id: str) -> None:
        setup = TrialSetup(
            sessions=self.sessions,
            tracking=self.tracking,
            run_id=run_id,
            deadline=self.deadline,
            say=self.say,
        )
        runner = TrialRunner(study, setup)
        number, wanted = self.spec.stage.number, self.tune.n_trials
        so_far = with_patience(self.storage, study.finished, self.say)
        with bar(f"trials of stage {number}", wanted, done=so_far) as step:
            if self.cluster:
                run_on(self.cluster, runner, wanted, step)
            else:
                self._run_here(runner, step, so_far)

    def _run_here(self, runner: TrialRunner, step: Callable[[int], object], so_far: int) -> None:
        study, wanted = runner.study, self.tune.n_trials
        if so_far < wanted:
            for draw in self.sessions:
                runner.train_parents(draw)
        while (now := with_patience(self.storage, study.finished, self.say)) < wanted:
            check()
            step(now - so_far)
            so_far = now
            check_deadline(self.deadline)
            asked = with_patience(self.storage, partial(study.ask, wanted), self.say)
            if asked is None:
                # the last trials are running elsewhere: stay, to take over from lost commands
                runner.tell_wait()
                time.sleep(1.0)
                continue
            with beating(self.storage, partial(list, [asked._trial_id])):
                runner.run(asked)

    def _sum_up(self, study: Study, run_id: str) -> None:
        """Give the runs of lost workers their end, and log the study as it stands."""
        reconcile(study, self.tracking, run_id)
        if choice := choose(study, self.tracking, self.tune.margin):
            number, before = choice.trial.number, study.optuna.user_attrs.get(CHOSEN)
            if before not in (None, number):
                self.say(
                    f"note: from now on tuned=true takes trial {number} of study {study.name} "
                    f"(margin={self.tune.margin:g}); until now it took trial {before}"
                )
            study.optuna.set_user_attr(CHOSEN, number)
            study.optuna.set_user_attr(CHOICE, choice.sentence)
        log_study(study, self.tracking, run_id)
        finished, failure = study.finished(), study.failure
        log = self.tracking.writing(run_id)
        if finished >= self.tune.n_trials:
            study.optuna.set_user_attr(FINISHED, finished)
            log.set_status("FAILED" if failure else "FINISHED", failure)
        elif not outcomes(study.trials)["running"]:
            log.set_status("KILLED", "stopped before it had all its trials")
        self.say(summary(study))
