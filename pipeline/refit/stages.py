"""The stages of a recipe, trained in turn on all images, each from the weights of the one before.

In: a session on all images, and what a stopped run has come to. Out: the trained backbone; the
losses of every epoch are metrics of the run. Nothing is validated on, nothing is selected.
"""

from __future__ import annotations

import math

from torch import Tensor

from pipeline.errors import DivergedError
from pipeline.model.backbones import Backbone
from pipeline.model.freezing import FrozenProof
from pipeline.refit.recipe import Recipe
from pipeline.runs.messages.words import stage_name
from pipeline.runs.resuming.unfinished import Unfinished
from pipeline.runs.run_stage import trainer_of
from pipeline.runs.session import Session
from pipeline.settings.run import Settings
from pipeline.system.progress import counted
from pipeline.tracking import RunLog
from pipeline.training.prefix.features import Features
from pipeline.training.trainer import Trainer
from pipeline.training.trainer_state import State, go_on, state_of

Losses = list[tuple[float, float]]
"""Mean training loss and accuracy of each epoch."""


def train_stages(
    session: Session, log: RunLog, recipe: Recipe, unfinished: Unfinished
) -> Backbone:
    """The backbone after every stage; those that a stopped run has finished are not repeated."""
    backbone = session.pretrained_backbone()
    state = unfinished.found or {"stage": 1, "before": {}}
    moved: dict[str, Tensor] = state["before"]
    curves: dict[int, Losses] = state.get("curves", {})
    backbone.put(moved)
    for number, losses in curves.items():  # the run may be a new one
        _log_curve(log, number, losses)
    for number in range(state["stage"], recipe.last + 1):
        done = {"before": dict(moved), "curves": dict(curves)}
        trainer = _train_stage(session, log, backbone, number, unfinished, done)
        moved |= trainer.best
        curves[number] = trainer.losses
    return backbone


def _train_stage(
    session: Session,
    log: RunLog,
    backbone: Backbone,
    number: int,
    unfinished: Unfinished,
    done: State,
) -> Trainer:
    """Train one stage from the weights that `backbone` holds, and leave the result there.

    `done`: what the stages before have moved, and their losses and accuracies by epoch.

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
    _train_epochs(session, log, trainer, features, unfinished, done)
    backbone.put(trainer.best)
    proof.check(backbone)
    name, (loss, acc) = stage_name(settings, number), trainer.losses[-1]
    session.say(f"refit: {name}: train loss {loss:.4f}, accuracy {acc:.2%}")
    return trainer


def _train_epochs(
    session: Session,
    log: RunLog,
    trainer: Trainer,
    features: Features,
    unfinished: Unfinished,
    done: State,
) -> None:
    """Every epoch that is left, each with its metrics and its state.

    Raises:
        DivergedError: the training loss is no number.
    """
    number, draw = trainer.stage.number, session.draw
    name = stage_name(session.settings, number)

    def state() -> State:
        return {**state_of(trainer), "stage": number, **done}

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
    _log_curve(log, number, trainer.losses)
    session.say(
        f"refit: {stage_name(session.settings, number)} goes on after epoch {trainer.done} of "
        f"{trainer.settings.epochs}, from the state that a stopped command left"
    )


def _log_curve(log: RunLog, number: int, losses: Losses) -> None:
    for epoch, (loss, acc) in enumerate(losses, start=1):
        log.metrics(_metrics(number, loss, acc), step=epoch)


def _metrics(number: int, loss: float, acc: float) -> dict[str, float]:
    return {f"stage{number}/loss": loss, f"stage{number}/acc": acc}
