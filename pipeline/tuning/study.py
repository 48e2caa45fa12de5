"""A study: what it is made of, who has begun it, how far it is, what came out best.

Its name is a digest of its content (images, backbone, weights, schedule, stage, space, settings
that are not tuned), so the same command goes on with the same study and another one never mixes
in. In: a `Spec` and a storage. Out: a `Study`.

Sampler: tree-structured Parzen estimators, Bergstra et al. 2011. Pruner: median stopping, Golovin
et al. 2017 (Vizier), from half of a trial's first draw on; see `trial.py` for what it compares.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from pipeline.digests import digest_values
from pipeline.search_space import Choices, Range, SearchSpace
from pipeline.session import Session
from pipeline.settings import INHERITED_KEYS, Settings, plain_values
from pipeline.stages import Stage
from pipeline.tuning.storage import RETRIES, experiments_known

STEPS_A_DRAW = 10
"""A trial reports its progress through a draw in tenths, however many epochs it has."""

DEFAULTS = "defaults"
"""User attribute of the first trial, which has the settings that an untuned run would have."""

CHOSEN, CHOICE = "chosen", "choice"
"""User attributes of a study: the trial whose settings are used, and why it is that one."""

FIXED = "fixed"
"""User attribute of a study: the settings that it does not tune, by key."""

REASON = "reason"
"""User attribute of trials that ended early: absent where a worker was lost."""


@dataclass(frozen=True)
class Spec:
    """What a study is made of.

    Attributes:
        tuning_key: digest of images, weights and earlier stages: what a run must share with the
            trials to take over their settings.
        fixed: the settings that are not tuned, by key; the stage's own must agree as well.
        defaults: the settings that the first trial has, by key of the space; they may lie outside
            it.
    """

    name: str
    stage: Stage
    draws: tuple[int, ...]
    objective: str
    space: SearchSpace
    tuning_key: str
    fixed: Mapping[str, object]
    defaults: Mapping[str, object]

    @classmethod
    def of(
        cls, sessions: Mapping[int, Session], number: int, space: SearchSpace, objective: str
    ) -> Spec:
        """The study of a stage over these sessions, one for each draw."""
        first = next(iter(sessions.values()))
        stage, training = first.settings.stage(number), first.settings.training(number)
        values = training.model_dump()
        tuning_key = first.recipe(number, trained=number - 1)
        content = {
            "tuning_key": tuning_key,
            "images": [session.draw.fingerprint for session in sessions.values()],
            "seed": first.settings.seed,
            "fixed": {key: v for key, v in values.items() if key not in space.dimensions},
            "space": space.plain(),
            "objective": objective,
        }
        return cls(
            f"stage{number}-{stage.schedule}-{first.backbone.name}-{digest_values(content)[:12]}",
            stage,
            tuple(sessions),
            objective,
            space,
            tuning_key,
            fixed_settings(first.settings, number, space.dimensions),
            {key: values[key] for key in space.dimensions},
        )

    @property
    def maximised(self) -> bool:
        """Whether more is better."""
        return self.objective == "val_acc"


@dataclass(frozen=True)
class Progress:
    """How many trials have come to an end that counts, run now, or wait to be run again."""

    finished: int
    running: int
    waiting: int


@dataclass
class Study:
    """A study in a storage. `created`: this process was the first.

    Attributes:
        seen_at: when this process first saw a trial run elsewhere, by number; infinity once the
            trial has been given a heartbeat.
    """

    spec: Spec
    storage: RDBStorage
    optuna: optuna.Study
    created: bool
    seen_at: dict[int, float] = field(default_factory=dict)

    @classmethod
    def join(cls, storage: RDBStorage, spec: Spec, seed: int) -> Study:
        """Create the study, or load it if any process has: exactly one creates it."""
        direction = StudyDirection.MAXIMIZE if spec.maximised else StudyDirection.MINIMIZE
        # half of the first draw is never pruned; five trials first, four to compare with
        pruner = MedianPruner(n_startup_trials=5, n_warmup_steps=STEPS_A_DRAW // 2, n_min_trials=4)
        try:
            study = optuna.create_study(
                storage=storage,
                study_name=spec.name,
                direction=direction,
                sampler=TPESampler(seed=seed),
                pruner=pruner,
            )
        except DuplicatedStudyError:
            # workers with one seed would all begin with the same random trials
            study = optuna.load_study(
                storage=storage, study_name=spec.name, sampler=TPESampler(), pruner=pruner
            )
            return cls(spec, storage, study, created=False)
        study.set_user_attr("tuning_key", spec.tuning_key)
        study.set_user_attr(FIXED, dict(spec.fixed))
        study.set_user_attr("stage", spec.stage.number)
        study.set_user_attr("draws", list(spec.draws))
        study.set_user_attr("objective", spec.objective)
        study.set_user_attr("space", spec.space.plain())
        inside = spec.space.holds(spec.defaults)
        study.enqueue_trial(
            dict(spec.defaults) if inside else {},
            user_attrs={DEFAULTS: "inside the space" if inside else "outside the space"},
        )
        return cls(spec, storage, study, created=True)

    @property
    def name(self) -> str:
        """Its name in the storage."""
        return self.spec.name

    def progress(self) -> Progress:
        """Where the study stands, whoever runs its trials."""
        return progress_of(self.optuna.get_trials(deepcopy=False))

    def give_up_silent_workers(self) -> None:
        """Mark trials of workers that have fallen silent as failed, and queue them again.

        Optuna does not see trials whose worker was lost before its first heartbeat: each that is
        still running a grace period after it was first seen is given one, to fall silent after.
        """
        with experiments_known():
            optuna.storages.fail_stale_trials(self.optuna)
        now = time.monotonic()
        for trial in self.optuna.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if now > self.seen_at.setdefault(trial.number, now) + (self.storage.grace_period or 0):
                self.storage.record_heartbeat(trial._trial_id)
                self.seen_at[trial.number] = math.inf

    def queue_again(self, number: int) -> None:
        """Queue a trial that was interrupted once more, with the same settings.

        One that has come to an end is left alone, and so is one that still counts as running: it
        will be found silent.
        """
        trial = self.optuna.get_trials()[number]
        if trial.state == TrialState.FAIL and REASON not in trial.user_attrs:
            with experiments_known():
                RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)(self.optuna, trial)

    @property
    def chosen(self) -> FrozenTrial | None:
        """The trial whose settings are used (see `choice.py`); the best before that is settled."""
        number = self.optuna.user_attrs.get(CHOSEN)
        return self.best if number is None else self.optuna.get_trials(deepcopy=False)[number]

    @property
    def best(self) -> FrozenTrial | None:
        """The completed trial with the best value, the earliest of equals; None before any."""
        return best_of(self.optuna.get_trials(deepcopy=False), maximised=self.spec.maximised)


def fixed_settings(settings: Settings, number: int, tuned: Collection[str]) -> dict[str, object]:
    """What a study of this stage holds fixed: its images, its backbone, all it does not tune."""
    values = plain_values(settings, range(1, number + 1))
    stages = {key: value for key, value in values.items() if "." in key}
    for key in tuned:
        del stages[f"stage{number}.{key}"]
    return {key: values[key] for key in INHERITED_KEYS if key != "draw"} | stages


def is_finished_elsewhere(err: Exception) -> bool:
    """Whether a trial of ours was ended by another process, which took us for lost."""
    return isinstance(err, UpdateFinishedTrialError) or str(err).startswith("Cannot tell a ")


def progress_of(trials: Sequence[FrozenTrial]) -> Progress:
    """Count trials: those that a lost worker left behind do not count, their retries do."""
    ended = [
        trial
        for trial in trials
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        or (trial.state == TrialState.FAIL and REASON in trial.user_attrs)
    ]
    return Progress(
        len(ended),
        sum(trial.state == TrialState.RUNNING for trial in trials),
        sum(trial.state == TrialState.WAITING for trial in trials),
    )


def best_of(trials: Sequence[FrozenTrial], *, maximised: bool) -> FrozenTrial | None:
    """The completed trial with the best value, the earliest of equals; None without any."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    sign = -1.0 if maximised else 1.0
    return min(done, key=lambda trial: (sign * (trial.value or 0.0), trial.number), default=None)


def suggest(trial: Trial, space: SearchSpace) -> dict[str, object]:
    """A point of the space; nothing for a trial with defaults from outside it."""
    if trial.user_attrs.get(DEFAULTS) == "outside the space":
        return {}
    return {key: _suggest(trial, key, dimension) for key, dimension in space.dimensions.items()}


def _suggest(trial: Trial, key: str, dimension: Range | Choices) -> object:
    if isinstance(dimension, Choices):
        return trial.suggest_categorical(key, list(dimension.values))
    low, high, step = dimension.low, dimension.high, dimension.step
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(key, low, high, step=int(step or 1), log=dimension.log)
    return trial.suggest_float(key, low, high, step=step, log=dimension.log)


def shown_settings(values: Mapping[str, object]) -> str:
    """Settings on one line."""
    if not values:
        return "the settings as they are"
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )
