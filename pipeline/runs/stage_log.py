"""What a stage run carries: parameters, tags, pictures, predictions, the servable model."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save

from pipeline.data.base import UNREADABLE
from pipeline.data.image_set import ImageSet
from pipeline.data.sampling.draws import Draw
from pipeline.model.backbones import Backbone
from pipeline.model.factories import distribution_of, is_factory, sources_of
from pipeline.model.networks import distributions_of, recipe_of
from pipeline.reporting.figures import best_effort, confusion_matrix, learning_curves
from pipeline.runs.findings.mistakes import (
    BATCH,
    CHANGES,
    Answers,
    batch_picture,
    changes_between,
    log_mistakes,
)
from pipeline.runs.messages.next_step import next_lines
from pipeline.runs.messages.words import (
    before_of,
    member_of,
    minutes,
    outcome_sentence,
    stage_name,
)
from pipeline.runs.session import Session
from pipeline.settings.describe import without_thresholds
from pipeline.settings.entry import usable_name
from pipeline.settings.run import Settings, plain_values
from pipeline.settings.schedules import Stage
from pipeline.signals.evidence import (
    PREDICTIONS,
    Subject,
    log_evidence_pictures,
    scores_of,
    sentences,
)
from pipeline.signals.readings import Signal
from pipeline.system.disk.files import write_atomically
from pipeline.system.provenance import requirements_of
from pipeline.system.text import as_markdown, count_of
from pipeline.system.variables import KERNELS, word
from pipeline.tracking import RunLog, RunView, Tracking, keys
from pipeline.tracking.history import Summary

PACKAGE = Path(__file__).parent.parent
SERVED_MODEL = PACKAGE / "serving" / "served_model.py"
SERVED_HELPERS = (PACKAGE / "data" / "images.py",)
SERVED_PACKAGES = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "torch", "torchvision")


def log_start(log: RunLog, session: Session, stage: Stage) -> None:
    """Everything that is known before the first step."""
    settings, draw, number = session.settings, session.draw, stage.number
    values = plain_values(settings, range(1, number + 1))
    run = {k: v for k, v in without_thresholds(values).items() if "." not in k}
    own = settings.training(number).model_dump()
    computed = {keys.PRECISION: session.precision, "device": session.device.type}
    computed[keys.TRAINS] = " ".join(stage.trainable)
    log.params({**run, **own, **computed})  # as it is really computed
    log.text(json.dumps(values, indent=2) + "\n", "settings.json")
    log_unreadable(log, draw.unreadable)
    for part, context in ((draw.train, "training"), (draw.val, "validation")):
        about = {
            "data": settings.data,
            "draw": settings.draw,
            "images": len(part),
            "classes": len(draw.class_names),
        }
        log.dataset(f"{draw.source}-{context}", part.fingerprint(), context, about)


def start_tags(session: Session, stage: Stage, parent: RunView | None) -> dict[str, str]:
    """What a stage run is found by, and what it was made of."""
    values = plain_values(session.settings, range(1, stage.number + 1))
    settings, draw = session.settings, session.draw
    checkpoint = parent.tags[keys.CHECKPOINT_SHA256] if parent else keys.NO_PARENT
    where_they_apply = {
        keys.NETWORK_SHA256: session.backbone.identity,
        keys.TEST_AS_STORED: session.test_as_stored,
        keys.NORM_STATS_REASON: session.norm_reason,
        "kernels": "" if word(KERNELS) == "fast" else word(KERNELS),
        keys.IS_TRIAL: "true" if session.is_trial else "",
        keys.WITHOUT_PICTURES: "" if settings.log_pictures else "true",
        "tuned_by": session.tuned_by.get(stage.number, ""),
    }
    assert where_they_apply.keys() == keys.WHERE_THEY_APPLY
    return {
        keys.KIND: "stage",
        "preset": settings.preset,
        keys.STAGE: str(stage.number),
        keys.SCHEDULE: stage.schedule,
        keys.TRAINS: " ".join(stage.trainable),
        "backbone": settings.backbone,
        "weights": settings.weights,
        keys.WEIGHTS_SHA256: session.pretrained.digest,
        "weights_report": session.pretrained.report,
        keys.DATA: draw.source,
        keys.DATA_SHA256: draw.fingerprint,
        keys.POOL: draw.pool,
        keys.DRAW: str(settings.draw),
        keys.SEED: str(settings.seed),
        keys.PARENT_RUN_ID: parent.run_id if parent else keys.NO_PARENT,
        keys.PARENT_CHECKPOINT_SHA256: checkpoint,
        keys.LINEAGE_KEY: session.key(stage.number),
        keys.RECIPE_KEY: session.recipe(stage.number),
        "norm_stats": settings.norm_stats,
        keys.PRECISION: session.precision,
        keys.MADE_WITH: session.made_with,
        keys.SETTINGS: json.dumps(values),
        **{key: value for key, value in where_they_apply.items() if value},
    }


def what_then(session: Session, number: int, run_id: str, nested_under: str | None) -> str:
    """What to type after a stage, or what its run is part of, as Markdown."""
    if session.role and nested_under:
        return member_of(session.role, session.tracking.get(nested_under))
    return next_lines(session.asked, number, run_id, session.source)


def log_unreadable(log: RunLog, unreadable: Sequence[str]) -> None:
    """List the images that a run went on without; nothing where there are none."""
    if unreadable:
        log.text("\n".join(unreadable) + "\n", UNREADABLE)


def log_outcome(
    log: RunLog,
    subject: Subject,
    summary: Summary,
    signals: Sequence[Signal],
    then: str,
    tags: Mapping[str, str],
) -> None:
    """Everything that is known after the last step, except pictures and the served model.

    `then`: what to type next, or the run of a decision, comparison or trial that this one is part
    of, as Markdown. `tags`: set together with the description.
    """
    log.metrics(summary.logged)
    if parent := subject.parent:
        log.metrics({keys.PARENT_VAL_ACC: parent.metrics[keys.at_best(keys.VAL_ACC)]})
    draw = subject.draw
    log.text(predictions_csv(subject.logits, draw.val, draw.class_names), PREDICTIONS)
    log.tags({keys.NOTE: _description(subject, summary, signals, then), **tags})


def log_pictures(
    log: RunLog,
    tracking: Tracking,
    subject: Subject,
    say: Callable[[str], None],
) -> None:
    """Pictures of the blocks and the chain, learning curves, the confusion matrix."""
    stage, draw, history = subject.stage, subject.draw, subject.history
    with best_effort("a picture of the blocks", say):
        log_evidence_pictures(log, tracking, subject)
    with best_effort("a picture of the result", say):
        name = f"stage {stage.number} of {stage.schedule}: {' + '.join(stage.trainable)}"
        log.figure(learning_curves(name, history), "figures/learning_curves.png")
        title = f"validation images, epoch {history.selected}"
        log_confusion(log, title, draw.val.labels, subject.logits, draw.class_names)
    _log_mistakes(log, tracking, subject, say)


def log_confusion(
    log: RunLog, title: str, labels: torch.Tensor, logits: torch.Tensor, class_names: Sequence[str]
) -> None:
    """The confusion matrix; rows: true, columns: predicted."""
    classes = len(class_names)
    cells = labels.numpy() * classes + logits.argmax(1).numpy()
    counts = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
    log.figure(confusion_matrix(title, counts, class_names), "figures/confusion_matrix.png")


def _log_mistakes(
    log: RunLog, tracking: Tracking, subject: Subject, say: Callable[[str], None]
) -> None:
    """What the stage gets wrong, mends and breaks, and a batch as it was trained on."""
    draw, settings, number = subject.draw, subject.settings, subject.stage.number
    answers = Answers(
        images=draw.val, logits=subject.logits, class_names=draw.class_names, part="validation"
    )
    log_mistakes(log, answers, say, settings.data)
    with best_effort("a picture of a batch", say):
        log.figure(batch_picture(draw.train, settings, number, draw.class_names), BATCH)
    with best_effort("a picture of what the stage mends", say):
        before = scores_of(tracking, subject.parent) if subject.parent else None
        if before and before.images == subject.scored.images:
            names = f"stage {number}", f"stage {number - 1}"
            if figure := changes_between(answers, before.predicted.tolist(), names):
                log.figure(figure, CHANGES)


def _description(subject: Subject, summary: Summary, signals: Sequence[Signal], then: str) -> str:
    """The run's note in the MLflow UI, as Markdown."""
    stage, settings, draw = subject.stage, subject.settings, subject.draw
    what = outcome_sentence(
        stage_name(settings, stage.number),
        summary.val_acc,
        len(draw.val),
        signals,
        before_of(settings, stage.number),
        balanced=summary.balanced,
    )
    lines = [
        f"**{what}.**",
        then,
        picture_line(summary.run_id, "figures/learning_curves.png"),
        sentences(signals),
        f"**Stage {stage.number}** of `{stage.schedule}` trains {' + '.join(stage.trainable)} of "
        f"{settings.backbone} ({summary.trainable_parameters:,} parameters) on "
        f"{count_of(len(draw.train), 'image')} of {as_markdown(draw.source)} "
        f"(draw {settings.draw}, seed {settings.seed}). "
        f"Epoch {summary.epoch} was selected by {settings.training(stage.number).select} on "
        f"{count_of(len(draw.val), 'validation image')}.",
        f"    {summary.best_line}",
        *(f"Note: {as_markdown(note)}" for note in draw.notes),
    ]
    lines.append(f"Training and logging took {minutes(summary.wall_s)}.")
    return "\n\n".join(filter(None, lines))


def picture_line(run_id: str, path: str) -> str:
    """A picture of a run within its description, as MLflow's server serves it."""
    place = f"get-artifact?path={path}&run_uuid={run_id}"
    return f"![{Path(path).stem.replace('_', ' ')}]({place})"


def predictions_csv(logits: torch.Tensor, images: ImageSet, class_names: tuple[str, ...]) -> str:
    """A row an image: its digest, true and predicted class, cross-entropy in nats."""
    nll = F.cross_entropy(logits, images.labels, reduction="none")
    table = pd.DataFrame(
        {
            "image_sha256": [row.tobytes().hex() for row in images.digests],
            "label": [class_names[i] for i in images.labels.tolist()],
            "predicted": [class_names[i] for i in logits.argmax(1).tolist()],
            "nll": nll.numpy(),
        }
    )
    return table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)  # `\r` is unquoted otherwise


def log_served_model(
    log: RunLog, name: str, settings: Settings, draw: Draw, backbone: Backbone, folder: Path
) -> None:
    """Log the whole model with its preprocessing under a name; its URI becomes a tag."""
    weights, about = folder / "model.safetensors", folder / "about.json"
    state = {name: tensor.contiguous() for name, tensor in backbone.model.state_dict().items()}
    write_atomically(weights, save(state))
    recipe = recipe_of(backbone.name, len(draw.class_names), settings.image_size)
    named = ("error" + "_" * n for n in count())
    error = next(name for name in named if name not in draw.class_names)
    content = {
        "backbone": backbone.name,
        "function": recipe.function,
        "arguments": recipe.arguments,
        "class_names": draw.class_names,
        "error_name": error,
        "image_size": settings.image_size,
        **asdict(draw.train.preparation),
        "ranges": draw.ranges,
    }
    write_atomically(about, json.dumps(content).encode())
    example = io.BytesIO()
    Image.fromarray(draw.train.pixels[0].permute(1, 2, 0).numpy()).save(example, "PNG")
    uri = log.model(
        code=SERVED_MODEL,
        helpers=[*SERVED_HELPERS, *_factory_files(backbone.name, folder)],
        artifacts={"weights": weights, "about": about},
        name=usable_name(re.sub(r"[.%\"]", "-", name)),
        example_image=example.getvalue(),
        class_names=draw.class_names,
        error_name=error,
        requirements=requirements_of([*SERVED_PACKAGES, *_libraries_of(backbone.name)]),
    )
    log.tags({keys.MODEL_URI: uri})


def _libraries_of(backbone: str) -> list[str]:
    """Installed distributions, beside `SERVED_PACKAGES`, that make the network."""
    own = distribution_of(backbone) if is_factory(backbone) else None
    return [*([own] if own else []), *distributions_of(backbone)]


def _factory_files(backbone: str, folder: Path) -> list[Path]:
    """Copies of a factory's source files, where no installed distribution has them."""
    if is_factory(backbone) and distribution_of(backbone):
        return []
    copies = folder / "factory"
    for below, content in sources_of(backbone).items():
        (copies / below).parent.mkdir(parents=True, exist_ok=True)
        (copies / below).write_bytes(content)
    return sorted(copies.glob("*"))
