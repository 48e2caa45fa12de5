"""A study: what it is made of, who has begun it, how far it is, what came out best.

Its name is a digest of its content (images, backbone, weights, schedule, stage, space, settings
that are not tuned): the same command goes on with the same study, another command has another
study. In: a `Spec` and a storage. Out: a `Study`.

Sampler: tree-structured Parzen estimators, Bergstra et al. 2011. Pruner: median stopping, Golovin
et al. 2017 (Vizier), from half of a trial's first draw on; `trials/objective.py` says what is
compared.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import optuna
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from pipeline.system.disk.databases import exclusively
from pipeline.system.text import count_of
from pipeline.tuning.spec import FIXED, TUNING_KEY, Spec
from pipeline.tuning.storage.access import BEATS_UNTIL_GIVEN_UP, Storage, experiments_known
from pipeline.tuning.storage.trial_state import (
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
"""User attributes of a study: the trial whose settings are used, why this trial, and how many
trials there were when the study last had all that were wanted."""
SEED, HEARTBEAT = "seed", "heartbeat"
"""User attributes of a study: its runs' seed; seconds."""
SPACE = "space"
"""User attribute of a study: what it tunes. A study without this attribute is half made."""
AFTER_FAILURES = (
    "change the settings or the search space, which makes another study, or give more n_trials"
)
"""What to do where every trial failed."""


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
                sampler=TPESampler(seed=sampler_seed(seed, spec.stage.number)),
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

    def end_lost_trials(self) -> None:
        """Mark trials whose workers are known to be lost as failed, wanted or not."""
        with exclusively(self.storage.url):
            self._give_up_silent_workers()

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


def sampler_seed(seed: int, stage: int) -> int:
    """Of a study's random trials: other ones in each stage, the same for arms of one stage."""
    return int(np.random.SeedSequence([seed, stage]).generate_state(1)[0])


def _pruner() -> MedianPruner:
    """Prunes only after half a draw, once 5 trials have ended and 4 have reported that step."""
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
    _for_the_dashboard(study, spec)
    study.set_user_attr(SPACE, spec.space.plain())


def _for_the_dashboard(study: optuna.Study, spec: Spec) -> None:
    """The name of the value and a note, where optuna-dashboard looks for them."""
    with experiments_known():
        study.set_metric_names([spec.objective])
    stage, fixed = spec.stage, spec.fixed
    note = (
        f"Stage {stage.number} of {stage.schedule} ({' + '.join(stage.trainable)}), judged by "
        f"{spec.objective} on {count_of(len(spec.draws), 'draw')} of {fixed.get('data')}, "
        f"{fixed.get('backbone')}. Trial 0 has the defaults; `tuned=true` takes the best trial "
        "only if it leads them by more than chance. A trial's user attribute `run_id` is its run "
        "in MLflow."
    )
    keep = partial(study._storage.set_study_system_attr, study._study_id)
    keep("dashboard:note_ver", 1)
    keep("dashboard:note_str:0", note)


def shown_settings(values: Mapping[str, object]) -> str:
    """Settings on one line."""
    if not values:
        return "the settings as they are"
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )
