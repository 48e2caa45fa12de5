"""Entry point tune: a study for each stage, by one process or many, here or on other machines.

In: what was typed. Out: studies in Optuna's storage, runs in MLflow, a summary. Any number of
processes may work on one study; each asks for the next trial until the study has enough, then
waits for the trials of others, to take over the trials of lost workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from pipeline.errors import AwayError, StudyError, TrackingError, first_line
from pipeline.runs.beforehand import tell_beforehand
from pipeline.runs.command import Command
from pipeline.runs.find_or_run import find_or_run
from pipeline.runs.next_step import tuned_command
from pipeline.runs.session import Session
from pipeline.runs.sources import check_draws, source_and_weights
from pipeline.runs.workers import run_workers
from pipeline.settings.describe import without_thresholds
from pipeline.settings.entry import TuneSettings
from pipeline.settings.run import plain_values
from pipeline.settings.search_space import Choices, TunePlan
from pipeline.system.addresses import without_password
from pipeline.system.interrupts import check
from pipeline.system.progress import bar
from pipeline.system.text import as_sentence, count_of
from pipeline.tracking import Tracking
from pipeline.tracking.keys import KIND, NOTE
from pipeline.tuning.choose import Choice, choose
from pipeline.tuning.mirror import reconcile, study_run
from pipeline.tuning.objective import OutOfTime, TrialObjective
from pipeline.tuning.report import log_study, log_trial, summary
from pipeline.tuning.server_storage import ServerStorage
from pipeline.tuning.spec import Spec
from pipeline.tuning.storage import (
    STORAGE_FAULTS,
    Storage,
    for_optunas_commands,
    open_storage,
    patiently,
    storage_url,
    translated,
)
from pipeline.tuning.study import AFTER_FAILURES, CHOICE, CHOSEN, FINISHED, Study
from pipeline.tuning.trial_state import RETRIES, RUN_ID, beating, is_given_up, outcomes

_Result = TypeVar("_Result")


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


def tune_entry(command: Command, plan: TunePlan) -> list[Tuned]:
    """Entry point tune: work on the studies until they have their trials, or time is over.

    Raises:
        StudyError: a study has all its trials and no value.
    """
    tune, settings = plan.tune, plan.settings
    tracking = Tracking.connect(f"tune · {settings.data_name}", settings.data_name)
    with tracking.explained():
        url = storage_url(command.storage, tracking.uri)
        if command.joins:
            return work(command, plan, tracking, open_storage(url, tune.heartbeat))
        draws = range(settings.draw, settings.draw + tune.draws)
        source, _ = source_and_weights(settings)
        check_draws(source, settings, draws)
        storage = open_storage(url, tune.heartbeat)
        tell_beforehand(source, settings, command.say)
        _tell_what_is_not_inherited(command, plan)
        data, schedule = settings.data_name, settings.stage(1).schedule
        name = f"tune · {data} · {settings.backbone} · {schedule} · stage {tune.stage}"
        with tracking.run(name, {KIND: "tune"}, target=True) as log:
            log.params({**without_thresholds(plain_values(settings)), **tune.model_dump()})
            log.tags({"storage": without_password(url)})
            if tune.workers > 1:
                run_workers(tune.workers, "tune", command, tracking.experiment_id, log.run_id)
            done = work(command, plan, tracking, storage, only_read=tune.workers > 1)
            for one in done:
                stage = f"stage{one.number}"
                log.tags({f"study.{stage}": one.study.name, f"run.{stage}": one.run_id})
                if best := one.study.best:
                    log.metrics({f"{stage}/best_value": best.value or 0.0})
            sentences = [f"**{as_sentence(summary(one.study))}**" for one in done]
            log.tags({NOTE: "\n\n".join(sentences)})
            for one in done:
                if one.finished and one.study.failure:
                    raise StudyError(f"{one.study.failure}: {AFTER_FAILURES}")
    if len(done) == len(plan.spaces) and all(one.finished for one in done):
        settled = "use the tuned settings"
        if not any(one.settings for one in done):
            settled = "the defaults stay, tuned=true takes them, too"
        typed = command.request.typed.items()
        options = {key: value for key, value in typed if key not in TuneSettings.model_fields}
        command.say(f"{settled}: {tuned_command(tune.stage, options, command.storage)}")
    command.say(f"look at the studies: optuna-dashboard {for_optunas_commands(url)}")
    command.say(tracking.how_to_browse)
    return done


def _tell_what_is_not_inherited(command: Command, plan: TunePlan) -> None:
    if plan.tune.stage != "all":
        own = command.request.for_stage(int(plan.tune.stage))
        if note := own.kept_from_parents(plan.settings):
            command.say(f"note: {note}")


def work(
    command: Command,
    plan: TunePlan,
    tracking: Tracking,
    storage: Storage,
    *,
    only_read: bool = False,
) -> list[Tuned]:
    """Work on each stage's study in turn, each from the best of the one before."""
    tune, settings = plan.tune, plan.settings
    deadline = time.monotonic() + tune.timeout if tune.timeout else None
    sessions = {
        draw: Session.open(
            settings.model_copy(update={"draw": draw}), tracking, command.say, command.on_epoch
        )
        for draw in range(settings.draw, settings.draw + tune.draws)
    }
    first = next(iter(sessions.values()))
    for number, space in plan.spaces.items():
        augments = space.dimensions.get("augment")
        for augment in augments.values if isinstance(augments, Choices) else ():
            first.with_training(number, {"augment": augment})  # refused before a study is made
    done: list[Tuned] = []
    for number, space in plan.spaces.items():
        spec = Spec.of(sessions, number, space, tune.objective)
        with translated(storage.url):
            worker = Worker(
                spec=spec.as_known(storage),
                sessions=sessions,
                tracking=tracking,
                storage=storage,
                tune=tune,
                deadline=deadline,
                say=command.say,
            )
            one = worker.read() if only_read else worker.work()
        if one is None:
            break
        done.append(one)
        if one.study.best is None or not one.finished:
            break
        sessions = {d: s.with_training(number, one.settings) for d, s in sessions.items()}
        for session in sessions.values():
            session.tuned_by[number] = one.study.name
    return done


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One process at work on one study."""

    spec: Spec
    sessions: Mapping[int, Session]
    tracking: Tracking
    storage: Storage
    tune: TuneSettings
    deadline: float | None
    say: Callable[[str], None]

    def read(self) -> Tuned | None:
        """The study as it stands, after work by other processes; None if none of them began it."""
        study = Study.find(self.storage, self.spec)
        if study is None:
            return None
        self.say(summary(study))
        return self._tuned(study, str(study.optuna.user_attrs.get(RUN_ID, "")))

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
            if finished < self.tune.n_trials:
                self._train_parents(run_id)
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

    def _train_parents(self, study_run_id: str) -> None:
        """The checkpoints that trials start from: found, or trained by one process."""
        if before := self.spec.stage.number - 1:
            for session in self.sessions.values():
                find_or_run(session, before, study_run_id)

    def _loop(self, study: Study, run_id: str) -> None:
        objective = TrialObjective(
            spec=self.spec,
            sessions=self.sessions,
            tracking=self.tracking,
            study_run_id=run_id,
            deadline=self.deadline,
            say=self.say,
        )
        number, wanted = self.spec.stage.number, self.tune.n_trials
        so_far = self._patiently(study.finished)
        with bar(f"trials of stage {number}", wanted, done=so_far) as step:
            while (now := self._patiently(study.finished)) < wanted:
                check()
                step(now - so_far)
                so_far = now
                if self.deadline is not None and time.monotonic() > self.deadline:
                    raise OutOfTime("the command's timeout is over")
                if not self._run_one(study, objective, run_id):
                    # the last trials are running elsewhere: stay, to take over from lost workers
                    time.sleep(1.0)

    def _patiently(self, do: Callable[[], _Result]) -> _Result:
        if isinstance(self.storage, ServerStorage):
            return self.storage.patience.call(do)
        return patiently(do, STORAGE_FAULTS, self.say)

    def _run_one(self, study: Study, objective: TrialObjective, run_id: str) -> bool:
        """One trial, if the study wants more than it has finished or running.

        Where the storage or MLflow is away the trial is given up, and run again once both can be
        written; a trial that is lost again and again ends the command, which can be repeated.
        """
        trial = self._patiently(partial(study.ask, self.tune.n_trials))
        if trial is None:
            return False
        try:
            with beating(self.storage, trial):
                ending = objective(trial)
            study.optuna.tell(trial, ending.value, ending.state)
        except (TrackingError, *STORAGE_FAULTS) as err:
            if self._patiently(partial(study.interrupt, trial)):
                self.say(f"note: a trial was lost ({first_line(err)}): it will be run again")
            if isinstance(err, AwayError) or study.times_lost(trial) > RETRIES:
                raise
            writable = partial(self.tracking.writing(run_id).set_status, "RUNNING")
            patiently(writable, (TrackingError,), self.say)
            return True
        except BaseException as err:
            if is_given_up(err):
                self.say(f"note: trial {trial.number} was given up meanwhile: result dropped")
                return True
            with suppress(*STORAGE_FAULTS):  # a fault of the storage must not hide this error
                study.interrupt(trial)
            raise
        log = partial(log_trial, study, self.tracking, run_id, trial.number)
        patiently(log, (TrackingError,), self.say)
        return True

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
