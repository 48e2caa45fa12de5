"""`tuned=true`: the best settings of the finished study that matches a run.

A study matches where everything but the stage's own training settings and the draws agrees:
images' source and classes, backbone, weights, schedule, earlier stages. In: a session. Out: the
same session with the study's settings, except where a person has said otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping

import optuna

from pipeline.databases import without_password
from pipeline.errors import StudyError
from pipeline.session import Session
from pipeline.tuning.storage import open_storage, translated
from pipeline.tuning.study import CHOICE, CHOSEN, shown_settings


def with_tuned(
    session: Session, numbers: list[int], said: Mapping[int, set[str]], url: str
) -> Session:
    """The session with the best settings of each stage's study; the last stage must have one.

    `numbers`: the stages, in order. `said`: settings that a person has fixed, by stage.

    Raises:
        StudyError: no finished study matches the last stage.
    """
    storage = open_storage(url, must_exist=True)
    for number in numbers:
        with translated(url):
            found, unfinished = _matching(storage, session.recipe(number, trained=number - 1))
        if found is None:
            if number < numbers[-1]:
                session.say(f"stage {number}: no finished study matches, its settings stay")
                continue
            raise StudyError(_nothing(session, number, url, unfinished))
        study, best = found
        values = {k: v for k, v in best.params.items() if k not in said.get(number, set())}
        session = session.with_training(number, values)
        session.tuned_by[number] = study.study_name
        session.say(_line(number, study, best, values))
    return session


def _matching(
    storage: optuna.storages.BaseStorage, tuning_key: str
) -> tuple[tuple[optuna.Study, optuna.trial.FrozenTrial] | None, str]:
    """The finished study with that key and most trials; else the name of one unfinished."""
    chosen: tuple[int, optuna.Study, optuna.trial.FrozenTrial] | None = None
    unfinished = ""
    for summary in optuna.get_all_study_summaries(storage, include_best_trial=False):
        if summary.user_attrs.get("tuning_key") != tuning_key:
            continue
        study = optuna.load_study(study_name=summary.study_name, storage=storage)
        finished = int(summary.user_attrs.get("finished", 0))
        number = summary.user_attrs.get(CHOSEN)
        if not finished or number is None:
            unfinished = summary.study_name
        elif chosen is None or finished > chosen[0]:
            chosen = (finished, study, study.get_trials(deepcopy=False)[number])
    return (chosen[1:] if chosen else None), unfinished


def _line(
    number: int,
    study: optuna.Study,
    best: optuna.trial.FrozenTrial,
    values: Mapping[str, object],
) -> str:
    return (
        f"stage {number}: tuned by study {study.study_name}, trial {best.number} "
        f"({study.user_attrs['objective']} {best.value:.4f}): {shown_settings(values)}; "
        f"{study.user_attrs[CHOICE]}"
    )


def _nothing(session: Session, number: int, url: str, unfinished: str) -> str:
    where = f"in storage={without_password(url)}"
    if unfinished:
        return (
            f"tuned=true: study {unfinished} {where} matches stage {number}, but is not finished: "
            "go on with the `tune` command that began it"
        )
    return (
        f"tuned=true: no study {where} matches stage {number} of {session.settings.schedule} with "
        f"{session.settings.backbone} on {session.draw.source} with these settings: run "
        f"`mlflow run . -e tune -P stage={number}` with the same settings first"
    )
