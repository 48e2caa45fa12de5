"""One trial: a stage trained with suggested settings on each draw, scored, pruned, logged.

In: an Optuna trial. Out: its value, the mean over the draws of the objective at each stage run's
selected epoch. The trial is a run in MLflow, its stage runs are nested in it and are found again
by content, so a trial that is repeated costs only what was not finished.

Pruning: through each draw a trial reports, in tenths of its own planned epochs, the mean of what
it has reached on the draws so far. All trials see the same draws in the same order. Optuna's
median pruner holds the best report of a trial so far against the median of all trials' reports at
its step: a trial that did well on an easy first draw is therefore kept on a harder second one.
A stage run that was found reports what it had reached at each step, as if it were trained now.
Why not Wilcoxon's test over draws: with fewer than five draws it can never reach p < 0.1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from optuna.trial import Trial, TrialState

from pipeline.errors import OutOfMemoryError, RunStopped, TrackingError, TrainingError
from pipeline.runs.find_or_run import find_or_run
from pipeline.runs.session import Session
from pipeline.settings.schedules import Stage
from pipeline.signals.evidence import refresh_siblings
from pipeline.stats.metrics import DEFAULT_OBJECTIVE, OBJECTIVES
from pipeline.system.text import numbered
from pipeline.tracking import RunLog, RunView, Tracking
from pipeline.tracking.history import History, Summary, read_history
from pipeline.tracking.keys import (
    KIND,
    NOTE,
    SCHEDULE,
    SIGNAL_TAGS,
    STAGE,
    STUDY,
    TOTAL_S,
    TRIAL,
    VAL,
    draw_run_id,
)
from pipeline.training.out_of_memory import explained
from pipeline.tuning.spec import Spec, suggest
from pipeline.tuning.storage.trial_state import DEFAULTS, REASON, RUN_ID
from pipeline.tuning.study import STEPS_A_DRAW, shown_settings

STATE, INTERRUPTED = "trial_state", "interrupted"
_OWN_FAULTS = (TrainingError, OutOfMemoryError)
"""What a trial's settings may be to blame for."""


class Pruned(RunStopped):
    """The pruner saw no chance for this trial."""


class OutOfTime(RunStopped):
    """The command's time is over."""

    goes_on = True


def check_deadline(deadline: float | None) -> None:
    """End a command whose time is over; `deadline`: in `time.monotonic()`, None: never.

    Raises:
        OutOfTime: the deadline has passed.
    """
    if deadline is not None and time.monotonic() > deadline:
        raise OutOfTime("the command's timeout is over")


@dataclass(frozen=True)
class Ending:
    """How a trial came to its end, and its value if it is complete."""

    state: TrialState
    value: float | None = None


@dataclass(kw_only=True)
class TrialSetup:
    """What all trials of a study need in a process.

    Attributes:
        sessions: one for each draw of the study.
        run_id: of the study's run.
        deadline: `time.monotonic()` at which the command must end; None: never.
    """

    sessions: Mapping[int, Session]
    tracking: Tracking
    run_id: str
    deadline: float | None
    say: Callable[[str], None]


@dataclass(frozen=True)
class TrialObjective:
    """What Optuna calls for each trial; the stage's parents are found before."""

    spec: Spec
    setup: TrialSetup

    def __call__(self, trial: Trial) -> Ending:
        """Run the trial: complete, pruned, or failed by its own settings.

        Raises:
            OutOfTime: the deadline passed; the trial is to be run again.
        """
        params, number = suggest(trial, self.spec.space), self.spec.stage.number
        tags = {
            KIND: "trial",
            STUDY: self.spec.name,
            STAGE: str(number),
            SCHEDULE: self.spec.stage.schedule,
            TRIAL: str(trial.number),
            "draws": " ".join(map(str, self.spec.draws)),
        }
        name = f"trial {trial.number} · stage {number}"
        try:
            with self.setup.tracking.run(
                name, tags, target=False, nested_under=self.setup.run_id
            ) as log:
                trial.set_user_attr(RUN_ID, log.run_id)
                log.params(dict(self.spec.defaults) | params)
                try:
                    with explained():
                        value = self._over_draws(trial, params, log)
                except (Pruned, OutOfTime, KeyboardInterrupt, *_OWN_FAULTS) as err:
                    own = "pruned" if isinstance(err, Pruned) else "failed"
                    from_outside = isinstance(err, OutOfTime | KeyboardInterrupt)
                    with suppress(TrackingError):  # must not hide what stopped the trial
                        log.tags({STATE: INTERRUPTED if from_outside else own})
                    raise
        except (Pruned, *_OWN_FAULTS) as err:
            pruned, reason = isinstance(err, Pruned), str(err) or type(err).__name__
            trial.set_user_attr(REASON, reason)
            self.setup.say(f"trial {trial.number} {'' if pruned else 'failed: '}{reason}")
            return Ending(TrialState.PRUNED if pruned else TrialState.FAIL)
        self.setup.say(
            f"trial {trial.number}: {self.spec.objective} {value:.4f} with "
            f"{shown_settings(params)}"
        )
        return Ending(TrialState.COMPLETE, value)

    def _over_draws(self, trial: Trial, params: Mapping[str, object], log: RunLog) -> float:
        summaries: list[Summary] = []
        number, objective = self.spec.stage.number, self.spec.objective
        for draw, session in self.setup.sessions.items():
            earlier = [summary.val[objective] for summary in summaries]
            own = session.with_training(number, params)
            reporter = Reporter(
                trial=trial,
                spec=self.spec,
                earlier=earlier,
                deadline=self.setup.deadline,
                select=own.settings.training(number).select,
            )
            prepared = replace(
                own,
                on_epoch=reporter,
                say=lambda _: None,
                is_trial=True,
                role=f"trial {trial.number}",
            )
            summary = find_or_run(prepared, number, log.run_id)
            summaries.append(summary)
            log.tags({draw_run_id(draw): summary.run_id})
            log.metrics({f"draw{draw}/{name}": value for name, value in summary.val.items()})
            if not reporter.epochs:  # found, or every epoch was over when its command was stopped
                reporter.replay(self.setup.tracking.get(summary.run_id), self.setup.tracking)
            reporter.finish(summary.val[objective])
        means = {
            name: sum(summary.val[name] for summary in summaries) / len(summaries)
            for name in summaries[0].val
        }
        total_s = sum(summary.wall_s for summary in summaries)
        log.metrics({**means, "value": means[objective], TOTAL_S: total_s})
        refresh_siblings(self.setup.tracking, self.setup.say)
        settings = shown_settings(params)
        told = f"Trial {trial.number}: {objective} {means[objective]:.4f} with {settings}"
        mean = f"The mean over {numbered('draw', self.spec.draws)}, of study `{self.spec.name}`."
        note = {NOTE: f"**{told}.**\n\n{mean}"}
        log.tags({STATE: "complete", **self._signals(summaries), **note})
        return means[objective]

    def _signals(self, summaries: list[Summary]) -> dict[str, str]:
        """The signals of the trial's stage runs; `mixed` where the runs differ."""
        states: dict[str, set[str]] = {}
        for summary in summaries:
            for key, state in self.setup.tracking.get(summary.run_id).tags.items():
                if key.startswith(SIGNAL_TAGS):
                    states.setdefault(key, set()).add(state)
        return {key: one.pop() if len(one) == 1 else "mixed" for key, one in states.items()}


def metric_of(objective: str) -> str:
    """The validation metric behind an objective."""
    return OBJECTIVES[objective].metric


def _tenths(epoch: int, epochs: int) -> int:
    """Tenths of a draw's planned epochs that are over; the last one waits for the draw's end."""
    return min(STEPS_A_DRAW * epoch // epochs, STEPS_A_DRAW - 1)


@dataclass(kw_only=True)
class Reporter:
    """Reports to Optuna how a trial fares, epoch by epoch, and ends the trial where asked to.

    Attributes:
        earlier: the trial's values on the draws before this one.
        select: what chooses a stage run's epoch.
        tenths: of this draw that were reported.
        epochs: of this draw that were reported.
    """

    trial: Trial
    spec: Spec
    earlier: list[float]
    deadline: float | None
    select: str = DEFAULT_OBJECTIVE
    tenths: int = 0
    epochs: int = 0

    def __call__(self, stage: Stage, history: History) -> None:
        """One epoch is over; those of a run that goes on were before.

        Raises:
            Pruned, OutOfTime: end the stage here.
        """
        if stage.number != self.spec.stage.number:
            return
        check_deadline(self.deadline)
        epoch, epochs = len(history), history.planned
        self._catch_up(replace(history, rows=history.rows[:-1]))
        self.epochs = epoch
        reached = history.best[VAL[metric_of(self.spec.objective)]]
        self._report(_tenths(epoch, epochs), reached, f"at epoch {epoch} of {epochs} of")

    def replay(self, run: RunView, tracking: Tracking) -> None:
        """Report what a run that was found, or went on, had reached and was not reported.

        A run whose course is lost reports its end alone.
        """
        if history := read_history(tracking, run, [VAL[name] for name in self._names]):
            self._catch_up(history)

    @property
    def _names(self) -> set[str]:
        """Metrics that tell what a stage run has reached at an epoch."""
        return {metric_of(self.select), "loss", metric_of(self.spec.objective)}

    def _catch_up(self, history: History) -> None:
        """Report the epochs that were not, each as it was then; nothing is pruned for that."""
        chosen, best = OBJECTIVES[self.select], dict[str, float]()
        if len(history) <= self.epochs:
            return
        for epoch, row in enumerate(history.rows, start=1):
            values = {name: row[VAL[name]] for name in self._names}
            if not best or chosen.rank(values) > chosen.rank(best):
                best = values
            self._report(_tenths(epoch, history.planned), best[metric_of(self.spec.objective)])
        self.epochs = len(history)

    def finish(self, value: float) -> None:
        """The draw is over, or was found finished.

        Raises:
            Pruned: leave out the draws that are left.
        """
        self._report(STEPS_A_DRAW, value, "after")

    def _report(self, tenths: int, value: float, where: str = "") -> None:
        """Report up to a tenth; `where`: prune the trial there, if it is to be."""
        mean, count = (sum(self.earlier) + value) / (len(self.earlier) + 1), len(self.earlier)
        for step in range(self.tenths + 1, tenths + 1):
            self.trial.report(mean, count * STEPS_A_DRAW + step)
        is_new, self.tenths = tenths > self.tenths, max(tenths, self.tenths)
        is_over = count + 1 == len(self.spec.draws) and tenths == STEPS_A_DRAW
        is_default = DEFAULTS in self.trial.user_attrs  # other trials are compared with it
        if where and is_new and not is_over and not is_default and self.trial.should_prune():
            raise Pruned(
                f"pruned {where} draw {self.spec.draws[count]}: {self.spec.objective} {mean:.4f} "
                "is in the worse half of the trials"
            )
