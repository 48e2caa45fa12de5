"""Entry point pretrain: weights where there are none, trained from scratch on labelled images.

In: a labelled image set of the domain (medical, satellite, ...). Out: a safetensors file that
`-P weights=<path>` reads, with where it came from in its metadata, and the MLflow run that trained
it. The training is a stage like any other, of every block from random weights: logged, proved, and
found again by content. Not covered: self-supervised pretraining.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pipeline.entries.command_line.plans import PretrainPlan
from pipeline.errors import DataError, SettingsError
from pipeline.runs.command import Command
from pipeline.runs.find_or_run import find_or_run
from pipeline.runs.messages.command_line import as_words
from pipeline.runs.session import Session
from pipeline.runs.sources import source_of
from pipeline.settings.fields import AUTO
from pipeline.settings.run import Settings
from pipeline.system.disk.digests import digest_tensors
from pipeline.system.disk.files import check_folder_of, seen, typed_path, write_atomically
from pipeline.tracking import Tracking
from pipeline.tracking.history import Summary
from pipeline.tracking.keys import GIT_COMMIT, KIND, VAL_ACC, WEIGHTS_SHA256, flat

PROVENANCE = "provenance"
VAL_SHARE, VAL_AT_MOST = 0.1, 100
"""Validation images a class where no number is given."""


def pretrain_entry(command: Command, plan: PretrainPlan) -> Path:
    """Entry point pretrain: train, and write the weights beside where they came from.

    Raises:
        SettingsError, DataError: a place that cannot be written to, wrong images.
        StorageError: the file cannot be written.
    """
    path = typed_path(plan.out)
    data = plan.settings.data_name
    tracking = Tracking.connect(f"pretrain · {data}", data)
    with tracking.explained():
        _check_place(path)
        settings = _sized(plan, command)
        name = f"pretrain · {settings.data_name} · {settings.backbone}"
        session = Session.open(settings, tracking, command.say, command.on_epoch)
        with tracking.run(name, {KIND: "pretrain"}, target=True) as log:
            summary = find_or_run(session, 1, log.run_id)
            about = _write_weights(path, session, summary)
            log.params({"data": settings.data, "backbone": settings.backbone, "out": str(path)})
            log.metrics({flat(VAL_ACC): summary.val_acc})
            log.text(json.dumps(about, indent=2) + "\n", "provenance.json")
            log.tags(
                {"stage_run_id": summary.run_id, WEIGHTS_SHA256: str(about["weights_sha256"])}
            )
    command.say(tracking.how_to_browse)
    use = {"weights": str(path), "backbone": settings.backbone}
    use |= {"blocks": settings.blocks} if settings.blocks != AUTO else {}
    command.say(
        f"{path}: {settings.backbone} from scratch on {about['images']} images of "
        f"{about['data']}, validation accuracy {summary.val_acc:.2%}; use it: {as_words(use)}"
    )
    return path


def _write_weights(path: Path, session: Session, summary: Summary) -> dict[str, object]:
    """Write the weights of a finished stage, without the head; returns where they came from."""
    settings, run = session.settings, session.tracking.get(summary.run_id)
    backbone = session.restore(run)
    head = f"{backbone.head_layer()}."
    tensors = backbone.model.state_dict().items()
    state = {name: tensor.contiguous() for name, tensor in tensors if not name.startswith(head)}
    about: dict[str, object] = {
        "backbone": backbone.name,
        "data": session.draw.source,
        "data_sha256": session.draw.fingerprint,
        "class_names": list(session.draw.class_names),
        "images": len(session.draw.train),
        "image_size": settings.image_size,
        "training": settings.training(1).model_dump(),
        "seed": settings.seed,
        "selected_epoch": summary.epoch,
        flat(VAL_ACC): summary.val_acc,
        "weights_sha256": digest_tensors(state),
        "left_out": f"{head}* (its classes are those of the pretraining)",
        "run_id": run.run_id,
        GIT_COMMIT: run.tags[GIT_COMMIT],
    }
    # one key only: safetensors writes several in random order
    metadata = {PROVENANCE: json.dumps(about, sort_keys=True)}
    write_atomically(path, save(state, metadata))
    return about


def _check_place(path: Path) -> None:
    """Refuse a place that cannot be written to before anything is spent on what goes there.

    A file that `pretrain` did not write stays.
    """
    check_folder_of(path)
    if seen(path.is_dir):
        raise SettingsError(f"out={path} is a folder: pass the path of a file")
    if seen(path.exists) and not _is_ours(path):
        raise SettingsError(
            f"out={path} exists and was not written by pretrain: choose another name, or remove it"
        )


def _is_ours(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return PROVENANCE in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _sized(plan: PretrainPlan, command: Command) -> Settings:
    """The settings; without a given number, every class has as many images as the smallest."""
    settings = plan.settings
    if plan.has_train_size:
        return settings
    apart = 0 if settings.test_per_class == AUTO else settings.test_per_class
    settings = settings.model_copy(update={"test_per_class": apart})
    source = source_of(settings)
    counts = source.class_sizes(source.pool)
    smallest = int(counts.min())
    val = 0 if settings.val_per_class == AUTO else settings.val_per_class
    if not plan.has_val_size:
        held = int(source.class_sizes(source.val).min()) if source.val else VAL_AT_MOST
        val = max(1, min(VAL_AT_MOST, int(VAL_SHARE * smallest), held))
    train = smallest - (val if source.val is None else 0)
    if train < 1:
        raise DataError(
            f"{source.name}: class {source.class_names[int(counts.argmin())]} has {smallest} "
            f"images, {val} of them to validate on: add images or lower val_per_class"
        )
    left = int(counts.sum()) - len(counts) * (smallest if source.val is None else train)
    if left:
        command.say(
            f"note: every class counts the same: {train} images a class to train on, as the "
            f"smallest class has; {left} images of larger classes are left out"
        )
    return settings.model_copy(update={"train_per_class": train, "val_per_class": val})
