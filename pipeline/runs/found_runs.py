"""Finished runs found by what they are made of, and brought up to what this version knows.

In: a session and a stage's number. Out: a run whose checkpoint is intact, or None.
"""

from __future__ import annotations

from pipeline.errors import LineageError
from pipeline.model.backbones import Backbone
from pipeline.runs.origins import origin_of
from pipeline.runs.scoring import logits_of
from pipeline.runs.session import Session
from pipeline.signals.evidence import has_pictures
from pipeline.stats.metrics import score_logits
from pipeline.tracking import RunView, keys
from pipeline.tracking.history import Summary


def find_run(session: Session, number: int) -> RunView | None:
    """The oldest finished run of that stage with the same content and an intact checkpoint.

    Runs made with what is here come first, then those with pictures, except for a trial, which
    needs none.
    """

    def rank(run: RunView) -> tuple[bool, bool]:
        pictures = session.is_trial or has_pictures(run)
        return origin_of(run) != session.made_with, not pictures

    for run in sorted(session.tracking.find({keys.LINEAGE_KEY: session.key(number)}), key=rank):
        try:
            Summary.of(run)  # as whole as what follows needs it
            backbone = session.restore(run)
        except LineageError as err:
            session.say(f"note: passing over {err}")
        else:
            join_data_set(session, run, number)
            note_recipe(session, number)
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


def note_recipe(session: Session, number: int) -> None:
    """Have the siblings of a stage's run brought up to date when the command ends."""
    if number > 1:
        session.tracking.recipes_met.add(session.recipe(number))


def join_data_set(session: Session, run: RunView, number: int) -> None:
    """Let a run of an earlier version that saw a session's images count as one of its data set."""
    former = session.recipe(number, data=run.tags[keys.DATA])
    if keys.POOL not in run.tags and run.tags[keys.RECIPE_KEY] == former:
        tags = {keys.RECIPE_KEY: session.recipe(number), keys.POOL: session.draw.pool}
        session.tracking.writing(run.run_id).tags(tags)
