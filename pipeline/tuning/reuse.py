"""`tuned=true`: the best settings of the finished study that matches a run.

A study matches where everything that it did not tune agrees, but for draws: images' source and
classes, backbone, weights, earlier stages, and the stage's other training settings. In: a session.
Out: the same session with the study's settings, except where a person has set them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.study import StudySummary
from optuna.trial import FrozenTrial

from pipeline.errors import StudyError
from pipeline.runs.session import Session
from pipeline.stats.metrics import DEFAULT_OBJECTIVE
from pipeline.system.addresses import without_password
from pipeline.system.provenance import COMMAND
from pipeline.tuning.storage import Storage, translated
from pipeline.tuning.study import (
    AFTER_FAILURES,
    CHOICE,
    CHOSEN,
    FINISHED,
    FIXED,
    SEED,
    SPACE,
    TUNING_KEY,
    fixed_settings,
    shown_settings,
)
from pipeline.tuning.trial_state import why_all_failed

_SHOWN_DIFFERENCES = 4
_LATER = {
    "label_column": "",
    "image_column": "",
    "skip_unreadable": False,
    "select": DEFAULT_OBJECTIVE,
}
"""Settings that older studies do not name, and the values that they had."""


@dataclass(frozen=True, kw_only=True)
class _Match:
    """A finished study with settings for a stage.

    Attributes:
        finished: trials that it has.
        explicit: settings of the stage that a person has fixed.
        own_seed: its runs have the seed that is asked for.
        others: names of more finished studies that match.
        unfinished: studies that match and lack trials.
    """

    study: optuna.Study
    chosen: FrozenTrial
    finished: int
    explicit: Set[str]
    own_seed: bool
    others: tuple[str, ...] = ()
    unfinished: int = 0

    @property
    def overruled(self) -> list[str]:
        """Settings that it tuned and a person has fixed."""
        return sorted(self.explicit & self.study.user_attrs[SPACE].keys())

    @property
    def values(self) -> dict[str, object]:
        """The settings to take."""
        return {k: v for k, v in self.chosen.params.items() if k not in self.explicit}

    def line(self, number: int) -> str:
        """What is taken for this stage, and from where."""
        notes = [str(self.study.user_attrs[CHOICE])]
        if self.overruled:
            notes.append(f"set by hand, not as tuned: {', '.join(self.overruled)}")
        if self.others:
            why = "this one has the same seed" if self.own_seed else "this one has most trials"
            notes.append(f"{', '.join(self.others)} would match, too: {why}")
        if self.unfinished:
            notes.append(f"{self.unfinished} more match and are unfinished")
        return (
            f"stage {number}: tuned by study {self.study.study_name}, trial {self.chosen.number} "
            f"({self.study.user_attrs['objective']} {self.chosen.value:.4f}): "
            f"{shown_settings(self.values)}; {'; '.join(notes)}"
        )


@dataclass(frozen=True)
class _Nothing:
    """No finished study with a value.

    Attributes:
        unfinished: the name of one that would match.
        failed: what is wrong with one that would match, and whose trials all failed.
        nearest: how the nearest differs.
    """

    unfinished: str
    failed: str
    nearest: str

    @property
    def hint(self) -> str:
        if self.unfinished:
            return f" ({self.unfinished} does, unfinished)"
        found = self.failed or self.nearest
        return f" ({found})" if found else ""

    def fault(self, session: Session, number: int, storage: str) -> str:
        if self.unfinished:
            return (
                f"tuned=true: study {self.unfinished} in storage={storage} matches stage "
                f"{number}, but is not finished: go on with the `tune` command that began it"
            )
        if self.failed:
            return (
                f"tuned=true: {self.failed}; no other study in storage={storage} matches stage "
                f"{number}: {AFTER_FAILURES}, and run `tune` again"
            )
        return (
            f"tuned=true: no finished study in storage={storage} matches stage {number} of "
            f"{session.settings.stage(1).schedule} with {session.settings.backbone} on "
            f"{session.draw.source}{self.hint}: run `{COMMAND} tune` with the same settings "
            "first; its last lines say how to use it"
        )


def with_tuned(
    session: Session, numbers: list[int], explicit: Mapping[int, set[str]], storage: Storage
) -> Session:
    """The session with the best settings of each stage's study; the last stage must have one.

    A study of a later stage was made from certain settings of the stages before. Of several ways
    to take studies for these, one is taken that leads to a study of the last stage.

    `numbers`: the stages, in order. `explicit`: settings that a person has fixed, by stage.

    Raises:
        StudyError: no finished study matches the last stage.
    """
    with translated(storage.url):
        first, *rest = list(_chains(storage, session, numbers, explicit))
    chain = next((c for c in (first, *rest) if isinstance(c[-1], _Match)), first)
    for number, found in zip(numbers, chain, strict=True):
        if isinstance(found, _Nothing):
            if number == numbers[-1]:
                raise StudyError(found.fault(session, number, without_password(storage.url)))
            session.say(
                f"stage {number}: no finished study matches{found.hint}, its settings stay"
            )
            continue
        session = session.with_training(number, found.values)
        session.tuned_by[number] = found.study.study_name
        session.say(found.line(number))
    return session


def _chains(
    storage: Storage, session: Session, numbers: list[int], explicit: Mapping[int, set[str]]
) -> Iterator[list[_Match | _Nothing]]:
    """Every way to take a study, or none, for each of these stages; the best ones first."""
    if not numbers:
        yield []
        return
    number, *later = numbers
    for found in _matching(storage, session, number, explicit.get(number, set())):
        after = session
        if isinstance(found, _Match):
            after = session.with_training(number, found.values)
        for chain in _chains(storage, after, later, explicit):
            yield [found, *chain]


def _matching(
    storage: Storage, session: Session, number: int, explicit: Set[str]
) -> list[_Match | _Nothing]:
    """Studies that may be taken, best first, and at last none of them.

    First those that tuned nothing that was set by hand, then those with the same seed, then
    those with most trials, then the latest.
    """
    matches: list[_Match] = []
    unfinished: list[str] = []
    failed = ""
    nearest = (math.inf, "")
    for summary in _of_stage(storage, session, number):
        attrs = summary.user_attrs
        if differs := _differences(session, number, attrs):
            nearest = min(nearest, (len(differs), _shown(summary.study_name, differs)))
            continue
        study = optuna.load_study(study_name=summary.study_name, storage=storage)
        if attrs.get(FINISHED) and (reasons := why_all_failed(study.get_trials(deepcopy=False))):
            failed = f"every trial of study {summary.study_name} failed ({reasons})"
        elif not attrs.get(FINISHED) or CHOSEN not in attrs:
            unfinished.append(summary.study_name)
        else:
            chosen = study.get_trials(deepcopy=False)[attrs[CHOSEN]]
            own_seed = attrs.get(SEED) == session.settings.seed
            matches.append(
                _Match(
                    study=study,
                    chosen=chosen,
                    finished=attrs[FINISHED],
                    explicit=explicit,
                    own_seed=own_seed,
                )
            )
    matches.reverse()
    matches.sort(key=lambda m: (len(m.overruled), not m.own_seed, -m.finished))
    names = [match.study.study_name for match in matches]
    counted = [
        replace(m, others=tuple(set(names) - {m.study.study_name}), unfinished=len(unfinished))
        for m in matches
    ]
    return [*counted, _Nothing(unfinished[-1] if unfinished else "", failed, nearest[1])]


def _of_stage(storage: Storage, session: Session, number: int) -> Iterator[StudySummary]:
    """Studies of this stage with this backbone, oldest first."""
    for summary in optuna.get_all_study_summaries(storage, include_best_trial=False):
        fixed = summary.user_attrs.get(FIXED, {})
        of_it = fixed.get("backbone") == session.settings.backbone
        if of_it and summary.user_attrs.get("stage") == number and SPACE in summary.user_attrs:
            yield summary


def _differences(session: Session, number: int, attrs: Mapping[str, Any]) -> list[str]:
    """What the study held fixed and is otherwise here; nothing: it matches.

    A study of an earlier version knew its data set by name: it matches one with the same `data`.
    """
    theirs, ours = attrs[FIXED], fixed_settings(session.settings, number, attrs[SPACE])
    differs = {
        key: f"{key}={theirs.get(key)} (here {value})"
        for key, value in ours.items()
        if theirs.get(key, _LATER.get(key.rpartition(".")[2])) != value
    }
    content = session.recipe(number, trained=number - 1)
    by_name = session.recipe(number, trained=number - 1, data=session.draw.source)
    if attrs[TUNING_KEY] == content or (attrs[TUNING_KEY] == by_name and "data" not in differs):
        return [words for key, words in differs.items() if key.startswith(f"stage{number}.")]
    return list(differs.values()) or ["other images, weights, views or precision"]


def _shown(name: str, differs: list[str]) -> str:
    rest = len(differs) - _SHOWN_DIFFERENCES
    more = f" and {rest} more" if rest > 0 else ""
    return f"the nearest, {name}, has {', '.join(differs[:_SHOWN_DIFFERENCES])}{more}"
