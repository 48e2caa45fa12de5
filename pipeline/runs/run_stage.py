"""One stage from start to finish: parent -> freeze -> train -> prove -> save -> log.

In: a session and a stage's number. Out: a finished run in the tracking store, and its `Summary`.
The first stage of a chain starts from pretrained weights; every later stage starts from its parent
run's logged checkpoint, in the parent's process too.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.data.augment import distinct_views
from pipeline.errors import DivergedError
from pipeline.model.backbones import Backbone
from pipeline.model.flops import note_on_reruns
from pipeline.model.freezing import FrozenProof
from pipeline.runs.findings.near_duplicates import log_near_duplicates
from pipeline.runs.messages.words import (
    before_of,
    minutes,
    model_name,
    outcome_sentence,
    run_name,
    stage_name,
)
from pipeline.runs.resuming.once import NO_FINITE_EPOCH
from pipeline.runs.resuming.unfinished import Unfinished, run_that_goes_on
from pipeline.runs.session import CHECKPOINT, Session
from pipeline.runs.stage_log import (
    log_outcome,
    log_pictures,
    log_served_model,
    log_start,
    start_tags,
    what_then,
)
from pipeline.settings.schedules import Stage
from pipeline.signals.evidence import Subject, instability_now, log_evidence
from pipeline.signals.gate import gate_of_run
from pipeline.signals.readings import Signal
from pipeline.system.memory import PeakMemory
from pipeline.system.progress import bar, doing
from pipeline.tracking import RunLog, RunView, keys
from pipeline.tracking.history import Summary
from pipeline.tracking.ownership.turns import AT_ONCE, Once
from pipeline.training.mixing import mixing_line
from pipeline.training.prefix.features import Features
from pipeline.training.trainer import Trainer
from pipeline.training.trainer_state import State, go_on, state_of
from pipeline.weights.checkpoints import save_checkpoint


@dataclass(kw_only=True)
class _Work:
    """What a stage trains with, and what proves that the rest stays as it is."""

    proof: FrozenProof
    trainer: Trainer
    train_features: Features
    val_features: Features
    prefix_s: float


def run_stage(
    session: Session,
    number: int,
    parent: RunView | None,
    nested_under: str | None = None,
    *,
    target: bool,
    once: Once | None = None,
) -> Summary:
    """Train one stage from its parent run (None: from pretrained weights) and log the run.

    Raises:
        OvertakenError: another command trains the same; only where it is to be trained `once`.
    """
    settings, stage = session.settings, session.settings.stage(number)
    if settings.enforce_gate and (stage.schedule, number) == ("three_stage", 3):
        assert parent
        gate_of_run(session.tracking, parent, settings, session.say)[0].enforce()
    started = time.perf_counter()
    name = run_name(settings, number, session.role)
    tags = start_tags(session, stage, parent) | ({} if once else {keys.TICKET: AT_ONCE})
    run = run_that_goes_on(
        session,
        session.key(number),
        name,
        tags,
        target=target,
        nested_under=nested_under,
        once=once,
    )
    with run as (log, unfinished):
        log_start(log, session, stage)
        peak = PeakMemory(session.device)
        work = _prepare(session, stage, parent)
        if not parent and not session.is_trial:
            log_near_duplicates(session, log, session.say)
        started -= unfinished.earlier_s
        _train(session, log, work, unfinished)
        then = what_then(session, number, log.run_id, nested_under)
        summary, signals = _log_result(session, log, work, parent, peak, started, then)
    session.note_recipe(number)
    _tell(session, summary, signals, parent)
    return summary


def _prepare(session: Session, stage: Stage, parent: RunView | None) -> _Work:
    """The parent's weights, digests of all that is frozen, the suffix's inputs, a trainer."""
    settings, training = session.settings, session.settings.training(stage.number)
    if distinct_views(training.augment) is None and 0 < settings.views < training.epochs:
        session.say(
            f"note: {settings.views} stored views are met more than once in {training.epochs} "
            f"epochs: -P views={training.epochs}, or 0 for fresh views, would not repeat them"
        )
    if line := mixing_line(session.backbone, settings, stage.number):
        session.say(line)
    if note := note_on_reruns(session.backbone, stage.trainable, settings.image_size):
        session.say(note)
    started = time.perf_counter()
    backbone = session.restore(parent) if parent else session.pretrained_backbone()
    proof = FrozenProof.take(backbone, stage.number, stage.trainable)
    train_features, val_features = session.prefix_features(backbone, stage, proof.digests)
    prefix_s = time.perf_counter() - started
    trainer = trainer_of(session, backbone, stage)
    running = {"train": train_features.running, "val": val_features.running}
    proof.watch({**running, "suffix": trainer.segments})
    return _Work(
        proof=proof,
        trainer=trainer,
        train_features=train_features,
        val_features=val_features,
        prefix_s=prefix_s,
    )


def trainer_of(session: Session, backbone: Backbone, stage: Stage) -> Trainer:
    """A trainer of one stage, from the weights that `backbone` holds."""
    settings = session.settings
    return Trainer(
        backbone=backbone,
        stage=stage,
        settings=settings.training(stage.number),
        seed=settings.seed,
        views=settings.views,
        device=session.device,
        dtype=session.dtype,
    )


def _train(session: Session, log: RunLog, work: _Work, unfinished: Unfinished) -> None:
    """Train, log every epoch as it comes, and prove that what was frozen has not moved.

    Epochs of a stopped run are not trained again.

    Raises:
        DivergedError: no epoch had a finite validation loss.
    """
    trainer, draw = work.trainer, session.draw
    stage, history = trainer.stage, trainer.history
    images = draw.train, work.train_features, draw.val, work.val_features
    _go_on(session, log, work, unfinished)
    steps = trainer.steps(len(draw.train))
    done = steps * trainer.done // history.planned
    with bar(f"stage {stage.number}", steps, done=done) as trainer.on_step:
        unfinished.epoch_begins()
        for row in trainer.epochs(*images):
            unfinished.epoch_over(partial(_state, work))
            log.metrics(row, step=len(history))
            session.on_epoch(stage, history)
            if history.diverged:
                which = " and ".join(history.lost)
                session.say(
                    f"stage {stage.number}: {which} loss is not a number in epoch {len(history)}: "
                    "stopping"
                )
                log.tags({keys.DIVERGED: "true"})
            unfinished.epoch_begins()
    unfinished.all_over(partial(_state, work))
    if not math.isfinite(history.best[keys.VAL_LOSS]):
        trained_s = sum(sum(history[key]) for key in (keys.TRAIN_S, keys.VAL_S))
        log.metrics(
            {
                keys.PREFIX_S: work.prefix_s,
                keys.TOTAL_S: work.prefix_s + trained_s,
                keys.TRAINABLE: trainer.trainable_parameters,
            }
        )
        log.wait()
        raise DivergedError(
            f"stage {stage.number}: {NO_FINITE_EPOCH}: lower "
            f"stage{stage.number}.lr ({trainer.settings.lr}) or set clip_norm",
            log.run_id,
        )
    trainer.backbone.put(trainer.best)
    work.proof.check(trainer.backbone)


def _state(work: _Work) -> State:
    """What another process needs to train the rest."""
    return {**state_of(work.trainer), "prefix_s": work.prefix_s}


def _go_on(session: Session, log: RunLog, work: _Work, unfinished: Unfinished) -> None:
    """Begin after the last epoch that a stopped run has left, if there is one."""
    state, trainer = unfinished.found, work.trainer
    if state is None:
        return
    go_on(trainer, state)
    work.prefix_s += state["prefix_s"]
    history = trainer.history
    for step, row in enumerate(history.rows, start=1):
        log.metrics(row, step=step)
    session.say(
        f"stage {trainer.stage.number} goes on after epoch {len(history)} of {history.planned}, "
        "from the state that a stopped command left"
    )


def _log_result(
    session: Session,
    log: RunLog,
    work: _Work,
    parent: RunView | None,
    peak: PeakMemory,
    started: float,
    then: str,
) -> tuple[Summary, list[Signal]]:
    """Log checkpoint, signals and outcome, and unless it is a trial pictures and the model."""
    settings, trainer = session.settings, work.trainer
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / Path(CHECKPOINT).name
        sha256 = _save(checkpoint, session, trainer)
        summary = _summary(trainer, log.run_id, wall_s=time.perf_counter() - started)
        peak_mib = peak.read_mib()
        measured = {keys.PEAK_MIB: peak_mib} if math.isfinite(peak_mib) else {}
        log.metrics({keys.PREFIX_S: work.prefix_s, **measured})
        log.file(checkpoint, str(Path(CHECKPOINT).parent))
        subject = Subject(
            stage=trainer.stage,
            settings=settings,
            draw=session.draw,
            history=trainer.history,
            logits=trainer.best_logits,
            parent=parent,
        )
        signals = log_evidence(log, session.tracking, subject)
        name = run_name(settings, summary.number, session.role, summary.val_acc)
        proof = {keys.CHECKPOINT_SHA256: sha256, "frozen_sha256": work.proof.digest}
        tags = {keys.NAME: name, **proof}
        log_outcome(log, subject, summary, signals, then, tags)
        if choice := session.norm_choice:
            log.metrics({f"norm_stats/{name}": score for name, score in choice.scores.items()})
        if settings.log_pictures and not session.is_trial:
            with doing("pictures"):
                log_pictures(log, session.tracking, subject, session.say)
        if settings.log_model and not session.is_trial:
            name = model_name(settings, summary.number)
            served = settings, session.draw, trainer.backbone, Path(folder)
            with doing("logging the model"):
                log_served_model(log, name, *served)
    return summary, signals


def _save(checkpoint: Path, session: Session, trainer: Trainer) -> str:
    """Write what a stage has trained; returns the file's SHA-256."""
    return save_checkpoint(
        checkpoint,
        trainer.backbone,
        session.pretrained,
        class_names=session.draw.class_names,
        schedule=trainer.stage.schedule,
        stage=trainer.stage.number,
    )


def _summary(trainer: Trainer, run_id: str, wall_s: float) -> Summary:
    """What a stage came to, by its selected epoch."""
    history = trainer.history
    return Summary(
        number=trainer.stage.number,
        trains=trainer.stage.trainable,
        run_id=run_id,
        reused=False,
        epoch=history.selected,
        metrics={name: history.best[name] for name in keys.EPOCH_METRICS},
        wall_s=wall_s,
        trainable_parameters=trainer.trainable_parameters,
    )


def _tell(
    session: Session, summary: Summary, signals: Sequence[Signal], parent: RunView | None
) -> None:
    """Print the cache's notes, the signals, and the line that every stage run ends with."""
    if parent and not session.is_trial:
        recipe = session.recipe(summary.number)
        now = instability_now(session.tracking, recipe, session.settings)
        signals = [now if signal.name == now.name else signal for signal in signals]
    session.cache.tell_notes(session.say)
    name, before = (of(session.settings, summary.number) for of in (stage_name, before_of))
    images = len(session.draw.val)
    acc, balanced = summary.val_acc, summary.balanced
    session.say(outcome_sentence(name, acc, images, signals, before, balanced=balanced))
    for line in dict.fromkeys(signal.line for signal in signals):
        session.say(f"  {line}")
    kept = f"the weights of epoch {summary.epoch} are kept"
    session.say(
        f"stage {summary.number}: run {summary.run_id} ({minutes(summary.wall_s)}), {kept}"
    )
    session.say(summary.best_line)
