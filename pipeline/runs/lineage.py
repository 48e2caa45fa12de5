"""Which run a stage continues from: found by what it is made of, never by when it ran.

A stage run's *lineage key* is the SHA-256 of everything its weights depend on: trainable blocks,
backbone, weights digest, data fingerprint, seed, resolved training settings, precision, and its
parent's lineage key. Two runs with one key hold the same model; the key is a tag, so MLflow finds
it.

Its *recipe key* is what it shares with runs on other draws, or with other seeds, of the same data
set. A data set is known by its content (`Source.digest`, tag `pool_sha256`), not by its path. Runs
of earlier versions have no such tag and a recipe key by the folder's name: they are siblings of
one another where they were made with the same `data`, and of newer runs as soon as a newer command
has found them by their lineage key, which proves that they saw the same images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from pipeline.data.open import NAMES
from pipeline.errors import LineageError
from pipeline.model.pretrained import names_a_file
from pipeline.settings.run import INHERITED_KEYS, PLACE_KEYS, THRESHOLD_KEYS, Settings
from pipeline.settings.schedules import Stage
from pipeline.system.digests import digest_values
from pipeline.system.files import typed_path
from pipeline.tracking import RunView

METHOD = 2
"""Raised whenever the same settings would train to other weights than before."""


def lineage_key(
    settings: Settings,
    stage: Stage,
    *,
    fingerprint: str,
    weights_digest: str,
    precision: str,
    parent_key: str | None,
) -> str:
    """The key of stage `stage` under these settings (see the module's header)."""
    return digest_values(
        {
            **_method(settings, stage, weights_digest, precision),
            "data": fingerprint,
            "seed": settings.seed,
            "training": settings.training(stage.number).model_dump(),
            "parent": parent_key,
        }
    )


def _method(
    settings: Settings, stage: Stage, weights_digest: str, precision: str
) -> dict[str, object]:
    """What a stage's weights depend on beside images, seed, training settings and parent."""
    return {
        "method": METHOD,
        "trains": list(
            stage.trainable
        ),  # not the schedule: stage 1 of several is one and the same
        "stage": stage.number,
        "backbone": settings.backbone,
        "weights": weights_digest,
        "image_size": settings.image_size,
        "norm_stats": settings.norm_stats,
        "views": settings.views,
        "precision": precision,
    }


def recipe_key(
    settings: Settings,
    stage: Stage,
    *,
    trained: int,
    data: str,
    class_names: tuple[str, ...],
    weights_digest: str,
    precision: str,
) -> str:
    """What sibling runs share: everything in the lineage but the draw, the seed and the images.

    `data`: the digest of the data set; before there was one, its name. A parent that was trained
    by another recipe than this run's settings say makes another key. With `trained` below the
    stage's number it is what a study's trials share, too.
    """
    apart = [settings.test_per_class] if settings.test_per_class else []
    return digest_values(
        {
            **_method(settings, stage, weights_digest, precision),
            "data": [data, *class_names],
            "per_class": [settings.train_per_class, settings.val_per_class, *apart],
            "data_seed": settings.data_seed,
            "training": [settings.training(n).model_dump() for n in range(1, trained + 1)],
        }
    )


_OPEN = {"norm_stats": "auto"}
"""Settings that leave it to the parent run, whatever it came to."""


def check_parent(run: RunView, stage_number: int) -> None:
    """Refuse a run that stage `stage_number` cannot continue from.

    Raises:
        LineageError: not a stage run, not finished, or not of the stage before.
    """
    asked = f"stage{stage_number} needs a stage-{stage_number - 1} checkpoint, run {run.run_id}"
    hint = f"pass -P parent_run_id=<a finished stage-{stage_number - 1} run>, or leave it out"
    if stage_number == 1:
        raise LineageError("stage1 starts from pretrained weights: leave parent_run_id out")
    if run.tags.get("kind") != "stage":
        raise LineageError(f"{asked} is not a stage run: {hint}")
    if run.tags.get("stage") != str(stage_number - 1):
        raise LineageError(f"{asked} is stage {run.tags.get('stage')}: {hint}")
    if run.status != "FINISHED":
        raise LineageError(f"{asked} is {run.status}: {hint}")


def inherit(run: RunView) -> dict[str, object]:
    """A stage run's resolved settings, as logged, for a child to take over."""
    raw = json.loads(run.tags["settings"])
    assert isinstance(raw, dict)
    # how and where to compute is each run's own business
    own = (
        "device",
        "cache",
        "cache_dir",
        "cache_limit",
        "reuse",
        "log_model",
        "precision",
        *THRESHOLD_KEYS,
    )
    return {key: value for key, value in raw.items() if key not in own}


def settings_of(run: RunView) -> dict[str, object]:
    """What `inherit` gives, with the precision that the run was computed in."""
    precision = run.tags.get("precision", run.params["precision"])  # older runs: as typed
    return {**inherit(run), "precision": precision}


def check_places(settings: Settings, run: RunView) -> None:
    """Refuse images and weights of a run that have moved since, where no new place was named.

    Raises:
        LineageError: says which, and how to name the place.
    """
    logged = json.loads(run.tags["settings"])
    paths = {"data": settings.data not in NAMES, "weights": names_a_file(settings.weights)}
    for key in (key for key, is_path in paths.items() if is_path):
        place = getattr(settings, key)
        if place == logged[key] and not typed_path(place).exists():
            raise LineageError(
                f"the {key} of run {run.run_id} are not at {key}={place} any more: pass "
                f"-P {key}=<where they are now>"
            )


def check_agreement(
    settings: Settings, values: Mapping[str, object], run: RunView, otherwise: str
) -> None:
    """Refuse settings that contradict what a run was made with.

    Where images and weights lie is no matter of settings: their digests are compared.
    `otherwise`: what to do where a setting is meant.

    Raises:
        LineageError: names each setting, both values, and what to do.
    """
    stage = int(run.tags["stage"])
    conflicts = [
        f"{key} is {value} there, got {_current(settings, key)}"
        for key, value in values.items()
        if key not in PLACE_KEYS
        and (
            key in INHERITED_KEYS
            or key.startswith(tuple(f"stage{n}." for n in range(1, stage + 1)))
        )
        and _current(settings, key) not in (value, _OPEN.get(key))
    ]
    if conflicts:
        raise LineageError(
            f"settings contradict run {run.run_id}: {'; '.join(conflicts)}: leave them out, or "
            f"{otherwise}"
        )


def _current(settings: Settings, key: str) -> object:
    if "." in key:
        stage, name = key.split(".")
        number = int(stage.removeprefix("stage"))
        return getattr(settings.training(number), name) if number <= len(settings.stages) else None
    return getattr(settings, key)
