"""What a run predicts of the test images, one Parquet file a run.

In: logits of a finished run, and the images. Out: `evaluation/test_predictions.parquet` on the
run, a row an image: its digest, label, prediction and the probability of the prediction; and from
this file what the run answered, so that two runs can be compared image by image.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pipeline.data.image_set import ImageSet
from pipeline.errors import LineageError
from pipeline.tracking import RunView, Tracking

TEST_PREDICTIONS = "evaluation/test_predictions.parquet"
Correct = NDArray[np.bool_]
"""Which images are recognised, (N,), in their order."""
Predicted = NDArray[np.int64]
"""The class of each image that is predicted, (N,), in their order; -1: one that is no class."""


def keep_predictions(
    tracking: Tracking,
    run: RunView,
    logits: torch.Tensor,
    images: ImageSet,
    class_names: Sequence[str],
) -> None:
    """Add the predictions to a run; those of other test images are replaced."""
    predicted = logits.argmax(1)  # as scores have it: probabilities may be equal, or no numbers
    probability = logits.softmax(1).gather(1, predicted[:, None])[:, 0]
    names = np.array(class_names, dtype=object)
    table = pd.DataFrame(
        {
            "image_sha256": [row.tobytes().hex() for row in images.digests],
            "label": names[images.labels.numpy()],
            "predicted": names[predicted.numpy()],
            "probability": probability.numpy(),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(TEST_PREDICTIONS).name
        table.to_parquet(path, index=False)
        tracking.writing(run.run_id).file(path, str(Path(TEST_PREDICTIONS).parent))


def predicted_before(
    tracking: Tracking, run: RunView, images: ImageSet, class_names: Sequence[str]
) -> Predicted | None:
    """What a run answered about these images when it was scored; None where that is not known.

    Runs of earlier versions have no such file, and a run may have been scored on other images.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = tracking.fetch(run, TEST_PREDICTIONS, Path(folder))
            table = pd.read_parquet(path, columns=["image_sha256", "predicted"])
        except (LineageError, OSError, ValueError):
            return None
    if table["image_sha256"].tolist() != [row.tobytes().hex() for row in images.digests]:
        return None
    numbers = {name: number for number, name in enumerate(class_names)}
    return np.array([numbers.get(name, -1) for name in table["predicted"]], dtype=np.int64)
