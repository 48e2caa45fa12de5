"""Which run a stage continues from: found by what it is made of, never by when it ran.

A stage run's *lineage key* is the SHA-256 of everything its weights depend on: trainable blocks,
backbone, weights digest, data fingerprint, seed, resolved training settings, precision, and its
parent's lineage key. Two runs with one key hold the same model, to the last bit where the same
libraries made both (`messages/origins.py`); the key is a tag, so MLflow finds it.

Its *recipe key* is what it shares with runs on other draws, or with other seeds, of the same data
set. A data set is known by its content (`Source.digest`, tag `pool_sha256`), not by its path. Runs
of earlier versions have no such tag and a recipe key by the folder's name: they are siblings of
one another where they were made with the same `data`, and of newer runs as soon as a newer command
has found them by their lineage key, which proves that they saw the same images.
"""

from __future__ import annotations

from pipeline.data.base import preparation_of
from pipeline.data.images import MEAN, STD, unusual
from pipeline.data.open import NAMES
from pipeline.errors import LineageError
from pipeline.settings.run import INHERITED_KEYS, PLACE_KEYS, THRESHOLD_KEYS, Settings
from pipeline.settings.schedules import SCHEDULES, Schedule, Stage
from pipeline.system.disk.digests import digest_values
from pipeline.system.disk.files import seen, typed_path
from pipeline.tracking import RunView
from pipeline.tracking.keys import DATA_SHA256, KIND, PRECISION, SCHEDULE, STAGE
from pipeline.weights.pretrained import names_a_file

WITHOUT_PARENT = "leave parent_run_id out to have a parent found or trained"
METHOD = 2
"""Raised whenever the same settings would train to other weights than before."""


def lineage_key(
    settings: Settings,
    stage: Stage,
    *,
    fingerprint: str,
    network: str,
    weights_digest: str,
    precision: str,
    parent_key: str | None,
) -> str:
    """The key of stage `stage` under these settings (see the module's header)."""
    return digest_values(
        {
            **_method(settings, stage, network, weights_digest, precision),
            "data": fingerprint,
            "seed": settings.seed,
            "training": settings.training(stage.number).model_dump(),
            "parent": parent_key,
        }
    )


def _method(
    settings: Settings, stage: Stage, network: str, weights_digest: str, precision: str
) -> dict[str, object]:
    """What a stage's weights depend on beside images, seed, training settings and parent."""
    return {
        **({"network": network} if network else {}),
        **unusual(preparation_of(settings)),
        "method": METHOD,
        "trains": list(stage.trainable),  # not the schedule: several share a stage 1
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
    former: bool,
    data: str,
    class_names: tuple[str, ...],
    network: str,
    weights_digest: str,
    precision: str,
) -> str:
    """What sibling runs share: everything in the lineage except the draw, the seed and the images.

    `trained`: the last stage whose training settings count, for a study the one before its own.
    `former`: the key that earlier versions gave, whatever was trained before this stage.
    `network`: `Backbone.identity`. `data`: the digest of the data set, in earlier versions its
    name. A parent that was trained by other settings makes another key.
    """
    apart = [settings.test_per_class] if settings.test_per_class else []
    return digest_values(
        {
            **_method(settings, stage, network, weights_digest, precision),
            "data": [data, *class_names],
            "per_class": [settings.train_per_class, settings.val_per_class, *apart],
            **({"group": settings.group} if settings.group else {}),
            "data_seed": settings.data_seed,
            "training": [settings.training(n).model_dump() for n in range(1, trained + 1)],
            **({} if former else _before(settings.chain, stage.number)),
        }
    )


_FIRST = (
    *("three_stage", "lp_ft", "two_stage", "full", "head_only"),
    *("stage2_continued", "stage1_continued"),
)
"""The built-in schedules of the versions whose keys told nothing of stages before: none is added,
or keys of finished runs would be others."""


def _before(schedule: Schedule, number: int) -> dict[str, object]:
    """What stages before stage `number` train, unless its own blocks tell that.

    Schedules of `_FIRST` that train the same blocks in a stage trained the same ones before, on
    networks of more than three blocks.
    """
    *before, last = schedule.trains(number)
    first = [SCHEDULES[name] for name in _FIRST]
    known = (one.on(schedule.blocks) for one in first if one.fits(schedule.blocks))
    ways = [one.trains(number) for one in known if one.count >= number]
    is_told = {tuple(way) for way in ways if way[-1] == last} == {(*before, last)}
    return {"before": before} if before and not is_told else {}


def other_than(run: RunView, stage: int | None = None, schedule: str | None = None) -> str:
    """What a run is instead of a finished run of that stage and schedule (None: of any); or ""."""
    kind, number, own = (run.tags.get(key) for key in (KIND, STAGE, SCHEDULE))
    if kind != "stage" or run.status != "FINISHED":
        return f"{kind or 'no stage run'}, {run.status}"
    if (stage and number != str(stage)) or (schedule and own != schedule):
        return f"stage {number} of {own}"
    return ""


def check_parent(run: RunView, stage_number: int) -> None:
    """Refuse a run that stage `stage_number` cannot continue from.

    Raises:
        LineageError: not a finished run of the stage before.
    """
    before = stage_number - 1
    if other := other_than(run, before):
        raise LineageError(
            f"stage{stage_number} needs a stage-{before} checkpoint, run {run.run_id} is {other}: "
            f"pass -P parent_run_id=<a finished stage-{before} run>, or leave it out"
        )


_OF_EACH_RUN = (
    *("device", "cache", "cache_dir", "cache_limit", "reuse", "precision"),
    *("log_model", "log_pictures"),
    *THRESHOLD_KEYS,
)
"""How and where to compute, and how to read the result: no parent hands that down."""


_OF_EARLIER_RUNS: dict[str, object] = {
    "interpolation": "bilinear",
    "crop": 1.0,
    "mean": ",".join(map(str, MEAN)),
    "std": ",".join(map(str, STD)),
    "blocks": "auto",
    "labels": "",
    "group": "",
}
"""What all runs had before these were settings."""


def inherit(run: RunView) -> dict[str, object]:
    """A stage run's resolved settings, as logged, for a child to take over."""
    return _OF_EARLIER_RUNS | {k: v for k, v in run.settings.items() if k not in _OF_EACH_RUN}


def settings_of(run: RunView) -> dict[str, object]:
    """What `inherit` gives, with the precision that the run was computed in."""
    precision = run.tags.get(PRECISION, run.params[PRECISION])  # older runs: as typed
    return {**inherit(run), "precision": precision}


def check_images(run: RunView, settings: Settings, fingerprint: str, advice: str) -> str:
    """Refuse a run of other images or classes; returns a note on where moved images are now.

    `fingerprint`: of the training and validation images that the settings name.

    Raises:
        LineageError: the run's images or classes are not those.
    """
    data, before = settings.data, run.settings
    if run.tags[DATA_SHA256] != fingerprint:
        mine = settings.model_dump(include={"label_column", "image_column"})
        others = [f"{k}={before[k]}" for k, v in mine.items() if before.get(k, v) != v]
        why = f"it had {', '.join(others)}" if others else "their SHA-256 differ"
        raise LineageError(
            f"the images of data={data} are not those that run {run.run_id} was trained on "
            f"({why}): restore them, or pass -P data=<where they are now>{advice}"
        )
    if (was := before["data"]) == data:
        return ""
    what = f"the training and validation images that run {run.run_id} had"
    return f"data={data}: {what} as data={was}"


def check_places(settings: Settings, run: RunView) -> None:
    """Refuse images and weights of a run that have moved since, where no new place was named.

    Raises:
        LineageError: says which, and how to name the place.
    """
    logged = run.settings
    is_path = {"data": settings.data not in NAMES, "weights": names_a_file(settings.weights)}
    for key, place in ((key, getattr(settings, key)) for key in is_path if is_path[key]):
        if place == logged[key] and not seen(typed_path(place).exists):
            raise LineageError(
                f"the {key} of run {run.run_id} are not at {key}={place} any more: pass "
                f"-P {key}=<where they are now>"
            )


def check_agreement(settings: Settings, run: RunView) -> None:
    """Refuse settings that contradict what a parent run was made with.

    Places of images and weights may differ: their digests are compared.

    Raises:
        LineageError: names each setting, both values, and what to do.
    """
    stages = tuple(f"stage{n}." for n in range(1, run.number(STAGE) + 1))
    conflicts = []
    for key, value in inherit(run).items():
        if key in PLACE_KEYS or not (key in INHERITED_KEYS or key.startswith(stages)):
            continue
        current = _current(settings, key)
        if current != value and (key, current) != ("norm_stats", "auto"):  # auto: as the parent
            conflicts.append(f"{key} is {value} there, got {current}")
    if conflicts:
        raise LineageError(
            f"settings contradict run {run.run_id}: {'; '.join(conflicts)}: leave them out, or "
            f"{WITHOUT_PARENT}"
        )


def _current(settings: Settings, key: str) -> object:
    if "." not in key:
        return getattr(settings, key)
    stage, name = key.split(".")
    number = int(stage.removeprefix("stage"))
    return getattr(settings.training(number), name) if number <= len(settings.stages) else None
