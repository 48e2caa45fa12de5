"""Scoring: a finished run's accuracy on the test split, on which nothing is trained or selected.

Other modules open test images without scoring a run on them: `messages/beforehand.py` sees whether
they can be decoded, `findings/near_duplicates.py` compares them with the images of a draw, and
`app/panels.py` shows some of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from pipeline.data.base import Source, Split, notes_on, preparation_of
from pipeline.data.cache import shelf_of
from pipeline.data.image_set import ImageSet
from pipeline.data.inspection.overlap import Overlap
from pipeline.data.reading import read_images
from pipeline.errors import DataError, LineageError
from pipeline.model.backbones import Backbone
from pipeline.runs.command import Command
from pipeline.runs.findings.mistakes import Answers, by_class_text, log_mistakes
from pipeline.runs.findings.predictions import keep_predictions
from pipeline.runs.floor import Floor, floor_of
from pipeline.runs.lineage import check_places, other_than, settings_of
from pipeline.runs.session import Session
from pipeline.runs.stage_log import log_unreadable
from pipeline.settings.entry import EvaluateSettings
from pipeline.settings.run import Settings
from pipeline.signals.evidence import as_far_as_allowed
from pipeline.stats.metrics import Row, score_logits
from pipeline.system.progress import counted
from pipeline.system.provenance import typed
from pipeline.system.text import as_markdown, count_of, first_of, fixed
from pipeline.tracking import RunView, Tracking
from pipeline.tracking.keys import (
    KIND,
    NAME,
    NOTE,
    STAGE,
    TEST,
    TEST_AS_STORED,
    TEST_PRECISION,
    TEST_SHA256,
    stored_tag,
)
from pipeline.training.device import compute_copy, joined, run_segments
from pipeline.training.prefix.cache import PrefixCache

PIXELS_PER_BATCH = 256 * 64 * 64
SHOWN_CLASSES = 20
"""In the table of classes on the terminal."""


def evaluate_entry(command: Command, plan: EvaluateSettings) -> Row:
    """Entry point evaluate: score a run on the test split and add `test/acc`, ... to it.

    Raises:
        LineageError: not a finished stage run.
        DataError: the run's data has no test split, or another than the run was scored on.
    """
    run_id, say = plan.run_id, command.say
    tracking = Tracking.connect("evaluate", files=False)
    with tracking.explained():
        run = tracking.get(tracking.get(run_id).stage_run_id)
        tracking.follow(run)
        if other := other_than(run):
            raise LineageError(
                f"evaluate needs a finished stage run, run {run_id} is {other}: copy the id of a "
                "stage run from the MLflow UI"
            )
        settings = command.request.settings(settings_of(run), run.run_id)
        check_places(settings, run)
        session = Session.open(settings, tracking, say)
        session.check_images(run)
        images = read_test_split(session.source, settings, say)
        _check_test(run, images.fingerprint(), session)
        backbone = session.restore(run)
        with tracking.run(f"evaluate · {run.name}", {KIND: "evaluate"}, target=True) as log:
            answers = _answers(session, run, images, backbone)
            logits = answers.logits
            scores = score_logits(logits, images.labels)
            overlap = Overlap.of(images, session.source).after([session.draw])
            title = f"{scores['acc']:.1%} on test images · {run.name}"
            told = f"{scores['acc']:.1%} of {count_of(len(images), 'test image')} recognised"
            of = f"By run `{run.run_id}`: {as_markdown(run.name)}."
            log.tags({"evaluated_run_id": run.run_id, NAME: title, NOTE: f"**{told}.**\n\n{of}"})
            counts = overlap.counts.metrics
            floor = floor_of(session, images)
            log.metrics({**_named(scores), **counts, **(floor.metrics if floor else {})})
            with as_far_as_allowed(tracking.get(log.run_id), say):
                log_unreadable(log, images.unreadable)
                log_mistakes(log, answers, say, settings.data)
    measured = scored_on(images.fingerprint(), session.precision)
    with as_far_as_allowed(run, say):
        keep_predictions(tracking, run, logits, images, session.draw.class_names)
    keep_scores(tracking, run, scores, measured, counts)
    session.cache.tell_notes(say)
    for line in _told(run.name, scores, answers, overlap, floor):
        say(line)
    say(tracking.how_to_browse)
    return scores


def _told(
    name: str, scores: Row, answers: Answers, overlap: Overlap, floor: Floor | None
) -> Iterator[str]:
    """What is printed of a run's answers about the test images."""
    others = "".join(f", {n} {v:.4f}" for n, v in scores.items() if n not in ("acc", "loss"))
    result = f"test accuracy {scores['acc']:.2%}, loss {fixed(scores['loss'], 4)}{others}"
    yield f"{name}: {result} on {count_of(len(answers.images), 'image')}"
    if floor:
        yield floor.sentence
        todo = f"more epochs or another rate come first (-P epochs=, -P lr=, or `{typed('tune')}`)"
        if ahead := floor.ahead_of({"this run": scores["acc"]}, "the test images", todo):
            yield ahead
    yield by_class_text(answers, SHOWN_CLASSES)
    if missing := overlap.counts.missing:
        yield f"note: no test image is of class {first_of(missing)}: the accuracy leaves them out"
    if overlap.copies.any():
        yield _without_copies(overlap, answers.logits)


def _answers(session: Session, run: RunView, images: ImageSet, backbone: Backbone) -> Answers:
    """What a finished stage run, restored to `backbone`, answers about test images."""
    prefix = backbone.frozen_segments(session.settings.stage(run.number(STAGE)).trainable)
    logits = logits_of(session, backbone, images, prefix)
    names = session.draw.class_names
    return Answers(images=images, logits=logits, class_names=names, part="test")


def _check_test(run: RunView, digest: str, session: Session) -> None:
    """Refuse to score a run on other test images than before.

    A run that was never scored knows only the digest of the test files: other files, which may
    hold the same pixels, are a note.

    Raises:
        DataError: the run was scored on other images.
    """
    before, stored = run.tags.get(TEST_SHA256, "unknown"), run.tags.get(TEST_AS_STORED)
    data = session.settings.data
    if before not in (digest, "unknown"):
        raise DataError(
            f"the test images of data={data} are not those that test/acc of run {run.run_id} was "
            "measured on (their SHA-256 differ): restore them, or pass -P data=<where they are "
            f"now>; to score others, delete the run's tag "
            f"{stored_tag(TEST_SHA256)} in the MLflow UI first"
        )
    if before == "unknown" and stored and stored != session.test_as_stored:
        session.say(
            f"note: the files of the test images of data={data} are not those that were there "
            f"when run {run.run_id} was trained: see that these are the images that you mean"
        )


def _without_copies(overlap: Overlap, logits: torch.Tensor) -> str:
    """A note that counts the copies among the test images and scores the run without them."""
    counts, new = overlap.counts, torch.from_numpy(~overlap.copies)
    line = f"note: {counts.copied}, {counts.seen} of them this run trained or validated on"
    if not new.any():
        return f"{line}: the accuracy says nothing about unseen images: use other test images"
    left = score_logits(logits[new], overlap.test.labels[new])
    return (
        f"{line}: take them out of the test split; without them the accuracy is {left['acc']:.2%} "
        f"on {count_of(int(new.sum()), 'image')}"
    )


def scored_on(test_digest: str, precision: str) -> dict[str, str]:
    """The tags that name the images and the precision of a run's `test/acc`."""
    return {TEST_SHA256: test_digest, TEST_PRECISION: precision}


def keep_scores(
    tracking: Tracking,
    run: RunView,
    scores: Row,
    measured: Mapping[str, str],
    counts: Mapping[str, float],
) -> None:
    """Add scores to a run, with the tags `measured` that describe them.

    Tags that describe earlier scores are set to `unknown` before the new scores are written: a
    command that is stopped in between leaves no tag that describes other scores.

    `counts`: the metrics of `Counts`.
    """
    log = tracking.writing(run.run_id)
    if measured.keys() & run.tags.keys():
        log.tags(dict.fromkeys(measured, "unknown"))
    log.metrics({**_named(scores), **counts})
    log.tags(measured)


def _named(scores: Row) -> dict[str, float]:
    return {TEST[name]: value for name, value in scores.items()}


def test_split(source: Source, settings: Settings) -> Split:
    """The test split of a source.

    Raises:
        DataError: the source has no test split; the message says why, where that is known.
    """
    if source.test is None or not len(source.test.labels):
        why = "".join(f" ({note})" for note in source.notes if "test" in note)
        raise DataError(
            f"{settings.data} has no test split{why}: put folders `train` and `test` there, or "
            "files named test-*.parquet, or set images aside with -P test_per_class=<how many>"
        )
    return source.test


def read_test_split(source: Source, settings: Settings, say: Callable[[str], None]) -> ImageSet:
    """Every image of a source's test split; a note counts the images that are left out.

    Raises:
        DataError: no test split, or images that cannot be read.
    """
    test = test_split(source, settings)
    rows = np.arange(len(test.labels))
    images = read_images(
        test,
        rows,
        settings.image_size,
        preparation_of(settings),
        skip_unreadable=settings.skip_unreadable,
        shelf=shelf_of(settings),
    )
    for note in notes_on(images.unreadable, images.doubts):
        say(f"note: test split: {note}")
    if not len(images):
        raise DataError(f"{settings.data}: no image of the test split can be read: replace them")
    return images


def logits_of(session: Session, backbone: Backbone, images: ImageSet, prefix: int) -> torch.Tensor:
    """`predict` with a session's device, precision and cache."""
    return predict(
        backbone, images, session.dtype, session.device, cache=session.cache, prefix=prefix
    )


@torch.no_grad()
def predict(
    backbone: Backbone,
    images: ImageSet,
    dtype: torch.dtype,
    device: torch.device,
    *,
    cache: PrefixCache | None = None,
    prefix: int = 0,
) -> torch.Tensor:
    """Logits of every image, float32, (N, classes); memory for one batch beside the images.

    Args:
        backbone: the model.
        images: what to predict.
        dtype: precision of the computation; the head computes in float32.
        device: where to compute.
        cache: keeps the outputs of `prefix`, so that models with the same prefix, in this command
            or in any other, compute them once.
        prefix: how many segments, from the first on, such models have in common.
    """
    features = (cache or PrefixCache(None, 0)).features(
        backbone, prefix, images, augment="none", views=1, dtype=dtype, device=device
    )
    segments = compute_copy(backbone.segments[prefix:], dtype, device, frozen=True)
    size = max(1, PIXELS_PER_BATCH // images.pixels.shape[-1] ** 2)
    batches = np.array_split(np.arange(len(images)), math.ceil(len(images) / size))
    logits = (
        run_segments(segments, features.batch(rows, np.zeros_like(rows)), dtype).float()
        for rows in counted(batches, "scoring", len(batches))
    )
    return joined(logits, len(images))
