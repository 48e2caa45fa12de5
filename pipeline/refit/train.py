"""The last model's run: every stage in turn on all images, nothing selected, one look at the test.

In: a `Recipe`. Out: a finished run of kind `refit` with the served model, an ONNX file and the
predictions of the test images; the same recipe on the same images finds that run again. The run
is no evidence of anything but its own accuracy: it has no validation images, no lineage to a stage
run, and no recipe key.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from pipeline.data.images import ImageSet
from pipeline.data.overlap import Overlap
from pipeline.data.whole import Scope, takes_all, whole_draw
from pipeline.errors import DivergedError
from pipeline.model.backbones import Backbone
from pipeline.model.freezing import FrozenProof
from pipeline.refit.onnx_file import log_onnx
from pipeline.refit.recipe import Recipe
from pipeline.reporting.figures import best_effort
from pipeline.runs.predictions import keep_predictions
from pipeline.runs.run_stage import trainer_of
from pipeline.runs.scoring import logits_of, read_test_split, scored_on
from pipeline.runs.session import Session
from pipeline.runs.sources import source_of
from pipeline.runs.stage_log import log_confusion, log_served_model, log_unreadable
from pipeline.runs.unfinished import Unfinished, run_that_goes_on
from pipeline.runs.words import model_name, stage_name
from pipeline.settings.run import Settings, plain_values
from pipeline.stats.metrics import score_logits
from pipeline.system.digests import digest_values
from pipeline.system.progress import counted, doing
from pipeline.system.text import count_of
from pipeline.tracking import RunLog, RunView, Tracking, keys
from pipeline.training.features import Features
from pipeline.training.trainer import Trainer
from pipeline.training.trainer_state import State, go_on, state_of

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
    source = source_of(settings)
    deal = partial(whole_draw, scope=scope)
    session = Session.open(settings, tracking, lambda _: None, deal=deal)
    session.say, draw = say, session.draw
    for note in draw.notes:
        say(f"note: {note}")
    test = read_test_split(source, settings, say) if source.test else None
    overlap = Overlap.of(test, source).after([draw]) if test else None
    found = _find(session, recipe.last, test) if settings.reuse else None
    if found:
        say(f"refit: found run {found.run_id} with the same content, reusing it")
    else:
        which = (
            "all that are not in the test split"
            if takes_all(source, settings, scope)
            else f"those of draw {settings.draw} (-P refit=all takes all that are no test images)"
        )
        count = count_of(len(draw.train), "image")
        say(f"refit: {recipe.words} on {count}, {which}; epochs: {recipe.passes}")
        name = f"refit · {recipe.words} · {settings.data_name} · {settings.backbone} · {count}"
        own, tags = nested_under is None, {keys.KIND: keys.REFIT}
        key = digest_values([keys.REFIT, session.key(recipe.last)])
        run = run_that_goes_on(session, key, name, tags, target=own, nested_under=nested_under)
        with run as (log, unfinished):
            _train(session, log, recipe, overlap, unfinished)
        say(f"refit: run {log.run_id}")
    sizes = np.bincount(draw.train.labels.numpy(), minlength=len(draw.class_names))
    return Refit(
        run=found or tracking.get(log.run_id),
        recipe=recipe,
        session=session,
        train_sizes=tuple(sizes.tolist()),
        reused=found is not None,
    )


def _train(
    session: Session,
    log: RunLog,
    recipe: Recipe,
    overlap: Overlap | None,
    unfinished: Unfinished,
) -> None:
    """Every stage, the one look at the test images, and what other programs need of the model."""
    started = time.perf_counter() - unfinished.earlier_s
    _log_start(log, session, recipe)
    backbone, draw = session.pretrained_backbone(), session.draw
    state = unfinished.found or {"stage": 1, "before": {}}
    moved: dict[str, Tensor] = state["before"]
    backbone.put(moved)
    for number in range(state["stage"], recipe.last + 1):
        moved |= _train_stage(session, log, backbone, number, unfinished, dict(moved))
    log.metrics({keys.TOTAL_S: time.perf_counter() - started})
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


def _find(session: Session, last: int, test: ImageSet | None) -> RunView | None:
    """The finished run of the same content, scored on the same test images."""
    tags = {keys.KIND: keys.REFIT, keys.LINEAGE_KEY: session.key(last)}
    digest = test.fingerprint() if test else NO_TEST
    for run in session.tracking.find(tags):
        if keys.MODEL_URI in run.tags and run.tags.get(keys.TEST_SHA256) == digest:
            return run
    return None


def _log_start(log: RunLog, session: Session, recipe: Recipe) -> None:
    settings, draw = session.settings, session.draw
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
            keys.LINEAGE_KEY: session.key(recipe.last),
            keys.PRECISION: session.precision,
            keys.MADE_WITH: session.made_with,
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


def _train_stage(
    session: Session,
    log: RunLog,
    backbone: Backbone,
    number: int,
    unfinished: Unfinished,
    before: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Train one stage from the weights that `backbone` holds, and leave the result there.

    `before`: what the stages before have moved. Returns what this one has.

    Raises:
        DivergedError: the training loss is no number.
        FreezingError: a frozen tensor changed.
    """
    settings: Settings = session.settings
    stage, training = settings.stage(number), settings.training(number)
    proof = FrozenProof.take(backbone, number, stage.trainable)
    features = session.cache.features(
        backbone,
        backbone.frozen_segments(stage.trainable),
        session.draw.train,
        augment=training.augment,
        views=settings.views,
        dtype=session.dtype,
        device=session.device,
        digests=proof.digests,
    )
    trainer = trainer_of(session, backbone, stage)
    proof.watch({"train": features.running, "suffix": trainer.segments})
    _go_on(session, log, trainer, unfinished)
    _train_epochs(session, log, trainer, features, unfinished, before)
    backbone.put(trainer.best)
    proof.check(backbone)
    name, (loss, acc) = stage_name(settings, number), trainer.losses[-1]
    session.say(f"refit: {name}: train loss {loss:.4f}, accuracy {acc:.2%}")
    return trainer.best


def _train_epochs(
    session: Session,
    log: RunLog,
    trainer: Trainer,
    features: Features,
    unfinished: Unfinished,
    before: dict[str, Tensor],
) -> None:
    """Every epoch that is left, each with its metrics and its state.

    Raises:
        DivergedError: the training loss is no number.
    """
    number, draw = trainer.stage.number, session.draw
    name = stage_name(session.settings, number)

    def state() -> State:
        return {**state_of(trainer), "stage": number, "before": before}

    epochs = trainer.without_validation(draw.train, features, len(draw.class_names))
    title, planned = f"refit, epochs of {name}", trainer.settings.epochs
    unfinished.epoch_begins()
    for loss, acc in counted(epochs, title, planned, done=trainer.done):
        unfinished.epoch_over(state)
        log.metrics(_metrics(number, loss, acc), step=trainer.done)
        if not math.isfinite(loss):
            raise DivergedError(
                f"refit: the loss of {name} is not a number in epoch {trainer.done}: lower "
                f"stage{number}.lr ({trainer.settings.lr}) or set clip_norm",
                log.run_id,
            )
        unfinished.epoch_begins()
    unfinished.all_over(state)


def _go_on(session: Session, log: RunLog, trainer: Trainer, unfinished: Unfinished) -> None:
    """Begin after the last epoch that a stopped run has left of this stage, if there is one."""
    state, number = unfinished.found, trainer.stage.number
    if state is None or state["stage"] != number:
        return
    go_on(trainer, state)
    for epoch, (loss, acc) in enumerate(trainer.losses, start=1):
        log.metrics(_metrics(number, loss, acc), step=epoch)
    session.say(
        f"refit: {stage_name(session.settings, number)} goes on after epoch {trainer.done} of "
        f"{trainer.settings.epochs}, from the state that a stopped command left"
    )


def _metrics(number: int, loss: float, acc: float) -> dict[str, float]:
    return {f"stage{number}/loss": loss, f"stage{number}/acc": acc}


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
