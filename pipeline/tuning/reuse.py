"""`tuned=true`: the best settings of the finished study that matches a run.

A study matches where everything that it did not tune agrees, draws aside: images' source and
classes, backbone, weights, earlier stages, and the stage's other training settings. In: a session.
Out: the same session with the study's settings, except where a person has set them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import StudySummary

from pipeline.errors import SettingsError, StudyError
from pipeline.runs.session import Session
from pipeline.settings.schedules import schedule_of
from pipeline.stats.metrics import DEFAULT_OBJECTIVE
from pipeline.system.network.addresses import without_password
from pipeline.system.provenance import typed
from pipeline.tuning.spec import FIXED, TUNING_KEY, fixed_settings
from pipeline.tuning.storage.access import Storage, translated
from pipeline.tuning.storage.trial_state import why_all_failed
from pipeline.tuning.study import (
    AFTER_FAILURES,
    CHOICE,
    CHOSEN,
    FINISHED,
    SEED,
    SPACE,
    shown_settings,
)

_SHOWN_DIFFERENCES = 4
_LATER = {
    "label_column": "",
    "image_column": "",
    "skip_unreadable": False,
    "select": DEFAULT_OBJECTIVE,
}
"""Settings that older studies do not name, and the values that they had."""


@dataclass(frozen=True)
class _Match:
    """A finished study: its name, the settings to take, and a line that tells so."""

    study: str
    values: Mapping[str, object]
    line: str


@dataclass(frozen=True)
class _Nothing:
    """No finished study with a value: why not, as a hint in brackets, and as a whole fault."""

    hint: str
    fault: str


def with_tuned(
    session: Session, numbers: list[int], explicit: Mapping[int, set[str]], storage: Storage
) -> Session:
    """The session with the best settings of each stage's study; the last stage must have one.

    A study of a later stage was made from certain settings of the stages before. Of several ways
    to take studies for the stages, the first that leads to a study of the last stage is taken.

    `numbers`: the stages, in order. `explicit`: settings that a person has fixed, by stage.

    Raises:
        StudyError: no finished study matches the last stage.
    """
    with translated(storage.url):
        first, *rest = list(_chains(storage, session, numbers, explicit))
    chain = next((c for c in (first, *rest) if isinstance(c[-1], _Match)), first)
    for number, found in zip(numbers, chain, strict=True):
        if isinstance(found, _Match):
            session = session.with_training(number, found.values)
            session.tuned_by[number] = found.study
            session.say(found.line)
        elif number == numbers[-1]:
            raise StudyError(f"tuned=true: {found.fault}")
        else:
            session.say(
                f"stage {number}: no finished study matches{found.hint}, its settings stay"
            )
    return session


def _chains(
    storage: Storage, session: Session, numbers: list[int], explicit: Mapping[int, set[str]]
) -> Iterator[list[_Match | _Nothing]]:
    """Every way to take a study, or none, for each of these stages; the best ones first."""
    if not numbers:
        yield []
        return
    number, *later = numbers
    for found in _candidates(storage, session, number, explicit.get(number, set())):
        after = session
        if isinstance(found, _Match):
            after = session.with_training(number, found.values)
        for chain in _chains(storage, after, later, explicit):
            yield [found, *chain]


def _candidates(
    storage: Storage, session: Session, number: int, explicit: Set[str]
) -> list[_Match | _Nothing]:
    """Studies that may be taken, best first; last, that no study is taken.

    First the studies that tuned nothing that was set by hand, then those with the same seed, then
    those with most trials, then the latest.
    """
    matches: list[optuna.Study] = []
    unfinished: list[str] = []
    failed, nearest = "", (math.inf, "")
    where = f"storage={without_password(storage.url)}"
    for summary in _of_stage(storage, session, number):
        attrs, name = summary.user_attrs, summary.study_name
        if differs := _differences(session, number, attrs):
            nearest = min(nearest, (len(differs), _shown(name, differs)))
            continue
        study = optuna.load_study(study_name=name, storage=storage)
        if attrs.get(FINISHED) and (reasons := why_all_failed(study.get_trials(deepcopy=False))):
            failed = f"every trial of study {name} failed ({reasons})"
        elif not attrs.get(FINISHED) or CHOSEN not in attrs:
            unfinished.append(name)
        else:
            matches.insert(0, study)
    matches = sorted(matches, key=lambda study: _rank(study.user_attrs, session, explicit))
    names = {study.study_name for study in matches}
    notes = [f"{len(unfinished)} more match and are unfinished"] if unfinished else []
    found = [
        _match(study, number, explicit, session, names - {study.study_name}, notes)
        for study in matches
    ]
    if unfinished:
        fault = (
            f"study {unfinished[-1]} in {where} matches stage {number}, but is not finished: go "
            "on with the `tune` command that began it"
        )
        return [*found, _Nothing(f" ({unfinished[-1]} does, unfinished)", fault)]
    if failed:
        fault = (
            f"{failed}; no other study in {where} matches stage {number}: {AFTER_FAILURES}, and "
            "run `tune` again"
        )
        return [*found, _Nothing(f" ({failed})", fault)]
    return [*found, _no_study(session, number, where, nearest[1])]


def _rank(attrs: Mapping[str, Any], session: Session, explicit: Set[str]) -> tuple[int, bool, int]:
    """The smaller, the better: settings overruled by hand, another seed, trials."""
    overruled = explicit & attrs[SPACE].keys()
    return len(overruled), attrs.get(SEED) != session.settings.seed, -attrs[FINISHED]


def _no_study(session: Session, number: int, where: str, nearest: str) -> _Nothing:
    """No study matches; `nearest`: how the nearest study differs, empty where there is none."""
    hint = f" ({nearest})" if nearest else ""
    fault = (
        f"no finished study in {where} matches stage {number} of "
        f"{session.settings.stage(1).schedule} with {session.settings.backbone} on "
        f"{session.draw.source}{hint}: run `{typed('tune')}` with the same settings first; its "
        "last lines say how to use it"
    )
    return _Nothing(hint, fault)


def _match(
    study: optuna.Study,
    number: int,
    explicit: Set[str],
    session: Session,
    others: Set[str],
    notes: list[str],
) -> _Match:
    attrs, name = study.user_attrs, study.study_name
    chosen = study.get_trials(deepcopy=False)[attrs[CHOSEN]]
    values = {key: value for key, value in chosen.params.items() if key not in explicit}
    parts = [str(attrs[CHOICE])]
    if overruled := sorted(explicit & attrs[SPACE].keys()):
        parts.append(f"set by hand, not as tuned: {', '.join(overruled)}")
    if others:
        own_seed = attrs.get(SEED) == session.settings.seed
        why = "this one has the same seed" if own_seed else "this one has most trials"
        parts.append(f"{', '.join(sorted(others))} would match, too: {why}")
    line = (
        f"stage {number}: tuned by study {name}, trial {chosen.number} "
        f"({attrs['objective']} {chosen.value:.4f}): {shown_settings(values)}; "
        f"{'; '.join([*parts, *notes])}"
    )
    return _Match(name, values, line)


def _of_stage(storage: Storage, session: Session, number: int) -> Iterator[StudySummary]:
    """Studies of this stage with this backbone, oldest first."""
    for summary in optuna.get_all_study_summaries(storage, include_best_trial=False):
        attrs = summary.user_attrs
        of_it = attrs.get(FIXED, {}).get("backbone") == session.settings.backbone
        if of_it and attrs.get("stage") == number and SPACE in attrs:
            yield summary


def _differences(session: Session, number: int, attrs: Mapping[str, Any]) -> list[str]:
    """What the study held fixed and is otherwise here; nothing: it matches.

    A study of an earlier version may know its data set by name, and matches one with the same
    `data`; its key does not tell what was trained before its stage, which its schedule does.
    """
    theirs, ours = attrs[FIXED], fixed_settings(session.settings, number, attrs[SPACE])
    differs = {
        key: f"{key}={theirs.get(key)} (here {value})"
        for key, value in ours.items()
        if theirs.get(key, _LATER.get(key.rpartition(".")[2])) != value
    }
    draw, key = session.draw, attrs[TUNING_KEY]
    known = {session.recipe(number, number - 1), session.recipe(number, number - 1, draw.pool)}
    if "data" not in differs:
        known.add(session.recipe(number, number - 1, draw.source))
    if key in known and _trains_alike(session, number, str(theirs.get("schedule", ""))):
        return [text for key, text in differs.items() if key.startswith(f"stage{number}.")]
    return list(differs.values()) or ["other images, weights, views or precision"]


def _trains_alike(session: Session, number: int, schedule: str) -> bool:
    """Whether another schedule comes to this stage by the same blocks."""
    try:
        other = schedule_of(schedule).on(session.settings.order)
        return other.trains(number) == session.settings.chain.trains(number)
    except SettingsError:  # of an earlier version, or of another network
        return False


def _shown(name: str, differs: list[str]) -> str:
    rest = len(differs) - _SHOWN_DIFFERENCES
    more = f" and {rest} more" if rest > 0 else ""
    return f"the nearest, {name}, has {', '.join(differs[:_SHOWN_DIFFERENCES])}{more}"
