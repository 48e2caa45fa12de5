"""What people want of a run and trials and pairs do without: pictures and the served model.

In: a stage run that is finished, its checkpoint, history and evidence stored. Out: the same run
with what it lacks, from its restored network. Nothing is trained.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipeline.errors import LineageError
from pipeline.reporting.figures import best_effort
from pipeline.runs.scoring import predict
from pipeline.runs.session import Session
from pipeline.runs.stage_log import log_outcome_pictures, log_served_model
from pipeline.signals.evidence import (
    COMPLETED,
    Subject,
    has_pictures,
    log_evidence_pictures,
    signals_of,
)
from pipeline.tracking import RunView
from pipeline.tracking.history import read_history


def complete(session: Session, number: int, run_id: str) -> None:
    """Give a run of stage `number` its pictures, and its served model if `log_model` asks for one.

    Raises:
        LineageError: the run's checkpoint is missing or damaged.
    """
    settings, tracking = session.settings, session.tracking
    run, log = tracking.get(run_id), tracking.writing(run_id)
    lacks_model = settings.log_model and "model_uri" not in run.tags
    if has_pictures(run) and not lacks_model:
        return
    backbone = session.restore(run)
    if not has_pictures(run):
        stage, draw = settings.stage(number), session.draw
        history, signals = read_history(tracking, run), signals_of(tracking, run)
        logits = predict(
            backbone,
            draw.val,
            session.dtype,
            session.device,
            cache=session.cache,
            prefix=stage.prefix,
        )
        if history:
            parent = _parent_of(session, run)
            subject = Subject(stage, settings, history, logits, draw.val, parent)
            with best_effort("a picture of the signals", session.say):
                log_evidence_pictures(log, tracking, subject, signals)
            with best_effort("a picture of the result", session.say):
                log_outcome_pictures(log, stage, draw, history, logits)
        log.tags({COMPLETED: "true"})
    if lacks_model:
        with tempfile.TemporaryDirectory() as folder:
            log_served_model(log, settings, session.draw, backbone, Path(folder))
    session.say(
        f"stage {number}: run {run_id} has its pictures and its model now, not trained again"
    )


def _parent_of(session: Session, run: RunView) -> RunView | None:
    try:
        parent_id = run.tags["parent_run_id"]
        return None if parent_id == "none" else session.tracking.get(parent_id)
    except LineageError:  # deleted since
        return None
