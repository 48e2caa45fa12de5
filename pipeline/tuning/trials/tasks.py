"""Trials as tasks: the command asks for them and keeps them alive, tasks of a cluster run them.

In: a study that has been begun. Out: the same study, with its trials. A task is one trial of a
study: run again after a loss it goes on with that trial, or finds that it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial

from optuna.samplers import TPESampler
from optuna.trial import Trial

from pipeline.cluster.dispatcher import Cluster, Dispatcher
from pipeline.cluster.task import Say
from pipeline.runs.session import Session
from pipeline.settings.entry import STORAGE
from pipeline.settings.run import Settings
from pipeline.tracking import Tracking
from pipeline.tuning.spec import Spec
from pipeline.tuning.storage.access import STORAGE_FAULTS, open_storage, storage_url, translated
from pipeline.tuning.storage.trial_state import beating
from pipeline.tuning.study import Study, sampler_seed
from pipeline.tuning.trials.objective import OutOfTime, TrialSetup, check_deadline
from pipeline.tuning.trials.runner import TrialRunner, with_patience


@dataclass(frozen=True, kw_only=True)
class Task:
    """A trial, by its id and number; or, without one, the parents of the trials on a draw."""

    trial: tuple[int, int] | None = None
    draw: int = 0


@dataclass(frozen=True, kw_only=True)
class TrialWork:
    """A study, as another process needs it; the storage's URL stands in the environment.

    Attributes:
        settings: of each draw, with what the studies of earlier stages have chosen.
        tuned_by: these studies, by stage number.
        run_id: of the study's run.
    """

    spec: Spec
    settings: Mapping[int, Settings]
    tuned_by: Mapping[int, str]
    run_id: str

    @classmethod
    def of(cls, runner: TrialRunner) -> TrialWork:
        """What a runner does, to be done elsewhere."""
        sessions = runner.setup.sessions
        return cls(
            spec=runner.study.spec,
            settings={draw: session.settings for draw, session in sessions.items()},
            tuned_by=next(iter(sessions.values())).tuned_by,
            run_id=runner.setup.run_id,
        )

    @cached_property
    def _runner(self) -> TrialRunner:
        first = next(iter(self.settings.values()))
        tracking = Tracking.connect(data=first.data_name)
        storage = open_storage(storage_url("", tracking.uri))
        study = Study.find(storage, self.spec)
        assert study, "the command has begun it"
        sessions = {
            draw: Session.open(settings, tracking, lambda _: None)
            for draw, settings in self.settings.items()
        }
        for session in sessions.values():
            session.tuned_by = dict(self.tuned_by)
        setup = TrialSetup(
            sessions=sessions,
            tracking=tracking,
            run_id=self.run_id,
            deadline=None,  # the command stops its tasks
            say=lambda _: None,
        )
        return TrialRunner(study, setup)

    def do(self, task: Task, say: Say) -> None:
        """Run a trial, or find that it has ended; or train the parents on a draw."""
        runner = self._runner
        runner.setup.say = say
        for session in runner.setup.sessions.values():
            session.say = say
        if task.trial is None:
            runner.train_parents(task.draw)
            return
        study = runner.study
        trial_id, number = task.trial
        with translated(study.storage.url):
            if not study.trials[number].state.is_finished():
                first = runner.setup.sessions[self.spec.draws[0]]
                seed = sampler_seed(first.settings.seed, number)
                study.optuna.sampler = TPESampler(seed=seed + self.spec.stage.number)
                runner.run(Trial(study.optuna, trial_id))


def _train_parents(runner: TrialRunner, dispatcher: Dispatcher[Task, None]) -> None:
    """Have tasks train what trials start from, on each draw.

    Raises:
        OutOfTime: the deadline passed.
    """
    draws = [*runner.study.spec.draws]
    while draws or dispatcher.running:
        check_deadline(runner.setup.deadline)
        while draws and dispatcher.has_room:
            draw = draws.pop(0)
            dispatcher.submit(Task(draw=draw), f"the parent on draw {draw}")
        dispatcher.wait()


def run_on(
    cluster: Cluster, runner: TrialRunner, wanted: int, step: Callable[[int], object]
) -> None:
    """Have tasks run a study's trials until it has as many as are wanted.

    Raises:
        OutOfTime: the deadline passed.
    """
    study, setup, asked = runner.study, runner.setup, dict[int, Trial]()
    place = {**setup.tracking.place, STORAGE: study.storage.url}
    patient = partial(with_patience, study.storage, say=setup.say)
    try:
        with (
            cluster.dispatcher(TrialWork.of(runner), place) as dispatcher,
            beating(study.storage, lambda: [trial._trial_id for trial in list(asked.values())]),
        ):
            so_far = patient(study.finished)
            if so_far < wanted and study.spec.stage.number > 1:
                _train_parents(runner, dispatcher)

            def take() -> None:
                for task, _ in dispatcher.wait():
                    assert task.trial
                    del asked[task.trial[1]]

            while (now := patient(study.finished)) < wanted:
                step(now - so_far)
                so_far = now
                check_deadline(setup.deadline)
                while dispatcher.has_room and (trial := patient(partial(study.ask, wanted))):
                    asked[trial.number] = trial
                    ids = trial._trial_id, trial.number
                    dispatcher.submit(Task(trial=ids), f"trial {trial.number}")
                if not asked:
                    runner.tell_wait()
                take()
            with suppress(OutOfTime):  # the study has what it wants
                while asked:  # tasks still log and tell the ends that the storage has
                    check_deadline(setup.deadline)
                    take()
    finally:
        for trial in asked.values():  # of a task that was ended outright
            with suppress(*STORAGE_FAULTS):
                study.interrupt(trial)
