"""The one place that reads the test split: a finished run's accuracy on unseen images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pipeline.backbones import FORWARD_ORDER, Backbone
from pipeline.compute import compute_copy, run_blocks
from pipeline.config import load_settings
from pipeline.data.augment import normalise
from pipeline.data.draws import read_images
from pipeline.data.images import ImageSet
from pipeline.data.sources import open_source
from pipeline.errors import DataError, LineageError
from pipeline.lineage import inherit
from pipeline.session import Session, cache_folder
from pipeline.tracking import Tracking
from pipeline.training import Scores, score_logits

PIXELS_PER_BATCH = 256 * 64 * 64


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
        settings = load_settings(options, inherited=inherit(run))
        test = open_source(settings.data, cache_folder(settings)).test
        if test is None:
            raise DataError(
                f"{settings.data} has no test split: put folders `train` and `test` there, or "
                "files named test-*.parquet"
            )
        session = Session.open(settings, tracking, say)
        with tracking.run(f"evaluate · {run.name}", {"kind": "evaluate"}, target=True) as log:
            backbone = session.restore(run)
            images = read_images(test, np.arange(len(test.labels)), settings.image_size)
            logits = predict(backbone, images, session.dtype, session.device)
            scores = score_logits(logits, images.labels)
            log.tags({"evaluated_run_id": run.run_id})
            log.metrics({"test/acc": scores.acc, "test/loss": scores.loss})
    tracking.add_metrics(run.run_id, {"test/acc": scores.acc, "test/loss": scores.loss})
    result = f"test accuracy {scores.acc:.2%}, loss {scores.loss:.4f} on {len(images)} images"
    say(f"{run.name}: {result}")
    return scores


@torch.no_grad()
def predict(
    backbone: Backbone, images: ImageSet, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Logits of every image, float32, (N, classes)."""
    blocks = compute_copy(backbone, FORWARD_ORDER, dtype, device)
    size = max(1, PIXELS_PER_BATCH // images.pixels.shape[-1] ** 2)
    parts = torch.split(images.pixels, size)
    return torch.cat(
        [run_blocks(blocks, normalise(p.to(device)), dtype).float().cpu() for p in parts]
    )
