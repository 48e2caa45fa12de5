"""The one place that reads the test split: a finished run's accuracy on unseen images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

from pipeline.data.base import Source, Split, notes_on, read_images
from pipeline.data.images import ImageSet
from pipeline.data.overlap import Overlap
from pipeline.errors import DataError, LineageError
from pipeline.model.backbones import FORWARD_ORDER, Backbone
from pipeline.runs.command import Command
from pipeline.runs.lineage import check_places, other_than, settings_of
from pipeline.runs.session import Session, source_and_weights, source_of
from pipeline.runs.stage_log import log_unreadable
from pipeline.settings.entry import EvaluateSettings
from pipeline.settings.run import Settings
from pipeline.stats.metrics import Row, score_logits
from pipeline.system.text import first_of
from pipeline.tracking import RunView, Tracking
from pipeline.tracking.keys import TEST, TEST_AS_STORED
from pipeline.training.device import compute_copy, run_blocks
from pipeline.training.prefix_cache import PrefixCache

TEST_SHA256 = "test_sha256"
PIXELS_PER_BATCH = 256 * 64 * 64


def evaluate_entry(command: Command, plan: EvaluateSettings) -> Row:
    """Entry point evaluate: score a run on the test split and add `test/acc`, ... to it.

    Raises:
        LineageError: not a finished stage run.
        DataError: the run's data has no test split, or another than the run was scored on.
    """
    run_id, say = plan.run_id, command.say
    tracking = Tracking.connect(with_artifacts=False)
    with tracking.explained():
        run = tracking.get(run_id)
        if other := other_than(run):
            raise LineageError(
                f"evaluate needs a finished stage run, run {run_id} is {other}: copy the id of a "
                "stage run from the MLflow UI"
            )
        settings = command.request.settings(settings_of(run), run.run_id)
        check_places(settings, run)
        source, _ = source_and_weights(settings)  # their faults, before images are read
        session = Session.open(settings, tracking, say)
        session.check_images(run)
        images = read_test_split(source, settings, say)
        _check_test(run, images.fingerprint(), session)
        with tracking.run(f"evaluate · {run.name}", {"kind": "evaluate"}, target=True) as log:
            backbone = session.restore(run)
            prefix = settings.stage(run.number("stage")).prefix
            logits = logits_of(session, backbone, images, prefix)
            scores = score_logits(logits, images.labels)
            overlap = Overlap.of(images, source).after([session.draw])
            log.tags({"evaluated_run_id": run.run_id})
            log_unreadable(log, images.unreadable)
            counts = overlap.counts.metrics
            log.metrics({**_named(scores), **counts})
    measured = scored_on(images.fingerprint(), session.precision)
    keep_scores(tracking, run, scores, measured, counts)
    others = "".join(f", {n} {v:.4f}" for n, v in scores.items() if n not in ("acc", "loss"))
    result = f"test accuracy {scores['acc']:.2%}, loss {scores['loss']:.4f}{others}"
    say(f"{run.name}: {result} on {len(images)} images")
    if missing := overlap.counts.missing:
        say(f"note: no test image is of class {first_of(missing)}: the accuracy leaves them out")
    if overlap.either.any():
        say(_without_copies(overlap, logits))
    return scores


def _check_test(run: RunView, digest: str, session: Session) -> None:
    """Refuse to score a run on other test images than before.

    Before a first evaluation only the files are known: other files, perhaps of the same pixels,
    are a note.

    Raises:
        DataError: the images differ.
    """
    before, stored = run.tags.get(TEST_SHA256, "unknown"), run.tags.get(TEST_AS_STORED)
    data = session.settings.data
    if before not in (digest, "unknown"):
        raise DataError(
            f"the test images of data={data} are not those that test/acc of run {run.run_id} was "
            "measured on (their SHA-256 differ): restore them, or pass -P data=<where they are "
            f"now>; to score others, delete the run's tag {TEST_SHA256} in the MLflow UI first"
        )
    if before == "unknown" and stored and stored != session.test_as_stored:
        session.say(
            f"note: the files of the test images of data={data} are not those that were there "
            f"when run {run.run_id} was trained: see that these are the images that you mean"
        )


def _without_copies(overlap: Overlap, logits: torch.Tensor) -> str:
    """What the copies among the test images are, and what the accuracy is without them."""
    counts, new = overlap.counts, torch.from_numpy(~overlap.either)
    line = f"note: {counts.copied}, {counts.seen} of them this run trained or validated on"
    if not new.any():
        return f"{line}: the accuracy says nothing about unseen images: use other test images"
    left = score_logits(logits[new], overlap.test.labels[new])
    return (
        f"{line}: take them out of the test split; without them the accuracy is {left['acc']:.2%} "
        f"on {int(new.sum())} images"
    )


def scored_on(test_digest: str, precision: str) -> dict[str, str]:
    """The tags that say what a run's `test/acc` was measured on, and how."""
    return {TEST_SHA256: test_digest, "test_precision": precision}


def keep_scores(
    tracking: Tracking,
    run: RunView,
    scores: Row,
    measured: Mapping[str, str],
    counts: Mapping[str, float],
) -> None:
    """Add scores to a run; its tags are `unknown` until the scores are those that they describe.

    `counts`: how many of the test images are no new ones.
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
        DataError: there is none; says what is known of why.
    """
    if source.test is None or not len(source.test.labels):
        why = "".join(f" ({note})" for note in source.notes if "test" in note)
        raise DataError(
            f"{settings.data} has no test split{why}: put folders `train` and `test` there, or "
            "files named test-*.parquet, or set images aside with -P test_per_class=<how many>"
        )
    return source.test


def test_images(settings: Settings) -> ImageSet:
    """Every image of the test split; see `read_test_split`."""
    return read_test_split(source_of(settings), settings, lambda _: None)


def read_test_split(source: Source, settings: Settings, say: Callable[[str], None]) -> ImageSet:
    """Every image of a source's test split; says which are left out.

    Raises:
        DataError: there is none, or images cannot be read.
    """
    test = test_split(source, settings)
    rows = np.arange(len(test.labels))
    images = read_images(test, rows, settings.image_size, skip_unreadable=settings.skip_unreadable)
    for note in notes_on(images.unreadable, images.doubts):
        say(f"note: test split: {note}")
    if not len(images):
        raise DataError(f"{settings.data}: no image of the test split can be read: replace them")
    return images


def logits_of(
    session: Session, backbone: Backbone, images: ImageSet, prefix: tuple[str, ...]
) -> torch.Tensor:
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
    prefix: tuple[str, ...] = (),
) -> torch.Tensor:
    """Logits of every image, float32, (N, classes); memory for one batch beside the images.

    Args:
        backbone: the model.
        images: what to predict.
        dtype: precision of the computation; the head computes in float32.
        device: where to compute.
        cache: keeps the outputs of `prefix`, so that models with the same prefix, in this command
            or in any other, compute them once.
        prefix: the blocks, in forward order, that such models have in common.
    """
    features = (cache or PrefixCache(None, 0)).features(
        backbone, prefix, images, augment="none", views=1, dtype=dtype, device=device
    )
    suffix = FORWARD_ORDER[len(prefix) :]
    blocks = compute_copy(backbone, suffix, dtype, device)
    size = max(1, PIXELS_PER_BATCH // images.pixels.shape[-1] ** 2)
    batches = np.array_split(np.arange(len(images)), math.ceil(len(images) / size))
    logits = [
        run_blocks(blocks, features.batch(rows, np.zeros_like(rows)), dtype).float().cpu()
        for rows in batches
    ]
    return torch.cat(logits)
