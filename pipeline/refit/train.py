"""The last model's run: every stage in turn on all images, nothing selected, one look at the test.

In: a `Recipe`. Out: a finished run of kind `refit` with the served model, an ONNX file and the
predictions of the test images; the same recipe on the same images finds that run again. The run
is no evidence of anything but its own accuracy: it has no validation images, no lineage to a stage
run, and no recipe key.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.data.image_set import ImageSet
from pipeline.data.inspection.overlap import Overlap
from pipeline.data.sampling.whole import Scope, takes_all, whole_draw
from pipeline.model.backbones import Backbone
from pipeline.refit.onnx_file import log_onnx
from pipeline.refit.recipe import Recipe
from pipeline.refit.stages import train_stages
from pipeline.reporting.figures import best_effort
from pipeline.runs.findings.predictions import keep_predictions
from pipeline.runs.messages.words import model_name
from pipeline.runs.resuming.once import Work
from pipeline.runs.resuming.unfinished import run_that_goes_on
from pipeline.runs.scoring import logits_of, read_test_split, scored_on
from pipeline.runs.session import Session
from pipeline.runs.stage_log import log_confusion, log_served_model, log_unreadable
from pipeline.settings.run import plain_values
from pipeline.stats.metrics import score_logits
from pipeline.system.disk.digests import digest_values
from pipeline.system.progress import doing
from pipeline.system.text import count_of
from pipeline.tracking import RunLog, RunView, Tracking, keys
from pipeline.tracking.ownership.turns import AT_ONCE, Once

NO_TEST = "no test split"


@dataclass(frozen=True, kw_only=True)
class Refit:
    """A finished run on all images.

    Attributes:
        recipe: with settings that leave nothing to select.
        train_sizes: images of each class that it was trained on.
        reused: found, not trained by this command.
    """

    run: RunView
    recipe: Recipe
    session: Session
    train_sizes: tuple[int, ...]
    reused: bool


def refit(
    tracking: Tracking,
    recipe: Recipe,
    scope: Scope,
    say: Callable[[str], None],
    *,
    nested_under: str | None = None,
) -> Refit:
    """The run on all images, found or trained now.

    `nested_under`: the run of the command; None: this is the command's own run.

    Raises:
        DataError, WeightsError: images or weights cannot be read.
        DivergedError: the loss of a stage is no number.
    """
    recipe = replace(recipe, settings=recipe.fixed(tracking))
    settings = recipe.settings
    deal = partial(whole_draw, scope=scope)
    session = Session.open(settings, tracking, lambda _: None, deal=deal)
    session.say, draw, source = say, session.draw, session.source
    for note in draw.notes:
        say(f"note: {note}")
    test = read_test_split(source, settings, say) if source.test else None
    overlap = Overlap.of(test, source).after([draw]) if test else None
    which = (
        "all that are not in the test split"
        if takes_all(source, settings, scope)
        else f"those of draw {settings.draw} (-P refit=all takes all that are no test images)"
    )
    train = partial(_train, session, recipe, which, overlap, nested_under)
    run, reused = _found_or_trained(session, recipe.last, test, train)
    sizes = np.bincount(draw.train.labels.numpy(), minlength=len(draw.class_names))
    return Refit(
        run=run,
        recipe=recipe,
        session=session,
        train_sizes=tuple(sizes.tolist()),
        reused=reused,
    )


def _found_or_trained(
    session: Session, last: int, test: ImageSet | None, train: Callable[[Once | None], str]
) -> tuple[RunView, bool]:
    """The run, and whether an earlier command, or one at the same time, has trained it."""
    if not session.settings.reuse:
        return session.tracking.get(train(None)), False

    def find() -> tuple[RunView, bool] | None:
        found = _find(session, last, test)
        if found:
            session.say(f"refit: found run {found.run_id} with the same content, reusing it")
        return (found, True) if found else None

    work = Work(
        tracking=session.tracking,
        say=session.say,
        alike=_alike(session, last),
        words="the model on all images",
    )

    def do(once: Once) -> tuple[RunView, bool]:
        return session.tracking.get(train(once)), False

    known = work.finished()
    return find() or work.once(known, find, do)


def _train(
    session: Session,
    recipe: Recipe,
    which: str,
    overlap: Overlap | None,
    nested_under: str | None,
    once: Once | None,
) -> str:
    """Every stage, the one look at the test images, and what other programs need of the model.

    Returns the id of the run, which may be one that was stopped before.
    """
    count = count_of(len(session.draw.train), "image")
    data, backbone_name = session.settings.data_name, session.settings.backbone
    session.say(f"refit: {recipe.words} on {count}, {which}; epochs: {recipe.passes}")
    name = f"refit · {recipe.words} · {data} · {backbone_name} · {count}"
    run = run_that_goes_on(
        session,
        digest_values([keys.REFIT, session.key(recipe.last)]),
        name,
        _alike(session, recipe.last) | ({} if once else {keys.TICKET: AT_ONCE}),
        target=nested_under is None,
        nested_under=nested_under,
        once=once,
    )
    with run as (log, unfinished):
        started = time.perf_counter() - unfinished.earlier_s
        _log_start(log, session, recipe)
        backbone = train_stages(session, log, recipe, unfinished)
        log.metrics({keys.TOTAL_S: time.perf_counter() - started})
        _log_model(session, log, backbone, recipe, overlap)
    session.cache.tell_notes(session.say)
    session.say(f"refit: run {log.run_id}")
    return log.run_id


def _log_model(
    session: Session, log: RunLog, backbone: Backbone, recipe: Recipe, overlap: Overlap | None
) -> None:
    """The score on the test images, the served model and the ONNX file."""
    draw = session.draw
    shown = draw.train
    log.tags(scored_on(NO_TEST, session.precision))
    if overlap:
        shown = overlap.test
        _score(session, log, backbone, recipe, shown)
        log.metrics(overlap.counts.metrics)
        if note := overlap.counts.note:
            session.say(note)
    with tempfile.TemporaryDirectory() as folder:
        name = f"{model_name(session.settings, recipe.last)}-on-all-images"
        with doing("logging the model"):
            log_served_model(log, name, session.settings, draw, backbone, Path(folder))
        with doing("writing the ONNX file"):
            log_onnx(log, backbone.model, draw, shown, Path(folder), session.say)


def _alike(session: Session, last: int) -> dict[str, str]:
    """Tags that runs of the same content share."""
    return {keys.KIND: keys.REFIT, keys.LINEAGE_KEY: session.key(last)}


def _find(session: Session, last: int, test: ImageSet | None) -> RunView | None:
    """The finished run of the same content, scored on the same test images."""
    digest = test.fingerprint() if test else NO_TEST
    for run in session.tracking.find(_alike(session, last)):
        if keys.MODEL_URI in run.tags and run.tags.get(keys.TEST_SHA256) == digest:
            return run
    return None


def _log_start(log: RunLog, session: Session, recipe: Recipe) -> None:
    settings, draw, network = session.settings, session.draw, session.backbone.identity
    values = plain_values(settings, range(1, recipe.last + 1))
    log.params(
        {
            "data": settings.data,
            "backbone": settings.backbone,
            "weights": settings.weights,
            "image_size": settings.image_size,
            "schedule": settings.chain.name,
            "images": len(draw.train),
            "epochs": recipe.passes,
            keys.PRECISION: session.precision,
        }
    )
    log.tags(
        {
            keys.SCHEDULE: settings.chain.name,
            keys.TRAINS: " ".join(settings.stage(recipe.last).trainable),
            keys.DATA: draw.source,
            keys.DATA_SHA256: draw.fingerprint,
            keys.POOL: draw.pool,
            keys.SEED: str(settings.seed),
            keys.WEIGHTS_SHA256: session.pretrained.digest,
            keys.PRECISION: session.precision,
            keys.MADE_WITH: session.made_with,
            **({keys.NETWORK_SHA256: network} if network else {}),
            keys.SETTINGS: json.dumps(values),
        }
    )
    log.text(json.dumps(values, indent=2) + "\n", "settings.json")
    runs = {"recipe": recipe.words, "run_ids": [run.run_id for run in recipe.runs]}
    log.text(json.dumps(runs, indent=2) + "\n", "recipe.json")
    log_unreadable(log, draw.unreadable)
    about = {"data": settings.data, "images": len(draw.train), "classes": len(draw.class_names)}
    name = f"{draw.source}-training-and-validation"
    log.dataset(name, draw.train.fingerprint(), "training", about)


def _score(
    session: Session, log: RunLog, backbone: Backbone, recipe: Recipe, test: ImageSet
) -> None:
    """The one look at the test images: metrics, predictions and the confusion matrix."""
    draw, tracking = session.draw, session.tracking
    trained = session.settings.stage(recipe.last).trainable
    logits = logits_of(session, backbone, test, backbone.frozen_segments(trained))
    scores = score_logits(logits, test.labels)
    log.metrics({keys.TEST[name]: value for name, value in scores.items()})
    log.tags(scored_on(test.fingerprint(), session.precision))
    keep_predictions(tracking, tracking.get(log.run_id), logits, test, draw.class_names)
    with best_effort("the confusion matrix", session.say):
        log_confusion(log, "test images", test.labels, logits, draw.class_names)
