"""A finished run in place of training a stage anew, and what such a run may still lack.

In: a session and a stage's number. Out: the `Summary` of a run with the same content, found or
trained now (`run_stage.py`) by one command: others that want the same wait (`resuming/once.py`). A
run that is found and was made by a trial, a pair, or an earlier version is completed from its
checkpoint, never trained again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Set
from functools import partial
from pathlib import Path

from pipeline.errors import LineageError
from pipeline.model.backbones import Backbone
from pipeline.runs.messages.origins import note_on_origin, origin_of
from pipeline.runs.messages.words import model_name, stage_in_words
from pipeline.runs.resuming.once import Work
from pipeline.runs.run_stage import run_stage
from pipeline.runs.scoring import logits_of
from pipeline.runs.session import Session
from pipeline.runs.stage_log import log_pictures, log_served_model
from pipeline.signals.evidence import Subject, as_far_as_allowed, has_pictures, parent_of
from pipeline.stats.metrics import score_logits
from pipeline.system.interrupts import check
from pipeline.tracking import RunView, keys
from pipeline.tracking.history import Summary, chain_of, read_history


def find_or_run(session: Session, number: int, nested_under: str | None = None) -> Summary:
    """A finished run of that stage with the same content, else a new one.

    What this command has found or trained already is not looked for again.
    """
    check()
    if number in session.done:
        return session.done[number]
    reuse, work = session.settings.reuse, Work.of_stage(session, number)
    known = work.wait_for_others() if reuse else set[str]()
    if reuse and (found := find_run(session, number)):
        session.done[number] = _reused(session, number, found)
    else:
        if reuse:
            session.say(
                f"stage {number}: no finished run with the same content, training it: "
                f"{stage_in_words(session.settings, number)}"
            )
        parent = find_or_run(session, number - 1, nested_under) if number > 1 else None
        view = session.tracking.get(parent.run_id) if parent else None
        session.done[number] = train_once(
            session, number, view, nested_under, target=False, known=known
        )
    return session.done[number]


def train_once(
    session: Session,
    number: int,
    parent: RunView | None,
    nested_under: str | None = None,
    *,
    target: bool,
    known: Set[str],
) -> Summary:
    """Train a stage; where another command trains or has trained it meanwhile, use its run.

    `known`: finished runs of the same content that do not count.
    """
    train = partial(run_stage, session, number, parent, nested_under, target=target)
    if not session.settings.reuse:
        return train()

    def find() -> Summary | None:
        found = find_run(session, number, without=known)
        return _reused(session, number, found) if found else None

    return Work.of_stage(session, number).once(known, find, lambda once: train(once=once))


def _reused(session: Session, number: int, found: RunView) -> Summary:
    other = note_on_origin(found, session.made_with)
    found_it = f"found run {found.run_id} with the same content{other}, reusing it"
    session.say(f"stage {number}: {found_it}")
    return Summary.of(found)


def find_run(session: Session, number: int, without: Set[str] = frozenset()) -> RunView | None:
    """The oldest finished run of that stage with the same content and an intact checkpoint.

    `without`: ids of runs that do not count. Runs made with what is here come first, then those
    with pictures, except for a trial, which needs none.
    """

    def rank(run: RunView) -> tuple[bool, bool]:
        without = session.is_trial or not session.settings.log_pictures
        pictures = without or has_pictures(run)
        return origin_of(run) != session.made_with, not pictures

    found = session.tracking.find({keys.LINEAGE_KEY: session.key(number)})
    for run in sorted((one for one in found if one.run_id not in without), key=rank):
        try:
            Summary.of(run)  # as whole as what follows needs it
            if session.role:  # a pair counts the cost of all its stages
                list(chain_of(session.tracking, run))
            backbone = session.restore(run)
        except LineageError as err:
            session.say(f"note: passing over {err}")
        else:
            join_data_set(session, run, number)
            session.note_recipe(number)
            return _with_every_metric(session, run, backbone, number)
    return None


def _with_every_metric(session: Session, run: RunView, backbone: Backbone, number: int) -> RunView:
    """The run, with the validation metrics that its version did not know yet."""
    missing = [name for name, key in keys.VAL.items() if keys.at_best(key) not in run.metrics]
    if not missing:
        return run
    val = session.draw.val
    prefix = backbone.frozen_segments(session.settings.stage(number).trainable)
    logits = logits_of(session, backbone, val, prefix)
    scores = score_logits(logits, val.labels)
    session.tracking.writing(run.run_id).metrics(
        {keys.at_best(keys.VAL[name]): scores[name] for name in missing}
    )
    return session.tracking.get(run.run_id)


def add_pictures_and_model(session: Session, number: int, run_id: str) -> None:
    """Give a run made without its pictures and its served model, as far as settings ask for them.

    Raises:
        LineageError: the run's checkpoint is missing or damaged.
    """
    settings, tracking = session.settings, session.tracking
    run, log = tracking.get(run_id), tracking.writing(run_id)
    lacks_pictures = settings.log_pictures and not has_pictures(run)
    lacks_model = settings.log_model and keys.MODEL_URI not in run.tags
    if not lacks_pictures and not lacks_model:
        return
    backbone, added = session.restore(run), list[str]()
    if lacks_pictures:
        stage = settings.stage(number)
        prefix = backbone.frozen_segments(stage.trainable)
        logits = logits_of(session, backbone, session.draw.val, prefix)
        if history := read_history(tracking, run):
            subject = Subject(
                stage=stage,
                settings=settings,
                draw=session.draw,
                history=history,
                logits=logits,
                parent=parent_of(tracking, run),
            )
            with as_far_as_allowed(run, session.say):
                log_pictures(log, tracking, subject, session.say)
                added.append("pictures")
        if added or not history:
            log.tags({keys.COMPLETED: "true"})
    if lacks_model:
        with tempfile.TemporaryDirectory() as folder, as_far_as_allowed(run, session.say):
            name = model_name(settings, number)
            log_served_model(log, name, settings, session.draw, backbone, Path(folder))
            added.append("model")
    if added:
        what = " and ".join(f"its {part}" for part in added)
        session.say(f"stage {number}: run {run_id} has {what} now, not trained again")


def join_data_set(session: Session, run: RunView, number: int) -> None:
    """Let a run of an earlier version that saw a session's images count as one of its data set."""
    pool = run.tags.get(keys.POOL, session.draw.pool)
    former = session.recipe(number, former=run.tags.get(keys.POOL, run.tags[keys.DATA]))
    is_former = run.tags[keys.RECIPE_KEY] == former != session.recipe(number)
    if is_former and pool == session.draw.pool:
        tags = {keys.RECIPE_KEY: session.recipe(number), keys.POOL: session.draw.pool}
        session.tracking.writing(run.run_id).tags(tags)
