"""The one place that reads the test split: a finished run's accuracy on unseen images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from pipeline.backbones import FORWARD_ORDER, Backbone
from pipeline.compute import compute_copy, run_blocks
from pipeline.config import load_settings
from pipeline.data.augment import normalise
from pipeline.data.draws import left_out, read_images
from pipeline.data.images import ImageSet
from pipeline.data.source import Source, Split
from pipeline.errors import DataError, LineageError
from pipeline.lineage import inherit
from pipeline.run_log import log_unreadable
from pipeline.session import Session, source_of
from pipeline.settings import Settings
from pipeline.tracking import RunView, Tracking
from pipeline.training import Scores, score_logits

PIXELS_PER_BATCH = 256 * 64 * 64
SUFFIX_BATCH = 500


def evaluate_entry(run_id: str, options: dict[str, str], say: Callable[[str], None]) -> Scores:
    """Entry point evaluate: score a run on the test split and add `test/loss`, `test/acc` to it.

    Raises:
        LineageError: not a finished stage run.
        DataError: the run's data has no test split.
    """
    tracking = Tracking.connect()
    with tracking.explained():
        run = tracking.get(run_id)
        if run.tags.get("kind") != "stage" or run.status != "FINISHED":
            raise LineageError(
                f"evaluate needs a finished stage run, run {run_id} is "
                f"{run.tags.get('kind', 'no stage run')}, {run.status}: copy the id of a stage "
                "run from the MLflow UI"
            )
        own = {**inherit(run), "precision": run.params["precision"]}
        settings = load_settings(options, inherited=own)
        images = read_test_split(source_of(settings), settings, say)
        session = Session.open(settings, tracking, say)
        session.check_images(run)
        with tracking.run(f"evaluate · {run.name}", {"kind": "evaluate"}, target=True) as log:
            backbone = session.restore(run)
            logits = predict(backbone, images, session.dtype, session.device)
            scores = score_logits(logits, images.labels)
            log.tags({"evaluated_run_id": run.run_id})
            log_unreadable(log, images.unreadable)
            log.metrics({"test/acc": scores.acc, "test/loss": scores.loss})
    keep_scores(tracking, run, scores, scored_on(images.fingerprint(), session.precision))
    result = f"test accuracy {scores.acc:.2%}, loss {scores.loss:.4f} on {len(images)} images"
    say(f"{run.name}: {result}")
    return scores


def scored_on(test_digest: str, precision: str) -> dict[str, str]:
    """The tags that say what a run's `test/acc` was measured on, and how."""
    return {"test_sha256": test_digest, "test_precision": precision}


def keep_scores(
    tracking: Tracking, run: RunView, scores: Scores, measured: Mapping[str, str]
) -> None:
    """Add a run's scores to it; its tags speak of no others at any time, even if this stops."""
    if measured.keys() & run.tags.keys():
        tracking.add_tags(run.run_id, dict.fromkeys(measured, "unknown"))
    tracking.add_metrics(run.run_id, {"test/acc": scores.acc, "test/loss": scores.loss})
    tracking.add_tags(run.run_id, measured)


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
    if images.unreadable:
        say(f"note: test split: {left_out(images.unreadable)}")
    if not len(images):
        raise DataError(f"{settings.data}: no image of the test split can be read: replace them")
    return images


@dataclass
class Scorer:
    """Scores models on the same images; those that share a frozen prefix share its outputs.

    Attributes:
        prefix: blocks that the models to come have in common, in forward order.
    """

    images: ImageSet
    prefix: tuple[str, ...]
    known: dict[str, torch.Tensor] = field(default_factory=dict)
    outputs: torch.Tensor | None = None

    @torch.no_grad()
    def score(self, backbone: Backbone, dtype: torch.dtype, device: torch.device) -> Scores:
        """Loss and accuracy of a model on all images."""
        if not self.prefix:
            return score_logits(predict(backbone, self.images, dtype, device), self.images.labels)
        state = backbone.model.state_dict()
        tensors = {name: state[name] for name in backbone.tensor_names(self.prefix)}
        same = self.known.keys() == tensors.keys() and all(
            torch.equal(tensor, self.known[name]) for name, tensor in tensors.items()
        )
        if self.outputs is None or not same:
            blocks = compute_copy(backbone, self.prefix, dtype, device)
            parts = [
                run_blocks(blocks, normalise(part.to(device)), dtype)
                for part in _batches(self.images)
            ]
            self.outputs = torch.cat(parts)
            self.known = {name: tensor.clone() for name, tensor in tensors.items()}
        suffix = tuple(block for block in FORWARD_ORDER if block not in self.prefix)
        blocks = compute_copy(backbone, suffix, dtype, device)
        logits = [
            run_blocks(blocks, x, dtype).float().cpu()
            for x in torch.split(self.outputs, SUFFIX_BATCH)
        ]
        return score_logits(torch.cat(logits), self.images.labels)


def _batches(images: ImageSet) -> Sequence[torch.Tensor]:
    size = max(1, PIXELS_PER_BATCH // images.pixels.shape[-1] ** 2)
    return torch.split(images.pixels, size)


@torch.no_grad()
def predict(
    backbone: Backbone, images: ImageSet, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Logits of every image, float32, (N, classes)."""
    blocks = compute_copy(backbone, FORWARD_ORDER, dtype, device)
    logits = [
        run_blocks(blocks, normalise(part.to(device)), dtype).float().cpu()
        for part in _batches(images)
    ]
    return torch.cat(logits)
