"""A logged model, to be used from Python: pictures in, class names and probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.data.images import Preparation, Ranges
from pipeline.errors import DataError, LineageError, first_line
from pipeline.serving.served_model import ImageClassifier
from pipeline.tracking import Tracking
from pipeline.tracking.keys import MODEL_URI
from pipeline.tracking.registry import load_python_model

_PREPARED = ("interpolation", "crop", "mean", "std")


@dataclass(frozen=True)
class Classifier:
    """The model that a stage run logged, and that MLflow serves."""

    run_id: str
    served: ImageClassifier

    @classmethod
    def of_run(cls, tracking: Tracking, run_id: str) -> Classifier:
        """The model of a run.

        Raises:
            LineageError: no such run, or no model on it.
        """
        run = tracking.get(run_id)
        if MODEL_URI not in run.tags:
            raise LineageError(
                f"run {run_id} ({run.name}) logged no model: choose a finished stage run that was "
                "made with log_model=on"
            )
        return cls(run_id, load_python_model(run.tags[MODEL_URI]))

    @property
    def network(self) -> nn.Module:
        """The network, in evaluation mode: normalised images (N, 3, H, W) to logits (N, K)."""
        network: nn.Module = self.served.network
        return network

    @property
    def class_names(self) -> list[str]:
        """Class names in the order of the logits."""
        return list(self.served.about["class_names"])

    @property
    def image_size(self) -> int:
        """Pixels a side of what the network sees."""
        return int(self.served.about["image_size"])

    @property
    def ranges(self) -> Ranges | None:
        """From which values deep images are scaled: those of the training images."""
        found: Ranges | None = self.served.about.get("ranges")
        return found

    @property
    def preparation(self) -> Preparation:
        """How training prepared a picture; models of earlier versions had the usual way."""
        about = self.served.about
        return Preparation(**{key: about[key] for key in _PREPARED if key in about})

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """What the network sees of RGB pictures, uint8, (N, 3, S, S)."""
        prepared, size = self.preparation, self.image_size
        return torch.from_numpy(np.stack([prepared.fit_square(rgb, size) for rgb in pictures]))

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Probabilities of pixels, float32, (N, K)."""
        found: Tensor = self.network(self.preparation.normalise(pixels)).softmax(1)
        return found

    def predict(self, images: Sequence[str | Path | bytes] | str | Path | bytes) -> pd.DataFrame:
        """Column `label` and a column of probability for each class; a row an image.

        Args:
            images: paths, or the bytes of PNG, JPEG, ... files; a single one may stand alone.

        Raises:
            DataError: a file cannot be read; says which.
        """
        every = [images] if isinstance(images, str | Path | bytes) else images
        table = pd.DataFrame({"image": [*map(_content, every)]})
        columns = ["label", *self.class_names]
        try:
            found = self.served.predict(None, table)
        except (OSError, ValueError) as err:  # not one image; models of earlier versions: any
            raise DataError(f"{first_line(err)}: pass PNG, JPEG, ... images") from None
        for error in found.drop(columns=columns).stack().dropna():  # earlier models have no column
            raise DataError(f"{error}: pass PNG, JPEG, ... images")
        return found[columns]


def _content(image: str | Path | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as err:
        raise DataError(
            f"cannot read {image} ({err.strerror}): pass the path of an image"
        ) from None
