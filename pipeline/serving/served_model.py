"""The model that MLflow serves: encoded images in, class names and probabilities out.

MLflow stores this file, `data/images.py` and a factory's source files beside the weights, and runs
them in an environment of their own: training and service prepare an image by the same code and
make the network by the same function. In: a column `image` with PNG, JPEG, ... bytes (base64
over HTTP). Out: a row an image: `label` and one column of probability for each class.
"""

from __future__ import annotations

import io
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image
from safetensors.torch import load_file

try:
    from pipeline.data.images import Preparation, to_rgb
except ImportError:  # in a server: images.py stands alone on the path
    from images import Preparation, to_rgb  # type: ignore[import-not-found, no-redef]


class ImageClassifier(PythonModel):  # type: ignore[misc, unused-ignore]
    """A classifier with its class names and preprocessing."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from the logged files."""
        self.about = json.loads(Path(context.artifacts["about"]).read_text(encoding="utf-8"))
        module, _, function = self.about["function"].partition(":")
        build = getattr(import_module(module), function)
        self.network = build(**self.about["arguments"])
        weights = load_file(context.artifacts["weights"])
        for name, tensor in self.network.state_dict().items():
            tensor.copy_(weights[name])
        self.network.eval()

    def predict(
        self,
        context: PythonModelContext | None,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Class name and probabilities of each image in column `image`."""
        size, names = self.about["image_size"], self.about["class_names"]
        ranges = self.about.get("ranges")
        prepared = Preparation(
            **{key: self.about[key] for key in ("interpolation", "crop", "mean", "std")}
        )
        images = []
        for row, content in enumerate(model_input["image"]):
            try:
                rgb = to_rgb(Image.open(io.BytesIO(content)), ranges)
                images.append(prepared.fit_square(rgb, size))
            except Exception as err:  # each format of Pillow raises its own
                raise ValueError(f"the image in row {row} cannot be read ({err})") from err
        if not images:
            return pd.DataFrame(columns=["label", *names])
        batch = prepared.normalise(torch.from_numpy(np.stack(images)))
        with torch.no_grad():
            probabilities = self.network(batch).softmax(1).numpy()
        table = pd.DataFrame(probabilities.astype(np.float64), columns=names)
        table.insert(0, "label", [names[i] for i in probabilities.argmax(1)])
        return table


set_model(ImageClassifier())
