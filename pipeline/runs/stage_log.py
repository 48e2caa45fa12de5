"""What a stage run carries: parameters, tags, pictures, predictions, the servable model."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save

from pipeline.data.augment import MEAN, STD
from pipeline.data.base import UNREADABLE
from pipeline.data.draws import Draw
from pipeline.data.images import ImageSet
from pipeline.model.backbones import Backbone
from pipeline.model.pretrained import Pretrained
from pipeline.reporting.figures import confusion_matrix, learning_curves
from pipeline.runs.command_line import stage_entry_point
from pipeline.settings.run import THRESHOLD_KEYS, TRAIN_KEYS, Settings, plain_values
from pipeline.settings.schedules import Stage
from pipeline.signals.evidence import PREDICTIONS, sentences
from pipeline.signals.readings import Signal
from pipeline.system.files import write_atomically
from pipeline.system.provenance import COMMAND, requirements_of
from pipeline.system.text import as_markdown
from pipeline.tracking import RunLog, RunView
from pipeline.tracking.history import History, Summary

PACKAGE = Path(__file__).parent.parent
SERVED_MODEL = PACKAGE / "model" / "served_model.py"
SERVED_HELPERS = (PACKAGE / "data" / "images.py",)
SERVED_PACKAGES = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "torch", "torchvision")


def log_start(
    log: RunLog,
    settings: Settings,
    stage: Stage,
    draw: Draw,
    pretrained: Pretrained,
    keys: Mapping[str, str],
    parent: RunView | None,
) -> None:
    """Everything that is known before the first step."""
    values = plain_values(settings, range(1, stage.number + 1))
    own = {name: getattr(settings.training(stage.number), name) for name in TRAIN_KEYS}
    run = {k: v for k, v in values.items() if "." not in k and k not in THRESHOLD_KEYS}
    log.params({**run, **own, "precision": keys["precision"]})  # in which it was really computed
    log.tags(
        {
            "preset": settings.preset,
            "stage": str(stage.number),
            "schedule": stage.schedule,
            "trains": " ".join(stage.trainable),
            "backbone": settings.backbone,
            "weights": settings.weights,
            "weights_sha256": pretrained.digest,
            "weights_report": pretrained.report,
            "data": draw.source,
            "data_sha256": draw.fingerprint,
            "draw": str(settings.draw),
            "seed": str(settings.seed),
            "parent_run_id": parent.run_id if parent else "none",
            "parent_checkpoint_sha256": parent.tags["checkpoint_sha256"] if parent else "none",
            **keys,
            "settings": json.dumps(values),
        }
    )
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


def log_unreadable(log: RunLog, unreadable: Sequence[str]) -> None:
    """List the images that a run went on without; nothing where there are none."""
    if unreadable:
        log.text("\n".join(unreadable) + "\n", UNREADABLE)


def log_outcome(
    log: RunLog,
    settings: Settings,
    stage: Stage,
    draw: Draw,
    summary: Summary,
    logits: torch.Tensor,
    signals: list[Signal],
) -> None:
    """Everything that is known after the last step, but for pictures and the served model."""
    log.metrics(summary.logged)
    log.text(predictions_csv(logits, draw.val, draw.class_names), PREDICTIONS)
    log.tags({"mlflow.note.content": description(settings, stage, draw, summary, signals)})


def log_outcome_pictures(
    log: RunLog, stage: Stage, draw: Draw, history: History, logits: torch.Tensor
) -> None:
    """Learning curves, and which classes are taken for which."""
    name = f"stage {stage.number} of {stage.schedule}: {' + '.join(stage.trainable)}"
    log.figure(learning_curves(name, history), "figures/learning_curves.png")
    matrix = confusion(logits, draw.val.labels, len(draw.class_names))
    title = f"validation images, epoch {history.selected}"
    log.figure(confusion_matrix(title, matrix, draw.class_names), "figures/confusion_matrix.png")


def description(
    settings: Settings,
    stage: Stage,
    draw: Draw,
    summary: Summary,
    signals: Sequence[Signal],
) -> str:
    """The run's note in the MLflow UI, as Markdown."""
    lines = [
        f"**Stage {stage.number}** of `{stage.schedule}` trains {' + '.join(stage.trainable)} of "
        f"{settings.backbone} ({summary.trainable:,} parameters) on {len(draw.train)} images of "
        f"{as_markdown(draw.source)} (draw {settings.draw}, seed {settings.seed}). Epoch "
        f"{summary.epoch} was selected by {settings.training(stage.number).select} on "
        f"{len(draw.val)} validation images.",
        f"    {summary.best_line}",
        sentences(signals),
        *(f"Note: {as_markdown(note)}" for note in draw.notes),
    ]
    if stage.number < len(settings.stages):
        lines.append(
            f"Continue from it: `{COMMAND} {stage_entry_point(stage.number + 1)} "
            f"-P parent_run_id={summary.run_id}`"
        )
    return "\n\n".join(lines)


def confusion(logits: torch.Tensor, labels: torch.Tensor, classes: int) -> np.ndarray:
    """Counts of true class (rows) against predicted class (columns), (classes, classes)."""
    flat = labels.numpy() * classes + logits.argmax(1).numpy()
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


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
    log: RunLog, settings: Settings, draw: Draw, backbone: Backbone, folder: Path
) -> None:
    """Log the whole model with its preprocessing; its URI becomes a tag."""
    weights, about = folder / "model.safetensors", folder / "about.json"
    state = {name: tensor.contiguous() for name, tensor in backbone.model.state_dict().items()}
    write_atomically(weights, save(state))
    content = {
        "backbone": backbone.name,
        "class_names": draw.class_names,
        "image_size": settings.image_size,
        "mean": MEAN,
        "std": STD,
        "ranges": draw.ranges,
    }
    write_atomically(about, json.dumps(content).encode())
    example = io.BytesIO()
    Image.fromarray(draw.val.pixels[0].permute(1, 2, 0).numpy()).save(example, "PNG")
    uri = log.model(
        code=SERVED_MODEL,
        helpers=SERVED_HELPERS,
        artifacts={"weights": weights, "about": about},
        example_image=example.getvalue(),
        class_names=draw.class_names,
        requirements=requirements_of(SERVED_PACKAGES),
    )
    log.tags({"model_uri": uri})
