"""What a study is made of: its stage, its draws, its space, and the points it begins with.

In: sessions, one for each draw, a stage and a search space. Out: a `Spec`, whose name is a digest
of its content. `suggest` makes a trial's settings of the space.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import optuna
from optuna.trial import Trial

from pipeline.runs.session import Session
from pipeline.settings.run import INHERITED_KEYS, Settings, plain_values
from pipeline.settings.schedules import Stage
from pipeline.settings.search_space import Choices, SearchSpace
from pipeline.stats.metrics import OBJECTIVES
from pipeline.system.disk.digests import digest_values
from pipeline.tuning.storage.access import Storage
from pipeline.tuning.storage.trial_state import DEFAULTS

TUNING_KEY, FIXED = "tuning_key", "fixed"
"""User attributes of a study, see `Spec`."""


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
        former_names: the study's names in earlier versions, which knew data sets by their names,
            and no stages before the study's own.
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
    former_names: tuple[str, ...] = ()

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
        former_keys = [
            first.recipe(number, number - 1, data) for data in (first.draw.pool, first.draw.source)
        ]
        content = {
            "images": [session.draw.fingerprint for session in sessions.values()],
            "seed": first.settings.seed,
            "fixed": {key: v for key, v in values.items() if key not in space.dimensions},
            "space": space.plain(),
            "objective": objective,
        }
        name, *former_names = (
            f"stage{number}-{stage.schedule}-{first.backbone.name}-"
            f"{digest_values({**content, TUNING_KEY: key})[:12]}"
            for key in (tuning_key, *former_keys)
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
            former_names=tuple(former_names),
        )

    @property
    def maximised(self) -> bool:
        """Whether more is better."""
        return OBJECTIVES[self.objective].maximised

    def as_known(self, storage: Storage) -> Spec:
        """The spec with a former name, if the storage holds the study under that name alone."""
        known = set(optuna.get_all_study_names(storage))
        if self.name in known:
            return self
        held = (name for name in self.former_names if name in known)
        return replace(self, name=next(filter(partial(self._is_of, storage), held), self.name))

    def _is_of(self, storage: Storage, name: str) -> bool:
        """Whether a study of that name is of this schedule."""
        fixed = optuna.load_study(study_name=name, storage=storage).user_attrs.get(FIXED, {})
        return bool(fixed.get("schedule") == self.fixed["schedule"])


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
