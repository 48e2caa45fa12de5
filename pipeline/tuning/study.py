"""A study: what it is made of, who has begun it, how far it is, what came out best.

Its name is a digest of its content (images, backbone, weights, schedule, stage, space, settings
that are not tuned): the same command goes on with the same study, another command has another
study. In: a `Spec` and a storage. Out: a `Study`.

Sampler: tree-structured Parzen estimators, Bergstra et al. 2011. Pruner: median stopping, Golovin
et al. 2017 (Vizier), from half of a trial's first draw on; `objective.py` says what it compares.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import optuna
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from pipeline.runs.session import Session
from pipeline.settings.run import INHERITED_KEYS, Settings, plain_values
from pipeline.settings.schedules import Stage
from pipeline.settings.search_space import Choices, SearchSpace
from pipeline.stats.metrics import OBJECTIVES
from pipeline.system.databases import exclusively
from pipeline.system.digests import digest_values
from pipeline.tuning.storage import BEATS_UNTIL_GIVEN_UP, Storage, experiments_known
from pipeline.tuning.trial_state import (
    DEFAULTS,
    best_of,
    finished_of,
    outcome,
    outcomes,
    queue_interrupted,
    why_all_failed,
)

STEPS_A_DRAW = 10
"""A trial reports its progress through a draw in tenths, however many epochs it has."""

CHOSEN, CHOICE, FINISHED = "chosen", "choice", "finished"
"""User attributes of a study: the trial whose settings are used, why it is that one, and how many
trials there were when the study last had all that were wanted."""
FIXED, TUNING_KEY, SEED, HEARTBEAT = "fixed", "tuning_key", "seed", "heartbeat"
"""User attributes of a study: settings that it does not tune, by key; see `Spec`; its runs' seed;
seconds."""
SPACE = "space"
"""User attribute of a study: what it tunes. A study without this attribute is half made."""
AFTER_FAILURES = (
    "change the settings or the search space, which makes another study, or give more n_trials"
)
"""What to do where every trial failed."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a study is made of.

    Attributes:
        tuning_key: digest of images, weights and earlier stages: what a run must share with the
            trials to take over their settings.
        fixed: the settings that are not tuned, by key.
        defaults: the first trial's settings, by key of the space; they may lie outside it.
        parents: those of the stage before, by key of the space, which are tried second; empty for
            a first stage.
        former_name: the study's name in an earlier version, which knew data sets by their names.
    """

    name: str
    stage: Stage
    draws: tuple[int, ...]
    objective: str
    space: SearchSpace
    tuning_key: str
    fixed: Mapping[str, object]
    defaults: Mapping[str, object]
    parents: Mapping[str, object] = field(default_factory=dict)
    former_name: str = ""

    @classmethod
    def of(
        cls, sessions: Mapping[int, Session], number: int, space: SearchSpace, objective: str
    ) -> Spec:
        """The study of a stage over these sessions, one for each draw."""
        first = next(iter(sessions.values()))
        stage, training = first.settings.stage(number), first.settings.training(number)
        before = first.settings.training(number - 1) if number > 1 else None
        values = training.model_dump()
        tuning_key = first.recipe(number, trained=number - 1)
        former_key = first.recipe(number, trained=number - 1, data=first.draw.source)
        content = {
            "images": [session.draw.fingerprint for session in sessions.values()],
            "seed": first.settings.seed,
            "fixed": {key: v for key, v in values.items() if key not in space.dimensions},
            "space": space.plain(),
            "objective": objective,
        }
        name, former_name = (
            f"stage{number}-{stage.schedule}-{first.backbone.name}-"
            f"{digest_values({**content, TUNING_KEY: key})[:12]}"
            for key in (tuning_key, former_key)
        )
        return cls(
            name=name,
            stage=stage,
            draws=tuple(sessions),
            objective=objective,
            space=space,
            tuning_key=tuning_key,
            fixed=fixed_settings(first.settings, number, space.dimensions),
            defaults={key: getattr(training, key) for key in space.dimensions},
            parents={key: getattr(before, key) for key in space.dimensions} if before else {},
            former_name=former_name,
        )

    @property
    def maximised(self) -> bool:
        """Whether more is better."""
        return OBJECTIVES[self.objective].maximised

    def as_known(self, storage: Storage) -> Spec:
        """The spec with the former name, if the storage holds the study under that name alone."""
        known = set(optuna.get_all_study_names(storage))
        if self.name in known or self.former_name not in known:
            return self
        return replace(self, name=self.former_name)


@dataclass(kw_only=True)
class Study:
    """A study in a storage.

    Attributes:
        created: this process was the first.
        seen_at: when this process first saw a trial run elsewhere, by number; infinity once the
            trial has been given a heartbeat.
    """

    spec: Spec
    storage: Storage
    optuna: optuna.Study
    created: bool
    seen_at: dict[int, float] = field(default_factory=dict)

    @classmethod
    def join(cls, storage: Storage, spec: Spec, seed: int) -> Study:
        """Create the study, load it, or complete what a killed process left half made.

        Of several processes exactly one creates the study.
        """
        direction = StudyDirection.MAXIMIZE if spec.maximised else StudyDirection.MINIMIZE
        with exclusively(storage.url):
            study = optuna.create_study(
                storage=storage,
                study_name=spec.name,
                direction=direction,
                sampler=TPESampler(seed=seed),
                pruner=_pruner(),
                load_if_exists=True,
            )
            if created := SPACE not in study.user_attrs:
                _begin(study, spec, seed, storage)
            elif study.user_attrs[TUNING_KEY] != spec.tuning_key:  # of an earlier version
                study.set_user_attr(TUNING_KEY, spec.tuning_key)
        if not created:  # workers with one seed would all begin with the same random trials
            study.sampler = TPESampler()
        return cls(spec=spec, storage=storage, optuna=study, created=created)._at_its_pace()

    @classmethod
    def find(cls, storage: Storage, spec: Spec) -> Study | None:
        """The study, if any process has created it."""
        try:
            study = optuna.load_study(storage=storage, study_name=spec.name, pruner=_pruner())
        except KeyError:
            return None
        return cls(spec=spec, storage=storage, optuna=study, created=False)._at_its_pace()

    def _at_its_pace(self) -> Study:
        """The study, with the heartbeat that it was begun with."""
        pace = int(self.optuna.user_attrs.get(HEARTBEAT, self.storage.heartbeat_interval or 1))
        self.storage.heartbeat_interval = pace
        self.storage.grace_period = BEATS_UNTIL_GIVEN_UP * pace
        return self

    @property
    def name(self) -> str:
        """The study's name in the storage."""
        return self.spec.name

    @property
    def trials(self) -> list[FrozenTrial]:
        """Every trial as the storage has it now, by number; not to be changed."""
        return self.optuna.get_trials(deepcopy=False)

    def finished(self) -> int:
        """How many trials came to an end that counts."""
        return finished_of(outcomes(self.trials))

    def ask(self, wanted: int) -> Trial | None:
        """The next trial, with its first heartbeat, if fewer than `wanted` have finished or run.

        One process at a time counts and asks, so that no trial is one too many.
        """
        with exclusively(self.storage.url):
            self._give_up_silent_workers()
            queue_interrupted(self.optuna)
            counts = outcomes(self.trials)
            if finished_of(counts) + counts["running"] >= wanted:
                return None
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Heartbeat of storage")  # ours is `beating`
                trial = self.optuna.ask()
            self.storage.record_heartbeat(trial._trial_id)
            return trial

    def interrupt(self, trial: Trial) -> bool:
        """Queue a trial again that cannot go on; False if it had come to its end already."""
        ended = self.optuna.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        if outcome(ended) != "interrupted":
            return False
        with exclusively(self.storage.url):
            queue_interrupted(self.optuna)
        return True

    def times_lost(self, trial: Trial) -> int:
        """How often an interrupted trial and those that it repeats were interrupted."""
        return 1 + len(self.trials[trial.number].system_attrs.get("retry_history", []))

    def _give_up_silent_workers(self) -> None:
        """Mark trials of workers that have fallen silent as failed.

        Optuna does not see a trial whose worker was lost before its first heartbeat: where such a
        trial still runs a grace period after it was first seen, it is given a heartbeat here.
        """
        with experiments_known():
            optuna.storages.fail_stale_trials(self.optuna)
        now = time.monotonic()
        for trial in self.optuna.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if now > self.seen_at.setdefault(trial.number, now) + (self.storage.grace_period or 0):
                self.storage.record_heartbeat(trial._trial_id)
                self.seen_at[trial.number] = math.inf

    @property
    def failure(self) -> str:
        """What is wrong, where every trial so far failed by its own settings; else empty."""
        reasons = why_all_failed(self.trials)
        return f"every trial of study {self.name} failed ({reasons})" if reasons else ""

    @property
    def chosen(self) -> FrozenTrial | None:
        """The trial whose settings are used (see `choose.py`); the best before that is settled."""
        number = self.optuna.user_attrs.get(CHOSEN)
        return self.best if number is None else self.trials[number]

    @property
    def best(self) -> FrozenTrial | None:
        """The completed trial with the best value, the earliest of equals; None before any."""
        return best_of(self.trials, maximised=self.spec.maximised)


def _pruner() -> MedianPruner:
    """Half of the first draw is never pruned; five trials first, four to compare with."""
    return MedianPruner(n_startup_trials=5, n_warmup_steps=STEPS_A_DRAW // 2, n_min_trials=4)


def _begin(study: optuna.Study, spec: Spec, seed: int, storage: Storage) -> None:
    """Store what a new study is made of, and queue its first trial; `SPACE` comes last."""
    content = {
        TUNING_KEY: spec.tuning_key,
        FIXED: dict(spec.fixed),
        "stage": spec.stage.number,
        "draws": list(spec.draws),
        "objective": spec.objective,
        SEED: seed,
        HEARTBEAT: storage.heartbeat_interval,
    }
    for key, value in content.items():
        study.set_user_attr(key, value)
    inside = spec.space.holds(spec.defaults)
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(
            dict(spec.defaults) if inside else {},
            user_attrs={DEFAULTS: "inside the space" if inside else "outside the space"},
        )
        if spec.parents and spec.parents != spec.defaults and spec.space.holds(spec.parents):
            study.enqueue_trial(dict(spec.parents))
    study.set_user_attr(SPACE, spec.space.plain())


def fixed_settings(settings: Settings, number: int, tuned: Collection[str]) -> dict[str, object]:
    """What a study of this stage holds fixed: its images, its backbone, all it does not tune."""
    values = plain_values(settings, range(1, number + 1))
    stages = {key: value for key, value in values.items() if "." in key}
    for key in tuned:
        del stages[f"stage{number}.{key}"]
    return {key: values[key] for key in INHERITED_KEYS if key != "draw"} | stages


def suggest(trial: Trial, space: SearchSpace) -> dict[str, object]:
    """A point of the space; nothing for a trial with defaults from outside it."""
    if trial.user_attrs.get(DEFAULTS) == "outside the space":
        return {}
    values: dict[str, object] = {}
    for key, of in space.dimensions.items():
        if isinstance(of, Choices):
            values[key] = trial.suggest_categorical(key, list(of.values))
        elif isinstance(of.low, int) and isinstance(of.high, int):
            step = int(of.step or 1)
            values[key] = trial.suggest_int(key, of.low, of.high, step=step, log=of.log)
        else:
            values[key] = trial.suggest_float(key, of.low, of.high, step=of.step, log=of.log)
    return values


def shown_settings(values: Mapping[str, object]) -> str:
    """Settings on one line."""
    if not values:
        return "the settings as they are"
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )
